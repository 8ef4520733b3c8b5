"""Lesson 8, training a ViT: its views, predictions and quiz, as data. The runs are in `lesson_08_runs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectral_core.lessons.heads import query_key_share
from spectral_core.lessons.lesson_08_runs import EVERY, STEPS, smooth, trace, train
from spectral_core.lessons.registry import Choice, Option, Question, Slider, View
from spectral_core.lessons.statistics import interval
from spectral_core.plots.runs import by_step, paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from spectral_core.lessons.lesson_08_runs import Runs

__all__ = ["ENTRIES", "OUTCOMES", "TRACED"]

OUTCOMES = ("training loss", "held-out accuracy")
TRACED = ("plain", "Xavier", "λ = 1", "λ = 10")
SMOOTHED = list(range(10, STEPS + 1))


def _outcome(runs: Runs, outcome: str) -> Tensor:
    return runs.final if outcome == "training loss" else runs.accuracy


def draw_open(left: int, right: int) -> Figure:
    """Training curves of λ = 1 and Xavier on two seeds, side by side."""
    curves = {arm: smooth(train(arm).losses) for arm in ("λ = 1", "Xavier")}
    gaps = [float(train("λ = 1").final[int(s)] - train("Xavier").final[int(s)]) for s in (left, right)]
    # two panels may show the same seed
    names = [f"{side} · seed {seed:g}: λ = 1 {'wins' if gap < 0 else 'loses'} by {abs(gap):.2f}"
             for side, seed, gap in zip("AB", (left, right), gaps, strict=True)]  # fmt: skip
    panels = {name: {arm: curve[int(seed)].tolist() for arm, curve in curves.items()}
              for name, seed in zip(names, (left, right), strict=True)}  # fmt: skip
    title = "The same two arms on two seeds: training loss, mean of 10 steps"
    return by_step(panels, SMOOTHED, title=title, y_label="training loss")


def draw_pairs(arm: str, against: str, outcome: str) -> Figure:
    """Curves of two arms with bands over seeds, and their difference in one outcome seed by seed."""
    bands = {name: [interval(column) for column in smooth(train(name).losses).mT] for name in (arm, against)}
    gaps = _outcome(train(arm), outcome) - _outcome(train(against), outcome)
    better = "below" if outcome == "training loss" else "above"
    title = f"{arm} against {against}, 8 paired seeds; {arm} is better {better} the line"
    return paired(bands, SMOOTHED, gaps.tolist(), interval(gaps), outcome=f"difference in {outcome}", title=title)


def draw_trace(seed: int) -> Figure:
    """κ(J), saturation and what is left of Q and K, every 20 steps of training."""
    steps = list(range(0, STEPS + 1, EVERY))
    probes = {arm: [trace(arm, int(seed))[step] for step in steps] for arm in TRACED}
    shares = {arm: [query_key_share(p.block_norms) for p in ps] for arm, ps in probes.items()}
    panels = {
        "κ(J)": {arm: [p.kappa_j for p in ps] for arm, ps in probes.items()},
        "mean of max p": {arm: [p.saturation for p in ps] for arm, ps in probes.items()},
        "share of Q and K in ‖J‖": shares,
    }
    return by_step(panels, steps, title=f"One head while the model trains, seed {seed:g}", log=["κ(J)"])


SEED_NOTE = "decides the data order and all weights but Q, K, V"

VIEWS = (
    View("08.open", draw_open, (
        Slider("left", "seed, left", 0, 7, 1, 6, SEED_NOTE),
        Slider("right", "seed, right", 0, 7, 1, 3, SEED_NOTE),
    )),
    View("08.pairs", draw_pairs, (
        Choice("arm", "arm", ("λ = 1", "λ = 10", "rotations", "calibrated", "Conditioned Init"), "λ = 1",
               "what is tested"),
        Choice("against", "against", ("plain", "Xavier"), "plain", "the baseline, or the control for scale"),
        Choice("outcome", "outcome", OUTCOMES, OUTCOMES[0], "how fast it fits, or how well it generalises"),
    )),
    View("08.trace", draw_trace, (Slider("seed", "seed", 0, 7, 1, 0, SEED_NOTE),)),
)  # fmt: skip

QUESTIONS = (
    Question(
        "08.winner",
        "λ = 1 on W_Q, W_K, W_V takes the training loss after 100 steps from about 0.95 to about 0.63, on eight paired "
        "seeds. Xavier weights have no correction; they are merely larger than the baseline's. Where does Xavier end?",
        {
            "a": Option("near 0.95, like the baseline: larger weights do not condition anything", "They do condition "
                        "J somewhat (lesson 2), and they end at 0.63."),
            "b": Option("about halfway", "The baseline's weights are too small for this width. Xavier repairs that, "
                        "and nothing is left of the gain."),
            "c": Option("near 0.63, so that no difference to λ = 1 can be seen", "Larger Xavier weights give the "
                        "same gain over the baseline, without a correction."),
        },
        "c",
    ),
    Question(
        "08.stay",
        "λ = 1 takes κ(J) of a head at initialisation from several hundred thousand to about 42 (seed 0). The "
        "correction is fixed, the weights train. What is κ(J) after 100 steps?",
        {
            "a": Option("more than five times larger", "On each of the four seeds that we trace. A small κ(J) at the "
                        "start is no small κ(J) during training."),
            "b": Option("about the same: C does not change", "C stays, but W and the tokens X move, and κ(J) "
                        "depends on all of them."),
            "c": Option("smaller still: training improves the conditioning", "That happens to the baseline. λ = 1 "
                        "starts far below where training takes it."),
        },
        "a",
    ),
    Question(
        "08.quiz-pair",
        "When does pairing by seed narrow the interval of a difference most?",
        {
            "a": Option("when the difference is large", "The width depends on how the difference varies from seed to "
                        "seed, not on its size."),
            "b": Option("when what is luck for one arm is the same luck for the other", "Then the luck drops out of "
                        "a − b: its variance is Var a + Var b − 2 Cov(a, b)."),
            "c": Option("always: pairing is free precision", "If the arms do not go together over the seeds, nothing "
                        "drops out, and you have half the degrees of freedom."),
        },
        "b",
    ),
    Question(
        "08.quiz-rate",
        "At rate 0.001 Xavier beats λ = 1, at 0.003 they tie, at 0.01 λ = 1 beats Xavier, and the best rate of both is "
        "0.003. What do you report?",
        {
            "a": Option("that λ = 1 wins, at rate 0.01", "You would report the rate that suits your method, and both "
                        "arms are better at 0.003."),
            "b": Option("the average over the three rates", "Nobody trains at an average of rates, and the grid was "
                        "yours to choose."),
            "c": Option("a tie at each arm's own best rate, and how it depends on the rate", "Each arm at its best, "
                        "chosen on other seeds; the rest of the grid beside it."),
        },
        "c",
    ),
    Question(
        "08.quiz-many",
        "You compare eight new arms with one baseline. None of them differs from it. How likely is at least one raw "
        "p-value below 0.05?",
        {
            "a": Option("about a quarter", "More than one chance to be lucky; a little below 1 − 0.95⁸ = 0.34, since "
                        "all share one baseline."),
            "b": Option("5 %, as for one comparison", "That is the chance for each of them."),
            "c": Option("40 %, eight times 5 %", "A bound, not the chance: lucky arms can be lucky together."),
        },
        "a",
    ),
)  # fmt: skip

ENTRIES = (*VIEWS, *QUESTIONS)
