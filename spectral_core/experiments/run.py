"""One run: a task, an arm, a seed and a learning rate in, one record out; goes on from its checkpoint if it was killed.

The same function trains in one process and in each of several (`accelerate launch`): the batch of a step is the same,
and each process takes its slice. What a run depends on is in `Run` alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from spectral_core._checks import check_choice, check_number
from spectral_core.conditioning import advance
from spectral_core.experiments.arms import Arm, find_arm, recalibrate
from spectral_core.experiments.checkpoint import forget, load, save
from spectral_core.experiments.place import Place, to_device
from spectral_core.experiments.probes import probe
from spectral_core.experiments.registry import find_task
from spectral_core.experiments.task import Examples, Setting, Task, random_state

__all__ = ["DTYPES", "Run", "train"]

DTYPES = ("float32", "bfloat16")
WARMUP, DECAY, POINTS, CLIP = 0.1, 0.05, 50, 1.0
Progress = Callable[[int], None]  # steps done since the last call


@dataclass(frozen=True)
class Run:
    """All that a run's numbers depend on.

    Attributes:
        task, arm, seed: what is trained; lr: peak learning rate.
        purpose: "tune", to choose lr on the validation part, or "final", to look at the test part once.
        steps, batch_size: 0 for the task's own budget.
        setting: small or full, and the folder of data.
        device: "cpu", "cuda", …; dtype: of the forward pass, "bfloat16" by autocast; compiled: by `torch.compile`.

    Raises:
        ValueError: an unknown task, arm or dtype, or a number out of range.
    """

    task: str
    arm: str
    seed: int
    lr: float
    purpose: str = "final"
    steps: int = 0
    batch_size: int = 0
    setting: Setting = field(default_factory=Setting)
    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        task = find_task(self.task)
        find_arm(self.arm)
        check_choice(self.dtype, "dtype", DTYPES)
        check_choice(self.purpose, "purpose", ("tune", "final"))
        check_number(self.lr, "lr", minimum=0.0, exclusive=True)
        for name in ("seed", "steps", "batch_size"):
            if check_number(getattr(self, name), name, minimum=0) != int(getattr(self, name)):
                raise ValueError(f"{name}: expected a whole number, got {getattr(self, name)!r}")
        full = self.setting.size == "full"
        object.__setattr__(self, "steps", self.steps or (task.full_steps if full else task.steps))
        object.__setattr__(self, "batch_size", self.batch_size or (task.full_batch_size if full else task.batch_size))

    @property
    def key(self) -> tuple:
        """What tells finished runs apart; the device is not part of it."""
        folder = str(self.setting.folder or "")
        return (self.task, self.arm, self.seed, float(self.lr), self.purpose, self.steps, self.batch_size,
                self.setting.size, folder, self.dtype)  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """The settings as plain values, for the record."""
        plain = {k: v for k, v in asdict(self).items() if k != "setting"}
        return plain | {"size": self.setting.size, "folder": str(self.setting.folder or "")}


def train(run: Run, *, checkpoints: Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Train, and return the record; with a folder of `checkpoints`, go on from the one of this run.

    A loss that is not finite ends the run: it is recorded as diverged, with its step.

    Raises:
        ValueError: settings or data that do not fit, or an arm that has no meaning for the model.
        FileNotFoundError: data that is missing.
    """
    started, task, arm = time.perf_counter(), find_task(run.task), find_arm(run.arm)
    examples = task.data(run.setting)
    model = task.model(run.setting, examples, run.seed)
    example = task.inputs(examples.batch(run.seed, 0, run.batch_size))
    notes = arm.prepare(model, example, run.seed)
    place = Place(run.device)
    loop = _Loop(run, task, arm, examples, place, model)
    path = None if checkpoints is None or arm.again else checkpoints / f"{_slug(run)}.pt"
    resumed = load(path, loop) if path is not None else 0
    final = run.purpose == "final" and place.is_first
    probes = loop.probes
    if final and not resumed:
        probes["start"] = loop.probe(example)
    diverged = None
    while loop.step < run.steps and diverged is None:
        if loop.step and loop.step % loop.quarter == 0 and arm.again:
            notes.append(recalibrate(loop.plain, to_device(example, place.device)))
        before = loop.step
        diverged = loop.advance(min(loop.window - loop.step % loop.window, run.steps - loop.step))
        if progress is not None:
            progress(loop.step - before)
        if final and diverged is None and loop.step == run.steps // 2 // loop.window * loop.window:
            probes["middle"] = loop.probe(example)
        if path is not None and diverged is None and loop.step % loop.quarter == 0 and loop.step < run.steps:
            notes += save(path, loop)
    scores: dict[str, float | None] = {"validation": None, "test": None}
    if diverged is None:
        scores["validation"] = loop.evaluate("validation")
        if run.purpose == "final":
            scores["test"] = loop.evaluate("test")
        if final:
            probes["end"] = loop.probe(example)
    if path is not None and place.is_first:
        forget(path)
    tenth = [v for s, v in loop.curve if s > 0.9 * run.steps]
    return run.describe() | scores | {
        "final_loss": _finite(sum(tenth) / len(tenth)) if tenth and diverged is None else None,
        "curve": [[s, _finite(v)] for s, v in loop.curve], "diverged": diverged, "notes": notes, "probes": probes,
        "parameters": sum(p.numel() for p in model.parameters()), "processes": place.processes,
        "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip


class _Loop:
    """A model in training, and what has to be kept to go on."""

    def __init__(self, run: Run, task: Task, arm: Arm, examples: Examples, place: Place, model: nn.Module) -> None:
        self.run, self.task, self.examples, self.place = run, task, examples, place
        self.step, self.curve = 0, list[tuple[int, float]]()
        self.probes: dict[str, Any] = {}
        self.window = max(1, run.steps // POINTS)
        self.quarter = max(self.window, run.steps // 4 // self.window * self.window)
        self.plain = model.to(place.device)
        self.model = place.wrap(self.plain)
        self.optimizers = _optimizers(self.plain, arm)
        self.call: nn.Module = cast(nn.Module, torch.compile(self.model)) if run.compiled else self.model

    def advance(self, steps: int) -> int | None:
        """Make steps; returns the step at which the loss stopped being finite, if it did."""
        losses, first = [], self.step
        self.call.train()
        for _ in range(steps):
            try:
                losses.append(self._one_step())
            except (ValueError, FloatingPointError, torch.linalg.LinAlgError) as error:  # weights that are not finite
                if self.step == 0 or not any(word in str(error) for word in ("finite", "converge")):
                    raise
                losses.append(torch.tensor(math.nan, device=self.place.device))
                break
            self.step += 1
        found = self.place.mean(torch.stack(losses)).tolist()  # one wait for the device in a window
        bad = next((i for i, value in enumerate(found) if not math.isfinite(value)), None)
        if bad is not None:
            return first + bad
        self.curve.append((self.step, sum(found) / len(found)))
        return None

    def _one_step(self) -> Tensor:
        run, done = self.run, self.step / self.run.steps
        rate = run.lr * (min(1.0, (self.step + 1) / max(1.0, WARMUP * run.steps)))
        if done > WARMUP:
            rate = run.lr * 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        advance(self.plain, self.step)
        batch = self.examples.batch(run.seed, self.step, run.batch_size)
        batch = to_device(self.place.share(batch, run.batch_size), self.place.device)
        with random_state(run.seed, self.step), self.place.autocast(run.dtype):
            loss = self.task.loss(self.call, batch)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach().float()

    def probe(self, example: Any) -> dict[str, Any]:
        """κ(W), κ(J) and saturation; not of sharded weights, which one process alone cannot see."""
        if self.place.is_sharded:
            return {"kappa_w": None, "kappa_j": None, "saturation": None, "kappa_j_of": "none: the weights are sharded"}
        return probe(self.plain, to_device(example, self.place.device))

    def evaluate(self, part: str) -> float | None:
        """The task's metric, None where it is not finite."""
        self.model.eval()
        with torch.no_grad(), random_state(0), self.place.autocast(self.run.dtype):
            batches: Any = _On(self.examples.held_out(part), self.place.device)
            return _finite(self.task.evaluate(self.model, batches))


class _On:
    """Held-out batches, moved to the device one at a time."""

    def __init__(self, batches: Any, device: torch.device) -> None:
        self.batches, self.device = batches, device

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return to_device(self.batches[index], self.device)


def _optimizers(model: nn.Module, arm: Arm) -> list[torch.optim.Optimizer]:
    """AdamW, decay on matrices alone; with Muon for the matrices inside the blocks."""
    outer = ("embed", "pos", "cls", "head", "wte", "wpe", "classify", "token", "box", "mask", "rpn")
    matrices: list[nn.Parameter] = []
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if arm.optimizer == "muon" and p.ndim == 2 and not any(word in name for word in outer):
            hidden.append(p)
        else:
            (matrices if p.ndim >= 2 else rest).append(p)
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98))]
    if hidden:  # updates as large as AdamW's, so that the same learning rates make sense
        made.append(torch.optim.Muon(hidden, lr=1.0, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"))
    return made


def _slug(run: Run) -> str:
    return "-".join(str(part).replace("/", "_") for part in run.key if part != "")


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
