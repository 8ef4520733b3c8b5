"""Checkpoints of runs: written beside the old one and then put in its place, so that a full disk costs nothing.

Parameters and moments are kept under their full names and whole, so that another number of processes can go on.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from spectral_core.polar_correction import PolarCorrection

__all__ = ["forget", "load", "save"]


def save(path: Path, loop: Any) -> list[str]:
    """Write where `loop` is; returns notes, one where it could not be written and the old checkpoint was kept."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model = get_model_state_dict(loop.model, options=options)  # all processes take part
    optimizers = [get_optimizer_state_dict(loop.model, one, options=options) for one in loop.optimizers]
    for module in loop.plain.modules():
        if isinstance(module, PolarCorrection):  # a factor that is kept would not be there after a restart
            module._memory.clear()
    if not loop.place.is_first:
        return []
    state = {
        "step": loop.step, "curve": loop.curve, "probes": loop.probes, "model": model, "optimizers": optimizers,
    }  # fmt: skip
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as RuntimeError
        part.unlink(missing_ok=True)
        kept = "the one before it is kept" if path.exists() else "there is none before it"
        return [f"step {loop.step}: expected to write {path}, got {error}; {kept}, and the run goes on"]
    return []


def load(path: Path, loop: Any) -> int:
    """Go on from `path` if there is one that can be read; returns its step, or 0."""
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, zipfile.BadZipFile):
        return 0  # cut off: from the start
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    set_model_state_dict(loop.model, state["model"], options=options)
    for optimizer, kept in zip(loop.optimizers, state["optimizers"], strict=True):
        set_optimizer_state_dict(loop.model, optimizer, kept, options=options)
    loop.step, loop.curve = state["step"], [tuple(point) for point in state["curve"]]
    loop.probes.update(state["probes"])
    return loop.step


def forget(path: Path) -> None:
    """Remove the checkpoint of a finished run."""
    path.unlink(missing_ok=True)

