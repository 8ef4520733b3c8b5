"""timm and transformers import beside a CPU-only torch, and nothing is touched where torchvision is whole."""

import subprocess
import sys

import pytest

PROBE = """
import importlib.util, pathlib, torch
folder = pathlib.Path(importlib.util.find_spec("torchvision").submodule_search_locations[0])
try:
    for path in folder.glob("_C*"):
        torch.ops.load_library(path)
    print("whole")
except OSError:
    print("broken")
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def is_broken():
    return run(PROBE).stdout.strip() == "broken"


def test_timm_and_transformers_import_afterwards(is_broken):
    done = run(
        "from spectral_core.torchvision_schemas import declare_missing\n"
        "print(declare_missing(), declare_missing())\n"
        "import timm\nfrom transformers import LlamaConfig, ViTModel\n"
        "print(timm.create_model('resnet10t') is not None)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{['nms', 'qnms'] if is_broken else []} []", "True"]


def test_without_it_the_import_fails_and_then_says_so(is_broken):
    if not is_broken:
        pytest.skip("torchvision's operators load here")
    done = run(
        "try:\n    import timm\nexcept RuntimeError as error:\n    print(error)\n"
        "from spectral_core.torchvision_schemas import declare_missing\ndeclare_missing()"
    )
    assert "operator torchvision::nms does not exist" in done.stdout
    assert "expected to be called before the first import of torchvision, timm or transformers" in done.stderr


def test_nothing_is_imported_and_nothing_done_without_torchvision():
    code = (
        "import sys, importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'torchvision' else find(name)\n"
        "from spectral_core.torchvision_schemas import declare_missing\n"
        "print(declare_missing(), 'torchvision' in sys.modules)"
    )
    assert run(code).stdout.strip() == "[] False"


def test_nms_itself_still_says_that_it_is_missing(is_broken):
    if not is_broken:
        pytest.skip("torchvision's operators load here")
    done = run(
        "from spectral_core.torchvision_schemas import declare_missing\ndeclare_missing()\n"
        "import torch, torchvision\ntorchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)"
    )
    assert done.returncode != 0
    assert "Couldn't load custom C++ ops" in done.stderr
