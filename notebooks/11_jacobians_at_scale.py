# %% [markdown]
# # 11. Jacobians at scale: Gram, Cholesky, Lanczos, and what they cost
#
# **Claim.** κ(J) of an attention head can be computed exactly without J: from $JJ^\top$, and at real size from products
# and one Cholesky factor. On random heads the result agrees with a dense SVD to ten digits and more for a fraction of
# its time, and where float64 cannot tell, it says so. The controls are the dense SVD itself, the same way in float32,
# Lanczos at the wrong end of the spectrum, and the same heads in other units.
#
# | | |
# | --- | --- |
# | **Time** | about 60 minutes, exercises included |
# | **Machine** | Runs in under 60 s and 1000 MB on two cores. Nothing is downloaded. |
# | **You need** | [lesson 1](01_condition_numbers.ipynb) and [lesson 2](02_attention_jacobian.ipynb) |
# | **Version** | written for spectral_core 0.1; `env_check()` below prints yours |
#
# Marks: **[reported]** public sources say it of the paper ([arXiv 2603.07162](https://arxiv.org/abs/2603.07162)) or
# of the authors' follow-up; **[derived]** it is proved here; **[measured]** a cell of this notebook computes it.

# %% [markdown]
# ## 1. Cold open
#
# A head of the size of ViT-B/16's, with random weights: 197 tokens, D = 768, d = 64. Its Jacobian has 12 608 × 147 456
# entries, 15 GB. We never form it. Its largest singular value, after a few steps:

# %%
import torch

from spectral_core import AttentionJacobian
from spectral_core.lessons import table
from spectral_core.lessons.lesson_11 import lanczos, products, vit_head

real = AttentionJacobian(*vit_head(seed=0))
matvec, rmatvec = products(real)  # v ↦ J v and u ↦ Jᵀ u
start = torch.randn(real.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
history = lanczos(matvec, rmatvec, start, 30)
table(
    ["steps", "largest singular value of J", "residual"],
    [[str(k), f"{float(history[k - 1][0][0]):.9f}", history[k - 1][1]] for k in (5, 10, 15, 20)],
)

# %% [markdown]
# Ten steps, twenty products, seven digits or more. A second or two of work on a matrix that does not fit into many a
# laptop. So is the *smallest* singular value just as easy? And κ?

# %% [markdown]
# ## 2. Objectives
#
# After this lesson you can
#
# 1. say how large J and $JJ^\top$ are, and count what each way to κ costs before you run it (check `11.bytes`);
# 2. say where $JJ^\top$ loses the smallest singular value, and read `condition_number()`: value, method, converged,
#    bound (questions `11.digits` and `11.quiz-bound`);
# 3. multiply with J and Jᵀ from the formulas of attention, and test the pair by the adjoint identity (check
#    `11.product`, question `11.products`);
# 4. find σ_max by power iteration, say why Lanczos is faster, and prove what its residual guarantees (check
#    `11.power`, question `11.quiz-residual`);
# 5. say why Lanczos is slow for σ_min, and find σ_min with a Cholesky factor (check `11.inverse`, question
#    `11.quiz-smallest`).

# %% [markdown]
# ## 3. Setup
#
# `scaled_head(n, D, d)` gives Gaussian tokens and weights, so scaled that logits are of size 1. We go on with one
# thread: at the sizes of this page threads mostly wait for each other, and that would count as CPU seconds.

# %%
from spectral_core.lessons import (
    check,
    device,
    env_check,
    explore,
    figure,
    own_or_solution,
    predict,
    quiz,
    reveal,
)
from spectral_core.lessons.lesson_11 import autodiff_jacobian, cpu_seconds, exponent, operations, scaled_head

torch.set_num_threads(1)
env_check()

# %% [markdown]
# ## 4. Predict
#
# Put a letter in place of `"skipped"`, and `"sure"` or `"unsure"` behind it if you like.

# %%
guess_digits = predict("11.digits", "skipped")
guess_digits

# %%
guess_products = predict("11.products", "skipped")
guess_products

# %% [markdown]
# ## 5. Idea, equation, shapes, code
#
# ### 5.1 How large is J?
#
# One row for each entry of A, one column for each entry of the three weights:
#
# | symbol | value | meaning |
# | --- | --- | --- |
# | $m$ | n d_v | rows of J, and both sides of $JJ^\top$ |
# | $N$ | D(2d_k + d_v) | columns of J |
# | $r$ | at most min(n, D) | rank of X |
# | eps | 2⁻⁵² ≈ 2.2·10⁻¹⁶ | relative rounding error of float64 |

# %%
heads = {"lesson 2": (16, 32, 16), "small": (64, 128, 32), "ViT-B/16": (197, 768, 64), "long text": (1024, 768, 64)}
rows = []
for name, (n, D, d) in heads.items():
    m, N = n * d, 3 * D * d
    rows.append([name, f"{n}, {D}, {d}", f"{m} × {N}", f"{8e-9 * m * N:.3g} GB", f"{8e-9 * m * m:.3g} GB"])
table(["head", "n, D, d", "J", "J in float64", "J Jᵀ in float64"], rows)

# %% [markdown]
# At the size of lesson 2, anything goes. At real size J takes 15 GB, and its SVD needs copies. $JJ^\top$ takes 1.3 GB:
# possible. With 1024 tokens it would be 34 GB, and nothing but products is left.
#
# The authors show κ(J) of ViT-B during training, smaller with their method than without **[reported]**. How they
# computed it is not known to us.
#
# ### 5.2 Count first
#
# | step | operations | why |
# | --- | --- | --- |
# | one product with J | $2n(D+n)(2d_k+d_v)$ | 5.6 |
# | J by autodiff | $m$ products | reverse mode: one product with Jᵀ for each row |
# | SVD of J, values only | $2m^2N + 2m^3$ | QR to m × m, then bidiagonalise; counts as in Golub and Van Loan |
# | form $JJ^\top$ | $2m^2(d_k + r)$ | lesson 2: products of stacked slopes, r columns each (5.5) |
# | all its eigenvalues | $\tfrac43 m^3$ | tridiagonalise; the rest is cheap |
# | Cholesky $JJ^\top = LL^\top$ | $\tfrac13 m^3$ | elimination that uses the symmetry |
# | solve with L, then Lᵀ | $2m^2$ | one pass over each triangle |
#
# The same in numbers for ViT-B/16:

# %%
counts = operations(197, 768, 64)
product = counts["J times v by products"]
table(["ViT-B/16", "operations", "in products with J"], [[k, v, v / product] for k, v in counts.items()])

# %% [markdown]
# The SVD of J is worth 700 000 products, eigvalsh 37 000, Cholesky 9 000. And two triangular solves cost no more than
# four or five products: **once the factor is there, the rest is free**.

# %% tags=["assert"]
# the numbers in the text so far, checked
assert real.shape == (12608, 147456)
assert 14.8e9 < 8 * 12608 * 147456 < 15e9
assert 1.2e9 < 8 * 12608**2 < 1.3e9
assert 34e9 < 8 * (1024 * 64) ** 2 < 35e9
assert abs(float(history[9][0][0] / history[29][0][0]) - 1) < 1e-7
assert 650_000 < counts["SVD of J"] / product < 750_000
assert 36_000 < counts["eigvalsh"] / product < 38_000
assert 9_000 < counts["Cholesky"] / product < 9_500
assert 4 < counts["two triangular solves"] / product < 5

# %% [markdown]
# ### 5.3 Then measure
#
# A count is a claim, and it can be tested. If time is proportional to $n^a$, then log(time) against log(n) is a line of
# slope a. Four numbers of tokens, D = 64, d = 16; CPU seconds of one thread, least of two runs:


# %%
def race(n):
    """CPU seconds of each step for a head with n tokens."""
    head = scaled_head(n, 64, 16)
    j, g = autodiff_jacobian(*head), AttentionJacobian(*head).gram()
    steps = {
        "J by autodiff": lambda: autodiff_jacobian(*head),
        "SVD of J": lambda: torch.linalg.svdvals(j),
        "form J Jᵀ": lambda: AttentionJacobian(*head).gram(),
        "eigvalsh": lambda: torch.linalg.eigvalsh(g),
        "Cholesky": lambda: torch.linalg.cholesky(g),
    }
    return {name: cpu_seconds(step, repeats=2) for name, step in steps.items()}


# %%
tokens = (8, 16, 24, 32)
_, spent = race(8), [race(n) for n in tokens]  # the first is a warm-up
counted = [operations(n, 64, 16) for n in tokens]
laws = {
    name: (exponent(tokens, [c[name] for c in counted]), exponent(tokens, [t[name] for t in spent]))
    for name in spent[0]
}
table(["step", "slope counted", "slope measured"], [[name, *pair] for name, pair in laws.items()])

# %% [markdown]
# The slopes are of the right order and not exact. Two reasons, both worth knowing:
#
# * **Small sizes measure overhead.** Forming $JJ^\top$ takes milliseconds here, most of it the start of some dozens of
#   PyTorch calls. Its measured slope is far below the counted one.
# * **Operations are not equally fast.** Products of large matrices run at full speed; half of what eigvalsh and the SVD
#   do is matrix times *vector*, which waits for memory. The larger the matrix, the more that hurts, or the better
#   caches and blocks are used: slopes go either way.
#
# Two of the steps again, at larger sizes:

# %%
sides = (256, 512, 1024, 1536)
kernels = {"eigvalsh": [], "Cholesky": []}
for m in sides:
    a = torch.randn(m, m, dtype=torch.float64, generator=torch.Generator().manual_seed(m))
    g = a @ a.mT + torch.eye(m)
    kernels["eigvalsh"].append(cpu_seconds(lambda: torch.linalg.eigvalsh(g), repeats=2))  # noqa: B023
    kernels["Cholesky"].append(cpu_seconds(lambda: torch.linalg.cholesky(g), repeats=2))  # noqa: B023
slopes = {name: exponent(sides, seconds) for name, seconds in kernels.items()}
times = [a / b for a, b in zip(kernels["eigvalsh"], kernels["Cholesky"], strict=True)]
table(
    ["m", "eigvalsh / Cholesky, measured", "counted"],
    [[str(m), t, 4.0] for m, t in zip(sides, times, strict=True)],
)

# %%
last, count = spent[-1], counted[-1]
ways = {  # at n = 32: each way is a sum of steps
    "J, SVD": ("J by autodiff", "SVD of J"),
    "J Jᵀ, eigvalsh": ("form J Jᵀ", "eigvalsh"),
    "J Jᵀ, Cholesky": ("form J Jᵀ", "Cholesky"),
}
sums = {way: (sum(count[s] for s in steps), sum(last[s] for s in steps)) for way, steps in ways.items()}
dense = sums["J, SVD"]
table(
    ["way, at n = 32", "times cheaper than J, SVD: counted", "measured"],
    [[way, dense[0] / c, dense[1] / t] for way, (c, t) in sums.items()],
)

# %% tags=["assert"]
# the sentences above, checked: wide, for other machines
assert laws["form J Jᵀ"][1] < laws["form J Jᵀ"][0]
assert 1.2 < laws["SVD of J"][1] < 4
assert all(1.5 < slope < 4 for slope in slopes.values())
assert all(t > 1.5 for t in times)
assert dense[1] / sums["J Jᵀ, eigvalsh"][1] > 4
assert all(1 / 10 < (dense[0] / c) / (dense[1] / t) < 10 for c, t in sums.values())

# %% [markdown]
# So the count gets the order of the ways right, and their ratios to within a factor of a few. That is enough to decide
# *before* you start something that runs for an hour.
#
# ### 5.4 What squaring costs
#
# $JJ^\top$ has eigenvalues $\sigma_i^2$, so its condition number is κ². Rounding moves each eigenvalue by about
# eps · σ_max², whatever its size. Relative to σ_min² that is
#
# $$\frac{\text{eps}\,\sigma_{\max}^2}{\sigma_{\min}^2} = \text{eps}\cdot\kappa^2 .$$
#
# An SVD of J itself moves σ by about eps · σ_max: only eps · κ relative to σ_min. At κ = 10⁴ the Gram form has lost
# eight digits of sixteen. At κ ≈ 1/√eps = 6.7·10⁷ all of them. Matrices with prescribed κ:

# %%
from spectral_core.lessons.lesson_01 import with_spectrum
from spectral_core.lessons.lesson_11 import by_gram

graded = {}
for power in (2, 4, 6, 8, 10, 12):
    a = with_spectrum(torch.logspace(0, -power, 40, dtype=torch.float64).tolist(), m=120).mT  # 40 × 120
    s = torch.linalg.svdvals(a)
    graded[power] = float(s[0] / s[-1]), by_gram(a), by_gram(a.float())
table(
    ["true κ", "SVD of J", "J Jᵀ, float64", "J Jᵀ, float32"],
    [[f"1e{power}", *(f"{kappa:.8g}" for kappa in row)] for power, row in graded.items()],
)

# %% [markdown]
# `inf` stands for a smallest eigenvalue that came out at or below zero. Near 10⁸ the Gram form can give a number that
# looks like any other and is wrong in the second digit. Nothing warns you.
#
# **What the package does about it.** `condition_number()` returns a number *and* what it is worth:
#
# | field | meaning |
# | --- | --- |
# | `method` | "gram", "cholesky" or "svd": the way that was taken |
# | `converged` | whether float64 resolves σ_min along that way |
# | `bound` | relative error of `value`, rounding included; ∞ where not converged |
# | `value` | κ; where not converged, a **lower bound** of κ |
#
# To see it we need heads with a large κ(J). `near_copy(head, t)` moves the last token towards the first, to t times
# where it was. Two tokens that look alike have nearly the same rows in J:

# %%
from spectral_core.lessons.lesson_11 import near_copy

rows, reports = [], {}
for t in (1, 1e-2, 1e-4, 1e-6):
    jac = AttentionJacobian(*near_copy(scaled_head(20, 64, 16), t))
    s = torch.linalg.svdvals(jac.dense())
    e = torch.linalg.eigvalsh(jac.gram())
    naive = float((e[-1] / e[0]).sqrt()) if e[0] > 0 else float("inf")
    reports[t] = float(s[0] / s[-1]), naive, jac.condition_number(method="cholesky"), jac.condition_number()
    low, auto = reports[t][2:]
    told = "yes" if low.converged else "no: a lower bound"
    rows.append([f"{t:g}", f"{reports[t][0]:.8g}", f"{naive:.8g}", f"{float(low):.8g}", told,
                 f"{float(auto):.8g}", auto.method, f"{float(auto.bound):.0e}"])  # fmt: skip
table(["t", "SVD of J", "eigvalsh", "“cholesky”", "converged", "“auto”", "its method", "its bound"], rows)

# %% [markdown]
# * **Up to 2·10⁶** "gram" and "cholesky" are right to far more digits than eigvalsh: σ_min is *refined on J itself*
#   (5.8).
# * **Beyond**, $JJ^\top$ no longer tells a small eigenvalue from none. Both say so: `converged` is False, `bound` is ∞,
#   and the value is a lower bound.
# * **"auto"** then pays for an SVD, if that takes at most about a minute. Its bound grows like eps · κ, and holds.
#
# Never noise as a number.

# %%
reveal(guess_digits)

# %% tags=["assert"]
# the sentences above, checked
assert abs(graded[4][1] / 1e4 - 1) < 1e-6
assert abs(graded[12][0] / 1e12 - 1) < 1e-2
assert abs(graded[8][1] / 1e8 - 1) > 1e-3
assert not abs(graded[10][1] / 1e10 - 1) < 0.5
assert not abs(graded[4][2] / 1e4 - 1) < 1e-2
for truth, _, low, auto in reports.values():
    assert bool(low.converged) == (truth < 2e6)
    assert abs(float(auto) / truth - 1) <= float(auto.bound) + 1e-15 * truth
    if low.converged:
        assert abs(float(low) / truth - 1) < 1e-10
    else:
        assert float(low) < truth * (1 + 1e-6)
        assert float(low.bound) == float("inf")
        assert auto.method == "svd"

# %% [markdown]
# ### 5.5 Fewer columns
#
# J sees the weights only through $XW_Q$, $XW_K$ and $XW_V$. Let $Z$ (D × r) be an orthonormal basis of the rows of X. A
# change of W at right angles to Z is multiplied by X to zero. So take $XZ$ for X and $Z^\top W$ for W: r(2d_k + d_v)
# columns in place of D(2d_k + d_v), the same singular values, and exact zeros for the rest **[derived]**.

# %%
x, *weights = scaled_head(20, 64, 16)
z = torch.linalg.qr(x.mT).Q  # (64, 20)
whole = AttentionJacobian(x, *weights)
small = AttentionJacobian(x @ z, *(z.mT @ w for w in weights))
s_whole, s_small = (torch.linalg.svdvals(jac.dense()) for jac in (whole, small))
print("shapes:", whole.shape, small.shape, " largest difference of σ:", f"{float((s_whole - s_small).abs().max()):.0e}")

# %% [markdown]
# With fewer tokens than channels that costs nothing: ViT-B/16 gets 197/768, a quarter of the columns. With n ≥ D there
# is nothing to gain. The package always does it.
#
# ### 5.6 No matrix at all
#
# **Jv.** Move the weights by $(dW_Q, dW_K, dW_V)$. The logits of token i move by $dL_i$, the weights by
# $\Lambda_i\,dL_i$, and the output by $\sum_j p_{ij}(v_j - a_i)\,dL_{ij}$ (lesson 2). In matrices, with ∘ for
# entry by entry:
#
# $$dL = s\,\big[(X\,dW_Q)K^\top + Q\,(X\,dW_K)^\top\big],\qquad
# Jv = (P\circ dL)\,V - \operatorname{rowsum}(P\circ dL)\circ A + P X\,dW_V .$$
#
# **Jᵀu.** The same road backwards. With U (n × d_v) for u, and $G_{ij} = s\,p_{ij}\,u_i\cdot(v_j - a_i)$:
#
# $$J^\top u = \big(X^\top G K,\quad X^\top G^\top Q,\quad (PX)^\top U\big).$$
#
# No slopes, no J, nothing larger than n × n or D × d. Jᵀu in code, and Jv without its Q part, which is exercise 2:

# %%
x, w_q, w_k, w_v = scaled_head(20, 64, 16)
jac, s = AttentionJacobian(x, w_q, w_k, w_v), 16**-0.5
q, k, v = x @ w_q, x @ w_k, x @ w_v
p = (s * q @ k.mT).softmax(-1)
a = p @ v


def backward(u):
    """Jᵀu for u (n, d_v): a change of W_Q, of W_K and of W_V."""
    g = s * p * (u @ v.mT - (u * a).sum(-1, keepdim=True))
    return x.mT @ (g @ k), x.mT @ (g.mT @ q), (p @ x).mT @ u


# %%
def forward_kv(dw_k, dw_v):
    """J times a change of W_K and W_V, (n, d_v)."""
    weighted = p * (s * q @ (x @ dw_k).mT)
    return weighted @ v - weighted.sum(-1, keepdim=True) * a + p @ (x @ dw_v)


# %% [markdown]
# **The test.** For every v and u, the **adjoint identity** $\langle Jv, u\rangle = \langle v, J^\top u\rangle$ holds.
# It needs no reference and works at any size. It finds nearly every slip: a sign, a transposition, a lost factor in
# one of the two. What it cannot find: the same slip in both.

# %%
draw = torch.Generator().manual_seed(0)
u, dw_k, dw_v = (torch.randn(t.shape, dtype=t.dtype, generator=draw) for t in (a, w_k, w_v))
back_q, back_k, back_v = backward(u)
left = (forward_kv(dw_k, dw_v) * u).sum()
right = (dw_k * back_k).sum() + (dw_v * back_v).sum()
broken = (dw_k * back_k).sum() / s + (dw_v * back_v).sum()  # the logit scale forgotten in one of the two
print(f"adjoint identity, relative: {abs(left / right - 1):.0e}; with a lost factor: {abs(left / broken - 1):.2f}")
print("Jᵀu agrees with the package:", torch.allclose(back_q, jac.rmatvec(u)[0]))

# %% [markdown]
# **What a product costs.** Three products with X, two or three with n × n matrices: 2n(D + n)(2d_k + d_v). The stored
# J takes 2mN. The ratio is d_v D/(D + n).

# %%
reveal(guess_products)

# %% tags=["assert"]
# sections 5.5 and 5.6, checked
assert small.shape == (320, 960)
assert float((s_whole - s_small).abs().max()) < 1e-11
assert abs(left / right - 1) < 1e-9
assert abs(left / broken - 1) > 1e-3
assert all(torch.allclose(mine, theirs) for mine, theirs in zip(backward(u), jac.rmatvec(u), strict=True))
assert torch.allclose(forward_kv(dw_k, dw_v), jac.matvec(dw_k=dw_k, dw_v=dw_v))
assert 50 < counts["stored J times v"] / product < 52  # 11.products
assert abs(64 * 768 / (768 + 197) - 51) < 0.5

# %% [markdown]
# ### 5.7 From power iteration to Lanczos
#
# **Power iteration.** Take any vector and multiply it by $J^\top J$, again and again. In the basis of right singular
# vectors, component i grows by σ_i² a step. The largest wins: after k steps the second is smaller by
# $(\sigma_2/\sigma_{\max})^{2k}$. Then ‖Jv‖ of the unit vector v is close to σ_max, and never above it.
#
# If σ₂ is close to σ_max, that is slow. With **gap** = 1 − σ₂/σ_max a digit takes some 1/gap steps.
#
# **What it throws away.** After k steps we have seen $u, Bu, B^2u, \dots, B^ku$ with $B = JJ^\top$. Power iteration
# keeps the last and forgets the others. Their span is the **Krylov space**, and *some* combination in it is the best
# guess. Lanczos finds it, for the same products:
#
# 1. make each new vector orthogonal to the ones before (twice, against rounding), for $Jv$ and $J^\top u$ in turn;
# 2. store the lengths: they form a small bidiagonal matrix $B_k$, with $J\,V_k = U_kB_k + \beta\,u_{k+1}e_k^\top$ and
#    $J^\top U_k = V_kB_k^\top$ (Golub and Kahan);
# 3. the singular values of $B_k$ are the **Ritz values**: guesses at those of J.


# %%
def fresh(w, basis):
    """w made orthogonal to the rows of basis, as a unit vector, and its length."""
    for _ in range(2):
        w = w - basis.mT @ (basis @ w)
    return w / w.norm(), w.norm()


# %%
def golub_kahan(matvec, rmatvec, start, steps):
    """B_k with one row more: the last β."""
    us = (start / start.norm())[None]
    vs = rmatvec(us[0])[None][:0]  # none yet, of the right length
    band = torch.zeros(steps + 1, steps).double()
    for j in range(steps):
        v, band[j, j] = fresh(rmatvec(us[-1]), vs)
        vs = torch.cat([vs, v[None]])
        u, band[j + 1, j] = fresh(matvec(v), us)
        us = torch.cat([us, u[None]])
    return band


# %% [markdown]
# (`lanczos` of the cold open is this, with the Ritz values after every step.)
#
# **How good is a guess? Statement [derived].** Let u, v be unit vectors with $J^\top u = \sigma v$ and
# $\|Jv - \sigma u\| = \rho$. Then some eigenvalue of $H = \begin{pmatrix}0&J\\J^\top&0\end{pmatrix}$ lies within
# ρ/√2 of σ. The eigenvalues of H are ±σ_i, and zeros.
#
# **Proof.** H is symmetric. Put $z = (u, v)/\sqrt2$, a unit vector: then $\|Hz - \sigma z\| = \rho/\sqrt2$. Expand z in
# orthonormal eigenvectors of H with weights c_i: $\|Hz-\sigma z\|^2 = \sum (\theta_i - \sigma)^2c_i^2$, and this is at
# least the smallest $(\theta_i-\sigma)^2$, since the c_i² sum to 1.
#
# For Lanczos ρ needs no further product: with $B_kq = \sigma p$ it is $\beta\,|q_k|$, q's last entry. The check, on a
# head small enough for an SVD:

# %%
matvec, rmatvec = products(jac)
start = torch.randn(320, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
found = lanczos(matvec, rmatvec, start, 24)
true = torch.linalg.svdvals(jac.dense())
shown, apart = (1, 2, 4, 8, 12, 16, 20), [float((true - sigma[0]).abs().min()) for sigma, _ in found]
table(
    ["steps", "Ritz value", "distance to the nearest σ", "ρ/√2"],
    [
        [str(i), f"{float(found[i - 1][0][0]):.6f}", f"{apart[i - 1]:.1e}", f"{float(found[i - 1][1]) / 2**0.5:.1e}"]
        for i in shown
    ],
)

# %% [markdown]
# **Its limits.** It says *some* singular value, not which. A start without any part of the top direction stays without
# it, and converges to σ₂ with a tiny residual:

# %%
top = torch.linalg.svd(jac.dense(), full_matrices=False).U[:, 0]
blind = lanczos(matvec, rmatvec, start - (top @ start) * top, 14)[-1]
print(f"Ritz value {blind[0][0]:.6f}, residual {blind[1]:.0e}; σ_max {true[0]:.6f}, σ₂ {true[1]:.6f}")

# %% [markdown]
# A random start has such a blind spot with probability zero, and rounding would end it after some more steps. But now
# you know what to ask of a small residual.
#
# **Speed.** Matrices with a prescribed gap, 400 singular values, three starts. Steps until σ_max is right to ten
# digits:

# %%
from spectral_core.lessons.lesson_11 import steps_needed

gaps = (0.1, 0.03, 0.01, 0.003)
needed = {gap: [steps_needed(gap, seed) for seed in range(3)] for gap in gaps}
middle = {gap: [sorted(column)[1] for column in zip(*pairs, strict=True)] for gap, pairs in needed.items()}
speeds = [exponent(gaps, [middle[gap][way] for gap in gaps]) for way in (0, 1)]
table(
    ["gap", "power iteration", "Lanczos"],
    [[f"{g:g}", *([pair[way] for pair in needed[g]] for way in (0, 1))] for g in gaps]
    + [["slope in log-log", f"{speeds[0]:.2f}", f"{speeds[1]:.2f}"]],
)

# %% [markdown]
# A gap 33 times smaller costs power iteration some 25 times as many steps, and Lanczos four times as many. The theory
# promises Lanczos about 1/√gap (through Chebyshev polynomials: the best combination in the Krylov space is a polynomial
# of B that is large at σ_max² and small everywhere else). Here it does a little better.

# %% tags=["assert"]
# section 5.7, checked
band = golub_kahan(matvec, rmatvec, start, 24)
assert torch.allclose(torch.linalg.svdvals(band[:24]), found[-1][0])
assert all(gap <= float(rho) / 2**0.5 + 1e-12 for gap, (_, rho) in zip(apart, found, strict=True))
assert abs(float(blind[0][0] / true[1]) - 1) < 1e-3
assert float(blind[0][0] / true[0]) < 0.999
assert all(sigma[0] < true[0] * (1 + 1e-12) for sigma, _ in found)
assert 15 < middle[0.003][0] / middle[0.1][0] < 40
assert 3 < middle[0.003][1] / middle[0.1][1] < 5
assert -1.1 < speeds[0] < -0.75
assert -0.5 < speeds[1] < -0.3

# %% [markdown]
# ### 5.8 The other end
#
# Lanczos sees both ends of the spectrum. Why not wait for σ_min? Spectra of 200 values, evenly spread on a log scale.
# Steps until the Ritz value is right to 1 %:

# %%
waits = {}
for kappa in (10, 100):
    sigma = kappa ** -torch.linspace(0, 1, 200, dtype=torch.float64)
    begin = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = lanczos(lambda v: sigma * v, lambda u: sigma * u, begin, 198)  # noqa: B023
    right = [[abs(float(r[end] / sigma[end]) - 1) < 0.01 for r, _ in steps] for end in (0, -1)]
    waits[kappa] = [1 + flags.index(True) for flags in right]
table(["κ", "steps to σ_max", "steps to σ_min"], [[str(kappa), *map(str, pair)] for kappa, pair in waits.items()])

# %% [markdown]
# σ_max takes a handful of steps, σ_min a third or most of the 200 there are. Lanczos works with σ², and what counts is
# the gap as a share of the whole spread, σ_max². At the lower end σ² itself is only 1/κ² of σ_max², and so the gaps
# there are of that size.
#
# **Count it at real size.** If it takes m = 12 608 steps, all vectors have to be kept to stay orthogonal:
# m(m + N) numbers, 16 GB. That is J again.
#
# **Turn the spectrum around.** The eigenvalues of $(JJ^\top)^{-1}$ are 1/σ². Now σ_min is at the top, and its
# neighbours are far apart. Power iteration with the inverse is **inverse iteration**: component i shrinks by
# $(\sigma_{\min}/\sigma_i)^2$ a step. And the inverse is never formed: with $JJ^\top = LL^\top$ a step is two
# triangular solves. m³/3 once, then 2m² a step.
#
# **And the precision?** L comes from $JJ^\top$, so its error is eps · κ² again. But look at what it is used for: to
# find a *direction* u. The number is then $\|J^\top u\|$, taken from J itself. A direction that is off by δ changes
# $\|J^\top u\|^2$ by something of size δ² only, because at a singular vector it is stationary. You will see this work
# after exercise 4.

# %% tags=["assert"]
# section 5.8, checked
assert all(first < 12 for first, _ in waits.values())
assert all(60 < second < 200 for _, second in waits.values())
assert waits[100][1] > 120
assert 16e9 < 8 * 12608 * (12608 + 147456) < 16.5e9

# %% [markdown]
# ### 5.9 What the package does
#
# * **σ_max**: Lanczos as in 5.7, with a *block* of four or more vectors at a time, so that one blind start does no harm
#   and close singular values come together.
# * **σ_min**: a few steps of Lanczos on $(LL^\top)^{-1}$, then corrections: look for the best pair *of J* in the space
#   so far, solve its error with L, add that direction (a block Davidson method). An error in L costs steps, not digits.
#   So a float32 factor is tried first: half the time and half the memory.
# * **"auto"**: "gram" up to 512 rows, where all eigenvalues cost no more; "cholesky" above; "svd" where J has more rows
#   than columns, or where σ_min was not resolved and the SVD is affordable.
#
# `extremes(k)` gives k values at each end, with residuals:

# %%
ends = jac.extremes(3)
table(
    ["", "singular values", "residual", "largest relative difference to the SVD"],
    [["largest", ends.largest, ends.largest_residual.max(), (ends.largest / true[:3] - 1).abs().max()],
     ["smallest", ends.smallest, ends.smallest_residual.max(), (ends.smallest / true.flip(0)[:3] - 1).abs().max()]],
)  # fmt: skip

# %% [markdown]
# ### 5.10 Real size
#
# The head of the cold open, complete. These runs take from seconds to minutes, so they are not repeated here: they are
# read from `results/jacobian.json`, which `benchmarks/jacobian.py` writes (two threads, same head, same seed).

# %%
import json
from pathlib import Path

stored = json.loads(Path("../results/jacobian.json").read_text(encoding="utf-8"))
full = {way: stored[f"{way} (197, 768, 64) threads 2 seed 0"] for way in ("cholesky", "gram", "svd")}
base = full["cholesky"]
table(
    ["ViT-B/16 head", "κ(J)", "own error bound", "seconds", "GB", "time / cholesky", "memory / cholesky"],
    [[way, f"{r['kappa']:.9f}", f"{r['bound']:.0e}", r["seconds"], r["mib"] * 2**20 / 1e9,
      r["seconds"] / base["seconds"], r["mib"] / base["mib"]] for way, r in full.items()],
)  # fmt: skip

# %% [markdown]
# **κ(J) = 109.14, in about 7 s and 0.9 GB**, and two other ways agree to ten digits. They take 8 and 50 times
# as long. Autodiff with an SVD, or with eigenvalues, could not run at all under the benchmark's limits (10 minutes,
# 20 GB): see [the table](../results/jacobian.md). The counts of 5.2 said 3.7 for eigvalsh against Cholesky, both with
# the forming of $JJ^\top$: the float32 factor does the rest.
#
# And not every target was met. Against autodiff with eigvalsh at n = 64, D = 128, d = 32, "cholesky" is 11.8 times as
# fast. The project had aimed at 20.
#
# Does it fit to what we can do here? Lanczos gives σ_max now. Its *smallest* Ritz value is no better than an upper
# bound of σ_min, so it gives a lower bound of κ:

# %%
peak = float(history[-1][0][0])
bounds = {k: float(history[k - 1][0][0] / history[k - 1][0][-1]) for k in (10, 20, 30)}
table(["", "κ(J)"], [*([f"at least, after {k} steps", b] for k, b in bounds.items()), ["exact", base["kappa"]]])

# %% tags=["assert"]
# the quoted numbers, checked against the files
page = Path("../results/jacobian.md").read_text(encoding="utf-8")
assert abs(base["kappa"] - 109.14) < 0.005
assert all(abs(r["kappa"] / base["kappa"] - 1) < 1e-10 for r in full.values())
assert 6 < base["seconds"] < 7.5
assert 0.8 < base["mib"] * 2**20 / 1e9 < 0.95
assert 7 < full["gram"]["seconds"] / base["seconds"] < 9
assert 45 < full["svd"]["seconds"] / base["seconds"] < 57
assert "11.8 times as fast as jacrev + eigvalsh (target 20): missed" in page
assert page.count("| 197, 768, 64 | jacrev") == page.count("| 197, 768, 64 | jacrev + svdvals | does not fit") + 1 == 2
forming = counts["form J Jᵀ"]
assert 3.6 < (counts["eigvalsh"] + forming) / (counts["Cholesky"] + forming) < 3.8
assert all(bound < base["kappa"] for bound in bounds.values())
assert bounds[30] < 60

# %% [markdown]
# After thirty steps: at least 42, where 109 is true. σ_max has had all its digits for ten steps.
#
# ### 5.11 On a GPU
#
# The same code runs there: tensors stay on their device, in float64. The package's loops look at convergence every
# fourth step only, so that the GPU does not wait for a number at each. **On the machine that built this page there was
# no GPU, and the project claims no number for one.** Two things to know: consumer GPUs do float64 at a small fraction
# of their float32 speed; and Apple's mps has no float64 at all, so tensors from there are computed on the CPU. The cell
# below uses a GPU if you have one:

# %%
place = device()
there = AttentionJacobian(*(t.to(place) for t in scaled_head(40, 64, 16)))
result = there.condition_number(method="cholesky")
table(["device", "κ(J)", "error bound"], [[place, f"{float(result):.9f}", f"{float(result.bound):.0e}"]])

# %% [markdown]
# ## 6. See
#
# ### Cost laws
#
# Left: bytes. Right: counted operations. Both axes are logarithmic: slopes are exponents.

# %%
figure("11.laws")

# %%
cost = explore("11.laws")
cost

# %% [markdown]
# Things to try, and what you should see:
#
# 1. **n up to 1024.** J has slope 1 in n and JJᵀ slope 2: they meet where m = N, at n = 3D for d_k = d_v = d.
# 2. **D down to 64.** Now n = 197 is more than 3D, J has more rows than columns, and JJᵀ passes J. The package then
#    works with the smaller side.
# 3. **d from 8 to 128.** The lines of the Gram ways rise like d³. The 80 products rise like d only.
# 4. **Eigvalsh against Cholesky**: parallel lines, a factor of 4 apart, once m³ dominates.
#
# ### Digits

# %%
figure("11.precision")

# %%
digits = explore("11.precision")
digits

# %% [markdown]
# 1. **The slopes.** In float64 the SVD loses one digit for each factor of 10 in κ, the Gram form two.
# 2. **Where the Gram line ends**, near 10⁸: the smallest eigenvalue comes out below zero, or is noise. In float32 that
#    happens near 10⁴.
# 3. **Step through the seeds.** The slopes stay, and the ends of the lines jump about: noise.
#
# ### Lanczos

# %%
figure("11.lanczos")

# %%
krylov = explore("11.lanczos")
krylov

# %% [markdown]
# Left: each column of dots holds the Ritz values after that many steps, and at the right edge stands the truth.
#
# 1. **Gap to 0.5, then 0.01.** At 0.5 both find σ_max quickly. At 0.01 power iteration hardly moves.
# 2. **Decay to 4, so κ ≈ 10⁴.** The lowest dots are nowhere near σ_min after 60 steps.
# 3. **Decay to 0.5.** Everything is large, σ_min too. Its error is small from the start, and still shrinks slowly.
# 4. **Other seeds.** The start vector matters for the first few steps only.

# %% tags=["assert", "widgets"]
# drives every control to all of its ends and back: an error in a drawing would stop the notebook here
_ = cost.sweep(), digits.sweep()
laws_at = figure("11.laws", n=1024, dim=64).axes[0].lines
assert laws_at[1].get_ydata()[-1] > laws_at[0].get_ydata()[-1]
for line, safe in zip(figure("11.precision").axes[0].lines[1:], (1e6, 1e2), strict=True):
    for kappa, error in zip(*line.get_data(), strict=True):
        assert error < 1e-2 or kappa > safe
        assert kappa < 1e3 * safe or not error < 0.1

# %% tags=["assert", "widgets"]
_ = krylov.sweep()
lines = figure("11.lanczos", gap=0.01, steps=60).axes[1].lines
assert lines[0].get_ydata()[-1] > 100 * lines[1].get_ydata()[-1]
far = figure("11.lanczos", decay=4, steps=60).axes[1].lines[2].get_ydata()
assert far[-1] > 5
near = figure("11.lanczos", decay=0.5, steps=60).axes[1].lines[2].get_ydata()
assert near[-1] < near[0] < 5
forty = figure("11.lanczos").axes[1].lines
assert forty[1].get_ydata()[-1] < 1e-10  # 11.quiz-smallest
assert forty[2].get_ydata()[-1] > 0.5

# %% [markdown]
# ## 7. Exercises
#
# Each of the four functions is used in the cell after it, or in section 8.

# %% [markdown]
# ### Exercise 1: how large is J
#
# *Difficulty 1 of 5 · 3 minutes · Why it matters: it is the first thing to compute, and often the last you need.*
#
# Write `jacobian_bytes(n, D, d_k, d_v)`: the bytes of J and those of $JJ^\top$ in float64, as a pair.


# %% tags=["exercise"]
def jacobian_bytes(n, D, d_k, d_v):
    """(bytes of J, bytes of J Jᵀ)."""
    raise NotImplementedError


check("11.bytes", jacobian_bytes)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# A row for each entry of A (n × d_v), a column for each entry of W_Q, W_K (D × d_k both) and W_V (D × d_v).
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def jacobian_bytes(n, D, d_k, d_v):
#     rows = ...
#     columns = ...
#     return 8 * ..., 8 * ...
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def jacobian_bytes(n, D, d_k, d_v):
#     rows = n * d_v
#     columns = D * (2 * d_k + d_v)
#     return 8 * rows * columns, 8 * rows * rows
# ```
#
# *Why:* eight bytes an entry. J grows like n, $JJ^\top$ like n²: for long sequences the second is the larger one.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * n rows in place of n d_v: A has d_v channels.
# * d_k counted once: Q and K have one each.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
jacobian_bytes = own_or_solution("11.bytes", jacobian_bytes)

# %% [markdown]
# ### Exercise 2: a product with the Q block
#
# *Difficulty 3 of 5 · 8 minutes · Why it matters: it is the whole trick of matrix-free work, in two lines.*
#
# Write `query_product(x, k, v, p, scale, dw)`: $J_Q$ times a change `dw` (D, d_k) of W_Q, of shape (n, d_v). Given are
# `x` (n, D), `k` (n, d_k), `v` (n, d_v), the attention map `p` (n, n) and the logit scale. Token by token it is
# $N_iW_K\,dW^\top x_i$; form neither J nor the slopes.


# %% tags=["exercise"]
def query_product(x, k, v, p, scale, dw):
    """J_Q · dw, (n, d_v)."""
    raise NotImplementedError


check("11.product", query_product)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# How do the logits $s\,(XW_Q)K^\top$ change with W_Q? That is an n × n matrix. Then 5.6, as in `forward_kv`.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def query_product(x, k, v, p, scale, dw):
#     change = ...                       # of the logits, (n, n)
#     weighted = p * change
#     return weighted @ v - ... * (p @ v)
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def query_product(x, k, v, p, scale, dw):
#     weighted = p * (scale * (x @ dw) @ k.mT)
#     return weighted @ v - weighted.sum(-1, keepdim=True) * (p @ v)
# ```
#
# *Why:* $\Lambda_i\,dL_i = p_i\circ dL_i - p_i\,(p_i\cdot dL_i)$. Multiplied by $V^\top$ the first part is a row of
# `weighted @ v`, and the second is $(p_i\cdot dL_i)\,a_i$.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * The scale forgotten. With the scale forgotten in Jᵀ as well, the adjoint identity would not notice!
# * The second part forgotten: weights that no longer sum to 1.
# * `k @ (x @ dw).mT`: row i of the logits belongs to query i.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
query_product = own_or_solution("11.product", query_product)

# %% [markdown]
# With it the product is complete. Yours plus `forward_kv`, and the adjoint identity for all of J:


# %%
def forward(dw_q, dw_k, dw_v):
    """J times a change of all three weights, (n, d_v)."""
    return query_product(x, k, v, p, s, dw_q) + forward_kv(dw_k, dw_v)


x, w_q, w_k, w_v = scaled_head(20, 64, 16)
q, k, v, s = x @ w_q, x @ w_k, x @ w_v, 16**-0.5
p = (s * q @ k.mT).softmax(-1)
a = p @ v
u, *dw = (torch.randn(t.shape, dtype=t.dtype, generator=draw) for t in (a, w_q, w_k, w_v))
left = (forward(*dw) * u).sum()
right = sum((change * back).sum() for change, back in zip(dw, backward(u), strict=True))
print(f"adjoint identity, relative: {float(abs(left / right - 1)):.0e}")

# %% [markdown]
# ### Exercise 3: power iteration
#
# *Difficulty 2 of 5 · 5 minutes · Why it matters: five lines give σ_max of anything you can multiply with.*
#
# Write `power_sigma_max(matvec, rmatvec, v, steps)`. Make `v` a unit vector, then `steps` times $v \leftarrow J^\top J
# v$, made a unit vector again. Return ‖Jv‖ for the last v. `matvec` and `rmatvec` are functions.


# %% tags=["exercise"]
def power_sigma_max(matvec, rmatvec, v, steps):
    """‖J v‖ after `steps` steps of power iteration on JᵀJ from v."""
    raise NotImplementedError


check("11.power", power_sigma_max)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# Nothing of J is needed but its two products. Normalise before the loop too: `steps` may be 0.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def power_sigma_max(matvec, rmatvec, v, steps):
#     v = v / v.norm()
#     for _ in range(steps):
#         v = ...
#         v = ...
#     return ...
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def power_sigma_max(matvec, rmatvec, v, steps):
#     v = v / v.norm()
#     for _ in range(steps):
#         v = rmatvec(matvec(v))
#         v = v / v.norm()
#     return matvec(v).norm()
# ```
#
# *Why:* ‖Jv‖ of a unit vector is never above σ_max, so the result is a lower bound at every step.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * No normalisation: σ_max²ᵏ overflows, or underflows to 0.
# * ‖JᵀJv‖ in place of ‖Jv‖: that is σ².
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
power_sigma_max = own_or_solution("11.power", power_sigma_max)

# %% [markdown]
# Your function on the ViT-sized head of the cold open, beside Lanczos with as many steps:

# %%
matvec_real, rmatvec_real = products(real)
begin = torch.randn(real.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
by_power = {k: float(power_sigma_max(matvec_real, rmatvec_real, begin, k)) for k in (5, 10, 20)}
table(
    ["steps", "1 − σ/σ_max, power iteration", "the same, Lanczos"],
    [[str(k), f"{1 - b / peak:.1e}", f"{1 - float(history[k - 1][0][0]) / peak:.1e}"] for k, b in by_power.items()],
)

# %% [markdown]
# ### Exercise 4: inverse iteration
#
# *Difficulty 3 of 5 · 6 minutes · Why it matters: one factor, and the smallest singular value is a few solves away.*
#
# Write `inverse_iteration(chol, u, steps)` for `chol` = L, lower triangular, and `u` of shape (m,). Make u a unit
# vector; then `steps` times solve $(LL^\top)\,u_{\text{new}} = u$ and make that a unit vector. Return u.


# %% tags=["exercise"]
def inverse_iteration(chol, u, steps):
    """The unit vector u after `steps` steps with (L Lᵀ)⁻¹."""
    raise NotImplementedError


check("11.inverse", inverse_iteration)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# `torch.cholesky_solve(b, chol)` does both triangular solves; b is a matrix of columns, so `u[:, None]`.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def inverse_iteration(chol, u, steps):
#     u = u / u.norm()
#     for _ in range(steps):
#         u = torch.cholesky_solve(..., chol)[:, 0]
#         u = ...
#     return u
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def inverse_iteration(chol, u, steps):
#     u = u / u.norm()
#     for _ in range(steps):
#         u = torch.cholesky_solve(u[:, None], chol)[:, 0]
#         u = u / u.norm()
#     return u
# ```
#
# *Why:* the eigenvalues of $(LL^\top)^{-1}$ are 1/σ², and the largest of them belongs to σ_min.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * A product with $LL^\top$ in place of a solve: that goes to σ_max.
# * One solve only. It is Lᵀ as well.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
inverse_iteration = own_or_solution("11.inverse", inverse_iteration)

# %% [markdown]
# Now the promise of 5.8. One factor L, one vector u from your function, and σ_min in three ways: the smallest
# eigenvalue of $JJ^\top$; ‖Lᵀu‖, which knows L alone; and ‖Jᵀu‖. The truth is the prescribed 1/κ:

# %%
rows, refined = [], {}
for power in (2, 3, 4, 5, 6, 7):
    j = with_spectrum(torch.logspace(0, -power, 40, dtype=torch.float64).tolist(), m=120).mT
    chol = torch.linalg.cholesky(j @ j.mT)
    u = inverse_iteration(chol, torch.ones(40, dtype=torch.float64), 60)
    ways = [1 / by_gram(j), (chol.mT @ u).norm(), (j.mT @ u).norm()]
    refined[power] = [abs(float(sigma) * 10**power - 1) for sigma in ways]
    rows.append([f"1e{power}", *(f"{error:.0e}" for error in refined[power])])
table(["κ", "relative error of σ_min: eigvalsh", "‖Lᵀu‖", "‖Jᵀu‖"], rows)

# %% tags=["assert"]
# section 7, checked
assert jacobian_bytes(197, 768, 64, 64) == (8 * real.shape[0] * real.shape[1], 8 * real.shape[0] ** 2)
assert abs(left / right - 1) < 1e-9
assert torch.allclose(forward(*dw), AttentionJacobian(x, w_q, w_k, w_v).matvec(*dw))
assert all(b <= peak * (1 + 1e-12) for b in by_power.values())
assert 1 - by_power[10] / peak > 1e-4 > 1e-6 > 1 - float(history[9][0][0]) / peak
assert all(error[2] < 1e-8 for power, error in refined.items() if power < 7)
assert refined[7][2] < 1e-4
assert refined[6][0] > 1e-6
assert refined[6][2] < refined[6][0] / 100

# %% [markdown]
# ‖Jᵀu‖ keeps its digits where the eigenvalue has lost them, from the same factor. That is what `condition_number()`
# builds on.
#
# ## 8. Signature result
#
# Five random heads, n = 20, D = 64, d = 16: J is 320 × 3072. Then the same five with the last token moved towards the
# first, to 10⁻² and to 10⁻⁶ of where it was: κ(J) near 10⁴ and near 10⁸.
#
# | arm | what it is | what it catches |
# | --- | --- | --- |
# | dense SVD | **baseline** and reference: J by autodiff, then its SVD | |
# | Gram | $JJ^\top$ in closed form, eigvalsh (lesson 2) | |
# | Gram, float32 | **negative control**: the same in single precision | the belief that precision is a detail |
# | Lanczos alone | **negative control**: 40 steps for both ends | the belief that a good σ_max is enough |
# | by hand | Lanczos for σ_max, your `inverse_iteration`, ‖Jᵀu‖ | |
# | "cholesky" | `condition_number(method="cholesky")` | |
# | "auto" | `condition_number()` | |
#
# An arm may *refuse*: by an eigenvalue below zero, a Cholesky factor that does not exist, or `converged = False`. A
# number that is claimed and off by more than 1 % is a **false claim**.

# %%
from spectral_core.lessons.lesson_11_arms import signature_arms

arms = signature_arms(inverse_iteration)  # name -> function of a head: κ, or ∞ when it refuses
groups = {"κ ≈ 10² … 10³": 1.0, "κ ≈ 10⁴": 1e-2, "κ ≈ 10⁸": 1e-6}
heads = {group: [near_copy(scaled_head(20, 64, 16, seed=i), t) for i in range(5)] for group, t in groups.items()}
found = {group: {arm: [fn(head) for head in drawn] for arm, fn in arms.items()} for group, drawn in heads.items()}
inf = float("inf")
errors = {
    group: {
        arm: [max(abs(k / ref - 1), 1e-16) for k, ref in zip(kappas, by_arm["dense SVD"], strict=True)]
        for arm, kappas in by_arm.items() if arm != "dense SVD"
    } for group, by_arm in found.items()
}  # fmt: skip

# %%
from spectral_core import plots

plots.seed_dots(errors, title="Relative error of κ against the dense SVD, five heads; ∞: it refused", log=list(errors))

# %%
easy_head, hard_head = (heads[group][0] for group in ("κ ≈ 10² … 10³", "κ ≈ 10⁸"))
seconds = {arm: cpu_seconds(lambda fn=fn: fn(easy_head)) for arm, fn in arms.items()}
late = {arm: cpu_seconds(lambda fn=fn: fn(hard_head)) for arm, fn in arms.items()}
m, N, r = 320, 3072, 20  # rows and columns of J, and its rank in the tokens: 960 columns after 5.5
memory = {  # entries of the largest things held, counted; in units of J
    "dense SVD": m * N, "Gram": m * m, "Gram, float32": m * m / 2, "Lanczos alone": 40 * (m + N),
    "by hand": m * m + 40 * (m + N), "“cholesky”": m * m, "“auto”": m * m + m * 48 * r,
}  # fmt: skip
false = {arm: sum(0.01 < e < inf for by_arm in errors.values() for e in by_arm.get(arm, [])) for arm in arms}
errors_at = ("largest error at 10² … 10³", "at 10⁴", "at 10⁸")
table(
    ["arm", *errors_at, "false claims of 15", "time / dense at 10² … 10³", "at 10⁸", "memory / J"],
    [[arm, *(f"{max(errors[g].get(arm, [0])):.0e}" for g in groups), false[arm], seconds[arm] / seconds["dense SVD"],
      late[arm] / late["dense SVD"], memory[arm] / (m * N)] for arm in arms],
)  # fmt: skip

# %% [markdown]
# **Control for scale.** κ(J) is a ratio, so it must not depend on units. With 10⁻⁸ · X and 10⁸ times all three weights,
# attention is the same and J is 10⁻⁸ times what it was **[derived]**: Q, K, V do not change, and every block of J has
# one factor X more than it has factors W. Any absolute threshold in a method would show now. The largest relative
# change of κ:


# %%
def in_other_units(head, c=1e-8):
    x, *weights = head
    return (c * x, *(w / c for w in weights))


moved = {}
for arm, fn in arms.items():
    pairs = [(fn(in_other_units(scaled_head(20, 64, 16, seed=i))), found["κ ≈ 10² … 10³"][arm][i]) for i in range(5)]
    moved[arm] = max(abs(new / old - 1) for new, old in pairs)
table(["arm", "change of κ when J becomes 10⁻⁸ J"], [[arm, f"{change:.0e}"] for arm, change in moved.items()])

# %% tags=["assert"]
# the sentences below, checked
easy, hard, hopeless = errors.values()
for arm in ("Gram", "“cholesky”", "“auto”"):
    assert max(easy[arm]) < 1e-10
assert max(hard["“cholesky”"] + hard["“auto”"]) < 1e-10
assert 1e-10 < max(hard["Gram"]) < 1e-5
assert max(hopeless["“auto”"]) < 1e-6
assert hopeless["“cholesky”"] == [inf] * 5
assert false["“cholesky”"] == false["“auto”"] == 0
assert false["Lanczos alone"] == 15
assert min(easy["Lanczos alone"]) > 0.5
assert max(hopeless["Gram"]) > 0.01
assert max(hard["Gram"]) > 1e3 * max(hard["“auto”"])
assert max(hard["Gram, float32"]) > 0.01
assert not any(e < 0.01 for e in hopeless["Gram, float32"])

# %% tags=["assert"]
# and those on time, memory, units and the way by hand
assert all(seconds["dense SVD"] > 2 * seconds[arm] for arm in ("Gram", "“auto”"))
assert seconds["dense SVD"] > seconds["“cholesky”"] > seconds["Gram"]
assert all(0.10 < memory[arm] / (m * N) < 0.11 for arm in ("Gram", "“cholesky”"))
assert 0.4 < memory["“auto”"] / (m * N) < 0.43
assert 2 * seconds["“auto”"] < late["“auto”"] < late["dense SVD"]
assert late["“cholesky”"] > late["dense SVD"]
assert all(change < 1e-8 for arm, change in moved.items() if arm != "Gram, float32")
assert all(100 < k < 1000 for k in found["κ ≈ 10² … 10³"]["dense SVD"])
assert all(2e3 < k < 5e4 for k in found["κ ≈ 10⁴"]["dense SVD"])
assert all(2e7 < k < 5e8 for k in found["κ ≈ 10⁸"]["dense SVD"])
assert max(easy["by hand"]) < 1e-4
assert max(hopeless["by hand"]) > 1e-3

# %% [markdown]
# What it says **[measured]**:
#
# * **At ordinary κ every exact way agrees**, to ten digits and more, and the Gram ways take a fraction of the time of
#   the dense SVD and about a tenth of its memory. So does "auto" there, which needs no SVD; its memory in the table is
#   that of the worst case.
# * **At 10⁴ squaring shows.** The Gram form is a thousand times or more less exact than "cholesky" and "auto", which
#   refine σ_min on J. In float32 it is wrong or has no answer.
# * **At 10⁸** the Gram form is at the mercy of rounding: for some heads it refuses or is off by more than 1 %, for
#   others it is right by luck. In float32 nothing is left. "cholesky" refuses all five, and takes longer over it than
#   the dense SVD. "auto" is right to six digits or more. It pays for that with an SVD of the compressed J (5.5):
#   more than twice its time at ordinary κ, though less than the dense SVD's, and 0.3 of J beside the Gram matrix.
# * **The way by hand** is exact at first and wrong at the end, because it does not check itself. The iteration is half
#   of the package's work; knowing when to say no is the other half.
# * **Lanczos alone** makes fifteen false claims of fifteen: its σ_max is perfect, its σ_min is not.
# * **Units do not matter** to any of them, beyond rounding.
#
# One result that does not flatter: at this size "cholesky" is *slower* than the plain Gram form. It pays off with many
# rows (5.10). That is why "auto" does not use it below 512.
#
# ## 9. Play
#
# The demo computes the exact κ(J) of a 256 × 1536 Jacobian at every move of a slider. Start it with
# `make demo`, then open
#
# * [λ = 1](http://127.0.0.1:7860/?kind=identity&lam_q=1&lam_k=1&lam_v=1): drag a slider and watch κ(J) follow
# * [λ = 10](http://127.0.0.1:7860/?kind=identity&lam_q=10&lam_k=10&lam_v=10): attention is off (lesson 2)
# * [λ = 1 on Xavier weights, seed 1](http://127.0.0.1:7860/?kind=identity&init=xavier&seed=1&lam_q=1&lam_k=1&lam_v=1)
#
# From the move to the redrawn number it takes less than 80 ms in the median ([measured](../results/app.md), two cores).
# And a dense SVD in its place?

# %%
from spectral_core import IdentityCorrection
from spectral_core.demo import Settings, head_view
from spectral_core.lessons.heads import digit_head

pages = {}
for init, seed, lam in (("trunc-normal", 0, 1.0), ("trunc-normal", 0, 10.0), ("xavier", 1, 1.0)):
    pages[init, seed, lam] = head_view(Settings(kind="identity", init=init, seed=seed, lam=dict.fromkeys("qkv", lam)))
table(
    ["weights", "seed", "λ", "κ(J) before", "κ(J) after"],
    [[key[0], str(key[1]), f"{key[2]:g}", v.before.kappa_j, v.after.kappa_j] for key, v in pages.items()],
)

# %%
rows, saved = [], {}
for name, fix in (("plain", {}), ("λ = 1", dict.fromkeys("qkv", IdentityCorrection(1.0)))):
    h = digit_head(fix)
    parts = (h.x, h.w_q, h.w_k, h.w_v)
    exact = cpu_seconds(lambda: AttentionJacobian(*parts).condition_number())  # noqa: B023
    dense_way = cpu_seconds(lambda: torch.linalg.svdvals(autodiff_jacobian(*parts)))  # noqa: B023
    saved[name] = dense_way / exact
    rows.append([name, h.kappa, saved[name]])
table(["the demo's first head, 256 × 1536", "κ(J)", "CPU time, dense SVD / condition_number()"], rows)

# %% [markdown]
# Where κ is small, all is done by eigvalsh. Where it is large, σ_min has to be refined on J, and at this small size
# that takes up most of what was saved.

# %% tags=["play"]
# yours: another size, another way
mine = AttentionJacobian(*scaled_head(48, 96, 16, seed=7))
found_mine = mine.condition_number(method="cholesky")
told = [str(mine.shape), found_mine.value, found_mine.bound, mine.bytes_needed(method="cholesky")]
table(["J", "κ(J)", "bound", "bytes needed"], [told])

# %% [markdown]
# ## 10. Limits
#
# What this lesson does not show:
#
# * **Absolute speed.** Ratios and slopes were measured side by side; seconds belong to a machine. Memory in section 8
#   is counted; measured peaks are in [the table](../results/jacobian.md).
# * **Trained weights and real text.** All heads here are random, but for the demo's. In
#   [a pretrained model](../results/audit.md) κ(J) is 10⁴ to 10⁶ at English prose (medians by layer), where all of this
#   works, and over 10⁷ at a row of equal tokens. Then the SVD of the compressed J is needed: affordable for some
#   hundred rows, not for 12 608.
# * **A GPU.** Nothing was measured on one.
# * **Errors of the input.** The bounds say how far κ is from that of *these* tokens and weights in float64. Weights
#   that were stored in float32 carry errors of 10⁻⁷ each, and a κ above 10⁷ may be made of them.
# * **The whole network.** One head, one sequence.
#
# **Where it does not help:** with many more tokens than channels. Then columns cannot be compressed, J has more rows
# than columns, and by the gauge freedom of lesson 2 κ(J) is infinite anyway: only κ⁺ and the rank mean something, and
# these need all singular values, not two.

# %%
tall = AttentionJacobian(*scaled_head(40, 8, 4)).condition_number()
table(
    ["n = 40, D = 8, d = 4", ""],
    [["κ(J)", float(tall)], ["rank", f"{int(tall.rank)} of 96"], ["κ⁺(J)", float(tall.effective_value)],
     ["method", tall.method], ["note", tall.note]],
)  # fmt: skip

# %% tags=["assert"]
# sections 9 and 10, checked
assert float(tall) == float("inf")
assert int(tall.rank) == 8 * 12 - 4**2
assert tall.method == "svd"
measured = Path("../results/app.md").read_text(encoding="utf-8")
assert float(measured.split("numbers, idle | median ")[1].split(" ms")[0]) < 80
assert h.jacobian.shape == (256, 1536)
assert saved["λ = 1"] > max(3, 1.5 * saved["plain"])
lines = [line.split("|") for line in Path("../results/audit.md").read_text(encoding="utf-8").splitlines()]
(head,) = (line for line in lines if " layer " in line)
for text, low, high in (("prose", 1e4, 1e6), ("asterisks", 1e7, 1e10)):
    column = head.index(f" {text}: κ(J) median ")
    medians = [float(line[column]) for line in lines if len(line) == len(head) and line[1].strip().isdigit()]
    assert low <= min(medians) < max(medians) < high
    assert len(medians) == 6

# %% [markdown]
# ## 11. Recap
#
# The Gram form makes exact κ(J) cheap and costs half the digits, so σ_min has to be refined on J itself, and beyond
# κ ≈ 2·10⁶ a method must say that it gives a lower bound. At real size products are all one can afford in plenty:
# Lanczos turns a dozen of them into σ_max with a residual that proves some singular value is near, and one Cholesky
# factor turns the spectrum around for σ_min. Count before you run, measure slopes and ratios, and test every pair of
# products by the adjoint identity.
#
# Three questions to take with you; put a letter in place of `"skipped"`.

# %%
quiz("11.quiz-smallest", "skipped")

# %%
quiz("11.quiz-residual", "skipped")

# %%
quiz("11.quiz-bound", "skipped")

# %% [markdown]
# **Terms.** *Matrix-free*: using products with J and Jᵀ, never J. *Adjoint identity*: ⟨Jv, u⟩ = ⟨v, Jᵀu⟩, the test of
# such a pair. *Krylov space*: the span of u, Bu, B²u, … for B = JJᵀ. *Ritz value*: the best guess at a singular value
# that a Krylov space holds. *Residual*: ‖Jv − σu‖; some singular value is at least that near to σ. *Cholesky factor*:
# L, lower triangular, with JJᵀ = LLᵀ. *Inverse iteration*: power iteration with the inverse, by triangular solves.
# *Column compression*: X in a basis of its own rows, so that J has r(2d_k + d_v) columns. *Cost law*: operations or
# bytes as powers of the sizes.
#
# **Links.**
# [the three ways to κ](../spectral_core/jacobian_condition.py) ·
# [Lanczos and the σ_min iteration](../spectral_core/lanczos.py) ·
# [the products](../spectral_core/closed_form.py) ·
# [all measurements](../results/jacobian.md) ·
# [the paper](https://arxiv.org/abs/2603.07162)
#
# **Next lesson.** [12. Capstone](12_capstone.ipynb): audit, diagnose and condition a model of your own.
