"""Checkpoints on disk as names, shapes and one tensor at a time; no model is built and no whole file is read.

What cannot be read of a checkpoint is kept as a problem of that tensor; the rest stays readable.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spectral_core.audit.locations import files_of, in_package, nothing_at
from spectral_core.audit.reading import AuditError, Stored, is_there, read_json, read_names, read_tensor

__all__ = ["AuditError", "Checkpoint", "open_checkpoint", "printable"]

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's classes of what moves the cursor or turns the text around


@dataclass(frozen=True)
class Checkpoint:
    """Names and shapes of all tensors, the configuration beside them, and what is wrong with the files.

    Attributes:
        target: as the user named it.
        tensors: in natural order of their names ("layer.2" before "layer.10").
        config: of `config.json`, or None where there is none.
        problems: of files, one sentence each; notes: what was left aside.
        folder: where a tokenizer would be.
    """

    target: str
    tensors: Mapping[str, Stored]
    config: dict[str, Any] | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def read(self, name: str) -> Tensor:
        """The tensor of that name, on the CPU, in its stored dtype.

        Raises:
            AuditError: it cannot be read; says why.
        """
        stored = self.tensors[name]
        if stored.problem or (stored.file is None and stored.value is None):
            raise AuditError(stored.problem or "not in the checkpoint")
        if stored.value is not None:
            return stored.value
        assert stored.file is not None
        return read_tensor(stored.file, name)


def printable(text: str) -> str:
    r"""Text from a file as it can be shown: control, direction and half characters as escapes.

    >>> print(printable("a\x1b[2J\n\u202e"))
    a\x1b[2J\n\u202e
    """
    hidden = {c for c in text if unicodedata.category(c) in HIDDEN}
    return text.translate({ord(c): c.encode("unicode-escape").decode() for c in hidden})


def open_checkpoint(target: str | Path, *, allow_pickle: bool = False) -> Checkpoint:
    """The checkpoint that `target` names: a file, a folder, or `package:NAME` for one in an installed package.

    A folder holds safetensors (with or without an index) and maybe `config.json`, as Hugging Face writes them; a file
    is read together with the `config.json` beside it.

    Raises:
        AuditError: nothing is there, or nothing that can be read safely.
    """
    named = str(target)
    is_package = named.startswith("package:")
    path = in_package(named.removeprefix("package:")) if is_package else Path(os.path.expanduser(named))
    if is_there(path, "dir"):
        index, files, problems, notes = files_of(path, allow_pickle)
        folder = path
    elif is_there(path, "file"):
        index, files, problems, notes, folder = {}, [path], [], [], path.parent
    else:
        raise AuditError(nothing_at(path, named))
    tensors: dict[str, Stored] = {}
    for file in files:
        try:
            found = read_names(file, allow_pickle)
        except AuditError as error:
            if len(files) == 1 and not index:
                raise
            problems.append(str(error))
            continue
        tensors |= {name: stored for name, stored in found.items() if index.get(name, file) == file}
    broken = {file: next((p for p in problems if p.startswith(f"{file.name[:100]}:")), "") for file in index.values()}
    for name, file in index.items():
        why = broken[file] or f"{file.name}: holds no tensor of this name, although the index says so"
        tensors.setdefault(name, Stored(problem=why))
    if not tensors:
        raise AuditError(f"{named}: expected a checkpoint with tensors, got one with none")
    config, wrong = _read_config(folder)
    ordered = {name: tensors[name] for name in sorted(tensors, key=_natural)}
    return Checkpoint(named, ordered, config, (*problems, *wrong), tuple(notes), folder)


def _read_config(folder: Path) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    path = folder / "config.json"
    if not path.exists():
        return None, ()
    try:
        config = read_json(path)
    except AuditError as error:
        return None, (str(error),)
    if not isinstance(config, dict):
        return None, (f"config.json: expected settings by name, got {type(config).__name__}",)
    return config, ()


def _natural(name: str) -> list[tuple[int, int, str]]:
    """For sorting: digits by their value."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(1, int(part), "") if i % 2 else (0, 0, part) for i, part in enumerate(parts)]
