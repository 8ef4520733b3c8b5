"""Lesson 12, the capstone: the checks of its exercises, as data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_core.lessons.lesson_01 import with_spectrum
from spectral_core.lessons.registry import Case, Exercise

__all__ = ["ENTRIES", "WORDS", "diagnose", "lift", "verdict"]

WORDS = ("saturated", "inputs", "weak", "collapsed", "unknown", "chance", "healthy")
VERDICTS = ("better", "worse", "undecided")


class Word(int):
    """A word that compares as its place in a list, and shows as the word."""

    said: str

    def __new__(cls, said: object, known: Sequence[str]) -> Word:
        """The place of `said` among the known words, −1 for any other."""
        word = super().__new__(cls, known.index(said) if said in known else -1)
        word.said = said if isinstance(said, str) else repr(said)
        return word

    def __str__(self) -> str:
        return self.said


def _word(said: object, known: Sequence[str] = WORDS) -> Word | None:
    return None if said is None else Word(said, known)


def diagnose(
    kappa_w: float, chance: float, kappa_j: float, kappa_x: float, saturation: float, share: float
) -> str:  # fmt: skip
    """The first rule of the lesson's table that holds."""
    rules = (
        (saturation > 0.9, "saturated"), (kappa_x > 15, "inputs"), (share < 0.1, "weak"),
        (kappa_w > 10 * chance, "collapsed"), (kappa_j > 1e6, "unknown"), (kappa_w > 100, "chance"),
    )  # fmt: skip
    return next((word for holds, word in rules if holds), "healthy")


Symptoms = tuple[float, float, float, float, float, float]
CLEAR: dict[str, Symptoms] = {
    "saturated": (4.4, 5.4, float("inf"), 2.7, 0.998, 0.16),
    "inputs": (4.4, 5.4, 1.2e6, 65.0, 0.11, 0.2),
    "weak": (4.4, 5.4, 8e5, 2.7, 0.083, 0.04),
    "collapsed": (2e5, 5.4, 2e5, 2.7, 0.33, 0.76),
    "healthy": (4.4, 5.4, 1e3, 2.7, 0.36, 0.79),
}


def _all_clear(fn) -> tuple[Word | None, ...]:
    return tuple(_word(fn(*symptoms)) for symptoms in CLEAR.values())


def _one(fn, *symptoms: float) -> Word | None:
    return _word(fn(*symptoms))


def _case(name: str, kind: str, symptoms: Symptoms, word: str, cause: str) -> Case:
    return Case(name, kind, lambda: symptoms, lambda *_: Word(word, WORDS), cause, observe=_one)


def _without(skipped: str):
    """`diagnose` with the symptom of one rule made harmless."""
    at, harmless = {"saturated": (4, 0.5), "inputs": (3, 1.0), "weak": (5, 1.0), "chance": (0, 1.0)}[skipped]

    def wrong(*symptoms: float) -> str:
        changed = list(symptoms)
        changed[at] = harmless
        return diagnose(*changed)

    return wrong


def _fixed_limit(kappa_w, chance, kappa_j, kappa_x, saturation, share):
    return diagnose(kappa_w, 10.0, kappa_j, kappa_x, saturation, share)


def _share_first(kappa_w, chance, kappa_j, kappa_x, saturation, share):
    return "weak" if share < 0.1 else diagnose(kappa_w, chance, kappa_j, kappa_x, saturation, share)


def _inclusive(kappa_w, chance, kappa_j, kappa_x, saturation, share):
    return diagnose(
        kappa_w * 1.001, chance, kappa_j * 1.001, kappa_x * 1.001, saturation * 1.001, share * 0.999
    )  # fmt: skip


def _kappa_j_first(kappa_w, chance, kappa_j, kappa_x, saturation, share):
    return "unknown" if kappa_j > 1e6 else diagnose(kappa_w, chance, kappa_j, kappa_x, saturation, share)


DIAGNOSE = Exercise(
    "12.diagnose", "a diagnosis by the table",
    (
        _case("W_Q and W_K far too small: weak", "reference", CLEAR["weak"], "weak", "the third rule holds first here"),
        Case("five clear heads: saturated, inputs, weak, collapsed, healthy", "reference", tuple,
             lambda: tuple(Word(word, WORDS) for word in CLEAR), "return the word of the first rule that holds",
             observe=_all_clear),
        _case("a saturated head has lost its share of Q and K too, and is called saturated", "property",
              (4.4, 5.4, 1e9, 2.7, 1.0, 0.0003), "saturated", "the rule on saturation comes first"),
        _case("tokens that are all alike take the share down: that is inputs, not weak", "property",
              (4.4, 5.4, 1.2e6, 65.0, 0.11, 0.005), "inputs", "ask for κ(X) before you ask for the share"),
        _case("κ(W) = 900 of a square matrix, where chance gives 512: chance", "property",
              (900.0, 512.0, 4e3, 3.0, 0.2, 0.5), "chance", "compare κ(W) with 10 times chance, not with a number"),
        _case("κ(W) = 90 where chance gives 1.8: collapsed", "property", (90.0, 1.8, 4e3, 3.0, 0.2, 0.5), "collapsed",
              "compare κ(W) with 10 times chance, not with a number"),
        _case("κ(J) infinite and nothing else to blame: unknown", "edge", (4.4, 5.4, float("inf"), 2.7, 0.3, 0.5),
              "unknown", "κ(J) is asked for after all its causes"),
        _case("exactly at every limit: healthy", "edge", (50.0, 5.0, 1e6, 15.0, 0.9, 0.1), "healthy",
              "the rules say above and below, not at"),
    ),
    (
        ("the rule on saturation is missing, or comes too late: it stands first", _without("saturated")),
        ("the share is asked before saturation and κ(X), which both take it down: keep the table's order",
         _share_first),
        ("the rule on κ(X) is missing: tokens that are alike look like weak Q and K", _without("inputs")),
        ("κ(J) is a symptom that all illnesses share: ask for it after its causes", _kappa_j_first),
        ("κ(W) was compared with a fixed number: chance depends on the shape, use 10 * chance", _fixed_limit),
        ("a large κ(W) that is no more than chance has a word of its own, chance", _without("chance")),
        ("the rule on the share is missing", _without("weak")),
        ("a limit itself is still allowed: > and <, not >= and <=", _inclusive),
    ),
    diagnose,
)  # fmt: skip


def lift(w: Tensor, kappa: float) -> Tensor:
    """W with singular values max(σ_i, σ_max/κ) and its own singular vectors."""
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return u @ torch.diag(s.clamp(min=float(s[0]) / kappa)) @ vh


def _matrix(spectrum: list[float], seed: int, m: int | None = None) -> Tensor:
    return with_spectrum(spectrum, seed=seed, m=m)


def _rotation(size: int, seed: int) -> Tensor:
    draw = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(draw).Q


def _turned(fn, w: Tensor, kappa: float) -> Tensor:
    """fn(Q W R) − Q fn(W) R, zero for a correction that has no preferred direction."""
    q, r = _rotation(w.shape[0], 1), _rotation(w.shape[1], 2)
    return torch.as_tensor(fn(q @ w @ r, kappa)).double() - q @ torch.as_tensor(fn(w, kappa)).double() @ r


LIFT = Exercise(
    "12.lift", "a correction with a ceiling on κ",
    (
        Case("σ = 8, 4, 1 with κ ≤ 4 becomes 8, 4, 2", "reference", lambda: (_matrix([8.0, 4.0, 1.0], 0, 5), 4.0),
             lambda w, kappa: torch.tensor([8.0, 4.0, 2.0]).double(), "new singular values: max(σ_i, σ_max / κ)",
             observe=lambda fn, *a: torch.linalg.svdvals(torch.as_tensor(fn(*a)).double())),
        Case("the matrix itself, 4 × 3: the singular vectors stay", "reference",
             lambda: (_matrix([9.0, 3.0, 0.3], 1, 4), 3.0), lift, "U diag(new σ) Vᵀ, with U and Vᵀ of W's own SVD"),
        Case("κ = 3 for a wide matrix as well", "property", lambda: (_matrix([9.0, 3.0, 0.3], 2, 4).mT, 3.0), lift,
             "use full_matrices=False, so that the shapes fit for tall and wide matrices"),
        Case("no preferred direction: F(Q W R) = Q F(W) R for rotations (difference 0)", "property",
             lambda: (_matrix([5.0, 1.0, 0.1], 3), 2.0), lambda w, kappa: torch.zeros_like(w),
             "change the singular values alone; entries, diagonals and I know directions", observe=_turned),
        Case("a matrix that is below the ceiling stays as it is", "edge", lambda: (_matrix([2.0, 1.5, 1.0], 4), 4.0),
             lambda w, kappa: w, "lift only what is below σ_max / κ"),
        Case("W = 0 stays 0, without nan", "edge", lambda: (torch.zeros(3, 3).double(), 4.0),
             lambda w, kappa: w, "compare σ_i with σ_max / κ; do not divide by σ"),
    ),
    (
        ("you added the floor to all singular values: only those below it are lifted",
         lambda w, kappa: _reshaped(w, lambda s: s + s[0] / kappa)),
        ("you cut the large singular values down: the ceiling is on κ, and small ones are lifted",
         lambda w, kappa: _reshaped(w, lambda s: s.clamp(max=s[-1] * kappa))),
        ("you clamped entries, not singular values", lambda w, kappa: w.clamp(min=float(w.abs().max()) / kappa)),
        ("the floor is σ_max / κ, not 1 / κ", lambda w, kappa: _reshaped(w, lambda s: s.clamp(min=1 / kappa))),
        ("that is λI: it moves the diagonal, and knows directions",
         lambda w, kappa: w + torch.eye(*w.shape, dtype=w.dtype) * torch.linalg.svdvals(w)[0] / kappa),
        ("you return C alone: return W + C", lambda w, kappa: lift(w, kappa) - w),
    ),
    lift,
)  # fmt: skip


def _reshaped(w: Tensor, change) -> Tensor:
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return u @ torch.diag(change(s)) @ vh


def _by_interval(differences: Sequence[float], quantile: float | None = None, level: float = 0.975, power=0.5) -> str:
    from scipy import stats

    d = torch.as_tensor(differences, dtype=torch.float64)
    if len(d) < 2:
        return "undecided"
    width = float(stats.t.ppf(level, len(d) - 1)) if quantile is None else quantile
    mean, half = float(d.mean()), width * float(d.std()) / len(d) ** power
    return "better" if mean + half < 0 else "worse" if mean - half > 0 else "undecided"


def verdict(differences: Sequence[float]) -> str:
    """By the 95 % t interval of the mean: "better" if it lies below 0, "worse" if above, else "undecided"."""
    return _by_interval(differences)


TRIALS = (
    [-1.3, -0.9, 0.6, -0.1, -0.3], [-0.9, -0.1, -0.6, 0.1, -0.3], [-0.52, 0.22] * 10, [-0.1, -0.5, -0.9],
    [-0.3, 0.1] * 10,
)  # fmt: skip


def _trial(name: str, kind: str, differences: list[float], word: str, cause: str) -> Case:
    return Case(name, kind, lambda: (list(differences),), lambda *_: Word(word, VERDICTS), cause,
                observe=lambda fn, d: _word(fn(d), VERDICTS))  # fmt: skip


VERDICT = Exercise(
    "12.verdict", "a verdict from paired differences",
    (
        _trial("five losses lower by 0.5 to 0.7: better", "reference", [-0.5, -0.6, -0.7, -0.55, -0.65], "better",
               "differences are treatment less baseline, of losses: below 0 is better"),
        _trial("the same the other way round: worse", "property", [0.5, 0.6, 0.7, 0.55, 0.65], "worse",
               "an interval wholly above 0 is worse"),
        Case("five trials whose mean is below 0; only the last, twenty small differences, is better", "reference",
             lambda: TRIALS, lambda *_: (*[Word(VERDICTS[2], VERDICTS)] * 4, Word(VERDICTS[0], VERDICTS)),
             "half the width is t · s / √n, with t = scipy.stats.t.ppf(0.975, n − 1)",
             observe=lambda fn, *trials: tuple(_word(fn(d), VERDICTS) for d in trials)),
        _trial("one seed: undecided", "edge", [-2.0], "undecided", "one difference has no spread"),
    ),
    (
        ("the sign is turned: a lower loss is better",
         lambda d: {"better": "worse", "worse": "better"}.get(_by_interval(d), "undecided")),
        ("only the mean was looked at: it needs its interval", lambda d: "better" if sum(d) < 0 else "worse"),
        ("1.96 is for many seeds: use scipy.stats.t.ppf(0.975, n − 1)", lambda d: _by_interval(d, quantile=1.96)),
        ("the standard deviation of the seeds is not the error of their mean: divide by √n",
         lambda d: _by_interval(d, power=0)),
        ("that is the one-sided quantile: 0.975, not 0.95", lambda d: _by_interval(d, level=0.95)),
        ("that all seeds agree is another rule: compute the interval",
         lambda d: "better" if max(d) < 0 else "worse" if min(d) > 0 else "undecided"),
    ),
    verdict,
)  # fmt: skip

ENTRIES = (DIAGNOSE, LIFT, VERDICT)
