"""The Space and the container: what would be built is complete, agrees with the project's versions, and answers."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "deploy" / "space.py"
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def write(*arguments: object, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


# ---- the Space -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deploy") / "space"
    done = write(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def settings(space: Path) -> dict:
    return yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---\n")[1])


@pytest.fixture(scope="module")
def required(space: Path) -> dict[str, str]:
    """{package: version} of requirements.txt; every line is one, or a comment."""
    text = (space / "requirements.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), text
    return dict(line.split("==") for line in lines)


def test_settings_are_those_of_a_space(settings: dict) -> None:
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {settings["colorFrom"], settings["colorTo"]} <= colors
    assert len(settings["emoji"]) == 1
    assert ord(settings["emoji"]) > 0x1F000
    assert 0 < len(settings["short_description"]) <= 60
    assert (settings["sdk"], settings["suggested_hardware"]) == ("gradio", "cpu-basic")
    assert (ROOT / settings["app_file"]).is_file()
    assert settings["license"] == PROJECT["license"].lower()
    assert re.fullmatch(r"\d+[mh]", settings["startup_duration_timeout"])
    assert all(re.fullmatch(r"[a-z0-9-]+", tag) for tag in settings["tags"])
    known = {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license",
             "short_description", "tags", "suggested_hardware", "startup_duration_timeout"}  # fmt: skip
    assert set(settings) == known


def test_versions_agree(settings: dict, required: dict[str, str]) -> None:
    """Spaces install Gradio at `sdk_version` together with requirements.txt: two versions would end the build."""
    assert isinstance(settings["sdk_version"], str)
    assert re.fullmatch(r"\d+\.\d+\.\d+", settings["sdk_version"])
    assert settings["sdk_version"] == PINS["gradio"] == required["gradio"] == importlib.metadata.version("gradio")
    assert required == {name: PINS[name] for name in required}
    assert required["torch"] == importlib.metadata.version("torch").split("+")[0]
    assert isinstance(settings["python_version"], str)
    assert PROJECT["requires-python"] == f">={settings['python_version']}"


def test_the_readme_follows_the_settings(space: Path) -> None:
    text = (space / "README.md").read_text(encoding="utf-8")
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert text.split("---\n", 2)[2].lstrip().startswith(first)


def test_relative_links_lead_to_files(space: Path) -> None:
    broken, seen = [], 0
    for page in space.rglob("*.md"):
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r'(?:\]\(|(?:src|href)=")(?!https?:|mailto:|#)([^)\s"#]+)', prose):
            seen += 1
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(space)}: {target}")
    assert not broken
    assert seen > 10


def test_links_to_the_rest_lead_to_the_repository(space: Path) -> None:
    repository = PROJECT["urls"]["Repository"]
    text = (space / "README.md").read_text(encoding="utf-8")
    moved = re.findall(rf"\({re.escape(repository)}/blob/main/([^)#]+)", text)
    assert "notebooks/00_start_here.ipynb" in moved
    assert all((ROOT / target).exists() and not (space / target).exists() for target in moved)


def test_pictures_are_tracked_as_the_hub_wants_and_all_is_small(space: Path) -> None:
    tracked = [line.split()[0] for line in (space / ".gitattributes").read_text(encoding="utf-8").splitlines()]
    files = [file for file in space.rglob("*") if file.is_file()]
    for file in files:
        if b"\0" in file.read_bytes():
            assert any(fnmatch(file.name, pattern) for pattern in tracked), file
    assert sum(file.stat().st_size for file in files) < 10e6
    assert not [file for file in files if "__pycache__" in file.parts]


def test_the_package_is_whole(space: Path) -> None:
    def files(root: Path) -> set[str]:
        found = (f for f in (root / "spectral_core").rglob("*") if f.is_file() and "__pycache__" not in f.parts)
        return {f.relative_to(root).as_posix() for f in found}

    assert files(space) == files(ROOT)


def in_space(space: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(space), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *command], cwd=space, env=environment, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_app_is_there_and_can_be_started(space: Path) -> None:
    assert "--port" in in_space(space, "app.py", "--help")


def test_the_page_is_built_from_the_folder_alone(space: Path) -> None:
    """All data files came along, and nothing is taken from this checkout."""
    code = """
import json, sys, app
from spectral_core.demo.page import build
build()
ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("app", "spectral_core")}
print(json.dumps([module.__file__ for module in ours.values()]))
"""
    places = json.loads(in_space(space, "-c", code).splitlines()[-1])
    assert len(places) > 20
    assert [place for place in places if not Path(place).resolve().is_relative_to(space.resolve())] == []


def test_requirements_cover_what_is_imported(required: dict[str, str]) -> None:
    files = [ROOT / "app.py", ROOT / "spectral_core" / "data.py", *(ROOT / "spectral_core" / "demo").rglob("*.py")]
    imported = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add(str(node.module).split(".")[0])
    imported -= {*sys.stdlib_module_names, "spectral_core"}
    assert {"torch", "gradio", "sklearn", "safetensors"} <= imported
    packages = importlib.metadata.packages_distributions()
    names = {name.lower().replace("_", "-") for name in required}
    assert [m for m in imported if not {p.lower().replace("_", "-") for p in packages.get(m, [])} & names] == []


def test_requirements_hold_the_packaged_model_with_all_it_asks_for(required: dict[str, str]) -> None:
    from spectral_core.demo.starts import MINILM

    assert MINILM in required
    for line in importlib.metadata.requires(MINILM) or []:
        assert re.match(r"[\w.-]+", line)[0] in required  # type: ignore[index]


def test_an_index_for_torch_is_written_only_when_given(space: Path, tmp_path: Path) -> None:
    assert "://" not in (space / "requirements.txt").read_text(encoding="utf-8")
    assert write(tmp_path / "s", "--torch-index", "http://localhost/cpu").returncode == 0
    first = (tmp_path / "s" / "requirements.txt").read_text(encoding="utf-8").splitlines()[0]
    assert first == "--extra-index-url http://localhost/cpu"


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    for target in (tmp_path, tmp_path / "mine.txt"):
        done = write(target)
        assert done.returncode == 2
        assert "expected a new or an empty folder" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty").returncode == 0


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The least that the script reads, to be broken by a test."""
    root = tmp_path / "project"
    for name in ("deploy/space.py", "app.py", "LICENSE", "pyproject.toml", "constraints.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    (root / "spectral_core").mkdir()
    (root / "README.md").write_text("# x\n[license](LICENSE) [make](Makefile#top)\n```\n[code](nowhere.md)\n```\n")
    (root / "Makefile").write_text("")
    return root


def test_only_links_to_what_stays_behind_are_changed(project: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "out", script=project / "deploy" / "space.py").returncode == 0
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"[license](LICENSE) [make]({PROJECT['urls']['Repository']}/blob/main/Makefile#top)" in text
    assert "[code](nowhere.md)" in text


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [("README.md", "(Makefile#top)", "(gone.md)", "gone.md"), ("README.md", "Makefile", "../out.md", "../out.md"),
     ("constraints.txt", f"gradio=={PINS['gradio']}", "", "expected a version of gradio")],
)  # fmt: skip
def test_what_cannot_be_written_is_said_and_nothing_is(project: Path, tmp_path: Path, file, old, new, said) -> None:
    text = (project / file).read_text(encoding="utf-8")
    assert old in text
    (project / file).write_text(text.replace(old, new), encoding="utf-8")
    done = write(tmp_path / "out", script=project / "deploy" / "space.py")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_help_teaches() -> None:
    done = write("--help")
    assert done.returncode == 0
    for word in ("FOLDER", "hf upload", "constraints.txt", "--torch-index"):
        assert word in done.stdout


# ---- the container: there is no Docker in the tests, so its files are read -------------------------------


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, the rest) of the Dockerfile, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.M).replace("\\\n", "").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


STEPS = instructions()
NAMES = [name for name, _ in STEPS]
ENV = dict(pair.split("=", 1) for name, rest in STEPS if name == "ENV" for pair in rest.split())
COPIES = [source for name, rest in STEPS if name == "COPY" for source in rest.split()[:-1]]


def is_ignored(path: str) -> bool:
    """By .dockerignore: the last line that matches the path, or a folder above it, decides."""
    ignored, parts = False, path.split("/")
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split():
        pattern = re.escape(line.lstrip("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, part) for part in above):
            ignored = not line.startswith("!")
    return ignored


def first(name: str) -> str:
    return next(rest for step, rest in STEPS if step == name)


def test_every_source_exists_and_reaches_the_build() -> None:
    assert COPIES
    for source in COPIES:
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source
    package = [f.relative_to(ROOT).as_posix() for f in (ROOT / "spectral_core").rglob("*") if f.is_file()]
    assert {f for f in package if is_ignored(f)} == {f for f in package if "__pycache__" in f}


@pytest.mark.parametrize("path", ["tests/test_app.py", "notebooks/build.py", ".git/config", ".venv/bin/python",
                                  "results/demo.png", "spectral_core/demo/__pycache__/a.pyc"])  # fmt: skip
def test_the_rest_stays_outside(path: str) -> None:
    assert is_ignored(path)


def test_dependencies_are_those_of_the_project() -> None:
    assert first("FROM") == f"python:{PROJECT['requires-python'].removeprefix('>=')}-slim"
    installs = [part for name, rest in STEPS if name == "RUN" for part in rest.split("&&") if "pip install" in part]
    assert len(installs) == 2
    assert all("--no-cache-dir -c constraints.txt" in part for part in installs)
    assert "'.[app]'" in installs[0]
    from spectral_core.demo.starts import MINILM

    assert installs[1].split()[-2:] == ["--no-deps", MINILM]
    assert "constraints.txt" in COPIES[: COPIES.index("app.py")]


def test_it_does_not_run_as_root() -> None:
    users = [rest for name, rest in STEPS if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    assert f"useradd --uid {users[-1]} " in " ".join(rest for name, rest in STEPS if name == "RUN")
    assert max(i for i, name in enumerate(NAMES) if name == "USER") < NAMES.index("CMD")
    assert "RUN" not in NAMES[NAMES.index("USER") :]


def test_address_and_command() -> None:
    assert first("EXPOSE") == ENV["GRADIO_SERVER_PORT"] == "7860"
    assert ENV["GRADIO_SERVER_NAME"] == "0.0.0.0"
    assert (ENV["OMP_NUM_THREADS"], ENV["GRADIO_ANALYTICS_ENABLED"]) == ("1", "False")
    command = json.loads(first("CMD"))  # a list: no shell between Docker and Python
    assert command[0] == "python"
    assert (ROOT / command[1]).is_file()
    assert command[1] in COPIES


class Answer(BaseHTTPRequestHandler):
    """/config with the status of the server; anything else is not there."""

    def do_GET(self) -> None:
        self.send_response(self.server.status if self.path == "/config" else 404)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answering(request) -> Iterator[int]:
    """The port of a server that answers with a status."""
    server = HTTPServer(("127.0.0.1", 0), Answer)
    server.status = request.param  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def check_health(port: int) -> int:
    """The exit status of the health check, with a proxy set that does not exist."""
    command = json.loads(first("HEALTHCHECK").split("CMD", 1)[1])
    assert command[:2] == ["python", "-c"]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, *command[1:]], env=environment, capture_output=True, timeout=30)
    return done.returncode


@pytest.mark.parametrize(("answering", "code"), [(200, 0), (500, 1), (404, 1)], indirect=["answering"])
def test_the_health_check_tells_an_answer_from_an_error(answering: int, code: int) -> None:
    assert check_health(answering) == code


def test_the_health_check_fails_at_a_closed_port() -> None:
    with socket.socket() as bound:  # never listens
        bound.bind(("127.0.0.1", 0))
        assert check_health(bound.getsockname()[1]) == 1


def test_the_app_has_what_the_health_check_asks_for() -> None:
    import gradio as gr
    from fastapi.testclient import TestClient

    with gr.Blocks() as page:
        gr.Markdown("up")
    assert TestClient(gr.routes.App.create_app(page)).get("/config").status_code == 200


# ---- both ------------------------------------------------------------------------------------------------


def test_no_host_of_a_package_index_is_named() -> None:
    for name in ("Dockerfile", ".dockerignore", "deploy/space.py"):
        links = re.findall(r"\w+://[^\s\"']*", (ROOT / name).read_text(encoding="utf-8"))
        assert [link for link in links if not link.startswith("http://127.0.0.1")] == []
