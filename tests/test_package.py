"""Import hygiene: light, silent, complete, and every docstring example runs."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import spectral_core

OPTIONAL = (
    "gradio", "matplotlib", "sklearn", "mlxtend", "ipywidgets", "IPython", "transformers", "timm", "scipy",
    "accelerate", "lightning", "pytorch_lightning", "safetensors", "torchvision",
)
LOADED = f"[name for name in {OPTIONAL} if name in sys.modules]"
ROOT = Path(spectral_core.__file__).parent
LATER = ("plots", "lessons", "cli", "__main__", "audit", "demo", "experiments")
CORE = [m.name for m in pkgutil.iter_modules([str(ROOT)]) if m.name not in LATER]
CORE += [f"audit.{m.name}" for m in pkgutil.iter_modules([str(ROOT / "audit")])]
CORE += [f"experiments.{m.name}" for m in pkgutil.iter_modules([str(ROOT / "experiments")])]
CORE += [f"demo.{m.name}" for m in pkgutil.iter_modules([str(ROOT / "demo")]) if m.name != "page"]  # Gradio's part


def run(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def test_importing_the_package_is_silent_and_brings_nothing_optional():
    done = run(f"import sys, spectral_core; print({LOADED}, 'torch' in sys.modules)")
    assert done.stdout == "[] True\n"
    assert done.stderr == ""


def test_every_core_module_is_silent_and_brings_nothing_optional():
    imports = "; ".join(f"import spectral_core.{name}" for name in CORE)
    done = run(f"import sys; {imports}; print({LOADED})")
    assert done.stdout == "[]\n"
    assert done.stderr == ""


def test_all_names_exist_and_are_sorted():
    assert len(set(spectral_core.__all__)) == len(spectral_core.__all__)
    assert spectral_core.__all__ == sorted(spectral_core.__all__)
    for name in spectral_core.__all__:
        assert getattr(spectral_core, name).__doc__, name


@pytest.mark.parametrize("name", CORE)
def test_module_names_exist_and_examples_run(name):
    module = importlib.import_module(f"spectral_core.{name}")
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        assert getattr(module, public).__doc__, public
    globs = {**vars(module), "torch": importlib.import_module("torch")}
    assert doctest.testmod(module, extraglobs=globs).failed == 0


@pytest.mark.parametrize("name", CORE)
def test_nothing_prints(name):
    tree = ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assert "print" not in names
