"""Lesson 4: right answers written differently, and wrong ones as a learner would write them."""

import math


def transposed_newton(w, steps):
    """On Wᵀ, with the factor on the other side."""
    x = w.mT.clone() / math.sqrt(float((w * w).sum()))
    for _ in range(steps):
        x = (3 * x - (x @ x.mT) @ x) / 2
    return x.mT


def counted_by_recursion(sigma, tol):
    return 0 if 1 - sigma <= tol else 1 + counted_by_recursion(sigma * (3 - sigma * sigma) / 2, tol)


def listed_spectrum(s, keep_norm):
    values = s.tolist()
    out = [value + max(values) for value in values]
    factor = math.sqrt(sum(v * v for v in values) / sum(v * v for v in out)) if keep_norm else 1.0
    return s.new_tensor([factor * value for value in out])


OTHERS = {
    "04.newton-schulz": transposed_newton, "04.steps": counted_by_recursion, "04.spectrum": listed_spectrum,
}  # fmt: skip

LOOP = "    for _ in range(steps):\n        x = {}\n    return x"

MUTANTS = {
    "04.newton-schulz": [
        ("x = w\n" + LOOP.format("1.5 * x - 0.5 * x @ x.mT @ x"), "not divided"),
        ("x = w / w.norm()\n" + LOOP.format("1.5 * x - 0.5 * x**3"), "entry by entry"),
        ("x = w / w.norm()\n" + LOOP.format("1.5 * x - 0.5 * x @ x @ x"), "X X X"),
        ("x = w / torch.linalg.matrix_norm(w, 2)\n" + LOOP.format("1.5 * x - 0.5 * x @ x.mT @ x"), "divided by σ_max"),
        ("return reference(w, steps + 1)", "too many"),
        ("return reference(w, steps - 1)", "missing"),
    ],
    "04.steps": [
        ("return max(1, count(sigma, tol))", "before the first step"),
        ("return 2 * count(sigma, tol)", "matrix products"),
        ("return count(sigma, tol) + 1", "no step"),
        ("return math.ceil(math.log(1 / sigma) / math.log(1.5))", "not all"),
        ("return count(sigma, 1e-6)", "tolerance is not used"),
    ],
    "04.spectrum": [
        ("return s + s[0] if not keep_norm else (s + s[0]) * s.norm() / (s + s[0]).norm()", "s.max()"),
        ("return s + s.max()", "not used"),
        ("out = s + s.max(); return out / out.max() * s.max() if keep_norm else out", "spectral norm"),
        ("out = s + s.max(); return out * out.norm() / s.norm() if keep_norm else out", "upside down"),
        ("out = s + s.max(); return out * s.sum() / out.sum() if keep_norm else out", "sum of the singular values"),
        ("return s.max() * torch.ones_like(s)", "have to be added"),
    ],
}

NAMES = {"reference": transposed_newton, "count": counted_by_recursion, "math": math}
