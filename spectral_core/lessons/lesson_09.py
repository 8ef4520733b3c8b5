"""Lesson 9, real architectures: its views, predictions and quiz, as data."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from spectral_core import plots
from spectral_core.layouts import Layout
from spectral_core.lessons.lesson_09_models import (
    HEADS,
    SENTENCES,
    TOKENS,
    encode,
    head_kappas,
    head_tokens,
    head_weights,
    minilm,
    minilm_audit,
)
from spectral_core.lessons.registry import Choice, Option, Question, Slider, View
from spectral_core.plots.storage import head_grid, reading, storage
from spectral_core.spectrum import condition_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ENTRIES", "FUSED", "PAPER", "role_of_each_output"]

FUSED = ("q|k|v", "per head", "q|v|k in 4 blocks")
#: ImageNet-1k top-1 of the paper [reported]: family -> model, baseline, with its method
PAPER = {
    "ViT": ("ViT-B", "80.7 ± 0.41", "81.7 ± 0.38"),
    "DeiT": ("DeiT-B", "81.6 ± 0.30", "82.6 ± 0.32"),
    "Swin": ("Swin-B", "83.4 ± 0.28", "84.1 ± 0.25"),
    "XCiT": ("XCiT-M", "82.6 ± 0.39", "83.5 ± 0.35"),
    "DaViT": ("DaViT-B", "84.3 ± 0.26", "84.9 ± 0.21"),
}


def role_of_each_output(layout: Layout, outputs: int) -> str:
    """The role of every output of a fused weight, one letter each, in order of storage."""
    letters = [" "] * outputs
    for role in "qkv":
        for at in layout.take(torch.arange(outputs)[:, None], role).flatten().tolist():
            letters[at] = role
    return "".join(letters)


def _fused(name: str, heads: int, width: int) -> str:
    layouts = {"q|k|v": Layout("qkv"), "per head": Layout("qkv", groups=heads), FUSED[2]: Layout("qvk", groups=4)}
    return role_of_each_output(layouts[name], 3 * heads * width)


def draw_layouts(heads: int) -> Figure:
    """Five ways to store W_Q, W_K and W_V of a layer with `heads` heads of width 4."""
    heads = int(heads)
    dim = 4 * heads
    gap = " " * max(1, heads // 2)
    alone = gap.join(role * dim for role in "qkv")
    shared = gap.join(("q" * dim, "k" * (dim // 2), "v" * (dim // 2)))
    return storage({
        "BERT: three layers": (alone, False, dim),
        "Llama: grouped": (shared, False, dim),
        "timm ViT: q|k|v": (_fused("q|k|v", heads, 4), False, dim),
        "GPT-NeoX: per head": (_fused("per head", heads, 4), False, dim),
        "GPT-2: columns": (_fused("q|k|v", heads, 4), True, dim),
    })  # fmt: skip


def draw_where(stored: str, read: str, role: str, heads: int, width: int) -> Figure:
    """A fused weight read by a layout that may be wrong, and what that reading takes for `role`."""
    true, said = (_fused(name, int(heads), int(width)) for name in (stored, read))
    return reading(true, said, role, title=f"Stored {stored}, read as {read}; taken for {role.upper()}")


def draw_heads(role: str) -> Figure:
    """κ of every head of MiniLM for one role."""
    rows = [m for m in minilm_audit().measured(heads=True) if m.role == role]
    values = [[m.kappa for m in rows if m.index == layer] for layer in range(max(m.index for m in rows) + 1)]
    title = f"κ(W_{role.upper()}) of every head of the pretrained MiniLM"
    return head_grid(values, title=title, chance=rows[0].random, top=6.5)


@lru_cache(maxsize=64)
def _with_copies(layer: int, sentence: int) -> tuple[list[float], list[float]]:
    """κ(J), geometric mean over `HEADS`, and κ(X), for 0, 1, … copies of one word."""
    model, _ = minilm()
    x = head_tokens(model, [encode(SENTENCES[sentence - 1], copies=c) for c in range(TOKENS - 1)])[layer]
    kappas = head_kappas(x, head_weights(model, layer, HEADS))
    return kappas.log().mean(-1).exp().tolist(), condition_number(x).tolist()


def draw_copies(layer: int, sentence: int) -> Figure:
    """κ(J) of MiniLM and κ of its tokens, as copies of one word take the place of an English sentence."""
    kappa_j, kappa_x = _with_copies(int(layer), int(sentence))
    title = f"MiniLM, layer {layer:g}, sentence {sentence:g}: words replaced by copies of its second word"
    panels = {"κ(J), mean of 3 heads": kappa_j, "κ(X)": kappa_x}
    return plots.sweep(range(TOKENS - 1), panels, x_label="words replaced, of 8", title=title, log=list(panels))


VIEWS = (
    View("09.layouts", draw_layouts, (
        Slider("heads", "heads", 2, 8, 2, 4, "of width 4; Llama's keys and values have half as many"),
    )),
    View("09.where", draw_where, (
        Choice("stored", "stored as", FUSED, "per head", "how the weight really lies in storage"),
        Choice("read", "read as", FUSED, "q|k|v", "how somebody reads it"),
        Choice("role", "role", ("q", "k", "v"), "q", "what is to be corrected"),
        Slider("heads", "heads", 4, 12, 4, 12, "of the layer"),
        Slider("width", "head width d", 1, 16, 1, 4, "D = heads · d, and the weight has 3D outputs"),
    )),
    View("09.heads", draw_heads, (
        Choice("role", "role", ("q", "k", "v"), "q", "which of the three weights"),
    )),
    View("09.copies", draw_copies, (
        Slider("layer", "layer", 0, 5, 1, 0, "of MiniLM"),
        Slider("sentence", "sentence", 1, 5, 1, 1, "of section 8"),
    )),
)  # fmt: skip

QUESTIONS = (
    Question(
        "09.guess",
        "A GPT-NeoX layer with 12 heads keeps one weight query_key_value with 3D rows. You add λI to its first D rows, "
        "as you would in a vision transformer of timm. What have you corrected?",
        {
            "a": Option("Q, K and V of the first four heads, and nothing of the other eight", "D = 12 d rows hold "
                        "q, k and v of 4 heads. No error, no warning, and a κ that looks fine."),
            "b": Option("W_Q: the first third is the queries", "So it is in timm. Here each head's q, k and v lie "
                        "together, head after head."),
            "c": Option("nothing: PyTorch raises an error", "The shapes fit. Nothing in a tensor says what its rows "
                        "mean."),
        },
        "a",
    ),
    Question(
        "09.inputs",
        "The pretrained MiniLM reads an English sentence. What raises κ(J) of its heads the most?",
        {
            "a": Option("put Gaussian noise in place of its trained W_Q, W_K and W_V, of the same size",
                        "It becomes about 0.8 of what it was, on average, with an interval that includes 1."),
            "b": Option("write one word eight times in place of the sentence", "By a factor of more than a thousand: "
                        "the rows of X become nearly equal."),
            "c": Option("put random words in place of the sentence", "That lowers κ(J), to about a third: random "
                        "words differ more than those of a sentence do."),
        },
        "b",
    ),
    Question(
        "09.quiz-name",
        "Your team's attention class has `self.qkv = nn.Linear(D, 3 * D)`. What does `condition` do with it?",
        {
            "a": Option("reads it as q|k|v, since it is called qkv", "GPT-NeoX's kind of order would bear that name, "
                        "too. A name is not a layout."),
            "b": Option("tries all orders and takes the one with the best κ", "κ is no evidence: a wrong order gives "
                        "a perfectly ordinary number."),
            "c": Option("refuses, lists it, and asks for `layouts=`", "Only the class's forward tells the order. You "
                        "wrote it: state the layout in one line."),
        },
        "c",
    ),
    Question(
        "09.quiz-fold",
        "A conditioned model is folded before it goes into production. What does the correction cost there?",
        {
            "a": Option("nothing", "W + C is a plain weight under the plain key: the same graph, size and speed."),
            "b": Option("one addition for each weight and forward pass", "That is the price before folding."),
            "c": Option("a second copy of W_Q, W_K and W_V", "`fold` writes W + C in place of W; `unfold` is what "
                        "gives W back, and it has to come first."),
        },
        "a",
    ),
    Question(
        "09.quiz-inputs",
        "An audit with your texts reports a median κ(J) of 10⁸ for a model that works well. Where do you look first?",
        {
            "a": Option("at κ(W_Q) and κ(W_K) of its heads", "They do not see the size of W. In MiniLM W_Q and W_K "
                        "times 2.5 keep them at 6.5 or less, and raise κ(J) thousands of times."),
            "b": Option("at the texts and at the saturation: do tokens repeat, is attention sharp?", "A ruled line, "
                        "padding, a table: a few equal tokens are enough, and κ(X) says it in one number. Large W_Q "
                        "and W_K do it as well, and the mean of max p says that."),
            "c": Option("at the corrections that `condition` offers", "First find out what made it large. In section "
                        "10, κ(W) below 2 changed κ(J) by no more than its interval."),
        },
        "b",
    ),
)  # fmt: skip

ENTRIES = (*VIEWS, *QUESTIONS)
