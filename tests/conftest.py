"""One thread, so that runs agree and cores are not fought for; Hypothesis draws the same examples always."""

import os
import tempfile

import pytest
import torch
from find_browser import CHROMIUM_FLAGS, MISSING, find_browser
from hypothesis import settings

torch.set_num_threads(1)
os.environ["WANDB_DIR"] = tempfile.mkdtemp()  # it keeps the folder in which it was first used
settings.register_profile("spectral_core", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("spectral_core")


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args):
    path = find_browser()
    assert path, MISSING  # fails, never skips
    return {**browser_type_launch_args, "executable_path": path, "args": CHROMIUM_FLAGS}
