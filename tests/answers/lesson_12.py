"""Lesson 12: right answers written differently, and wrong ones as a learner would write them."""

import statistics

import torch

T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 20: 2.093}  # two-sided 95 % quantiles by number of seeds


def chained(kappa_w, chance, kappa_j, kappa_x, saturation, share):
    if saturation > 0.9:
        return "saturated"
    if kappa_x > 15:
        return "inputs"
    if share < 0.1:
        return "weak"
    if kappa_w / chance > 10:
        return "collapsed"
    if kappa_j > 1_000_000:
        return "unknown"
    return "chance" if kappa_w > 100 else "healthy"


def lifted(w, kappa):
    """W plus what is missing, direction by direction."""
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    out = w.clone()
    for i in range(len(s)):
        lack = s[0] / kappa - s[i]
        if lack > 0:
            out = out + lack * torch.outer(u[:, i], vh[i])
    return out


def by_table(differences):
    n = len(differences)
    if n < 2:
        return "undecided"
    mean = statistics.mean(differences)
    half = T[n] * statistics.stdev(differences) / n**0.5
    if mean + half < 0:
        return "better"
    return "worse" if mean - half > 0 else "undecided"


OTHERS = {"12.diagnose": chained, "12.lift": lifted, "12.verdict": by_table}

SVD = "u, s, vh = torch.linalg.svd(w, full_matrices=False); "
STATS = "from scipy import stats; d = torch.tensor(differences).double(); n = len(d); "
SAY = "; m = d.mean(); return 'better' if m + half < 0 else 'worse' if m - half > 0 else 'undecided'"

MUTANTS = {
    "12.diagnose": [
        ("return chained(kappa_w, chance, kappa_j, kappa_x, 0.5, share)", "stands first"),
        ("return 'weak' if share < 0.1 else chained(kappa_w, chance, kappa_j, kappa_x, saturation, share)", "order"),
        ("return chained(kappa_w, chance, kappa_j, 1.0, saturation, share)", "κ(X) is missing"),
        ("return 'unknown' if kappa_j > 1e6 else chained(kappa_w, chance, kappa_j, kappa_x, saturation, share)",
         "after its causes"),
        ("return chained(kappa_w, 10, kappa_j, kappa_x, saturation, share)", "fixed number"),
        ("return chained(kappa_w if kappa_w > 10 * chance else 1, chance, kappa_j, kappa_x, saturation, share)",
         "word of its own"),
    ],
    "12.lift": [
        (SVD + "return u @ torch.diag(s + s[0] / kappa) @ vh", "only those below"),
        (SVD + "return u @ torch.diag(s.clamp(max=s[-1] * kappa)) @ vh", "small ones are lifted"),
        (SVD + "return u @ torch.diag(s.clamp(min=1 / kappa)) @ vh", "not 1 / κ"),
        (SVD + "return u @ torch.diag((s[0] / kappa - s).clamp(min=0)) @ vh", "W + C"),
        ("return w + torch.linalg.svdvals(w)[0] / kappa * torch.eye(*w.shape, dtype=w.dtype)", "λI"),
    ],
    "12.verdict": [
        ("return {'better': 'worse', 'worse': 'better'}.get(by_table(differences), 'undecided')", "sign"),
        ("return 'better' if sum(differences) < 0 else 'worse'", "only the mean"),
        (STATS + "half = 1.96 * d.std() / n**0.5" + SAY, "1.96"),
        (STATS + "half = stats.t.ppf(0.975, n - 1) * d.std()" + SAY, "divide by √n"),
        (STATS + "half = stats.t.ppf(0.95, n - 1) * d.std() / n**0.5" + SAY, "one-sided"),
        ("return 'better' if max(differences) < 0 else 'worse' if min(differences) > 0 else 'undecided'",
         "all seeds agree"),
    ],
}  # fmt: skip

NAMES = {"chained": chained, "by_table": by_table}
