# %% [markdown]
# # 1. Condition numbers: one slow direction holds everything up
#
# **Claim.** How many gradient steps a linear model may need is set by one number, its *condition number* κ: one curve
# in κ holds for matrices as they were drawn, scaled, or corrected, and most of them come close to it. Seen on least
# squares with five random matrices; the controls are the same matrices 100 times larger, and a random rotation in
# place of the identity.
#
# | | |
# | --- | --- |
# | **Time** | about 40 minutes, exercises included |
# | **Machine** | Runs in under 30 s and 800 MB on two cores. Nothing is downloaded. |
# | **You need** | singular values from linear algebra, a little PyTorch; no earlier lesson |
# | **Version** | written for spectral_core 0.1; `env_check()` below prints yours |
#
# Three marks tell where a statement comes from: **[reported]** public sources say it of the paper this course
# follows ([arXiv 2603.07162](https://arxiv.org/abs/2603.07162)); **[derived]** it is proved here;
# **[measured]** a cell of this notebook computes it.

# %% [markdown]
# ## 1. Cold open
#
# Two 8 × 8 matrices. They have the same norm, and the same target to fit. Gradient descent uses the best fixed step
# for each of them. One is done in a few dozen steps.

# %%
from spectral_core.lessons import figure

figure("01.open")

# %% [markdown]
# The other is not slow. It has stopped, for all that 100 steps can show: more than nine tenths of its error are
# still there. Nothing about its size gave that away. By the end of this lesson you will read the trouble off one
# number before taking the first step.

# %% [markdown]
# ## 2. Objectives
#
# After this lesson you can
#
# 1. compute the condition number κ of a matrix, and say when it is infinite (check `01.kappa`);
# 2. report κ⁺ with its rank for a matrix that is rank deficient, and say why the rank belongs next to it
#    (check `01.effective`);
# 3. predict how many steps gradient descent needs on a least-squares problem (check `01.steps`);
# 4. repair a matrix so that κ ≤ 2, and say what that costs (check `01.polar`);
# 5. say when adding λI lowers κ for certain, and when it may raise it (question `01.identity`);
# 6. tell scale from conditioning (questions `01.scale` and `01.quiz-norm`).

# %% [markdown]
# ## 3. Setup
#
# One import for the course, one for PyTorch. If a line below says `[FAIL]`, the last line says how to repair it.

# %%
import math

import torch

from spectral_core.lessons import check, env_check, explore, figure, own_or_solution, predict, quiz, reveal, table

env_check()

# %% [markdown]
# Condition numbers are easily lost in rounding, so everything here is float64, and every random number has a seed:


# %%
def gaussian(*shape, seed=0):
    """Random normal numbers in float64, the same for the same seed."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# %% [markdown]
# ## 4. Predict
#
# Guess before you see; it makes the answer stick, and a wrong guess more so. Put a letter in place of `"skipped"`.
# If you like, say how sure you are: `predict("01.scale", "a", "sure")`. Both answers come later in the lesson.

# %%
guess_scale = predict("01.scale", "skipped")
guess_scale

# %%
guess_identity = predict("01.identity", "skipped")
guess_identity

# %% [markdown]
# ## 5. Idea, equation, shapes, code
#
# ### 5.1 A matrix stretches, more in some directions than in others
#
# Feed all unit vectors to a matrix $W$. What comes out is an ellipsoid, and the lengths of its half-axes are the
# singular values $\sigma_1 \ge \sigma_2 \ge \dots$ of $W$. The **condition number** compares the longest with the
# shortest:
#
# $$\kappa(W) = \frac{\sigma_{\max}(W)}{\sigma_{\min}(W)} \;\ge\; 1 .$$
#
# κ = 1 is a perfect sphere. κ = 3 000 is a needle.
#
# | symbol | shape | meaning |
# | --- | --- | --- |
# | $W$ or $A$ | m × n | the matrix |
# | $\sigma_1, \sigma_2, \dots$ | min(m, n) numbers | singular values, descending, never negative |
# | $\sigma_{\max}, \sigma_{\min}$ | numbers | the first and the last of all min(m, n) |
# | κ | a number in [1, ∞] | σ_max / σ_min |

# %%
from spectral_core import condition_number, singular_values, spectrum

w = torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64)
print("singular values", singular_values(w))
print("κ              ", condition_number(w))

# %% [markdown]
# You can check this one by hand: $W^\top W = \begin{pmatrix}25&20\\20&25\end{pmatrix}$ has eigenvalues 45 and 5,
# so $\kappa = \sqrt{45/5} = 3$.
#
# ### 5.2 When the shortest axis has no length
#
# Real data produce zeros at once. Take the 1 797 scanned digits of scikit-learn, one row an image, one column
# a pixel. Some pixels in the margin are blank in every image.

# %%
from sklearn.datasets import load_digits

pixels = torch.tensor(load_digits().data)
digits = spectrum(pixels)
table(
    ["matrix", "shape", "κ", "κ⁺", "rank", "blank pixels"],
    [["1 797 digits", "1797 × 64", digits.condition_number, digits.effective_condition_number, digits.rank,
      int((pixels == 0).all(0).sum())]],
)

# %% [markdown]
# A blank pixel is a column of zeros, so $\sigma_{\min} = 0$ and κ = ∞. That is correct and says little. So there is
# a second convention: **κ⁺** leaves out the singular values that count as zero,
#
# $$\kappa^{+}(W) = \frac{\sigma_{\max}}{\sigma_r}, \qquad
# r = \text{rank} = \text{the number of } \sigma_i > \text{rtol}\cdot\sigma_{\max} .$$
#
# Two things to keep in mind. The tolerance is *relative*, because "small" only means something next to
# $\sigma_{\max}$. And κ⁺ says nothing without the rank: a matrix can improve its κ⁺ by losing a direction
# altogether. This course never mixes the two without saying so.
#
# ### 5.3 Size is not conditioning
#
# Multiply $W$ by 100: all singular values grow by 100, and their ratio stays. **κ does not depend on scale.** A matrix
# of norm 0.02 may be perfectly conditioned, and one of norm 1 hopeless. Keep the two apart, for a method that changes
# both (most do) can easily get credit for the wrong one.

# %%
w = gaussian(64, 64)
rows = [[f"{c:g} · W", singular_values(c * w)[0], condition_number(c * w)] for c in (0.01, 1.0, 100.0)]
table(["matrix", "norm (σ_max)", "κ"], rows)

# %% [markdown]
# ### 5.4 Why gradient descent cares
#
# Fit $y$ with a linear model: minimise $f(w) = \tfrac12\lVert Aw - y\rVert^2$, with $A$ of shape m × n. The gradient is
# $A^\top(Aw - y)$ and the Hessian is $A^\top A$, whose eigenvalues are the $\sigma_i^2$. One step of size η takes the
# residual $r = Aw - y$ to
#
# $$r_{t+1} = (I - \eta AA^\top)\, r_t ,$$
#
# so in the directions of the singular vectors nothing mixes, and component $i$ is multiplied by
# $1 - \eta\sigma_i^2$ at every step. A step that suits the steep direction barely moves the flat one, and a step that
# suits the flat one explodes along the steep one. The best compromise is $\eta = 2/(\sigma_{\max}^2+\sigma_{\min}^2)$,
# where the two extremes shrink equally fast **[derived]**:
#
# $$\lVert r_{t}\rVert \le \left(\frac{\kappa_H - 1}{\kappa_H + 1}\right)^{t}\lVert r_0\rVert ,\qquad
# \kappa_H = \kappa(A^\top A) = \kappa(A)^2 .$$
#
# For large $\kappa_H$ the factor is about $1 - 2/\kappa_H$, so shrinking the error to ε takes about
# $\tfrac12\,\kappa_H \log(1/\varepsilon)$ steps: proportional to the condition number of the Hessian, and hence to the
# **square** of κ(A).
#
# (For an $A$ with more rows than columns this holds for the part of the residual that $A$ can reach at all.)
#
# | quantity | shape | for the matrix of the cold open |
# | --- | --- | --- |
# | $A$ | 8 × 8 | κ(A) = 3, or 3 000 |
# | $A^\top A$ | 8 × 8 | κ_H = 9, or 9 million |
# | factor a step | number | 0.8, or 0.9999998 |
#
# In code, the whole of it:


# %%
def steps_to(a, y, eps, most=100_000):
    """Steps of gradient descent on ½‖A w − y‖² until the residual is eps of its start."""
    sigma = singular_values(a)
    eta = 2 / (sigma[0] ** 2 + sigma[-1] ** 2)
    w = a.new_zeros(a.shape[1])
    for t in range(most):
        residual = a @ w - y
        if residual.norm() <= eps * y.norm():
            return t
        w -= eta * a.mT @ residual
    return most


y = gaussian(8, seed=1)
for kappa_a in (3, 30):
    a = torch.diag(torch.linspace(kappa_a, 1, 8).double())
    print(f"κ = {kappa_a}: {steps_to(a, y, 1e-3)} steps")

# %% [markdown]
# Ten times the κ, a hundred times the steps.

# %% tags=["assert"]
# the numbers in the text so far, checked
slow, fast = (steps_to(torch.diag(torch.linspace(k, 1, 8).double()), y, 1e-3) for k in (30, 3))
assert 90 < slow / fast < 110
healthy, needle = (line.get_ydata() for line in figure("01.open").axes[0].lines)
assert healthy[36] < 1e-3  # "a few dozen steps"
assert needle[100] > 0.9  # "more than nine tenths"
assert abs(condition_number(torch.tensor([[3.0, 0.0], [4.0, 5.0]])) - 3) < 1e-6
assert (digits.condition_number, int(digits.rank)) == (float("inf"), 61)
assert round((9 - 1) / (9 + 1), 7) == 0.8
assert round((9e6 - 1) / (9e6 + 1), 7) == 0.9999998

# %%
reveal(guess_scale)

# %% [markdown]
# ### 5.5 Two ways to repair a matrix
#
# The paper adds a correction $C$ to a weight, $W + C$, and keeps $C$ fixed while $W$ trains. There are two choices
# of $C$ **[reported]**:
#
# * **Polar** (Theorem 3.5): with the SVD $W = U S V^\top$, take $C = \sigma_{\max}\, U V^\top$. Every singular value
#   becomes $\sigma_i + \sigma_{\max}$, so they all lie between $\sigma_{\max}$ and $2\sigma_{\max}$, and κ ≤ 2. The
#   price in the paper is an SVD (this package needs some twenty matrix products instead), and a norm that doubles.
# * **Identity** (Theorem 3.8): $C = \lambda I_k$, ones on the main diagonal of a rectangle. No SVD. It is stated for
#   λ ≥ 2 under conditions on the singular values which the public sources we use do not spell out, and the default is
#   λ = 10.
#
# It needs conditions, because a direction that $W$ turns around, $Wx \approx -\lambda x$, is wiped out by adding
# $\lambda x$. What holds always **[derived]**: if λ > σ_max, then by Weyl's inequality the singular values of
# $W + \lambda I$ lie between $\lambda - \sigma_{\max}$ and $\lambda + \sigma_{\max}$, so
#
# $$\kappa(W + \lambda I) \le \frac{\lambda + \sigma_{\max}}{\lambda - \sigma_{\max}} .$$
#
# κ is certain to *fall* once this is below κ(W), that is for
# $\lambda > \sigma_{\max}\,\frac{\kappa(W)+1}{\kappa(W)-1}$; for a badly conditioned W that is hardly more than σ_max.
# Below σ_max there is no guarantee. Here is a random 256 × 256 matrix with entries of variance 1/256:

# %%
w = gaussian(256, 256) / 16
lams = [0, 0.01, 0.1, 0.5, 1, 1.5, 2, 3, 10]
kappas = [condition_number(w + lam * torch.eye(256)) for lam in lams]
table(["λ", "κ(W + λI)"], [[f"{lam:g}", kappa] for lam, kappa in zip(lams, kappas, strict=True)])

# %% tags=["assert"]
# the sentences after the table, checked
from itertools import pairwise

assert 1.9 < singular_values(w)[0] < 2.1  # σ_max is close to 2
rises = [bool(later > earlier) for earlier, later in pairwise(kappas[:5])]
assert 0 < sum(rises) < 4  # up and down
assert kappas[-2] < 3

# %% [markdown]
# σ_max is close to 2 here. Up to about a quarter of it κ jumps up and down; then it happens to fall here (lesson 5 says
# why), but below σ_max nothing guarantees that. From λ = 3 on κ is below 3.

# %% [markdown]
# ## 6. See
#
# ### Gradient descent in a valley
#
# Two coordinates, one steep and one flat, curvatures $L = 1$ and $1/\kappa$. The path bounces between the steep walls
# and creeps along the floor.

# %%
figure("01.descent")

# %%
valley = explore("01.descent")
valley

# %% [markdown]
# Three things to try, and what you should see:
#
# 1. **κ = 1, step · L = 1.** A round bowl: one step, and it is over.
# 2. **step · L = 2.1.** The path leaves the picture along the *steep* axis: the largest curvature limits the step,
#    the smallest one pays for it. There is no guarantee line any more.
# 3. **κ = 100, step · L = 1, start angle 0.** One step again, in spite of κ = 100! The start has no part in the flat
#    direction. κ is about the worst direction; whether your problem lives there is another question (section 10).
#
# ### What λI does to κ
#
# One random 32 × 32 matrix, λ from 0 to 4 σ_max. Compare the curve with the guarantee (dashed), and with the polar
# correction, whose κ is never above 2.

# %%
figure("01.shift")

# %%
shift = explore("01.shift")
shift

# %% [markdown]
# 1. **Step through the seeds.** The curve left of σ_max is different for each, with spikes in different places; right
#    of it, they all look alike.
# 2. **n = 4.** A small matrix has few directions that λI could cancel: none or one spike, two at seed 0.
# 3. **Find a seed where κ at 0.3 σ_max is above the dotted line.** There λI made matters worse.

# %%
reveal(guess_identity)

# %% tags=["assert", "widgets"]
# drives every slider to both of its ends and back: an error in a drawing would stop the notebook here
_ = valley.sweep(), shift.sweep()
curves = [figure("01.shift", seed=seed).axes[0].lines[0].get_ydata() for seed in range(10)]
assert any(curve[9] > curve[0] for curve in curves)  # λ = 0.3 σ_max made matters worse

# %% [markdown]
# ## 7. Exercises
#
# Fill in a function and run the cell. `check` runs several small tests and tells you for each what was expected, what
# came, and what the likely cause is. You may use anything in PyTorch; `spectral_core` has most of these functions, so
# using those would be cheating yourself.

# %% [markdown]
# ### Exercise 1: the condition number
#
# *Difficulty 1 of 5 · 5 minutes · Why it matters: every number in this course is a κ of something, and most bugs in
# conditioning code are a zero that was not recognised as one.*
#
# Write `kappa(w)` for a matrix `w` of shape (m, n): σ_max / σ_min, and infinity when the matrix is rank deficient.
# Count a singular value as zero when it is at most `1e-12` times the largest.


# %% tags=["exercise"]
def kappa(w):
    """κ of w (m, n): a number, or a tensor without dimensions."""
    raise NotImplementedError


check("01.kappa", kappa)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# `torch.linalg.svdvals(w)` gives all min(m, n) singular values, largest first.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def kappa(w):
#     s = ...               # singular values
#     if ...:               # the last one is not above 1e-12 times the first
#         return math.inf
#     return ...
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# import math
#
#
# def kappa(w):
#     s = torch.linalg.svdvals(w)
#     if s[-1] <= 1e-12 * s[0]:
#         return math.inf
#     return s[0] / s[-1]
# ```
#
# *Why:* in floating point a singular matrix has σ_min near 1e-16 σ_max, seldom 0. Without the tolerance κ would be
# some number near 1e16: rounding, dressed up as a result.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * The ratio upside down: a κ below 1 cannot be right.
# * Eigenvalues of WᵀW are σ², so their ratio is κ².
# * Eigenvalues of W itself are something else: for a matrix that is not symmetric they can all be 1 while κ is huge.
# * `s[-1] == 0` is almost never true.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
kappa = own_or_solution("01.kappa", kappa)

# %% [markdown]
# ### Exercise 2: κ⁺ and the rank
#
# *Difficulty 2 of 5 · 5 minutes · Why it matters: the Jacobian of attention, the hero of the next lesson, is rank
# deficient by construction as soon as there are many tokens.*
#
# Write `effective(w, rtol)` that returns the pair (κ⁺, rank): the rank is the number of singular values above
# `rtol` · σ_max, and κ⁺ is σ_max over the smallest one of those.


# %% tags=["exercise"]
def effective(w, rtol):
    """(κ⁺, rank) of w (m, n)."""
    raise NotImplementedError


check("01.effective", effective)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# The singular values come in descending order, so those that count are the first `rank` of them.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def effective(w, rtol):
#     s = torch.linalg.svdvals(w)
#     rank = ...            # how many entries of s are above rtol * s[0]
#     return s[0] / s[...], rank
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def effective(w, rtol):
#     s = torch.linalg.svdvals(w)
#     rank = int((s > rtol * s[0]).sum())
#     return s[0] / s[rank - 1], rank
# ```
#
# *Why:* the comparison with σ_max makes both numbers independent of scale, as κ is.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * `s > rtol` instead of `s > rtol * s[0]`: then the rank depends on the unit in which the data are measured.
# * `s[rank]` instead of `s[rank - 1]`: that is the first one that does *not* count.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
effective = own_or_solution("01.effective", effective)

# %% [markdown]
# ### Exercise 3: how many steps
#
# *Difficulty 3 of 5 · 8 minutes · Why it matters: this is the sentence "bad conditioning makes training slow" with a
# number in it.*
#
# Write `steps_needed(a, eps)`: the least whole number $t$ for which the guarantee of section 5.4 promises a residual
# of at most `eps` times the first one. Answer at least 1.


# %% tags=["exercise"]
def steps_needed(a, eps):
    """Steps that gradient descent on ½‖A w − y‖² needs at most, a whole number."""
    raise NotImplementedError


check("01.steps", steps_needed)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# Which condition number goes into the factor: that of $A$, or that of the Hessian? Solve factor^t ≤ eps for t, and
# remember that the logarithm of a factor below 1 is negative.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def steps_needed(a, eps):
#     kappa_h = ...                        # of the Hessian AᵀA
#     factor = ...
#     if factor < 1e-12:                   # κ = 1 up to rounding: one step does it
#         return 1
#     return math.ceil(...)
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# import math
#
#
# def steps_needed(a, eps):
#     s = torch.linalg.svdvals(a)
#     kappa_h = float(s[0] / s[-1]) ** 2
#     factor = (kappa_h - 1) / (kappa_h + 1)
#     if factor < 1e-12:
#         return 1
#     return max(1, math.ceil(math.log(eps) / math.log(factor)))
# ```
#
# *Why:* the Hessian of ½‖Aw − y‖² is AᵀA with eigenvalues σ², so κ enters squared. Halving κ(A) makes training four
# times faster.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * κ(A) in place of κ(A)²: too few steps, by a factor κ.
# * `math.log(0)` for an orthogonal matrix, where κ = 1 and the factor is 0.
# * The approximation κ²/2 · log(1/eps): fine for large κ, wrong near 1.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
steps_needed = own_or_solution("01.steps", steps_needed)

# %% [markdown]
# ### Exercise 4: the polar correction
#
# *Difficulty 2 of 5 · 5 minutes · Why it matters: it is the one correction with a guarantee for every matrix.*
#
# Write `polar_correct(w)` that returns $W + \sigma_{\max} U V^\top$ for `w` of shape (m, n).


# %% tags=["exercise"]
def polar_correct(w):
    """W + σ_max U Vᵀ, of the shape of w."""
    raise NotImplementedError


check("01.polar", polar_correct)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# `torch.linalg.svd(w, full_matrices=False)` gives U, the singular values, and Vᵀ (not V).
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def polar_correct(w):
#     u, s, vt = torch.linalg.svd(w, full_matrices=False)
#     return w + ...
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def polar_correct(w):
#     u, s, vt = torch.linalg.svd(w, full_matrices=False)
#     return w + s[0] * u @ vt
# ```
#
# *Why:* W = U S Vᵀ and C = U (σ_max I) Vᵀ share their singular vectors, so the singular values simply add.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * `vt.mT`: the function already returned the transpose.
# * `torch.eye` in place of `u @ vt`: that is the other correction, the one without a guarantee.
# * `s[0] * u @ vt` alone: a perfect κ = 1, but W is gone.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
polar_correct = own_or_solution("01.polar", polar_correct)

# %% [markdown]
# ## 8. Signature result
#
# Five random 8 × 8 matrices $A$, and six versions of each. Every version can fit every $y$ exactly; we count the steps
# until a thousandth of the residual is left.
#
# | arm | what it is for |
# | --- | --- |
# | A | **baseline** |
# | 100 A | **control for scale**: catches the belief that size is what matters |
# | A + ½σI | λI without a guarantee: catches the belief that λI always helps (**negative control**) |
# | A + 2σI | λI with a guarantee, κ ≤ 3 |
# | A + 2σQ | **control for the identity**: Q is a random rotation; catches the belief that I itself is special |
# | A + polar | κ ≤ 2 for every A |
#
# The last arm runs the function of your exercise 4.

# %%
arms = {
    "A": lambda a, s, q: a,
    "100 A": lambda a, s, q: 100 * a,
    "A + ½σI": lambda a, s, q: a + s / 2 * torch.eye(8),
    "A + 2σI": lambda a, s, q: a + 2 * s * torch.eye(8),
    "A + 2σQ": lambda a, s, q: a + 2 * s * q,
    "A + polar": lambda a, s, q: polar_correct(a),
}


# %%
results = {arm: [] for arm in arms}  # arm -> (κ, steps) of each seed
for seed in range(5):
    a, y = gaussian(8, 8, seed=seed), gaussian(8, seed=100 + seed)
    q = torch.linalg.qr(gaussian(8, 8, seed=200 + seed)).Q
    for arm, change in arms.items():
        matrix = change(a, singular_values(a)[0], q)
        results[arm].append((float(condition_number(matrix)), steps_to(matrix, y, 1e-3)))
table(
    ["arm", "κ, five seeds", "steps, five seeds", "median steps"],
    [[arm, [k for k, _ in runs], [t for _, t in runs], sorted(t for _, t in runs)[2]] for arm, runs in results.items()],
)

# %%
from spectral_core import plots

plots.steps_against_kappa(results, eps=1e-3)

# %% tags=["assert"]
# the sentences below, checked
steps = {arm: [t for _, t in runs] for arm, runs in results.items()}
for kappa_a, t in [run for runs in results.values() for run in runs]:
    assert ((kappa_a**2 - 1) / (kappa_a**2 + 1)) ** (t - 1) >= 1e-3  # no run is slower than the guarantee
assert steps["100 A"] == steps["A"]
assert sum(half > plain for half, plain in zip(steps["A + ½σI"], steps["A"], strict=True)) == 2
assert max(steps["A + 2σI"] + steps["A + 2σQ"] + steps["A + polar"]) <= 20
assert max(k for k, _ in results["A + polar"]) <= 2
assert min(steps["A"]) > 400

# %% [markdown]
# What it says **[measured]**:
#
# * All thirty runs lie under one line: κ sets a limit on the number of steps, however it came about, and most runs come
#   within a factor of two of it.
# * *100 A* coincides with *A* on every seed: scale is not it.
# * *A + ½σI* needs **more** steps than the baseline on two of the five seeds. Adding λI is not a cure by itself.
# * *A + 2σI*, *A + 2σQ* and *A + polar* need at most 20 steps where the baseline needs over 400. The rotation does as
#   well as the identity: what helps is a large well-conditioned part, not the identity's own directions.
#
# One thing this does *not* isolate: the last three arms are also larger than A. The second arm is what shows that
# their size is not the reason.

# %% [markdown]
# ## 9. Play
#
# The demo shows the same effect on the weights of a small vision transformer. Start it with `make demo`, then open
#
# * [the preset *Healthy*: Xavier weights, and three models that train well](http://127.0.0.1:7860/?preset=healthy)
# * [λ = 0.7 on a Xavier-initialised model, where κ(W_Q) gets much
#   worse](http://127.0.0.1:7860/?kind=identity&init=xavier&seed=1&lam_q=0.7&lam_k=0.7&lam_v=0.7)
# * [the polar correction on the same weights](http://127.0.0.1:7860/?kind=polar&init=xavier&seed=1)
#
# The next cell computes what these two pages show at their start. Then change something.

# %%
from spectral_core.demo import Settings, head_view

worse = head_view(Settings(kind="identity", init="xavier", seed=1, lam=dict.fromkeys("qkv", 0.7)))
better = head_view(Settings(kind="polar", init="xavier", seed=1))
table(
    ["κ of", "W", "W + 0.7 I", "W + polar"],
    [[f"W_{r.upper()}", worse.before.kappa_w[r], worse.after.kappa_w[r], better.after.kappa_w[r]] for r in "qkv"],
)

# %% tags=["play"]
# yours: try another matrix, another λ, another size
a = gaussian(20, 20, seed=7)
condition_number(a), condition_number(a + 3 * torch.eye(20))

# %% tags=["assert"]
# what the two links promise, checked
assert worse.after.kappa_w["q"] > 10 * worse.before.kappa_w["q"]
assert max(better.after.kappa_w.values()) <= 2

# %% [markdown]
# ## 10. Limits
#
# What this lesson does not show:
#
# * **κ is a worst case.** If the target has no part in the flat directions, conditioning does not help at all. The next
#   cell takes κ = 3 000 and a target along the first singular vector: one step, and no correction can
#   beat that.
# * **Plain gradient descent only.** Momentum needs a number of steps that grows like √κ_H; Adam rescales coordinates
#   and can undo bad scaling along the axes, though not along rotated directions.
# * **Training loss only.** With noisy targets the flat directions are where the noise is amplified; fitting them faster
#   is not always what you want, which is why ridge regression and early stopping exist.
# * **A linear model.** A transformer is none. That its *Jacobian* plays the role of A, locally, is the subject of the
#   next lesson. That a smaller κ means better training is a hypothesis to test, not a theorem: in earlier work of the
#   same group the best accuracy was not reached at the smallest κ **[reported]**.

# %%
from spectral_core.lessons.lesson_01 import with_spectrum

needle = with_spectrum(torch.logspace(0, -3.4771, 8).tolist())  # κ = 3 000
u = torch.linalg.svd(needle).U
print("κ", round(float(condition_number(needle))))
for name, target in {"along u_1": u[:, 0], "along u_8": u[:, 7]}.items():
    w = needle.mT @ target  # one step of size 1/σ_max² = 1 from w = 0
    print(f"target {name}: {float((needle @ w - target).norm()):.6f} of the residual is left after one step")

# %% tags=["assert"]
# "one step", checked
assert round(float(condition_number(needle)), -1) == 3000
assert (needle @ needle.mT @ u[:, 0] - u[:, 0]).norm() < 1e-6

# %% [markdown]
# ## 11. Recap
#
# κ is the ratio of the largest to the smallest stretch of a matrix; it knows nothing of scale. Gradient descent on
# least squares needs about ½ κ(A)² log(1/ε) steps, because the Hessian squares κ. Adding the polar factor times σ_max
# brings κ to at most 2 for every matrix; adding λI makes κ small for certain only when λ is well above σ_max, and can
# do harm below.
#
# Three questions to take with you; put a letter in place of `"skipped"`.

# %%
quiz("01.quiz-rank", "skipped")

# %%
quiz("01.quiz-square", "skipped")

# %%
quiz("01.quiz-norm", "skipped")

# %% [markdown]
# **Terms.** *Condition number κ*: σ_max/σ_min over all min(m, n) singular values, ∞ when rank deficient. *κ⁺*: the same
# over the singular values above a relative tolerance, to be read with the *rank*. *Polar factor*: U Vᵀ of an SVD, the
# nearest matrix with all singular values 1. *Spectral norm*: σ_max, the size of a matrix.
#
# **Links.**
# [the paper](https://arxiv.org/abs/2603.07162) ·
# [Why momentum really works](https://distill.pub/2017/momentum/), the same story with momentum, and sliders ·
# [how κ and κ⁺ are computed](../spectral_core/spectrum.py) ·
# [the corrections](../spectral_core/corrections.py)
#
# **Next lesson.** [2. The Jacobian of attention](02_attention_jacobian.ipynb): what plays the role of A inside a
# transformer.
