"""Training written out: plain weights plus C by hand in every forward, and w -= lr · gradient. No `condition` in it."""

from contextlib import nullcontext

import torch
from torch.func import functional_call

LR = 0.05


def mean_square(out):
    return out.float().square().mean()


def train(family, steps=3, *, loss=mean_square, run=None, context=nullcontext, mode=True):
    """The plain weights after some steps of gradient descent on loss(output), by name."""
    model = family.model().train(mode)
    added = family.added(model)
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    for _ in range(steps):
        used = {name: w + added[name] if name in added else w for name, w in weights.items()}
        with context():
            if run is not None:
                value = run(lambda *a, used=used, **k: functional_call(model, used, a, k))
            else:
                batch = family.batch
                arguments = ((), batch) if isinstance(batch, dict) else (batch, {})
                out = functional_call(model, used, *arguments)
                value = loss(out if isinstance(out, torch.Tensor) else out[0])
        gradients = torch.autograd.grad(value, weights.values(), allow_unused=True)
        with torch.no_grad():
            for w, g in zip(weights.values(), gradients, strict=True):
                if g is not None:
                    w -= LR * g
    return {name: w.detach() for name, w in weights.items()}


def same_training(got, expected, start, tolerance=1e-4):
    """Whether both moved from `start` in the same way: the difference is small beside the way that was made."""
    worst = ""
    for name, w in expected.items():
        moved = float((w - start[name]).norm())
        apart = float((got[name] - w).norm())
        if apart > tolerance * moved + 1e-7:
            worst += f"{name}: {apart:.2e} apart after {moved:.2e}\n"
    assert not worst, worst
    assert sum(float((expected[name] - start[name]).norm()) for name in expected) > 1e-3
    return True
