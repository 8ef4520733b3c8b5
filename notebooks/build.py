"""Build the lessons: NN_topic.py (jupytext py:percent, the only source) -> NN_topic.ipynb with outputs.

    python notebooks/build.py                     build every lesson
    python notebooks/build.py notebooks/01_*.py   build these
    python notebooks/build.py --check             build nothing; exit 1 and name each pair that disagrees

The way is one-way: the old .ipynb is never read. The same source gives the same cells with the same ids, and nothing
that changes from run to run is kept: no timestamps, widget state or version of kernel, language or jupytext. The
hash of the source goes into the notebook's metadata, and `--check` (and the tests) compare it.

The head of a lesson states limits, "Runs in under 20 s and 600 MB on two cores."; a build that does not keep them
fails and writes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

HERE = Path(__file__).parent
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


def sources(folder: Path = HERE) -> list[Path]:
    """The lessons' sources, in order."""
    return sorted(folder.glob("[0-9]*.py"))


def read_source(path: Path) -> NotebookNode:
    """The notebook of a source without outputs: stable ids, minimal metadata, the hash of the source."""
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "spectral_core": {"source": path.name, "sha256": hashlib.sha256(text.encode()).hexdigest()},
        }
    )
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] += 1
        cell.metadata = nbformat.from_dict({"tags": tags} if (tags := cell.metadata.get("tags")) else {})
        cell.id = f"{digest}-{seen[digest]}"
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


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


def build(path: Path, progress: Progress) -> str:
    """Execute one source and write its notebook; returns a line about it.

    Raises:
        BuildError: a cell raised or took too long, or a limit was not kept; nothing is written then.
    """
    notebook = read_source(path)
    stated = limits(notebook)
    task = progress.add_task(path.stem, total=sum(cell.cell_type == "code" for cell in notebook.cells) + 1)
    slow: list[str] = []
    started = [0.0]

    def begin(cell: NotebookNode, cell_index: int) -> None:
        started[0] = time.perf_counter()

    def end(cell: NotebookNode, cell_index: int) -> None:
        progress.advance(task)
        taken = time.perf_counter() - started[0]
        if taken > CELL_SECONDS:
            slow.append(f"cell {cell_index} took {taken:.0f} s, more than {CELL_SECONDS} s")

    probe = nbformat.v4.new_code_cell(PEAK)
    notebook.cells.append(probe)
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}},
        record_timing=False, store_widget_state=False, on_cell_start=begin, on_cell_complete=end,
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
    text = nbformat.writes(nbformat.from_dict(notebook)) + "\n"
    size = len(text.encode()) / 1000
    broken = [*slow]
    if seconds > stated.seconds or megabytes > stated.megabytes:
        broken.append(f"took {seconds:.0f} s and {megabytes} MB, more than its head states: {stated}")
    if size > MAX_KILOBYTES:
        broken.append(f"the notebook has {size:.0f} kB, more than {MAX_KILOBYTES} kB")
    if broken:
        raise BuildError("; ".join(broken))
    nbformat.validate(notebook)
    path.with_suffix(".ipynb").write_text(text, encoding="utf-8")
    return f"{path.stem}: {seconds:.1f} s, {megabytes} MB, {size:.0f} kB"


def strip(notebook: NotebookNode) -> None:
    """Remove what changes from run to run, in place."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = nbformat.from_dict({"name": "python"})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)  # a view of a kernel that is gone


def disagreements(folder: Path = HERE) -> list[str]:
    """A line for each pair whose notebook is missing, stale, edited by hand, or has no source."""
    out = []
    known = sources(folder)
    for path in known:
        pair = path.with_suffix(".ipynb")
        out += [f"{path.name} / {pair.name}: {why}" for why in _pair_problems(path, pair)]
    orphans = {path.stem for path in folder.glob("*.ipynb")} - {path.stem for path in known}
    return out + [f"{stem}.ipynb: no {stem}.py beside it" for stem in sorted(orphans)]


def _pair_problems(path: Path, pair: Path) -> list[str]:
    if not pair.exists():
        return ["the notebook is missing"]
    expected, got = read_source(path), nbformat.read(pair, as_version=4)
    out = []
    if got.metadata.get("spectral_core") != expected.metadata["spectral_core"]:
        out.append("the source changed after the build (its hash differs)")
    cells = [[(cell.cell_type, cell.source) for cell in notebook.cells] for notebook in (expected, got)]
    if cells[0] != cells[1]:
        same = zip(*cells, strict=False)
        at = next((i for i, (a, b) in enumerate(same) if a != b), min(map(len, cells)))
        out.append(f"cell {at} of the notebook is not what the source says")
    code = [cell for cell in got.cells if cell.cell_type == "code"]
    if not any(cell.outputs for cell in code) or any(c.execution_count is None for c in code if c.source.strip()):
        out.append("the notebook has no outputs")
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        out.append("the notebook shows an error")
    return out


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="*", type=Path, help="sources to build (default: all)")
    parser.add_argument("--check", action="store_true", help="compare pairs, execute nothing")
    options = parser.parse_args()
    console = Console()
    if options.check:
        problems = disagreements()
        for line in problems:
            console.print(line, highlight=False)
        if problems:
            console.print("Build again: python notebooks/build.py")
        return 1 if problems else 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failed = False
    with Progress(*columns, console=console) as progress:
        for path in options.source or sources():
            try:
                if path.suffix != ".py" or not path.is_file():
                    raise BuildError("expected a .py source that exists")
                progress.console.print(build(path, progress), highlight=False)
            except BuildError as error:
                progress.console.print(f"{path}: {error}", highlight=False, markup=False)
                failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
