"""A lesson's two files: NN_topic.py (jupytext py:percent, the only source) and NN_topic.ipynb, made from it.

The way is one-way: what a notebook's cells say comes from the source alone, only outputs are kept. The same source
gives the same cells with the same ids. The hashes of the source and of constraints.txt go into the metadata.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

HERE = Path(__file__).parent
ROOT = HERE.parent
HIDDEN = {"assert", "setup", "solution"}  # JupyterLab shows such cells folded
COLAB = "https://colab.research.google.com/github"

INSTALL = """# in Colab this fetches and installs the course; where it is installed it does nothing
import importlib.util

if importlib.util.find_spec("spectral_core") is None:
    !git clone --quiet --depth 1 {repository} spectral_core_course
    %cd spectral_core_course/notebooks
    %pip install --quiet "..[course]"
"""


def sources(folder: Path = HERE) -> list[Path]:
    """The lessons' sources, in order."""
    return sorted(folder.glob("[0-9]*.py"))


def repository() -> str:
    """Where the project lives, as pyproject.toml states it: badges and Colab's install line follow from it."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def badges(stem: str) -> str:
    """The line of badges and links at the top of a lesson."""
    place = repository().removeprefix("https://github.com/")
    colab = f"{COLAB}/{place}/blob/main/notebooks/{stem}.ipynb"
    space = f"https://codespaces.new/{place}"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Codespaces](https://github.com/codespaces/badge.svg)]({space}) "
        "[notation](notation.md) · [glossary](glossary.md)"
    )


def read_source(path: Path) -> NotebookNode:
    """The notebook of a source without outputs: badges, install cell, stable ids, minimal metadata, hashes."""
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent")
    hashes = {"sha256": _sha256(text), "constraints": _sha256((ROOT / "constraints.txt").read_text(encoding="utf-8"))}
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "spectral_core": {"source": path.name, **hashes},
        }
    )
    title, _, rest = notebook.cells[0].source.partition("\n")
    notebook.cells[0].source = f"{title}\n\n{badges(path.stem)}\n{rest}"
    install = nbformat.v4.new_code_cell(INSTALL.format(repository=repository()).rstrip(), metadata={"tags": ["setup"]})
    notebook.cells.insert(1, install)
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = _sha256(f"{cell.cell_type}\n{cell.source}")[:12]
        seen[digest] += 1
        cell.id = f"{digest}-{seen[digest]}"
        cell.metadata = nbformat.from_dict(_metadata(cell.metadata.get("tags")))
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def write(notebook: NotebookNode) -> str:
    """The text of a notebook as it is stored."""
    return nbformat.writes(nbformat.from_dict(notebook)) + "\n"


def reassemble(path: Path) -> str:
    """What the notebook of `path` should be, to the byte: the source's cells with the outputs that are stored."""
    notebook, stored = read_source(path), nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    outputs = {cell.id: cell for cell in stored.cells if cell.cell_type == "code"}
    for cell in notebook.cells:
        if cell.cell_type == "code" and (old := outputs.get(cell.id)):
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
    return write(notebook)


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
    old, new = got.metadata.get("spectral_core", {}), expected.metadata["spectral_core"]
    if old.get("sha256") != new["sha256"]:
        out.append("the source changed after the build (its hash differs)")
    elif old != new:
        out.append("constraints.txt changed after the build (its hash differs)")
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
    return out or ([] if reassemble(path) == pair.read_text(encoding="utf-8") else ["the notebook was edited by hand"])


def _metadata(tags: list[str] | None) -> dict:
    folded = {"jupyter": {"source_hidden": True}} if set(tags or ()) & HIDDEN else {}
    return {**folded, **({"tags": tags} if tags else {})}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
