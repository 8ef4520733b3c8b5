"""Names, shapes and tensors of one file.

Safetensors are read through their own library, which maps the file and touches only what is asked for. Pickled
checkpoints are programs: they are read only when the caller allows it, and then by `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["AuditError", "Stored", "is_there", "one_line", "read_json", "read_names", "read_tensor", "why_no_pickle"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model")  # training scripts keep the weights under one of these


class AuditError(ValueError):
    """A target, or a tensor of it, that cannot be audited; the message says what to do."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: where it is, or why it cannot be read."""

    shape: tuple[int, ...] | None = None  # None: unknown, because its file is missing or damaged
    dtype: str = ""
    file: Path | None = None
    value: Tensor | None = field(default=None, repr=False, compare=False)  # of a pickled checkpoint
    problem: str = ""


def one_line(error: BaseException) -> str:
    """What an error says, or its kind, short enough for a row."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def is_there(path: Path, kind: str) -> bool:
    """Whether a "file" or a "dir" is there, under any name."""
    try:
        return path.is_dir() if kind == "dir" else path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a null
        return False


def read_names(file: Path, allow_pickle: bool) -> dict[str, Stored]:
    """{name: shape, type and place} of the tensors in a file.

    Raises:
        AuditError: it is missing, damaged, of another kind, or a pickle that was not allowed.
    """
    if not is_there(file, "file"):
        raise AuditError(f"{file.name[:100]}: named by the index, but missing from the folder")
    if file.suffix in PICKLES:
        if not allow_pickle:
            raise AuditError(why_no_pickle(file.name))
        return _unpickle(file)
    if file.suffix != ".safetensors":
        raise AuditError(f"{file.name}: expected a .safetensors file, got the ending {file.suffix or 'none'!r}")
    with _safetensors(file) as opened:
        slices = ((name, opened.get_slice(name)) for name in opened.keys())  # noqa: SIM118 (not a mapping)
        return {name: Stored(tuple(s.get_shape()), s.get_dtype(), file) for name, s in slices}


@contextmanager
def _safetensors(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError

    try:
        state = file.stat()
        yield _opened(file, state.st_mtime_ns, state.st_size)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise AuditError(
            f"{file.name}: expected a whole safetensors file, got one of {_size(file)} that cannot be read "
            f"({str(error).splitlines()[0]}); download or save it again"
        ) from error


@lru_cache(maxsize=1)
def _opened(file: Path, changed: int, size: int) -> Any:
    """A file that is read again and again, opened once; its header may be long."""
    from safetensors import safe_open

    return safe_open(file, framework="pt", device="cpu")


def why_no_pickle(what: str) -> str:
    """The reason for --allow-pickle, in a sentence that begins with what was met."""
    return (
        f"{what}: expected safetensors, got a pickled checkpoint, which can run any program when it is loaded. If you "
        "trust its source, pass --allow-pickle (it is then read by torch.load(weights_only=True)); better, save it as "
        "safetensors"
    )


def _unpickle(file: Path) -> dict[str, Stored]:
    try:
        data = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:  # an unpickler meets anything
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise AuditError(
            f"{file.name}: expected a state dict that torch.load(weights_only=True) reads, got: {reason}"
        ) from error
    for key in WRAPPERS:
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    named = data.items() if isinstance(data, Mapping) else ()
    tensors = {name: t for name, t in named if isinstance(name, str) and isinstance(t, Tensor)}
    return {name: _from_pickle(t, file) for name, t in tensors.items()}


def _from_pickle(t: Tensor, file: Path) -> Stored:
    """A tensor as it was pickled, if it is a plain one."""
    dtype = str(t.dtype).removeprefix("torch.")
    if t.is_nested or t.layout is not torch.strided or t.device.type != "cpu":
        kind = "nested" if t.is_nested else f"{t.layout}, on {t.device}".removeprefix("torch.")
        return Stored(None, dtype, file, problem=f"expected a dense tensor, got another kind ({kind})")
    if t.untyped_storage().nbytes() < t.numel() * t.element_size():
        return Stored(tuple(t.shape), dtype, file, problem="expected a tensor of its own, got one number repeated")
    return Stored(tuple(t.shape), dtype, file, t)


def _is_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"PK"


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        AuditError: it cannot be read, or is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AuditError(f"{path.name}: expected JSON, got a file that cannot be read as such ({error})") from error


def read_tensor(file: Path, name: str) -> Tensor:
    """One tensor of a safetensors file."""
    with _safetensors(file) as opened:
        return opened.get_tensor(name)


def _size(file: Path) -> str:
    return f"{file.stat().st_size:,} bytes" if file.is_file() else "no bytes"
