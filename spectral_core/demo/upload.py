"""Is an uploaded file safetensors? Looked at by its bytes, before any library reads it; and removed afterwards."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from contextlib import suppress
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from spectral_core.audit.store import printable

__all__ = ["LIMIT", "UploadError", "check_upload", "claim_upload", "remove_upload", "shown_name"]

LIMIT = 300_000_000  # bytes of a file
HEADER = 10_000_000  # bytes of its header
MOST_TENSORS = 20_000
LARGEST = 2**63  # bits of a tensor; what counts them in 64 bits would overflow
#: bits of one entry, by the names of the format
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
HOW = "save the weights with safetensors.torch.save_file"
PICKLE = "a pickle can run code when it is read"
#: what other files begin with, and what to say of them
KINDS = (
    (rb"PK(\x03\x04|\x05\x06|\x07\x08)", f"a zip archive, as torch.save writes it around a pickle; {PICKLE}; {HOW}"),
    (rb"\x80[\x00-\x05]|\((dp|lp|i)|[\]}]q|c[a-z_][\w.]*\n", f"a pickle; {PICKLE}; {HOW}"),
    (rb"\x1f\x8b", f"a gzip archive; unpack it first, and if it holds no safetensors, {HOW}"),
    (rb"GGUF|GGML|ggml", f"a GGUF file, whose weights are quantised; {HOW} from the original model"),
    (rb"\x89HDF", f"an HDF5 file; read it with its own library, then {HOW}"),
    (rb"version https://git-lfs", "a Git LFS pointer instead of the weights; fetch them with git lfs pull"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|!--|html|head|\?xml)",
     "a web page (HTML); download the file itself, not the page about it"),
)  # fmt: skip


class UploadError(ValueError):
    """A file that is not audited; the message says what was expected, what came, and what to do."""


def shown_name(path: str | Path) -> str:
    """The last part of a name, printable and of at most 100 characters."""
    return printable(str(path).replace("\\", "/").rpartition("/")[2][:1000])[:100] or "the file"


def check_upload(path: str | Path, name: str = "") -> None:
    """Look at the size, the kind and the header of a file; none of its tensors is read.

    Args:
        path: of the file.
        name: as its visitor calls it; never used as a path.

    Raises:
        UploadError: it was not uploaded here, or is not a whole safetensors file of at most `LIMIT` bytes.
    """
    path, shown = Path(path), shown_name(name or path)
    if not _is_stored_by_gradio(path):
        raise UploadError(f"{shown}: expected a file that was uploaded here, got another one; upload it")
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise UploadError(f"{shown}: expected a plain file, got a link or a folder; upload the file itself")
        if path.suffix != ".safetensors":
            ending = printable(path.suffix)[:30] or "none"
            raise UploadError(f"{shown}: expected the ending .safetensors, got {ending!r}; {HOW}")
        if status.st_size > LIMIT:
            raise UploadError(
                f"{shown}: expected at most {LIMIT // 10**6} MB, got {status.st_size / 1e6:,.0f} MB; audit it where it "
                "is, with the command line `spectral-core audit FILE`"
            )
        with path.open("rb") as stream:
            length = _check_start(stream.read(64), status.st_size, shown)
            stream.seek(8)
            header = stream.read(length)
    except OSError:
        raise UploadError(f"{shown}: expected a file that can be read, got none; upload it again") from None
    try:
        _check_header(header, status.st_size - 8 - length, shown)
    except RecursionError:  # as it is read, or as it is shown
        raise UploadError(f"{shown}: expected a flat header, got one too deeply nested; {HOW}") from None


def _check_start(start: bytes, size: int, shown: str) -> int:
    """The length of the header, if there is room for it."""
    if not start:
        raise UploadError(f"{shown}: expected a safetensors file, got an empty one; upload it again")
    length = int.from_bytes(start[:8], "little")
    # a header of 640 bytes begins as a pickle of protocol 2 does: 80 02
    if len(start) < 9 or length > HEADER or start[8:9] != b"{":
        for magic, kind in KINDS:
            if re.match(magic, start):
                raise UploadError(f"{shown}: expected safetensors, got {kind}")
    if len(start) < 9:
        raise UploadError(f"{shown}: expected a safetensors file, got {len(start)} bytes; upload it again")
    if length > HEADER:
        raise UploadError(
            f"{shown}: expected a header of at most {HEADER // 10**6} MB, got one that claims {length / 1e6:,.0f} MB; "
            f"the file is damaged or not safetensors: {HOW}"
        )
    if length > size - 8:
        raise UploadError(
            f"{shown}: expected a header of {length:,} bytes, got a file with {size - 8:,} after its length; it is cut "
            "off: upload it again"
        )
    return length


def _check_header(header: bytes, room: int, shown: str) -> None:
    """The tensors' types, shapes and places: all of the data, each byte once."""
    try:
        named = json.loads(header.decode(), object_pairs_hook=_unique)
    except ValueError as error:
        why = printable(str(error)[:100])
        raise UploadError(f"{shown}: expected a header in JSON, got something else ({why}); {HOW}") from None
    if not isinstance(named, dict):
        raise UploadError(f"{shown}: expected tensors by name in the header, got {type(named).__name__}; {HOW}")
    named.pop("__metadata__", None)
    if not 0 < len(named) <= MOST_TENSORS:
        raise UploadError(
            f"{shown}: expected 1 to {MOST_TENSORS:,} tensors, got {len(named):,}; audit larger files with the command "
            "line `spectral-core audit FILE`"
        )
    places = sorted(_place(name, tensor, shown) for name, tensor in named.items())
    for before, after in pairwise([(0, 0), *places]):
        if before[1] != after[0]:
            what = "that overlap" if before[1] > after[0] else "with a hole before them"
            raise UploadError(f"{shown}: expected tensors one after the other, got some {what}; {HOW}")
    if places[-1][1] != room:
        what = "cut off" if places[-1][1] > room else "longer than its tensors"
        raise UploadError(
            f"{shown}: expected {places[-1][1]:,} bytes of data, got {room:,}; it is {what}: upload it again"
        )


def _place(name: str, tensor: Any, shown: str) -> tuple[int, int]:
    called = f"{shown}: tensor {printable(name[:100])[:100]!r}"
    if not isinstance(tensor, dict) or set(tensor) != {"dtype", "shape", "data_offsets"}:
        raise UploadError(f"{called}: expected dtype, shape and data_offsets, got {_short(tensor)}; {HOW}")
    dtype, shape, offsets = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise UploadError(f"{called}: expected a dtype of the format, such as F32, got {_short(dtype)}; {HOW}")
    if not _are_sizes(shape) or len(shape) > 16 or prod(n or 1 for n in shape) * BITS[dtype] >= LARGEST:
        raise UploadError(f"{called}: expected a shape of whole numbers that fits a file, got {_short(shape)}; {HOW}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UploadError(f"{called}: expected two offsets, the smaller one first, got {_short(offsets)}; {HOW}")
    size = offsets[1] - offsets[0]
    if prod(shape) * BITS[dtype] != size * 8:
        wanted = f"{' × '.join(map(str, shape)) or 'one number'} of {dtype}"
        raise UploadError(f"{called}: expected as many bytes as {wanted} takes, got {size:,}; {HOW}")
    return offsets[0], offsets[1]


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < LARGEST for v in values)


def _short(value: Any) -> str:
    """How a value begins; it may have millions of numbers."""
    text = ""
    for part in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        text += part
        if len(text) > 60:
            break
    return printable(text[:60])[:60]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("the same name twice")
    return named


def claim_upload(path: str | Path) -> Path:
    """Move an upload to a folder of its own, and say where it is; what cannot be moved stays, for `check_upload`.

    Gradio stores equal files at one place: the visitor who is done first would remove the other's.
    """
    path = Path(path)
    with suppress(OSError, ValueError, RuntimeError):
        if _is_stored_by_gradio(path) and path.is_file():
            own = Path(tempfile.mkdtemp(dir=_root())) / path.name
            try:
                path.rename(own)
            except OSError:  # another visitor was faster
                own.parent.rmdir()
                return path
            if path.parent.resolve() != _root():
                with suppress(OSError):
                    path.parent.rmdir()
            return own
    return path


def remove_upload(path: str | Path) -> None:
    """Delete a file that Gradio stored, and its folder if that is empty; nothing outside of Gradio's own folder."""
    with suppress(OSError, ValueError, TypeError, RuntimeError):
        path = Path(path)
        if _is_stored_by_gradio(path):
            path.unlink()
            if path.parent.resolve() != _root():
                path.parent.rmdir()


def _is_stored_by_gradio(path: Path) -> bool:
    try:
        return path.name != ".." and _root() in (path.parent.resolve() / path.name).parents
    except (OSError, ValueError, RuntimeError):  # too long, a null, a loop of links
        return False


def _root() -> Path:
    """Where Gradio puts uploads."""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio").resolve()
