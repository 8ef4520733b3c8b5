"""Lesson 8, the runs: one arm of the comparison, all its seeds trained side by side in one stack of models.

The loop is that of `spectral_core.training.fit` (AdamW, warm-up, the same batches for the same seed) with a leading
dimension for the seeds, which makes eight runs cost about as much as two. Results are kept: a figure trains nothing
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from spectral_core.calibration import calibrate
from spectral_core.corrections import Correction, FixedCorrection, IdentityCorrection
from spectral_core.data import load_digits
from spectral_core.initialization import initialize
from spectral_core.lessons.environment import device
from spectral_core.models import VisionTransformer
from spectral_core.training import HeadProbe, probe_head

__all__ = [
    "ARMS", "BATCH", "ENTRIES", "EVERY", "LR", "SEEDS", "STEPS", "VALIDATION", "WINDOW", "Runs", "build",
    "calibrated", "smooth", "trace", "train",
]  # fmt: skip

SEEDS, VALIDATION = range(8), range(100, 103)
STEPS, BATCH, LR, WARMUP, DECAY, WINDOW, EVERY = 100, 16, 3e-3, 20, 0.05, 20, 20
ROLES = {"q": "query", "k": "key", "v": "value"}
By = Mapping[str, Correction]
Stack = dict[str, Tensor]


@dataclass(frozen=True)
class Runs:
    """One arm, seed by seed.

    Attributes:
        losses: (seeds, steps), training loss of each step's batch before the step.
        accuracy: (seeds,), share of the held-out images classified rightly after the last step.
        snapshots: step -> what block 1's attention needs, W + C in place of W, with the seeds in front.
    """

    losses: Tensor
    accuracy: Tensor
    snapshots: dict[int, Stack]

    @property
    def final(self) -> Tensor:
        """(seeds,): mean training loss over the last `WINDOW` steps."""
        return self.losses[:, -WINDOW:].mean(1)


def _none(seed: int) -> By:
    return {}


def _identity(lam: float, seed: int) -> By:
    return {role: IdentityCorrection(lam) for role in "qkv"}


def _rotations(seed: int) -> By:
    draws = (torch.randn(32, 32, generator=torch.Generator().manual_seed(1000 * seed + i)) for i in range(3))
    return {role: FixedCorrection(torch.linalg.qr(draw).Q) for role, draw in zip("qkv", draws, strict=True)}


@lru_cache(maxsize=1)
def calibrated(seed: int = VALIDATION[0]) -> By:
    """What `calibrate` chooses for the plain model of a validation seed, on one training image."""
    return calibrate(VisionTransformer(seed=seed), load_digits().train_x[:1], progress=False).choice


@dataclass(frozen=True)
class Arm:
    """How one arm differs from plain: what replaces W_Q, W_K and W_V at the start, what is added, QK-norm."""

    scheme: str = ""
    corrections: Callable[[int], By] = _none
    qk_norm: bool = False


ARMS = {
    "plain": Arm(),
    "Xavier": Arm("xavier"),
    "orthogonal": Arm("orthogonal"),
    "λ = 10": Arm(corrections=partial(_identity, 10.0)),
    "λ = 1": Arm(corrections=partial(_identity, 1.0)),
    "I at start": Arm("identity-shift"),
    "rotations": Arm(corrections=_rotations),
    "calibrated": Arm(corrections=lambda seed: calibrated()),
    "Conditioned Init": Arm("conditioned"),
    "QK-norm": Arm(qk_norm=True),
}


def build(arm: str, seed: int) -> tuple[VisionTransformer, By]:
    """The model of one run before its first step, and the corrections it trains with, by role."""
    model = VisionTransformer(seed=seed)
    if ARMS[arm].scheme:
        initialize(model, ARMS[arm].scheme, lam=1.0, seed=seed)
    return model, ARMS[arm].corrections(seed)


def train(arm: str, seeds: Sequence[int] = SEEDS, lr: float = LR, steps: int = STEPS) -> Runs:
    """Train `arm` once for every seed. The result is kept, so that the same runs are free the next time."""
    return _train(arm, tuple(seeds), lr, steps)


@lru_cache(maxsize=256)
def _train(arm: str, seeds: tuple[int, ...], lr: float, steps: int) -> Runs:
    data, place = load_digits(), device()
    runs = [build(arm, seed) for seed in seeds]
    states = [dict(model.named_parameters()) for model, _ in runs]
    p = {name: torch.stack([s[name].detach() for s in states]).to(place).requires_grad_() for name in states[0]}
    c = {f"{b}.{ROLES[r]}.weight": _shift(runs, p, b, r) for b in _attentions(p) for r in runs[0][1]}
    forward = partial(_forward, shifts=c, qk_norm=ARMS[arm].qk_norm)
    optimizer = torch.optim.AdamW(list(p.values()), lr=lr, weight_decay=DECAY, fused=True)
    orders = [_batches(len(data.train_y), torch.Generator().manual_seed(seed)) for seed in seeds]
    patches, labels = F.unfold(data.train_x, 2, stride=2).mT.to(place), data.train_y.to(place)
    losses, snapshots = [], {}
    for step in range(steps):
        if step % EVERY == 0:
            snapshots[step] = _snapshot(p, c)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / WARMUP)
        picked = torch.stack([next(order) for order in orders]).to(place)
        each = F.cross_entropy(forward(p, patches[picked]).mT, labels[picked], reduction="none").mean(1)
        optimizer.zero_grad(set_to_none=True)
        each.sum().backward()  # the runs share nothing, so each gets its own gradient
        optimizer.step()
        losses.append(each.detach())
    snapshots[steps] = _snapshot(p, c)
    with torch.no_grad():
        held_out = F.unfold(data.test_x, 2, stride=2).mT.to(place).expand(len(seeds), -1, -1, -1)
        accuracy = (forward(p, held_out).argmax(-1).cpu() == data.test_y).double().mean(1)
    return Runs(torch.stack(losses, 1).double().cpu(), accuracy, snapshots)


@lru_cache(maxsize=256)
def trace(arm: str, seed: int) -> dict[int, HeadProbe]:
    """Step -> κ(J), saturation and block norms of head 1 of block 1 at the first held-out digit."""
    model, out = VisionTransformer(depth=1), {}
    for step, weights in train(arm).snapshots.items():
        model.load_state_dict({name: w[SEEDS.index(seed)] for name, w in weights.items()}, strict=False)
        out[step] = probe_head(model, load_digits().test_x[0])
    return out


def smooth(losses: Tensor, window: int = 10) -> Tensor:
    """Mean of the last `window` values at every step that has that many: (…, steps) -> (…, steps − window + 1)."""
    return losses.unfold(-1, window, 1).mean(-1)


# ---- one stack of models: every parameter and activation has the seeds in front ----------------------------


def _forward(p: Stack, x: Tensor, *, shifts: Stack, qk_norm: bool) -> Tensor:
    """Patches (seeds, batch, n, 4) -> logits (seeds, batch, classes), as `VisionTransformer` computes them."""
    seeds, batch, n, _ = x.shape
    x = (_linear(p, "embed", x.flatten(1, 2)).unflatten(1, (batch, n)) + p["position"]).flatten(1, 2)
    for name in _attentions(p):
        block, y = name.removesuffix(".attention"), _norm(p, name.replace("attention", "norm1"), x)
        weights = [p[w] + shifts[w] if (w := f"{name}.{role}.weight") in shifts else p[w] for role in ROLES.values()]
        parts = (y @ torch.cat(weights, 1).mT).view(seeds * batch, n, 3, 2, -1).permute(2, 0, 3, 1, 4)
        q, k, v = parts.flatten(1, 2).unbind(0)  # each (seeds · batch · heads, n, d)
        if qk_norm:
            q, k = (F.rms_norm(t, t.shape[-1:]) for t in (q, k))
        heads = torch.bmm((torch.bmm(q, k.mT) * q.shape[-1] ** -0.5).softmax(-1), v)
        heads = heads.view(seeds * batch, 2, n, -1).transpose(1, 2).reshape(x.shape)
        x = x + _linear(p, f"{name}.out", heads)
        hidden = F.gelu(_linear(p, f"{block}.mlp.0", _norm(p, f"{block}.norm2", x)))
        x = x + _linear(p, f"{block}.mlp.2", hidden)
    return _linear(p, "head", _norm(p, "norm", x).unflatten(1, (batch, n)).mean(2))


def _linear(p: Stack, name: str, x: Tensor) -> Tensor:
    bias = p.get(f"{name}.bias")
    weight = p[f"{name}.weight"].mT
    return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias[:, None], x, weight)


def _norm(p: Stack, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * p[f"{name}.weight"][:, None] + p[f"{name}.bias"][:, None]


def _attentions(p: Stack) -> list[str]:
    return [name.removesuffix(".query.weight") for name in p if name.endswith("query.weight")]


def _shift(runs: list[tuple[VisionTransformer, By]], p: Stack, block: str, role: str) -> Tensor:
    """C of every run for one weight, fixed from the start: (seeds, D, D)."""
    w = p[f"{block}.{ROLES[role]}.weight"].detach().double()
    return torch.stack([fixes[role](one) - one for (_, fixes), one in zip(runs, w, strict=True)]).float()


def _snapshot(p: Stack, c: Stack) -> Stack:
    wanted = ("embed", "position", "blocks.0.norm1", "blocks.0.attention")
    used = {k: w.detach() + c[k] if k in c else w.detach().clone() for k, w in p.items() if k.startswith(wanted)}
    return {k: w.cpu() for k, w in used.items()}


def _batches(size: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(size, generator=generator)[: size // BATCH * BATCH].split(BATCH)


ENTRIES = ()
