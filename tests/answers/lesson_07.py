"""Lesson 7: right answers written differently, and wrong ones as a learner would write them; see lesson_02."""

import torch


def sorted_choice(kappas, saturations, limit):
    order = sorted(range(len(kappas)), key=lambda i: (kappas[i], saturations[i]))
    return next((torch.tensor(i) for i in order if saturations[i] <= limit), -1)


def clamp_by_eigenvectors(w, low, high):
    """From the eigenvectors of the smaller Gram matrix: W V f(σ)/σ Vᵀ, for W of full rank."""
    if w.shape[0] < w.shape[1]:
        return clamp_by_eigenvectors(w.mT, low, high).mT
    squares, v = torch.linalg.eigh(w.mT @ w)
    sigma = squares.sqrt()
    return w @ (v * (sigma.clamp(low, high) / sigma)) @ v.mT


def decay_step_by_step(w, c, lr, decay, steps):
    for _ in range(steps):
        w = w - lr * decay * w
    return w + c


OTHERS = {"07.choose": sorted_choice, "07.clamp": clamp_by_eigenvectors, "07.decay": decay_step_by_step}

MUTANTS = {
    "07.choose": [
        ("return min(range(len(kappas)), key=lambda i: kappas[i])", "switched off"),
        ("allowed = [k for k, s in zip(kappas, saturations) if s <= limit]; "
         "return allowed.index(min(allowed)) if allowed else -1", "in the whole list"),
        ("allowed = [i for i, s in enumerate(saturations) if s < limit]; "
         "return min(allowed, key=lambda i: (kappas[i], saturations[i])) if allowed else -1", "<=, not <"),
        ("allowed = [i for i, s in enumerate(saturations) if s <= limit]; "
         "return min(allowed, key=lambda i: kappas[i]) if allowed else -1", "less saturated"),
        ("return min(range(len(kappas)), key=lambda i: saturations[i])", "κ is the aim"),
    ],
    "07.clamp": [
        ("return w.clamp(low, high)", "entries of W"),
        ("u, s, vh = torch.linalg.svd(w, full_matrices=False); return (u * s.clamp(min=low)) @ vh", "ceiling"),
        ("u, s, vh = torch.linalg.svd(w, full_matrices=False); return (u * s.clamp(max=high)) @ vh", "floor"),
        ("u, s, vh = torch.linalg.svd(w, full_matrices=False); return (u * s.clamp(low, high)) @ vh.mT", "Vᵀ already"),
        ("return w / torch.linalg.svdvals(w)[0] * high", "rescale the whole matrix"),
    ],
    "07.decay": [
        ("return (w + c) * (1 - lr * decay) ** steps", "let C decay"),
        ("return w * (1 - lr * decay) ** steps", "C is missing"),
        ("return w * (1 - lr * decay * steps) + c", "compounds"),
        ("return w * (1 - decay) ** steps + c", "learning rate is missing"),
    ],
}  # fmt: skip

NAMES = {}
