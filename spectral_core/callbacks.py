"""One line for each trainer: watch the spectra, move scheduled corrections on. Nothing is imported before it is used.

    trainer = transformers.Trainer(..., callbacks=[for_transformers(every=100)])
    trainer = lightning.Trainer(..., callbacks=[for_lightning(every=100)])
    watch = for_accelerate(accelerator, model, every=100)      # then watch(step) after each optimizer step
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from spectral_core.conditioning import advance
from spectral_core.monitor import SpectralMonitor

__all__ = ["for_accelerate", "for_lightning", "for_transformers"]


def for_transformers(*, every: int = 50, batch: Any = None) -> Any:
    """A `transformers.TrainerCallback` with a `SpectralMonitor` in `.monitor`; values go to `state.log_history`.

    Args:
        every, batch: of `SpectralMonitor`.

    Raises:
        ImportError: transformers is not installed.
    """
    base = _required("transformers", "models").TrainerCallback

    class SpectralCallback(base):  # type: ignore[valid-type, misc]
        monitor: SpectralMonitor

        def on_train_begin(self, args, state, control, model=None, **_):
            self.monitor = SpectralMonitor(model, every=every, batch=batch)
            advance(model, state.global_step)  # a resumed run does not begin at step 0

        def on_step_end(self, args, state, control, model=None, **_):
            advance(model, state.global_step)
            values = self.monitor.step(state.global_step)
            if values:
                state.log_history.append({**values, "step": state.global_step})

    return SpectralCallback()


def for_lightning(*, every: int = 50, batch: Any = None) -> Any:
    """A Lightning `Callback` with a `SpectralMonitor` in `.monitor`; values go to the module's log.

    Args:
        every, batch: of `SpectralMonitor`.

    Raises:
        ImportError: neither lightning nor pytorch_lightning is installed.
    """
    base = _required("lightning.pytorch", "train", "pytorch_lightning").Callback

    class SpectralCallback(base):  # type: ignore[valid-type, misc]
        monitor: SpectralMonitor

        def on_train_start(self, trainer, pl_module):
            self.monitor = SpectralMonitor(pl_module, every=every, batch=batch)
            advance(pl_module, trainer.global_step)
            self.seen = trainer.global_step

        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == self.seen:
                return  # a batch whose gradient is only accumulated
            self.seen = trainer.global_step
            advance(pl_module, trainer.global_step)
            values = self.monitor.step(trainer.global_step)
            if values:
                pl_module.log_dict(values, rank_zero_only=True)

    return SpectralCallback()


def for_accelerate(
    accelerator: Any, model: nn.Module, *, every: int = 50, batch: Any = None
) -> Callable[[int], dict[str, float] | None]:
    """A function of the step with a `SpectralMonitor` in `.monitor`; values go to `accelerator.log`.

    Args:
        accelerator: an `accelerate.Accelerator`.
        model: what `accelerator.prepare` returned, or the model itself.
        every, batch: of `SpectralMonitor`. A resumed run calls `advance(model, step)` once before its first step.

    Raises:
        ImportError: accelerate is not installed.
    """
    _required("accelerate", "train")
    monitor = SpectralMonitor(model, every=every, batch=batch)

    def watch(step: int) -> dict[str, float] | None:
        advance(model, step)
        values = monitor.step(step)
        if values:
            accelerator.log(values, step=step)
        return values

    watch.monitor = monitor  # type: ignore[attr-defined]
    return watch


def _required(name: str, extra: str, *others: str) -> Any:
    for candidate in (name, *others):
        try:
            return importlib.import_module(candidate)
        except ModuleNotFoundError as error:
            if error.name not in (candidate, candidate.partition(".")[0]):
                raise  # it is there, but lacks something of its own
    package = name.partition(".")[0]
    raise ImportError(f"expected {package} to be installed, got none; pip install 'spectral-core[{extra}]'")
