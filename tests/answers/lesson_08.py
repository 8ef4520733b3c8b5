"""Lesson 8: right answers written differently, and wrong ones as a learner would write them; see lesson_02."""

import math
import statistics

import torch
from scipy import stats


def by_scipy(a, b):
    result = stats.ttest_rel(a.numpy(), b.numpy()).confidence_interval(0.95)
    return statistics.mean((a - b).tolist()), float(result.low), float(result.high)


def by_unfold(losses, target, window):
    means = losses.unfold(0, window, 1).mean(-1)
    hit = (means <= target).nonzero()
    return torch.tensor(float(hit[0] + window)) if len(hit) else float("inf")


def holm_by_pairs(p_values):
    p = [float(v) for v in p_values]
    ranks = sorted(range(len(p)), key=p.__getitem__)
    place = {i: rank for rank, i in enumerate(ranks)}
    scaled = [(len(p) - place[i]) * p[i] for i in range(len(p))]
    return [min(1.0, max(scaled[j] for j in range(len(p)) if place[j] <= place[i])) for i in range(len(p))]


def t(n):
    return stats.t.ppf(0.975, n - 1)


OTHERS = {"08.paired": by_scipy, "08.steps": by_unfold, "08.holm": holm_by_pairs}

MUTANTS = {
    "08.paired": [
        ("h = t(len(a)) * ((a.var() + b.var()) / len(a)) ** 0.5; m = (a - b).mean(); return m, m - h, m + h",
         "unpaired interval"),
        ("d = a - b; h = 1.96 * d.std() / len(d) ** 0.5; return d.mean(), d.mean() - h, d.mean() + h", "1.96 is for"),
        ("d = a - b; h = t(len(d)) * d.std(); return d.mean(), d.mean() - h, d.mean() + h", "√n is missing"),
        ("d = a - b; h = t(len(d)) * d.std(correction=0) / len(d) ** 0.5; return d.mean(), d.mean() - h, d.mean() + h",
         "divides by n"),
        ("d = b - a; h = t(len(d)) * d.std() / len(d) ** 0.5; return d.mean(), d.mean() - h, d.mean() + h", "sign"),
        ("d = a - b; return d.mean(), t(len(d)) * d.std() / len(d) ** 0.5", "half width"),
    ],
    "08.steps": [
        ("return next((i for i in range(window - 1, len(losses)) "
         "if losses[i - window + 1 : i + 1].mean() <= target), math.inf)", "count from 1"),
        ("return next((i + 1 for i, v in enumerate(losses) if v <= target), math.inf)", "single batch"),
        ("return next((i + 1 for i in range(len(losses)) "
         "if losses[max(0, i - window + 1) : i + 1].mean() <= target), math.inf)", "averages fewer"),
        ("return next((i + window for i in range(len(losses) - window + 1) "
         "if losses[i : i + window].mean() <= target), len(losses))", "not all the steps"),
        ("return next((i + 1 for i in range(len(losses)) "
         "if len(losses[i : i + window]) == window and losses[i : i + window].mean() <= target), math.inf)",
         "look ahead"),
    ],
    "08.holm": [
        ("return (len(p_values) * p_values).clamp(max=1)", "Bonferroni"),
        ("s = sorted(p_values.tolist()); m = len(s); out, top = [], 0.0\n"
         "    for i, p in enumerate(s):\n        top = max(top, (m - i) * p); out.append(min(1.0, top))\n"
         "    return out", "sorted: put each back"),
        ("m = len(p_values); r = p_values.argsort().argsort(); return ((m - r) * p_values).clamp(max=1)",
         "running maximum"),
        ("m = len(p_values); o = p_values.argsort(); out = p_values.clone(); "
         "out[o] = (torch.arange(1, m + 1) * p_values[o]).cummax(0).values.clamp(max=1); return out", "wrong way"),
    ],
}  # fmt: skip

NAMES = {"math": math, "t": t}
