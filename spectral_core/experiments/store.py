"""All runs in one JSON-lines file that several processes may append to, and that survives being killed."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

__all__ = ["append", "describe_machine", "read", "versions"]

PACKAGES = ("torch", "timm", "transformers", "torchvision", "pycocotools", "accelerate", "numpy")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines, in order; a last line that was cut off is left out.

    Raises:
        ValueError: another line that is not a record.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "task" not in record:
                raise ValueError("no record of a run")
        except ValueError as error:
            if number >= len(lines) - 1:  # nothing or an empty end follows: it was being written
                continue
            raise ValueError(f"{path}, line {number}: expected a run as JSON, got {line[:60]!r} ({error})") from error
        records.append(record)
    return records


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one line, whole or not at all.

    Raises:
        OSError: it could not be written (a full disk); the file is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.seek(0, os.SEEK_END)
        try:
            if before and not _ends_with_newline(path):
                line = "\n" + line  # another process was killed while it wrote
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            os.ftruncate(file.fileno(), before)
            said = f"expected to add a run to {path}, got {error.strerror}; it is unchanged"
            raise OSError(error.errno, said) from error


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def versions() -> dict[str, str]:
    """Of the packages that matter, where they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """What a run was made on."""
    accelerator = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {"device": accelerator, "processor": _processor(), "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(), "python": platform.python_version()}  # fmt: skip


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
