"""Build the lessons: NN_topic.py (jupytext py:percent, the only source) -> NN_topic.ipynb with outputs.

    python notebooks/build.py                     build every lesson, glossary.md and results/course.md
    python notebooks/build.py notebooks/01_*.py   build these, glossary.md, and their rows of results/course.md
    python notebooks/build.py --check             build nothing; exit 1 and name each file that is stale
    python notebooks/build.py --rewrite           execute nothing: write every notebook's cells again, keep outputs

The way is one-way (see pairs.py). Nothing that changes from run to run is kept: no timestamps, widget state or version
of kernel, language or jupytext. After --rewrite, `git diff --exit-code` tells whether a notebook was edited by hand.

The head of a lesson states limits, "Runs in under 20 s and 600 MB on two cores."; a build that does not keep them
fails and writes nothing. The whole course has a limit too, for which lessons that are not built now count as recorded.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient
from nbformat import NotebookNode
from pages import COURSE_SECONDS, GLOSSARY, PICTURE, TIMES, Build, course, first_picture, glossary, times
from pairs import HERE, disagreements, read_source, reassemble, sources, write
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

CELL_SECONDS, CELL_TIMEOUT = 15, 120  # what a cell may take; when a cell that hangs is given up
MAX_SECONDS, MAX_MEGABYTES, MAX_KILOBYTES = 60, 1500, 300  # no lesson may state or need more
LIMITS = re.compile(r"Runs in under (\d+) s and (\d+) MB")
WIDGET = "application/vnd.jupyter.widget-view+json"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# run in the lesson's kernel after its last cell: its peak memory in MB. On Linux VmHWM, not ru_maxrss: that one is
# inherited through fork and exec, so a large parent (a test runner) would be counted as the lesson's
PEAK = """
import resource, sys
from pathlib import Path
if (status := Path("/proc/self/status")).exists():
    print(int(status.read_text().split("VmHWM:")[1].split()[0]) // 1_000)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1_000_000 if sys.platform == "darwin" else 1_000))
"""


@dataclass(frozen=True)
class Limits:
    """What the head of a lesson promises."""

    seconds: int
    megabytes: int


class BuildError(Exception):
    """A lesson that cannot be built as it stands."""


def limits(notebook: NotebookNode) -> Limits:
    """The limits that the first cell states.

    Raises:
        BuildError: none stated, or more than any lesson may need.
    """
    match = LIMITS.search(notebook.cells[0].source)
    if not match:
        raise BuildError('expected "Runs in under N s and M MB" in the first cell')
    stated = Limits(int(match[1]), int(match[2]))
    if stated.seconds > MAX_SECONDS or stated.megabytes > MAX_MEGABYTES:
        raise BuildError(f"states {stated}: at most {MAX_SECONDS} s and {MAX_MEGABYTES} MB are allowed")
    return stated


def build(path: Path, progress: Progress) -> Build:
    """Execute one source and write its notebook; returns what that took.

    Raises:
        BuildError: a cell raised or took too long, or a limit was not kept; nothing is written then.
    """
    notebook = read_source(path)
    stated = limits(notebook)
    task = progress.add_task(path.stem, total=sum(cell.cell_type == "code" for cell in notebook.cells) + 1)
    taken: dict[int, float] = {}  # seconds by cell
    started = [0.0]

    def begin(cell: NotebookNode, cell_index: int) -> None:
        started[0] = time.perf_counter()

    def end(cell: NotebookNode, cell_index: int, execute_reply: dict) -> None:
        progress.advance(task)
        taken[cell_index] = time.perf_counter() - started[0]

    probe = nbformat.v4.new_code_cell(PEAK)
    notebook.cells.append(probe)
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}},
        record_timing=False, store_widget_state=False, on_cell_start=begin, on_cell_executed=end,
    )  # fmt: skip
    clock = time.perf_counter()
    try:
        client.execute()
    except Exception as error:  # what nbclient raises shows the cell and its traceback
        raise BuildError(ANSI.sub("", str(error))) from error
    seconds = time.perf_counter() - clock
    notebook.cells.pop()
    megabytes = int(probe.outputs[0].text)
    strip(notebook)
    text = write(notebook)
    size = len(text.encode()) / 1000
    slow = {cell: spent for cell, spent in taken.items() if spent > CELL_SECONDS}
    broken = [f"cell {cell} took {spent:.0f} s, more than {CELL_SECONDS} s" for cell, spent in slow.items()]
    if seconds > stated.seconds or megabytes > stated.megabytes:
        broken.append(f"took {seconds:.0f} s and {megabytes} MB, more than its head states: {stated}")
    if size > MAX_KILOBYTES:
        broken.append(f"the notebook has {size:.0f} kB, more than {MAX_KILOBYTES} kB")
    if broken:
        raise BuildError("; ".join(broken))
    nbformat.validate(notebook)
    path.with_suffix(".ipynb").write_text(text, encoding="utf-8")
    return Build(path.stem, seconds, max(taken.values()), megabytes, size)


def strip(notebook: NotebookNode) -> None:
    """Remove what changes from run to run, in place."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = nbformat.from_dict({"name": "python"})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)  # a view of a kernel that is gone


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="*", type=Path, help="sources to build (default: all)")
    parser.add_argument("--check", action="store_true", help="compare, execute nothing")
    parser.add_argument("--rewrite", action="store_true", help="write cells again and keep outputs, execute nothing")
    options = parser.parse_args()
    console = Console()
    if options.check:
        return check(console)
    if options.rewrite:
        for path in sources():
            path.with_suffix(".ipynb").write_text(reassemble(path), encoding="utf-8")
        return 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    built: list[Build] = []
    asked = options.source or sources()
    with Progress(*columns, console=console) as progress:
        for path in asked:
            try:
                if path.suffix != ".py" or not path.is_file():
                    raise BuildError("expected a .py source that exists")
                done = build(path, progress)
                built.append(done)
                line = f"{done.stem}: {done.seconds:.1f} s, {done.megabytes} MB, {done.kilobytes:.0f} kB"
                progress.console.print(line, highlight=False)
            except BuildError as error:
                progress.console.print(f"{path}: {error}", highlight=False, markup=False)
    (HERE / GLOSSARY).write_text(glossary(), encoding="utf-8")
    PICTURE.write_bytes(first_picture())
    machine = f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores"
    TIMES.write_text(times(built, machine), encoding="utf-8")
    if (total := sum(lesson.seconds for lesson in course(built))) > COURSE_SECONDS:
        console.print(f"the lessons took {total:.0f} s, more than {COURSE_SECONDS} s")
        return 1
    return int(len(built) < len(asked))


def check(console: Console) -> int:
    """Print a line for each stale file; 1 if there is one."""
    problems = disagreements()
    page = HERE / GLOSSARY
    if not page.exists() or page.read_text(encoding="utf-8") != glossary():
        problems.append(f"{GLOSSARY}: the lessons' terms changed after the build")
    for line in problems:
        console.print(line, highlight=False)
    if problems:
        console.print("Build again: python notebooks/build.py")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
