"""What follows from the lessons: glossary.md from their terms, results/course.md and course.png from their builds."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from pairs import HERE, ROOT, read_source, sources

GLOSSARY, TIMES, PICTURE = "glossary.md", ROOT / "results" / "course.md", ROOT / "results" / "course.png"
COURSE_SECONDS = 480  # the whole course, on two cores


@dataclass(frozen=True)
class Build:
    """What one build of a lesson took: seconds, those of its slowest cell, MB at the peak, kB of the notebook."""

    stem: str
    seconds: float
    slowest: float
    megabytes: int
    kilobytes: float


def title(path: Path) -> str:
    """The heading of a lesson, "1. Condition numbers: …"."""
    return read_source(path).cells[0].source.splitlines()[0].removeprefix("# ")


def terms(path: Path) -> dict[str, str]:
    """The terms that a lesson explains in its recap, with their explanations."""
    text = "\n".join(cell.source for cell in read_source(path).cells if cell.cell_type == "markdown")
    listed = text.partition("**Terms.**")[2].partition("\n\n")[0]
    found = re.split(r"(?:^|\s)\*([^*]+)\*: ", " ".join(listed.split()))[1:]
    return dict(zip(found[::2], (said.strip() for said in found[1::2]), strict=True))


def glossary(folder: Path = HERE) -> str:
    """The page of all terms, in alphabetical order, each with the lesson that explains it."""
    lines = {}
    for path in sources(folder):
        for term, said in terms(path).items():
            lines.setdefault(term.lower(), f"* **{term}** ([lesson {int(path.stem[:2])}]({path.stem}.ipynb)): {said}")
    head = "# Glossary\n\nGenerated from the lessons by `make notebooks`. Symbols: [notation](notation.md).\n\n"
    return head + "\n".join(lines[key] for key in sorted(lines, key=_sort_key)) + "\n"


def course(builds: Sequence[Build]) -> list[Build]:
    """All lessons of which anything is known, in order: lessons that were not built now keep their row."""
    known = {b.stem: b for b in [*recorded(), *builds]}
    return [known[path.stem] for path in sources() if path.stem in known]


def times(builds: Sequence[Build], machine: str) -> str:
    """The table of what every lesson takes."""
    builds = course(builds)
    rows = [
        f"| [{title(HERE / f'{b.stem}.py')}](../notebooks/{b.stem}.ipynb) | {b.seconds:.0f} | {b.slowest:.1f} | "
        f"{b.megabytes} | {b.kilobytes:.0f} |"
        for b in builds
    ]
    total = sum(b.seconds for b in builds)
    return (
        "# What the lessons take\n\n"
        f"`make notebooks`: {machine}. Each lesson is executed from its first cell to its last in a fresh kernel, "
        "widgets driven, exercises skipped.\n\n"
        "| lesson | s | slowest cell, s | peak MB | file, kB |\n| --- | ---: | ---: | ---: | ---: |\n"
        + "\n".join(rows)
        + f"\n| all | {total:.0f} | {max(b.slowest for b in builds):.1f} | {max(b.megabytes for b in builds)} | "
        f"{sum(b.kilobytes for b in builds):.0f} |\n"
    )


def recorded() -> list[Build]:
    """The rows of the table as it is."""
    text = TIMES.read_text(encoding="utf-8") if TIMES.exists() else ""
    found = re.findall(r"/(\w+)\.ipynb\) \| (\d+) \| ([\d.]+) \| (\d+) \| (\d+) \|", text)
    return [Build(stem, float(s), float(slow), int(mb), float(kb)) for stem, s, slow, mb, kb in found]


def first_picture(folder: Path = HERE) -> bytes:
    """The first figure of the first lesson: the whole story, which the README shows too."""
    notebook = nbformat.read(sources(folder)[0].with_suffix(".ipynb"), as_version=4)
    shown = (output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    return base64.b64decode(next(data["image/png"] for data in shown if "image/png" in data))


def _sort_key(term: str) -> str:
    return re.sub(r"^\W+", "", term)
