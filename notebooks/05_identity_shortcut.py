# %% [markdown]
# # 5. The λI shortcut: when it helps, when it hurts, with what probability
#
# **Claim.** Adding λI lowers κ(W) for certain only when λ is well above σ_max(W), and by chance below. Where it does
# lower κ(W), κ(W) is not what it repairs: on five real digits κ(J) of a head falls about a thousandfold at λ = 1, and
# stays more than ten times larger when the same size and the same κ(W), or a better one, are reached in other ways. The
# controls are the same size, a perfect κ(W), rotations in place of I, and −λI on one of the weights.
#
# | | |
# | --- | --- |
# | **Time** | about 50 minutes, exercises included |
# | **Machine** | Runs in under 60 s and 900 MB on two cores. Nothing is downloaded. |
# | **You need** | [lesson 1](01_condition_numbers.ipynb) and [lesson 2](02_attention_jacobian.ipynb) |
# | **Version** | written for spectral_core 0.1; `env_check()` below prints yours |
#
# Marks: **[reported]** public sources say it of the paper ([arXiv 2603.07162](https://arxiv.org/abs/2603.07162)) or
# of the authors' follow-up; **[derived]** it is proved here; **[measured]** a cell of this notebook computes it.

# %% [markdown]
# ## 1. Cold open
#
# Twelve random matrices. To each of them we add $2I$, twos on the diagonal, and compare condition numbers.

# %%
from spectral_core.lessons import figure

figure("05.open")

# %% [markdown]
# Seven get better, one of them from 7 300 to 27. Five get *worse*. Yet the paper has a theorem that κ falls for every
# λ ≥ 2, under side conditions **[reported]**. What do they have to ask for that five of our matrices lack? And which
# matrices of a transformer have it?

# %% [markdown]
# ## 2. Objectives
#
# After this lesson you can
#
# 1. say what condition λ must meet for κ(W + λI) < κ(W), prove that it is enough, and compute it; read λ in units of
#    σ_max(W) (check `05.certain`);
# 2. build a matrix that λI ruins, and see in the complex plane why (check `05.worst`, question `05.quiz-cancel`);
# 3. estimate the probability that λI helps, with an honest interval (check `05.rate`, question `05.half`);
# 4. tell the identity of a fused matrix from that of each head and of a packed weight (check `05.stacked`, question
#    `05.quiz-packed`);
# 5. explain why a head is well conditioned and the fused matrix is not (question `05.heads`);
# 6. say which κ(W) κ(J) depends on, and design the control that shows it (question `05.quiz-governs`).

# %% [markdown]
# ## 3. Setup
#
# `gaussians(count, m, n, std=…, seed=…)` gives random m × n matrices in float64. `split` cuts a matrix into heads, side
# by side.

# %%
import torch

from spectral_core import IdentityCorrection, condition, condition_number, singular_values
from spectral_core.lessons import check, env_check, explore, own_or_solution, predict, quiz, reveal, table
from spectral_core.lessons.lesson_05 import gaussians, split

env_check()

# %% [markdown]
# ## 4. Predict
#
# Put a letter in place of `"skipped"`, and `"sure"` or `"unsure"` behind it if you like.

# %%
guess_half = predict("05.half", "skipped")
guess_half

# %%
guess_heads = predict("05.heads", "skipped")
guess_heads

# %% [markdown]
# ## 5. Idea, equation, shapes, code
#
# ### 5.1 The theorem, and what is not known about it
#
# **Theorem 3.8 [reported].** With $I_k$ a rectangular identity, ones on the main diagonal,
# $\kappa(W + \lambda I_k) < \kappa(W)$ for λ ≥ 2, *under side conditions on the singular values of W*. No SVD is
# needed, $C = \lambda I_k$ stays fixed while W trains, and the default is λ = 10 **[reported]**.
#
# The public sources do not spell the side conditions out, so we do not know them. We can find out what they must
# achieve.
#
# | symbol | shape | meaning |
# | --- | --- | --- |
# | $W$ | m × n | any matrix: a fused D × D weight, or D × d of one head |
# | $I$ | m × n | ones at (1, 1), (2, 2), …; all its min(m, n) singular values are 1 |
# | σ_max, σ_min | numbers | of W |
# | λ | number | in the same unit as the entries of W |
# | H, d | numbers | heads, and their width d = D/H |
#
# ### 5.2 A condition that is enough
#
# **Statement [derived].** Let λ > σ_max(W). Then
# $\kappa(W+\lambda I) \le (\lambda+\sigma_{\max})/(\lambda-\sigma_{\max})$, and κ falls for certain as soon as
#
# $$\lambda \;>\; \lambda_{\text{certain}} = \sigma_{\max}\,\frac{\kappa(W)+1}{\kappa(W)-1} .$$
#
# **Proof in three lines.**
#
# 1. Weyl's inequality: adding $W$ moves no singular value of $\lambda I$ by more than σ_max(W).
# 2. All singular values of $\lambda I$ are λ, so those of $W + \lambda I$ lie between λ − σ_max and λ + σ_max.
# 3. Their ratio is at most (λ + σ_max)/(λ − σ_max); set that below κ(W) and solve for λ.
#
# The check: a thousand matrices of all shapes and sizes, each with a λ of its own. How close does κ come to the bound?


# %%
def share_of_bound(seed):
    """κ(W + λI) over its bound, for a random shape, size and λ > σ_max."""
    g = torch.Generator().manual_seed(seed)
    m, n = torch.randint(2, 12, (2,), generator=g).tolist()
    w = gaussians(1, m, n, std=10.0 ** (seed % 5 - 2), seed=seed)[0]
    sigma = singular_values(w)[0]
    lam = sigma * (1.01 + 3 * torch.rand(1, generator=g).item())
    return float(condition_number(w + lam * torch.eye(m, n)) / ((lam + sigma) / (lam - sigma)))


shares = [share_of_bound(seed) for seed in range(1000)]
print("largest κ(W + λI) as a share of the bound:", round(max(shares), 3))

# %% [markdown]
# **Its limits.** The bound cannot be improved if only σ_max and κ are known: diag(−3, 3, 1) has κ = 3, λ_certain = 6,
# and at λ = 6 its κ is exactly 3 again. It is enough, not necessary: most matrices are better at far smaller λ (5.4).
# And λ_certain grows without limit as κ → 1: a perfect matrix cannot be improved.
#
# What does this say about *λ ≥ 2*? If σ_max ≤ 1 and κ > 3, then λ_certain < 2 and every λ ≥ 2 will do. So the missing
# conditions are likely of this kind: W small, and badly enough conditioned. That is **our inference**.

# %% tags=["assert"]
# the numbers in the text so far, checked
opened = figure("05.open").alt
assert "κ rose for 5 of 12" in opened
draws = gaussians(12, 32, 32, std=2 / 32**0.5)
assert 7000 < condition_number(draws[10]) < 7600
assert 26 < condition_number(draws[10] + 2 * torch.eye(32)) < 28
assert max(shares) <= 1
tight = torch.diag(torch.tensor([-3.0, 3.0, 1.0]).double())
assert abs(condition_number(tight + 6 * torch.eye(3)) - condition_number(tight)) < 1e-9
assert 1 * (3.01 + 1) / (3.01 - 1) < 2

# %% [markdown]
# ### 5.3 It is false without conditions
#
# Take W = diag(−2, −2.1). Its κ is 1.05: better than any trained weight you will meet.

# %%
healthy = torch.diag(torch.tensor([-2.0, -2.1], dtype=torch.float64))
lams = [0, 1, 2, 2.05, 3, 4, 5, 10]
ruined = {lam: float(condition_number(healthy + lam * torch.eye(2))) for lam in lams}
table(["λ", "κ(diag(−2, −2.1) + λI)"], [[f"{lam:g}", kappa] for lam, kappa in ruined.items()])

# %% [markdown]
# At λ = 2 one direction is wiped out. λ_certain is 86 here. And a W with κ(W) = 1 can never be *strictly* improved, at
# any λ; it can only be kept or spoilt.
#
# **The picture.** Suppose $Wx = z\,x$ with an eigenvalue $z = r e^{i\theta}$. Then $(W+\lambda I)x = (z + \lambda)x$.
#
# * θ = 0: W and λI pull the same way, and the direction is stretched by r + λ.
# * θ = 90°: they are at right angles, √(r² + λ²).
# * θ = 180°: **λI works against W**, |r − λ|. If r = λ, nothing is left.
#
# So a square $W + \lambda I$ is singular exactly when −λ is an eigenvalue of W. λI does not look at the singular
# vectors of W, so it cannot know which directions W turns around. (The polar correction of lesson 4 looks: it adds
# along W's own directions, and only ever stretches.)
#
# ### 5.4 By chance
#
# Where are the eigenvalues of a random matrix? With entries of standard deviation τ they fill a disc of radius about
# τ√n (the *circular law*, a classical result), while σ_max is about 2τ√n. Beyond λ ≈ σ_max/2 there is usually no
# eigenvalue near −λ. Expect a coin toss below σ_max/2, and success above, long before Weyl's λ > σ_max.
#
# Here is λ = 2 on matrices with entries of standard deviation 2/√n, and on small ones, 0.02. A tall matrix is 4n × n:


# %%
def fails(m, n, std):
    """Share of 300 random matrices for which κ(W + 2I) is not below κ(W)."""
    w = gaussians(300, m, n, std=std, seed=m + n)
    return float((condition_number(w + 2 * torch.eye(m, n)) >= condition_number(w)).double().mean())


sizes = (4, 8, 16, 32)
failures = {
    ("square", "2/√n"): [fails(n, n, 2 / n**0.5) for n in sizes],
    ("tall", "2/√n"): [fails(4 * n, n, 2 / n**0.5) for n in sizes],
    ("square", "0.02"): [fails(n, n, 0.02) for n in sizes],
    ("tall", "0.02"): [fails(4 * n, n, 0.02) for n in sizes],
}
table(["shape", "entries", "share that fails at λ = 2, n = 4, 8, 16, 32"], [[*k, v] for k, v in failures.items()])

# %% [markdown]
# So λ = 2 is no number by itself. Next to σ_max ≈ 4 (6 for the tall ones) it fails for one matrix in five, or more;
# next to a σ_max of 0.4 or less it never does.
#
# **Tall matrices** fail as often and much more gently. The rectangular identity only has ones in the first n rows, so
# it touches nothing below:
#
# $$W = \begin{pmatrix}W_1\\W_2\end{pmatrix},\qquad
# (W+\lambda I)x = \begin{pmatrix}W_1x + \lambda x\\ W_2x\end{pmatrix},\qquad
# \sigma_{\min}(W+\lambda I) \ge \sigma_{\min}(W_2)\ \textbf{[derived]},$$
#
# for an m × n matrix with m ≥ 2n, so that $W_2$ has at least n rows. Whatever λI cancels above, the rows below still
# hold. How much worse does κ get in the worst of 400 draws?

# %%
worst = {}
for m, n in ((32, 32), (128, 32)):
    w = gaussians(400, m, n, seed=m * n)
    shift = 0.3 * singular_values(w)[:, :1, None] * torch.eye(m, n)
    worst[f"{m} × {n}"] = float((condition_number(w + shift) / condition_number(w)).max())
table(["shape", "largest κ(W + λI)/κ(W) at λ = 0.3 σ_max"], list(worst.items()))

# %%
reveal(guess_half)

# %% tags=["assert"]
# the sentences above, checked
assert abs(ruined[0] - 1.05) < 1e-9
assert ruined[2] == float("inf")
assert ruined[1] > 1.05
assert abs(2.1 * 2.05 / 0.05 - 86.1) < 1e-9
assert all(0.15 < share < 0.55 for key in failures if key[1] == "2/√n" for share in failures[key])
assert 0.15 < failures["square", "2/√n"][3] < 0.4  # 05.half: it falls in about three of four
assert failures["square", "0.02"] == failures["tall", "0.02"] == [0.0] * 4
assert worst["32 × 32"] > 20
assert worst["128 × 32"] < 1.5

# %% [markdown]
# ### 5.5 One head against the fused matrix
#
# Which W does a transformer have? In code, W_Q of all heads is usually *one* D × D matrix, the **fused** one. In the
# formulas, each head has its own D × d part **[reported, of the follow-up]**. For ViT-B, D = 768 and H = 12, so d = 64.
# Three seeds, entries of standard deviation 0.02, as at the start of training:

# %%
kappas = {}  # λ -> (κ of the fused matrix, mean κ of its heads) by seed
for lam in (0, 0.5, 1, 2, 10):
    kappas[lam] = []
    for seed in range(3):
        w = gaussians(1, 768, 768, std=0.02, seed=seed)[0]
        fused = condition_number(w + lam * torch.eye(768))
        per_head = condition_number(split(w, 12) + lam * torch.eye(768, 64))  # (12, 768, 64)
        kappas[lam].append((float(fused), float(per_head.mean())))
table(
    ["λ", "κ of the fused 768 × 768, three seeds", "κ of a head 768 × 64, mean of 12"],
    [[f"{lam:g}", [a for a, _ in row], [b for _, b in row]] for lam, row in kappas.items()],
)

# %% [markdown]
# Two stories. The fused matrix goes from thousands to 1.17. A head goes from 1.77 to 1.04: **it was fine before**.
#
# **Why a head is fine** (Marchenko and Pastur, in words). Take a unit vector x in d dimensions. $Wx$ has D independent
# entries, so its length is about τ√D, with little spread. Searching all d dimensions for the best and the worst x
# gains or loses about τ√d. So the singular values lie between τ(√D − √d) and τ(√D + √d):
#
# $$\kappa \approx \frac{1+\sqrt{d/D}}{1-\sqrt{d/D}} = \frac{1.289}{0.711} = 1.81 \quad\text{for } d/D = 1/12 .$$
#
# **Why the fused matrix is not.** With d = D the lower end is 0. The smallest singular value is then whatever chance
# leaves, about τ/√n. For large n the law is known (Edelman 1988, a classical result):
#
# $$P\big[\kappa/n > x\big] \to 1 - e^{-2/x - 2/x^2} \approx 2/x .$$
#
# Such a tail is *heavy*: it has no mean. One matrix in a hundred has κ > 200 n. Measured on 600 matrices:

# %%
figure("05.tail")

# %%
from spectral_core.lessons.lesson_05 import edelman

ratios = {n: condition_number(gaussians(600, n, n, seed=1000)) / n for n in (8, 16, 32)}
table(
    ["n", "median of κ/n", "share with κ/n > 10"],
    [[str(n), float(r.median()), float((r > 10).double().mean())] for n, r in ratios.items()]
    + [["limit", 3.67, edelman(10.0)]],
)

# %%
reveal(guess_heads)

# %% tags=["assert"]
# the sentences above, checked
for fused, per_head in kappas[0]:
    assert 1000 < fused < 200_000
    assert 1.74 < per_head < 1.81
assert all(abs(fused - 1.17) < 0.01 and abs(per_head - 1.045) < 0.01 for fused, per_head in kappas[10])
root = (1 / 12) ** 0.5
assert (round(1 + root, 3), round(1 - root, 3), round((1 + root) / (1 - root), 2)) == (1.289, 0.711, 1.81)
assert abs(edelman(3.67) - 0.5) < 0.001
assert abs(edelman(200.0) - 0.01) < 0.0005
assert all(2.5 < float(r.median()) < 4.2 for r in ratios.values())
assert all(abs(float((r > 10).double().mean()) - edelman(10.0)) < 0.06 for r in ratios.values())

# %% [markdown]
# The median is about 3.5 n: an ordinary random 768 × 768 matrix has κ near 3 000, and now and then one has 100 000.
# The "bad conditioning" of a fresh fused weight is that lottery, and nothing that a head sees.
#
# For a head, λ ≥ 2 is not even covered by Weyl: λ_certain = 0.71 · 2.77/0.77 ≈ 2.6. κ falls at λ = 2 all the same.
#
# ### 5.6 Which of the two governs κ(J)?
#
# Head h is a function of its own columns of W_Q, W_K and W_V. So the Jacobian of all heads together is **block
# diagonal**, one block a head **[derived]**, and its singular values are those of the heads, collected. κ of a fused
# weight compares combinations of columns of *different* heads. No head forms such a combination, so it appears nowhere.
#
# Two heads of a small layer; then head 2 becomes a copy of head 1, and the fused matrices become singular:

# %%
from spectral_core import AttentionJacobian

x = gaussians(1, 4, 6, seed=1)[0]  # 4 tokens, D = 6, two heads of width 3
plain = [gaussians(1, 6, 6, std=0.4, seed=seed)[0] for seed in (2, 3, 4)]
copied = [torch.cat([w[:, :3], w[:, :3]], 1) for w in plain]


def kappas_of(weights):
    """κ of the fused W_Q, of J of each head, and of J of both heads together."""
    jac = AttentionJacobian(x, *(split(w, 2) for w in weights))
    s = jac.singular_values()
    return [condition_number(weights[0]), jac.condition_number().value.tolist(), s.max() / s.min()]


rows = {"two random heads": kappas_of(plain), "head 2 a copy of head 1": kappas_of(copied)}
table(["", "κ(fused W_Q)", "κ(J) of head 1, head 2", "κ(J) of both"], [[k, *v] for k, v in rows.items()])

# %% [markdown]
# κ(W_Q) = ∞, and the Jacobian has not noticed. (The output layer mixes heads afterwards; it has a κ of its own.)
#
# ### 5.7 Three identities
#
# "λ times the rectangular identity" can mean three things in code, and public sources do not say which one the paper
# means. Columns of one head lie between the lines:

# %%
figure("05.patterns")

# %% [markdown]
# * **fused**, `condition(model, correction, scope="matrix")`: one I for the D × D matrix. Head h gets input coordinates
#   (h−1)d+1 … hd: every head another part of the token.
# * **each head its own**, `scope="head"`: *all* heads get the first d coordinates, and the others get nothing. Head
#   by head κ falls. The fused matrix now has $[\,I\; I \cdots I\,]$ in it, of rank d.
# * **packed**, `scope="packed"`: many models store $(W_Q, W_K, W_V)$ in one 3D × D weight. Its main diagonal ends in
#   the rows of Q. **K and V get nothing at all.** That this could have been the setting of the paper's experiments is
#   our hypothesis; "rectangular" would fit, as it fits a head.

# %%
from spectral_core.models import VisionTransformer


def added(scope):
    """What λI with λ = 10 adds to the fused W_Q (acting on the right), and the report's line for it."""
    layer = VisionTransformer(dim=64, num_heads=4).block(0).attention
    before = layer.query.weight.detach().clone()
    report = condition(layer, IdentityCorrection(10.0), scope=scope)
    after = layer.query.weight.detach()
    return (after - before).mT, next(iter(report)), condition_number(after.double())


rows = []
for scope in ("matrix", "head"):
    c, line, fused = added(scope)
    shape = " × ".join(map(str, line.shape))
    rows.append([scope, shape, line.kappa_before, line.kappa_after, fused, torch.linalg.matrix_rank(c)])
table(["scope", "W_Q as (out, in)", "its κ before", "its κ after", "κ of the fused W_Q after", "rank of C"], rows)

# %%
packed = torch.nn.MultiheadAttention(64, 4, bias=False)  # PyTorch's own, with one 192 × 64 weight
before = packed.in_proj_weight.detach().clone()
condition(packed, IdentityCorrection(10.0), scope="packed")
change = (packed.in_proj_weight - before).detach().split(64)
table(["rows of", "sum of |C|"], [[name, part.abs().sum()] for name, part in zip("QKV", change, strict=True)])

# %% tags=["assert"]
# the sentences above, checked
assert kappas_of(copied)[0] == float("inf")
assert kappas_of(copied)[1][0] == kappas_of(plain)[1][0] < 1e4
assert kappas_of(copied)[2] < 1e4
assert rows[0][5:] == [64]
assert rows[1][5:] == [16]
assert rows[0][4] < 1.1
assert rows[1][3] < 1.1
assert rows[1][4] > 5 * rows[0][2]  # worse than the fused W_Q before
assert [round(float(part.abs().sum())) for part in change] == [640, 0, 0]
assert 2.4 < 0.71 * 2.77 / 0.77 < 2.7

# %% [markdown]
# Look at the last row of the first table. Head by head κ fell below 1.1; the fused matrix is now *worse* conditioned
# than before (rank-16 addition, the rest untouched). One correction, two verdicts. Always say which κ you mean.
#
# ### 5.8 λ has a unit
#
# λ is compared with σ_max(W), so λ = 10 means something else for every initialisation and every width.
# `IdentityCorrection(lam, relative=True)` takes λ in units of ‖W‖₂ = σ_max. Then Weyl's bound does not depend on the
# scale any more: λ = 2 units give κ ≤ 3, always.

# %%
from spectral_core.lessons.lesson_05 import certain_lambda, digit_layer

weights = {f"{init}, D = 64": digit_layer(init)[1][0] for init in ("trunc-normal", "xavier", "orthogonal")}
weights["normal 0.02, D = 768"] = gaussians(1, 768, 768, std=0.02)[0]
rows = []
for name, w in weights.items():
    sigma, two = singular_values(w)[0], IdentityCorrection(2.0, relative=True)
    rows.append([name, sigma, 10 / sigma, certain_lambda(w), condition_number(w), condition_number(two(w))])
table(["fused W_Q", "σ_max", "λ = 10 in units of σ_max", "λ_certain", "κ(W)", "κ after 2 units"], rows)

# %% [markdown]
# λ = 10 is some 30 units for small weights and 5 for Xavier. And the orthogonal W had κ = 1 (up to float32 rounding, so
# λ_certain is in the millions): two units made it *worse*.
#
# One warning. For κ(W) the unit of λ is σ_max. Inside attention there is a second unit: λ on Q and K adds λ²√d_k to the
# logits (lesson 2), and no rescaling of W changes that. The next lesson is about it.
#
# ### 5.9 What it costs
#
# Next to nothing, and that is its appeal. Training a ViT took 29:29 without and 29:33 with λI (units not known to us),
# 41:38 with the exact SVD **[reported]**. Our own measurement, a training step divided by the plain model's step
# ("plain, once more" shows the noise):

# %%
import re
from pathlib import Path

overhead = Path("../results/overhead.md").read_text(encoding="utf-8")


def medians(arm):
    """The median ratios of one arm in the three tables of results/overhead.md."""
    return [float(m) for m in re.findall(rf"^\| {re.escape(arm)} \| \d+ \| [\d.]+ \| ([\d.]+)", overhead, re.M)]


measured = ("plain, once more", "λI, λ = 0.3", "SVD, every step, float32")
table(
    ["", "plain, once more", "λI", "SVD at every step"],
    [["paper, training time ÷ baseline [reported]", "–", f"{1773 / 1769:.3f}", f"{2498 / 1769:.3f}"],
     ["ours, step ÷ plain step, three models",
      *(", ".join(f"{m:.3f}" for m in medians(arm)) for arm in measured)]],
)  # fmt: skip

# %% tags=["assert"]
# the quoted numbers, checked against results/overhead.md
assert (29 * 60 + 29, 29 * 60 + 33, 41 * 60 + 38) == (1769, 1773, 2498)
assert len(medians("λI, λ = 0.3")) == 3
assert max(medians("λI, λ = 0.3")) < 1.02
assert min(medians("SVD, every step, float32")) > 1.1
tens = [float(row[2]) for row in rows]
assert 25 < tens[0] < 40
assert 4 < tens[1] < 6
assert rows[2][4] < 1.001 < 1.5 < rows[2][5] <= 3
assert all(row[5] <= 3 for row in rows)

# %% [markdown]
# ## 6. See
#
# ### The point −λ among the eigenvalues
#
# Left: the eigenvalues of W, and the point −λ moving left as λ grows. Right: κ(W + λI), with the marks of section 5.

# %%
figure("05.plane")

# %%
plane = explore("05.plane")
plane

# %% [markdown]
# Things to try, and what you should see:
#
# 1. **Move λ slowly from 0 to 0.6.** Each time ✖ passes an eigenvalue on the left half of the real axis, κ has a
#    spike. Past the disc, at half of σ_max, the spikes are over.
# 2. **Change the standard deviation.** Both pictures stay the same but for their axes. Only the line at λ = 2 wanders:
#    it leaves the picture to the right when W is small.
# 3. **Shape "64 × 16, a head".** No spikes at all, though the eigenvalues of the first rows are there. κ starts below 5
#    and has little to gain; λ_certain is far to the right of σ_max.
# 4. **Shape "8 × 8", through the seeds.** Few eigenvalues on the negative axis: sometimes no spike at all.
#
# ### How often

# %%
figure("05.success")

# %%
success = explore("05.success")
success

# %% [markdown]
# 1. **n = 4, then 32.** The step at σ_max/2 gets steeper: as n grows, it tends to one half well below it, and to one
#    above.
# 2. **The tall matrix at small n** needs more than σ_max to be safe: its κ is near 1 to begin with, so λ_certain is
#    large.
# 3. **50 draws.** The bands widen. They do not vanish where all draws succeed: 50 of 50 is no proof of certainty.
#
# Two more views to turn: the tail of κ/n (step through the seeds: the largest κ jumps about, the median stays), and
# the three identities (with one head the first three are one).

# %%
tail, patterns = explore("05.tail"), explore("05.patterns")
tail

# %%
patterns

# %% tags=["assert", "widgets"]
# drives every control to all of its ends and back: an error in a drawing would stop the notebook here
_ = plane.sweep(), success.sweep(), tail.sweep(), patterns.sweep()
head_curve = figure("05.plane", shape="64 × 16, a head").axes[1].lines[0].get_ydata()
assert head_curve[0] < 5
assert max(head_curve) < 1.5 * head_curve[0]
square = figure("05.success").axes[0].lines[0].get_ydata()
assert all(0.3 < share < 0.7 for share in square[:4])
assert min(square[7:]) > 0.95
assert figure("05.success", n=4).axes[0].lines[1].get_ydata()[8] < 0.9  # 16 × 4 at λ = σ_max

# %% [markdown]
# ## 7. Exercises
#
# You will use all four functions in section 8.

# %% [markdown]
# ### Exercise 1: when λI helps for certain
#
# *Difficulty 2 of 5 · 5 minutes · Why it matters: it is the one number to look at before you add λI to anything.*
#
# Write `certain_lambda(w)` for `w` of shape (m, n): σ_max (κ + 1)/(κ − 1). Return infinity when κ = 1, that is when
# σ_max − σ_min is at most `1e-12` times σ_max. For a rank deficient W the answer is finite: which?


# %% tags=["exercise"]
def certain_lambda(w):
    """Above this λ, κ(W + λI) < κ(W) for certain."""
    raise NotImplementedError


check("05.certain", certain_lambda)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# Write κ as σ_max/σ_min and multiply numerator and denominator by σ_min. Then nothing is divided by zero.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def certain_lambda(w):
#     s = torch.linalg.svdvals(w)
#     high, low = float(s[0]), float(s[-1])
#     if ...:                       # κ = 1
#         return float("inf")
#     return high * ...
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def certain_lambda(w):
#     s = torch.linalg.svdvals(w)
#     high, low = float(s[0]), float(s[-1])
#     if high - low <= 1e-12 * high:
#         return float("inf")
#     return high * (high + low) / (high - low)
# ```
#
# *Why:* (κ + 1)/(κ − 1) = (σ_max + σ_min)/(σ_max − σ_min). With σ_min = 0 it is 1, and any λ above σ_max will do.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * (κ − 1)/(κ + 1): then λ_certain would lie below σ_max.
# * κ = ∞ put into the formula gives ∞/∞, nan.
# * σ_max forgotten: the answer has to grow with W.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
certain_lambda = own_or_solution("05.certain", certain_lambda)

# %% [markdown]
# ### Exercise 2: a matrix that λI ruins
#
# *Difficulty 2 of 5 · 5 minutes · Why it matters: who can build the counterexample knows what the theorem lacks.*
#
# Write `worst_matrix(lam, n, kappa)`: an n × n matrix W (n ≥ 2) with κ(W) = `kappa` for which W + `lam` · I is
# singular.


# %% tags=["exercise"]
def worst_matrix(lam, n, kappa):
    """W (n, n) with κ(W) = kappa and κ(W + lam I) = ∞."""
    raise NotImplementedError


check("05.worst", worst_matrix)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# A diagonal matrix will do: its singular values are the absolute values of the entries, its eigenvalues the entries.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def worst_matrix(lam, n, kappa):
#     sizes = torch.linspace(1, kappa, n)   # from 1 to kappa
#     return ... * torch.diag(sizes)
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def worst_matrix(lam, n, kappa):
#     return -lam * torch.diag(torch.linspace(1, kappa, n, dtype=torch.float64))
# ```
#
# *Why:* the first entry is −λ, and λI cancels it. The ratio of the last to the first is κ.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * The sign: with +λ the direction is stretched to 2λ.
# * W that does not grow with λ: −1 is cancelled by λ = 1 only.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
worst_matrix = own_or_solution("05.worst", worst_matrix)

# %% [markdown]
# ### Exercise 3: how often λI helps
#
# *Difficulty 3 of 5 · 8 minutes · Why it matters: "it worked on my three seeds" is a statement about a probability, and
# this is how to make it.*
#
# Write `success_rate(draws, lam)` for a batch `draws` of shape (k, m, n). Add `lam` times *its own* σ_max times I to
# each matrix, and count how often κ is strictly smaller than before. Return (share, low, high) with **Wilson's
# interval**: for $p$ = share of $N$ draws and $z = 1.96$,
#
# $$\frac{p + \frac{z^2}{2N} \pm z\sqrt{\frac{p(1-p)}{N} + \frac{z^2}{4N^2}}}{1 + \frac{z^2}{N}} .$$
#
# It holds the true probability 95 times in 100, about, and unlike p ± z√(p(1−p)/N) it does not shrink to a point when
# all draws agree.


# %% tags=["exercise"]
def success_rate(draws, lam):
    """(share, low, high) of κ(W + lam σ_max I) < κ(W) over the matrices in draws (k, m, n)."""
    raise NotImplementedError


check("05.rate", success_rate)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# `torch.linalg.svdvals` takes the whole batch: (k, min(m, n)). A batch of σ_max of shape (k, 1, 1) multiplies an m × n
# identity into (k, m, n).
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def success_rate(draws, lam):
#     count, m, n = draws.shape
#     s = torch.linalg.svdvals(draws)
#     shifted = draws + ...
#     t = torch.linalg.svdvals(shifted)
#     p = float((t[:, 0] / t[:, -1] < ...).double().mean())
#     z2 = 1.96**2
#     middle = (p + z2 / (2 * count)) / (1 + z2 / count)
#     half = ...
#     return p, middle - half, middle + half
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def success_rate(draws, lam):
#     count, m, n = draws.shape
#     s = torch.linalg.svdvals(draws)
#     shifted = draws + lam * s[:, :1, None] * torch.eye(m, n, dtype=draws.dtype)
#     t = torch.linalg.svdvals(shifted)
#     p = float((t[:, 0] / t[:, -1] < s[:, 0] / s[:, -1]).double().mean())
#     z2 = 1.96**2
#     middle = (p + z2 / (2 * count)) / (1 + z2 / count)
#     half = 1.96 * (p * (1 - p) / count + z2 / (4 * count**2)) ** 0.5 / (1 + z2 / count)
#     return p, middle - half, middle + half
# ```
#
# *Why:* Wilson's interval holds all probabilities at which a share like ours would not be a surprise. At p = 1 it
# still reaches down to N/(N + z²): 200 successes of 200 mean "at least 98 %".
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * One σ_max for all matrices, or none: λ is in units of each matrix's own.
# * `<=` counts a κ that stays as it was.
# * Half the width without the division by 1 + z²/N.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
success_rate = own_or_solution("05.rate", success_rate)

# %% [markdown]
# ### Exercise 4: the identity of each head
#
# *Difficulty 2 of 5 · 4 minutes · Why it matters: two implementations of "λI" differ in exactly this matrix.*
#
# Write `head_identity(D, heads)`: the D × D matrix that is added to the fused W (acting on the right, heads side by
# side) when every head gets the rectangular identity of shape D × D/heads.


# %% tags=["exercise"]
def head_identity(D, heads):
    """[I, I, …, I], (D, D), with I of shape D × D/heads."""
    raise NotImplementedError


check("05.stacked", head_identity)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# `torch.eye(m, n)` is rectangular, and `repeat` lays copies side by side.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def head_identity(D, heads):
#     one = torch.eye(...)          # of one head
#     return one.repeat(..., ...)   # copies downwards, copies to the right
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def head_identity(D, heads):
#     return torch.eye(D, D // heads).repeat(1, heads)
# ```
#
# *Why:* every head's columns are the same d unit vectors. The matrix has d different columns only, so its rank is d and
# its σ_max is √heads.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * `torch.eye(D)`: the fused identity, in which head 2 starts at coordinate d + 1.
# * Copies downwards: `nn.Linear` stores the transpose, and there they would be right.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
head_identity = own_or_solution("05.stacked", head_identity)

# %% [markdown]
# Your function against the package: what `scope="head"` added to W_Q in 5.7 is λ times your matrix.

# %% tags=["assert"]
# your functions and the text, checked against each other
assert torch.allclose(added("head")[0], 10 * head_identity(64, 4).float(), atol=1e-5)
assert torch.allclose(added("matrix")[0], 10 * torch.eye(64), atol=1e-5)
assert abs(certain_lambda(healthy) - 86.1) < 1e-6
assert 1.9 < certain_lambda(gaussians(1, 768, 64, std=0.02)[0]) < 3.2
assert success_rate(gaussians(200, 3, 3), 50.0)[1] > 0.98

# %% [markdown]
# ## 8. Signature result
#
# ### With what probability
#
# First your `success_rate`, 300 matrices for each entry, with its interval:

# %%
shapes = {"8 × 8": (8, 8), "32 × 32": (32, 32), "32 × 8": (32, 8), "128 × 32": (128, 32)}
rates = {
    name: {lam: success_rate(gaussians(300, m, n, seed=7 * m + n), lam) for lam in (0.1, 0.25, 0.5, 0.75, 1.0, 2.0)}
    for name, (m, n) in shapes.items()
}
table(
    ["shape", *(f"λ = {lam:g} σ_max" for lam in rates["8 × 8"])],
    [[name, *(f"{p:.2f} ({low:.2f}–{high:.2f})" for p, low, high in row.values())] for name, row in rates.items()],
)

# %% [markdown]
# ### What λI repairs
#
# Now the question of section 5.6, on a real head. A layer with D = 64 and four heads, freshly initialised (standard
# deviation 0.02), at five digits with five initialisations. λ = 1. Every arm changes the fused W_Q, W_K and W_V, and we
# look at **head 1**: there the identity of the fused matrix and that of the head are the same ones.
#
# | arm | what it is | what it catches |
# | --- | --- | --- |
# | none | **baseline** | |
# | others repaired | **negative control**: head 1 stays, all other columns made orthogonal | that κ(fused) matters |
# | head 1 copied | **negative control**: head 2 becomes a copy of head 1, κ(fused) = ∞ | the same, from the other end |
# | each head κ = 1 | **control for κ(W)**: all σ of a head made equal, size kept | that κ of the head's W matters |
# | scaled | **control for scale**: c·W with ‖cW‖_F = ‖W + λI‖_F | a method that only makes up for small weights |
# | κ = 1, scaled | both at once: the size of W + λI, and a better κ than λI gives | that size and κ(W) explain it |
# | λI, fused | the paper's correction, read one way | |
# | λI, each head | read the other way, with your `head_identity` | |
# | λI on Q and K | **control for V**: W_V stays as it is | that κ(W_V) matters |
# | λI on V | **control for the attention map**: it stays as it is | that λI works by any weight |
# | λ · rotations | **control for I**: a random rotation each for Q, K, V | that κ(W) decides |
# | λ · one rotation | **control for I**: the same rotation for all three | that I itself is special |
# | −λI on K | **control for the sign**: λI on Q and V, −λI on K | that I is a matter of conditioning |
#
# Read the third column as "the belief …". ‖·‖_F is the Frobenius norm, the root of the sum of squared entries.

# %%
D, H, d, lam = 64, 4, 16, 1.0
eye, stacked = torch.eye(D).double(), head_identity(D, H).double()


def rotation(seed):
    return torch.linalg.qr(gaussians(1, D, D, seed=seed)[0]).Q


def others_repaired(w):
    u, s, _ = torch.linalg.svd(w[:, :d])  # the last D − d columns of u are orthogonal to head 1
    return torch.cat([w[:, :d], s.mean() * u[:, d:]], 1)


def perfect(w):
    u, s, vt = torch.linalg.svd(split(w, H), full_matrices=False)
    return torch.cat(list(s.mean(-1)[:, None, None] * u @ vt), 1)


def resized(w, like):
    return w * like.norm() / w.norm()


# %%
arms = {  # w: a fused weight, i: 0, 1, 2 for Q, K, V
    "none": lambda w, i, seed: w,
    "others repaired": lambda w, i, seed: others_repaired(w),
    "head 1 copied": lambda w, i, seed: torch.cat([w[:, :d], w[:, :d], w[:, 2 * d :]], 1),
    "each head κ = 1": lambda w, i, seed: perfect(w),
    "scaled": lambda w, i, seed: resized(w, w + lam * eye),
    "κ = 1, scaled": lambda w, i, seed: resized(perfect(w), w + lam * eye),
    "λI, fused": lambda w, i, seed: w + lam * eye,
    "λI, each head": lambda w, i, seed: w + lam * stacked,
    "λI on Q and K": lambda w, i, seed: w + lam * eye if i < 2 else w,
    "λI on V": lambda w, i, seed: w + lam * eye if i == 2 else w,
    "λ · rotations": lambda w, i, seed: w + lam * rotation(100 * seed + i),
    "λ · one rotation": lambda w, i, seed: w + lam * rotation(100 * seed),
    "−λI on K": lambda w, i, seed: w + (-lam if i == 1 else lam) * eye,
}

# %%
from spectral_core.lessons.lesson_05 import layer_jacobian

names = ("κ(fused)", "κ(head)", "κ(J)", "mean of max p")  # of W_Q, fused and of head 1; the rest is head 1
columns = {name: {arm: [] for arm in arms} for name in names}
to_itself = {arm: [] for arm in arms}  # mean weight that a token gives to itself
for arm, change in arms.items():
    for seed in range(5):
        x, weights = digit_layer(seed=seed)
        new = [change(w, i, seed) for i, w in enumerate(weights)]
        jac = layer_jacobian(x, new)
        p = jac.attention()
        kappa_w = condition_number(new[0]), condition_number(new[0][:, :d])
        for name, value in zip(names, (*kappa_w, jac.condition_number(), p.amax(-1).mean()), strict=True):
            columns[name][arm].append(float(value))
        to_itself[arm].append(float(p.diagonal().mean()))

# %%
table(
    ["arm", "κ(fused W_Q)", "κ(W_Q of head 1)", "κ(J) of head 1"],
    [[arm, *(columns[name][arm] for name in names[:3])] for arm in arms],
)

# %%
from spectral_core import plots

plots.seed_dots(columns, title="Thirteen arms, five digits each, λ = 1", log=["κ(fused)", "κ(J)"])

# %% tags=["assert"]
# the sentences below, checked: what does not matter
fused, own, kappa_j, max_p = (columns[name] for name in names)
assert kappa_j["others repaired"] == kappa_j["head 1 copied"] == kappa_j["none"]
assert max(fused["others repaired"]) < 4
assert fused["head 1 copied"] == [float("inf")] * 5
assert min(fused["none"]) > 100
assert kappa_j["λI, fused"] == kappa_j["λI, each head"]
assert max(fused["λI, fused"]) < 2 < 100 < min(fused["λI, each head"])
assert max(own["each head κ = 1"]) < 1.001 < 2 < min(own["none"]) < max(own["none"]) < 4
change = [a / b for a, b in zip(kappa_j["each head κ = 1"], kappa_j["none"], strict=True)]
assert min(change) < 1 < max(change)
assert 0.1 < min(change) < max(change) < 4

# %% tags=["assert"]
# what does matter
gain = {arm: [a / b for a, b in zip(kappa_j["none"], kappa_j[arm], strict=True)] for arm in arms}
assert all(3 < g < 100 for g in gain["scaled"])
assert all(g > 400 for g in gain["λI, fused"])
assert 900 < sorted(gain["λI, fused"])[2] < 3000
assert all(10 < value < 60 for arm in ("λI, fused", "λ · one rotation") for value in kappa_j[arm])
for arm in ("scaled", "κ = 1, scaled", "λ · rotations", "−λI on K"):
    assert all(a > 10 * b for a, b in zip(kappa_j[arm], kappa_j["λI, fused"], strict=True))
    assert arm == "scaled" or max(own[arm]) < 1.4
pairs = {arm: list(zip(kappa_j[arm], kappa_j["λI, fused"], strict=True)) for arm in ("λI on Q and K", "λI on V")}
assert all(a < 1.3 * b for a, b in pairs["λI on Q and K"])
assert all(a > 100 * b for a, b in pairs["λI on V"])
assert all(0.5 < g < 2 for g in gain["λI on V"])
assert to_itself["λI on V"] == to_itself["none"]

# %% tags=["assert"]
# the attention map, and the rates
assert min(to_itself["λI, fused"] + to_itself["λ · one rotation"]) > 0.4
assert max(to_itself["λ · rotations"] + to_itself["none"]) < 0.12
assert max(to_itself["−λI on K"]) < 0.01
assert all(0.4 < value < 0.7 for value in max_p["λI, fused"])
assert all(p > 0.95 for row in rates.values() for lam, (p, _, _) in row.items() if lam == 2.0)
assert all(0.3 < row[0.1][0] < 0.7 for row in rates.values())

# %% [markdown]
# What it says **[measured]**:
#
# * **κ of the fused matrix does not matter.** It goes from hundreds to below 4, and to infinity, and κ(J) of head 1 is
#   the same *to the last bit*. Both readings of λI have the same κ(J), with κ(fused) below 2 in one and in the hundreds
#   or thousands in the other.
# * **κ of the head's weights hardly does.** It was between 2 and 4. Making it exactly 1, in Q, K and V, moves κ(J) up
#   for some digits and down for others, by less than a factor of 10. There was nothing to repair.
# * **Scale does something.** The same W, larger: κ(W) unchanged, κ(J) smaller by factors between 3 and 100.
# * **λI does far more**: a median factor of over 900, down to between 10 and 60.
# * **It does so through Q and K.** On Q and K alone λI does as much as on all three. On V alone, where the attention
#   map stays as it was, it moves κ(J) by less than a factor of 2, and leaves it more than 100 times that of λI.
# * **And not through size and κ(W) together.** A κ(W) of exactly 1 at the same size, rotations, and −λI on K bring κ(W)
#   of the head as near to 1, or nearer (below 1.4). Their κ(J) is more than 10 times that of λI, on every digit.
# * **I is not special, the agreement of Q and K is.** One rotation for all three does as well as I. With it
#   $W_QW_K^\top$ contains λ² times a projection, so each token attends to *itself*: it gives itself over 0.4 of its
#   weight. With separate rotations, under 0.12; with the minus sign, under 0.01.
#
# So what does λI fix? At this size, the **attention map**: from uniform to leaning on the diagonal, where the rows of
# $PX$ differ from each other. κ(W) falls as well, and is a bystander. The mean of max p is already above 0.4: where
# this road ends, the next lesson shows.
#
# The matrices of exercise 2 say the same from the other side: a head can be handed a perfect κ and lose it.

# %%
bad = worst_matrix(10.0, 64, 1.81)
spoilt = IdentityCorrection(10.0)(bad)
table(["W of exercise 2", "κ"], [["before", condition_number(bad)], ["after λ = 10", condition_number(spoilt)]])

# %% [markdown]
# ## 9. Play
#
# The demo has D = 32 and two heads; its κ(W) is of the whole 32 × 32 matrices. Start it with `make demo`, then open
#
# * [the preset *λ·I, small*, with the race that belongs to it](http://127.0.0.1:7860/?preset=small-lambda)
# * [λ = 1 on weights of standard deviation 0.02: three units of
#   σ_max](http://127.0.0.1:7860/?kind=identity&lam_q=1&lam_k=1&lam_v=1)
# * [λ = 1 on Xavier weights: half a unit, so a matter of
#   luck](http://127.0.0.1:7860/?kind=identity&init=xavier&lam_q=1&lam_k=1&lam_v=1)
# * [λ = 2 on Xavier weights](http://127.0.0.1:7860/?kind=identity&init=xavier&lam_q=2&lam_k=2&lam_v=2)
#
# This is what the three pages show at their start:

# %%
from spectral_core.demo import Settings, head_view

pages = {}
for init, size in (("trunc-normal", 1.0), ("xavier", 1.0), ("xavier", 2.0)):
    pages[init, size] = head_view(Settings(kind="identity", init=init, lam=dict.fromkeys("qkv", size)))
table(
    ["weights", "λ", "κ(W_Q) before", "κ(W_Q) after", "κ(J) before", "κ(J) after", "mean of max p after"],
    [[init, f"{size:g}", v.before.kappa_w["q"], v.after.kappa_w["q"], v.before.kappa_j, v.after.kappa_j,
      v.after.saturation] for (init, size), v in pages.items()],
)  # fmt: skip

# %% tags=["play"]
# yours: another matrix, another λ, another scope
w = gaussians(1, 64, 64, std=0.1, seed=5)[0]
tried = (0.0, 0.5, 1.0, certain_lambda(w))
table(["λ", "κ(W + λI)"], [[lam, condition_number(w + lam * torch.eye(64))] for lam in tried])

# %% [markdown]
# ## 10. Limits
#
# What this lesson does not show:
#
# * **The theorem's own conditions.** We know what they must achieve, not what they are.
# * **Trained weights.** They are not Gaussian: their σ_max grows during training, and with it λ_certain, while λ stays.
#   A λ that is certain at the start may not be later.
# * **Training.** All of this is at initialisation. A fixed λI is an initialisation plus a place that weight decay pulls
#   to; [lesson 7](07_choosing_a_correction.ipynb) takes that up.
# * **One head, 16 tokens, D = 64.** In head 1 the two readings of λI agree. In the others they do not: they look at
#   different coordinates of the token.
#
# **Where λI does not help:** the same layer with Xavier weights and eight heads. With the four heads of section 8 it
# helps on most digits from Xavier weights, too: the number of heads matters here, and we do not know why. κ(J) of head
# 1, five digits:

# %%
xavier = {}
for heads in (4, 8):
    for name, size in (("none", 0.0), ("λ = 1", 1.0)):
        found = xavier[f"{heads} heads, {name}"] = []
        for seed in range(5):
            x, weights = digit_layer("xavier", seed, heads=heads)
            head = layer_jacobian(x, [w + size * eye for w in weights], heads=heads)
            found.append(float(head.condition_number()))
table(["Xavier", "κ(J), five digits"], list(xavier.items()))

# %% tags=["assert"]
# sections 9 and 10, checked
before_four, after_four, before_eight, after_eight = xavier.values()
assert sum(after > before for before, after in zip(before_eight, after_eight, strict=True)) >= 3
assert sum(after < before for before, after in zip(before_four, after_four, strict=True)) >= 3
small, luck, two = pages.values()
assert small.after.kappa_w["q"] < 1.5
assert luck.after.kappa_w["q"] > 20
assert two.after.kappa_w["q"] < 5
units = [1 / small.before.spectra["q"][0], 1 / luck.before.spectra["q"][0]]
assert 3 < units[0] < 6
assert 0.4 < units[1] < 0.65
quarter, flip = torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.diag(torch.tensor([1.0, -1.0]))
assert abs(condition_number(quarter + torch.eye(2)) - 1) < 1e-6  # 05.quiz-cancel
assert condition_number(flip + torch.eye(2)) == float("inf")

# %% [markdown]
# With eight heads κ(J) is larger with λI than without on most digits.
#
# ## 11. Recap
#
# λI lowers κ(W) for certain when λ > σ_max(κ + 1)/(κ − 1), by Weyl; for random matrices some more than half of σ_max
# is usually enough, and below that it is a coin toss, because λI cancels what W turns around. A fresh head is already
# well conditioned (κ ≈ 1.8 for ViT-B) and only the fused square matrix is not, but no head sees the fused matrix: κ(J)
# does not depend on its κ. What λI changes in κ(J) at initialisation is mostly the attention map, through the agreement
# of Q and K.
#
# Three questions to take with you; put a letter in place of `"skipped"`.

# %%
quiz("05.quiz-cancel", "skipped")

# %%
quiz("05.quiz-packed", "skipped")

# %%
quiz("05.quiz-governs", "skipped")

# %% [markdown]
# **Terms.** *λ_certain*: σ_max (κ + 1)/(κ − 1), above which λI lowers κ for every matrix with these two numbers.
# *Fused matrix*: W_Q (or W_K, W_V) of all heads side by side, D × D. *Packed weight*: W_Q, W_K and W_V in one stored
# matrix of 3D rows. *Circular law*: eigenvalues of a large random square matrix fill a disc, of half the radius σ_max.
# *Heavy tail*: large values so frequent that there is no mean, like κ of a random square matrix. *Wilson interval*: an
# interval for a probability from a count, sound also at 0 and 1. *Relative λ*: λ in units of ‖W‖₂.
#
# **Links.**
# [the paper](https://arxiv.org/abs/2603.07162) ·
# [Edelman, Eigenvalues and condition numbers of random matrices](https://doi.org/10.1137/0609045) ·
# [lesson 4, the correction that looks at W](04_polar_correction.ipynb) ·
# [`IdentityCorrection`](../spectral_core/corrections.py) ·
# [`condition` and its scopes](../spectral_core/conditioning.py) ·
# [what a correction costs](../results/overhead.md)
#
# **Next lesson.** [6. Saturation](06_saturation.ipynb): where leaning on the diagonal turns into switching attention
# off.
