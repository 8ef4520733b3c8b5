"""The models that race: each differs from the plain one in its queries, keys and values alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spectral_core.calibration import calibrate
from spectral_core.conditioning import condition
from spectral_core.demo.live import Live
from spectral_core.demo.settings import Settings
from spectral_core.demo.tasks import load_task, new_model
from spectral_core.initialization import initialize
from spectral_core.models import Transformer
from spectral_core.polar_correction import PolarCorrection

__all__ = ["Arm", "build_arm"]


@dataclass(frozen=True)
class Arm:
    """One model, and the corrections in it that follow the sliders."""

    name: str
    model: Transformer
    live: tuple[Live, ...] = ()

    def update(self, settings: Settings) -> None:
        """Take new settings, for the next step on."""
        for live in self.live:
            live.settings = _own(self.name, settings)


def build_arm(name: str, settings: Settings) -> Arm:
    """The arm of that name (`settings.ARMS`) at its start.

    "shaped" and "identity" follow the sliders; "polar" is on Q, K and V whatever they say; "calibrated" takes what
    `calibrate` chooses for the plain model at the first held-out example.
    """
    init = "xavier" if name == "xavier" else settings.init
    model = new_model(init, settings.source, settings.seed, qk_norm=name == "qk-norm")
    if name in ("shaped", "identity", "polar"):
        own = _own(name, settings)
        return Arm(name, model, tuple(Live(model.block(i).attention, own) for i in range(len(model.blocks))))
    if name == "conditioned":
        initialize(model, "conditioned", seed=settings.seed)
    if name == "calibrated":
        found = calibrate(model, load_task(settings.source).test_x[:1], progress=False)
        for fix in found.choice.values():
            if isinstance(fix, PolarCorrection):
                fix.update(every=1)  # one that remembers a factor is not turned back to the bit
        if found.choice:
            condition(model, found.choice)
    return Arm(name, model)


def _own(name: str, settings: Settings) -> Settings:
    """The settings that this arm corrects by."""
    if name == "shaped":
        return settings
    if name == "identity":
        return replace(settings, kind="identity", scope="matrix", preserve="none")
    return Settings(kind="polar")
