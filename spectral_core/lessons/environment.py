"""`env_check()`: one line for Python and one for every package of the course, against pyproject's lower bounds."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from html import escape
from importlib import metadata

from spectral_core.lessons.display import Shown

__all__ = ["EnvReport", "device", "env_check"]

DISTRIBUTION = "spectral-core"
CURE = "pip install 'spectral-core[course]'"


@dataclass(frozen=True, repr=False)
class EnvReport(Shown):
    """The lines of the check; `ok` says whether all are [OK]."""

    lines: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is missing or too old."""
        return all(line.startswith("[OK]") for line in self.lines)

    def text(self) -> str:
        """The lines, and what to do when one failed."""
        return "\n".join([*self.lines, *([] if self.ok else [f"Repair with: {CURE}"])])

    def html(self) -> str:
        """As `text`, in a fixed-width block."""
        return f"<pre>{escape(self.text())}</pre>"


def device() -> str:
    """Where the lessons train: "cuda" when PyTorch sees a GPU, else "cpu". The only place that decides it."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def env_check() -> EnvReport:
    """Compare Python and the packages of the core and the `course` extra with what the package asks for."""
    python = metadata.metadata(DISTRIBUTION)["Requires-Python"].removeprefix(">=")
    lines = [
        _line("python", platform.python_version(), python),
        _line(DISTRIBUTION, metadata.version(DISTRIBUTION), "0"),
        *(_line(name, _installed(name), least) for name, least in _required()),
        f"[OK]   {'cores':<14} {os.cpu_count()}",
    ]
    return EnvReport(tuple(lines))


def _required() -> list[tuple[str, str]]:
    """(name, lower bound) of the core's and the course's requirements, as the installed package states them."""
    out = []
    for text in metadata.requires(DISTRIBUTION) or []:
        if "extra ==" in text and not re.search(r"""extra == ['"]course['"]""", text):
            continue
        match = re.match(r"([\w.-]+)[^;]*?>=([\d.]+)", text)
        if match:
            out.append((match[1], match[2]))
    return out


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _line(name: str, version: str | None, least: str) -> str:
    if version is None:
        return f"[FAIL] {name:<14} missing, {least} or newer is needed"
    if _numbers(version) < _numbers(least):
        return f"[FAIL] {name:<14} {version}, {least} or newer is needed"
    return f"[OK]   {name:<14} {version}"


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version, "2.13.0+cpu" -> (2, 13, 0); what follows them does not count."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
