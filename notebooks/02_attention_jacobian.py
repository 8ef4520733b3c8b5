# %% [markdown]
# # 2. The Jacobian of attention, and what κ(J) hides
#
# **Claim.** The Jacobian $J$ of an attention head with respect to its weights has an exact, cheap closed form; with
# the paper's default λ = 10 on Q, K and V its condition number can fall by nearly five orders of magnitude, and the
# attention map and the blocks of $J$ show that this is no good news. Seen on a head of a small vision transformer at
# five real digits, at initialisation; the controls are another initialisation, rotations in place of the identity, and
# attention switched off by hand.
#
# | | |
# | --- | --- |
# | **Time** | about 45 minutes, exercises included |
# | **Machine** | Runs in under 60 s and 800 MB on two cores. Nothing is downloaded. |
# | **You need** | [lesson 1](01_condition_numbers.ipynb); attention as softmax(QKᵀ)V; partial derivatives |
# | **Version** | written for spectral_core 0.1; `env_check()` below prints yours |
#
# Marks: **[reported]** public sources say it of the paper ([arXiv 2603.07162](https://arxiv.org/abs/2603.07162)) or
# of the authors' follow-up; **[derived]** it is proved here; **[measured]** a cell of this notebook computes it.

# %% [markdown]
# ## 1. Cold open
#
# One attention head, freshly initialised, looking at a scanned digit. We add λI to its three weight matrices and watch
# the condition number of its Jacobian.

# %%
from spectral_core.lessons import figure

figure("02.open")

# %% [markdown]
# From nearly a million down to 11. Lesson 1 says that such a drop should speed up gradient descent beyond recognition.
# Should you celebrate?

# %% [markdown]
# ## 2. Objectives
#
# After this lesson you can
#
# 1. write down the softmax Jacobian Λ, and say why it is always singular (check `02.softmax`);
# 2. derive the slopes $N_i$ that carry all of attention's sensitivity, and read them as a covariance
#    (check `02.slopes`);
# 3. assemble $JJ^\top$ and so the exact κ(J) without ever forming $J$ (check `02.gram`);
# 4. predict the rank of $J$ from the gauge freedom of Q and K (check `02.rank`);
# 5. tell a well-conditioned head from one that is switched off (questions `02.celebrate` and `02.quiz-beside`);
# 6. say which block of $J$ a correction of which weight can reach (question `02.quiz-value`).

# %% [markdown]
# ## 3. Setup

# %%
import torch

from spectral_core.lessons import check, env_check, explore, figure, own_or_solution, predict, quiz, reveal, table

env_check()

# %% [markdown]
# ## 4. Predict
#
# Two guesses before the evidence. Put a letter in place of `"skipped"`, and `"sure"` or `"unsure"` behind it if you
# like.

# %%
guess_celebrate = predict("02.celebrate", "skipped")
guess_celebrate

# %%
guess_rank = predict("02.rank", "skipped")
guess_rank

# %% [markdown]
# ## 5. Idea, equation, shapes, code
#
# ### 5.0 One head
#
# Each token asks a question, compares it with the key of every token, and takes a weighted mean of their values:
#
# $$Q = XW_Q,\quad K = XW_K,\quad V = XW_V,\qquad P = \operatorname{softmax}(s\,QK^\top),\qquad A = PV .$$
#
# | symbol | shape | meaning |
# | --- | --- | --- |
# | $X$ | n × D | tokens, one a row: $x_i$ |
# | $W_Q, W_K$ | D × d_k | query and key weights of this head |
# | $W_V$ | D × d_v | value weights |
# | $s$ | number | logit scale, 1/√d_k here; the paper's formulas have none **[reported]** |
# | $P$ | n × n | attention map, row $p_i$ sums to 1 |
# | $A$ | n × d_v | output, row $a_i$ |
# | $J$ | n d_v × D(2d_k + d_v) | derivative of all entries of $A$ by all entries of the three weights |
#
# All sizes differ in this small head, so that no wrong transposition can hide:

# %%
from torch.func import jacrev

from spectral_core.lessons.heads import random_head

n, D, d_k, d_v = 5, 6, 3, 2
x, w_q, w_k, w_v = random_head(n, D, d_k, d_v)
s = d_k**-0.5


def head(w_q, w_k, w_v):
    return (s * (x @ w_q) @ (x @ w_k).mT).softmax(-1) @ (x @ w_v)


q, k, v = x @ w_q, x @ w_k, x @ w_v
p = (s * q @ k.mT).softmax(-1)
a = p @ v

# %% [markdown]
# Autodiff's answer is the reference for everything below. Entry `[i, c, :, :]` is the derivative of $a_{ic}$:

# %%
auto_q, auto_k, auto_v = jacrev(head, argnums=(0, 1, 2))(w_q, w_k, w_v)
table(
    ["derivative by", "shape (token, channel, row of W, column of W)"],
    [[name, str(tuple(auto.shape))] for name, auto in (("W_Q", auto_q), ("W_K", auto_k), ("W_V", auto_v))],
)

# %% [markdown]
# ### 5.1 First factor: the softmax
#
# Row $i$ of $P$ is a softmax of $n$ logits, and its derivative is an n × n matrix,
#
# $$\Lambda_i = \operatorname{diag}(p_i) - p_i p_i^\top .$$
#
# Adding the same number to all logits of a row changes nothing, so $\Lambda_i \mathbf{1} = 0$: **Λ_i is singular,
# always**. Its rank is n − 1 at most, and κ(Λ_i) = ∞ in the strict sense. Keep that in mind when you meet a bound with
# κ(Λ) in it. And if $p_i$ is one-hot, $\Lambda_i = 0$: a saturated softmax does not move at all.

# %%
logits = s * q @ k.mT
lam_0 = jacrev(lambda z: z.softmax(-1))(logits[0])  # Λ of the first token, by autodiff
print("the formula agrees with autodiff:", torch.allclose(torch.diag(p[0]) - torch.outer(p[0], p[0]), lam_0))
print("rows of Λ sum to 0:", bool(lam_0.sum(-1).abs().max() < 1e-12))
print("rank of Λ:", int(torch.linalg.matrix_rank(lam_0)), "of", n)

# %% [markdown]
# ### 5.2 Second factor: the slopes
#
# Move the logits of row $i$ by a little $d\ell$. The weights move by $\Lambda_i\, d\ell$, and the output by
# $V^\top\Lambda_i\, d\ell$. Logits are $\ell_i = s\,K q_i = s\,X\,(W_K q_i)$, so whatever moves $W_K q_i$ gets to the
# output through one matrix of shape d_v × D, the **slopes** of token $i$:
#
# $$N_i = s\,V^\top \Lambda_i X \;=\; s \sum_j p_{ij}\,(v_j - a_i)\,x_j^\top .$$
#
# The right-hand side has a meaning: it is ($s$ times) the **covariance of values and tokens** under the weights
# $p_i$. A token's output reacts to its query only as far as the tokens it looks at differ in value. If it looks at one
# token only, nothing varies: $N_i = 0$.
#
# For one token, straight from the sum, and compared with autodiff ($\partial a_0/\partial q_0 = N_0 W_K$):

# %%
n_0 = sum(s * p[0, j] * torch.outer(v[j] - a[0], x[j]) for j in range(n))  # (d_v, D)

by_query = jacrev(lambda q_0: (s * k @ q_0).softmax(-1) @ v)(q[0])  # (d_v, d_k)
print("N_0 W_K agrees with autodiff:", torch.allclose(n_0 @ w_k, by_query))

# %% [markdown]
# ### 5.3 The three blocks (Theorem 3.3)
#
# Now move one weight at a time.
#
# * **W_Q.** $q_i = W_Q^\top x_i$, so $dq_i = dW^\top x_i$ and $da_i = N_i W_K\, dW^\top x_i$.
# * **W_K.** $\ell_i = s\,X W_K q_i$, so $d\ell_i = s\,X\, dW\, q_i$ and $da_i = N_i\, dW\, q_i$.
# * **W_V.** $a_i = W_V^\top (PX)_i$, so $da_i = dW^\top (PX)_i$. Linear, and no softmax in sight.
#
# The d_v rows of $J$ that belong to token $i$ are therefore
#
# | block | columns | entry for channel c and weight entry (a, b) |
# | --- | --- | --- |
# | Q | D d_k | $(x_i)_a\,(N_i W_K)_{cb}$ |
# | K | D d_k | $(N_i)_{ca}\,(q_i)_b$ |
# | V | D d_v | $(PX)_{ia}\,\delta_{cb}$ |
#
# ($\delta_{cb}$ is 1 for c = b and 0 otherwise.)

# %%
px = p @ x
block_q = torch.einsum("a,cb->cab", x[0], n_0 @ w_k)
block_k = torch.einsum("ca,b->cab", n_0, q[0])
block_v = torch.einsum("a,cb->cab", px[0], torch.eye(d_v).double())
for name, mine, auto in (("Q", block_q, auto_q), ("K", block_k, auto_k), ("V", block_v, auto_v)):
    print(f"{name} block, {tuple(mine.shape)}, agrees with autodiff:", torch.allclose(mine, auto[0]))

# %% [markdown]
# That is all of $J$. `AttentionJacobian` does it for every token, and for batches of heads:

# %%
from spectral_core import AttentionJacobian

jac = AttentionJacobian(x, w_q, w_k, w_v)
whole = torch.cat([block.reshape(n * d_v, -1) for block in (auto_q, auto_k, auto_v)], 1)
print("shape of J:", jac.shape, " agrees with autodiff:", torch.allclose(jac.dense(), whole))

# %% [markdown]
# The blocks look different, too. Below, a smaller head with three tokens: in the V block the two rows of a token show
# the same numbers, $(PX)_i$, each in the columns of its own channel; it does not know the values. The Q and K blocks
# are large where $N_i$ is large.

# %%
figure("02.blocks")

# %% [markdown]
# ### 5.4 The same thing in the paper's notation
#
# The exact form that public sources give for Theorem 3.3 is that of the authors' follow-up **[reported]**: with vec
# stacking columns, ⊗ the Kronecker product ($A \otimes B$ replaces every entry $a_{ij}$ of $A$ by the block $a_{ij}B$),
# Λ the n² × n² derivative of vec(softmax), and $s = 1$,
#
# $$\frac{\partial A}{\partial W_Q} = (W_V^\top X^\top \otimes I_n)\;\Lambda\;(X W_K \otimes X) .$$
#
# It is the block of 5.3 with rows and columns in another order, and with the scale $s$ in front **[measured]**:

# %%
big = torch.zeros(n, n, n, n).double()  # Λ as [j, i, j', i']: vec of an n × n matrix runs down its columns
for i in range(n):
    big[:, i, :, i] = jacrev(lambda z: z.softmax(-1))(logits[i])
identity = torch.eye(n).double()
paper = torch.kron(w_v.mT @ x.mT, identity) @ big.reshape(n * n, n * n) @ torch.kron(x @ w_k, x)
reordered = paper.reshape(d_v, n, d_k, D).permute(1, 0, 3, 2)  # to [token, channel, row of W, column of W]
print("the Kronecker form agrees:", torch.allclose(s * reordered, auto_q))

# %% [markdown]
# The scale is no mere constant, though. A follow-up of the authors leaves it out with the argument that a constant
# factor does not change κ **[reported]**. In front of $J$ it would not. But it sits *inside* the softmax, so it changes
# $P$ and with it every block. To see it we take real heads: `digit_head` gives the first head of a small vision
# transformer, freshly initialised, with the 16 tokens of a scanned digit as $X$. The same heads with and without the
# scale **[measured]**:

# %%
from spectral_core.lessons.heads import digit_head

real = [digit_head(init="xavier", seed=i, image=i) for i in range(3)]


def kappa_at(h, scale):
    return float(AttentionJacobian(h.x, h.w_q, h.w_k, h.w_v, scale=scale).condition_number())


scales = {"1/√d_k": None, "1": 1.0}
table(["scale s", "κ(J), three digits"], [[name, [kappa_at(h, c) for h in real]] for name, c in scales.items()])

# %% [markdown]
# ### 5.5 κ(J) without J: the Gram form
#
# Singular values of $J$ are square roots of eigenvalues of $JJ^\top$, which has only n d_v rows and columns. Multiply
# the rows of tokens $i$ and $j$, and each block contributes one term **[derived]**:
#
# $$(JJ^\top)_{ij} = (x_i\!\cdot\! x_j)\,(N_iW_K)(N_jW_K)^\top + (q_i\!\cdot\! q_j)\,N_iN_j^\top +
# \big((PX)_i\!\cdot\!(PX)_j\big)\, I_{d_v} .$$
#
# Inner products of rows times products of small blocks: no derivative is taken, and $J$ is never stored. Check the
# block of tokens 0 and 1:

# %%
n_1 = sum(s * p[1, j] * torch.outer(v[j] - a[1], x[j]) for j in range(n))
gram_01 = (x[0] @ x[1]) * (n_0 @ w_k) @ (n_1 @ w_k).mT + (q[0] @ q[1]) * n_0 @ n_1.mT
gram_01 += (px[0] @ px[1]) * torch.eye(d_v).double()
print("block (0, 1) of J Jᵀ agrees:", torch.allclose(gram_01, whole[:d_v] @ whole[d_v : 2 * d_v].mT))

# %% [markdown]
# One warning: $JJ^\top$ squares κ, and float64 carries 16 digits, so the smallest singular value is lost somewhere
# between κ = 10⁶ and 10⁸. `condition_number()` says which way it took, and goes over to an SVD of $J$ where the Gram
# form is blind:

# %%
result = digit_head().jacobian.condition_number()
table(
    ["κ(J)", "κ⁺(J)", "rank", "rows", "way", "resolved"],
    [[result.value, result.effective_value, result.rank, digit_head().jacobian.shape[0], result.method,
      str(bool(result.converged))]],
)  # fmt: skip

# %% [markdown]
# ### 5.6 Directions that no token can see
#
# Take any invertible d_k × d_k matrix $M$ and change $W_Q \to W_Q M$, $W_K \to W_K M^{-\top}$, where $M^{-\top}$ is
# the transposed inverse. Queries and keys change,
# $QK^\top$ does not: the output is the same. So every small $M - I$ gives a direction of the weights in which $J$ is
# zero: d_k² directions in all as long as W_Q and W_K have full column rank. Physicists call this a *gauge freedom*. So
#
# $$\operatorname{rank} J \le \min\big(n\,d_v,\; D(2d_k + d_v) - d_k^2\big) .$$

# %%
m = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 3.0]]).double()  # any invertible matrix does
print("same output after the change:", torch.allclose(head(w_q @ m, w_k @ torch.linalg.inv(m).mT, w_v), a))

# %% [markdown]
# With few tokens the rows are the limit and κ(J) is finite. With many, κ(J) = ∞ for every such head, trained or not,
# and only κ⁺ over the computed rank says anything. Here is a head with 20 tokens, D = 4, d_k = d_v = 3:

# %%
figure("02.null")

# %%
reveal(guess_rank)

# %% tags=["assert"]
# the numbers in the text so far, checked
sweep = figure("02.open").axes[0].lines[0].get_ydata()
assert 8e5 < sweep[0] < 1e6  # "nearly a million"
assert round(sweep[-1]) == 11
assert all(abs(kappa_at(h, None) / kappa_at(h, 1.0) - 1) > 0.5 for h in real)
assert AttentionJacobian(*random_head(20, 4, 3, 3)).condition_number().rank == 27

# %% [markdown]
# ## 6. See
#
# The head of the cold open: 16 tokens of one digit, D = 32, d = 16, Q, K and V drawn with standard deviation 0.02 as is
# usual in vision transformers. On the left its attention map after the correction; then the singular values of $J$ and
# the norms of its three blocks, before (black) and after (orange). λ = 1 on all three:

# %%
figure("02.head")

# %%
sliders = explore("02.head")
sliders

# %% [markdown]
# Three things to try, and what you should see:
#
# 1. **λ = 10 on all three.** The map becomes the identity, and the norms of the Q and K blocks fall by ten powers of
#    ten. The spectrum turns into a staircase of 16 values, each 16 times: all that is left of $J$ is the V block.
# 2. **λ = 10 on W_V alone** (0 on the others). κ(W_V) is nearly 1, and κ(J) gets *worse*: the V block does not contain
#    W_V, so all that changes is the scale of the Q and K blocks against it.
# 3. **Back to λ = 10 on all three, then digit 2 and digit 4.** κ(J) is infinite for one and enormous for the other.
#    Section 8 says why.
#
# ### The cold open again, with what it hid

# %%
figure("02.sweep")

# %% [markdown]
# κ(J) does not fall to just any number: it falls to κ(X), the dotted line. Look at the V block: its singular values are
# those of $PX$, each d_v times. When $P$ becomes the identity, $PX$ becomes $X$; when $N_i$ vanishes, so do the other
# two blocks. What κ(J) measures at λ = 10 is how well the *tokens* are conditioned; W_Q and W_K get no gradient.
#
# Why so early? Adding λI to W_Q and W_K adds about $s\,\lambda^2 d_k = \lambda^2\sqrt{d_k}$ to the logit of every token
# with itself (after LayerNorm the channels of a token have mean square 1). Where that equals log n, a token would give
# itself half of its weight if all other logits were 0; well above it, attention is off **[derived]**:
#
# $$\lambda_{\text{sat}} = \Big(\frac{\log n}{\sqrt{d_k}}\Big)^{1/2} .$$

# %%
from spectral_core.lessons.lesson_02 import identity_head

ten = identity_head(10.0, 10.0, 10.0)
logits_ten = (ten.x @ ten.w_q) @ (ten.x @ ten.w_k).mT / 16**0.5
others = ~torch.eye(16, dtype=torch.bool)
table(
    ["at λ = 10", "value"],
    [
        ["λ²√d_k", 10.0**2 * 16**0.5],
        ["logit with itself, median over tokens", logits_ten.diagonal().median()],
        ["logit with another token, median", logits_ten[others].median()],
        ["log n", torch.log(torch.tensor(16.0))],
        ["λ_sat", (torch.log(torch.tensor(16.0)) / 16**0.5) ** 0.5],
    ],
)

# %%
reveal(guess_celebrate)

# %% tags=["assert", "widgets"]
# drives every control to all of its ends and back: an error in a drawing would stop the notebook here
_ = sliders.sweep()
# the sentences above, checked
assert ten.jacobian.attention().diagonal().min() > 0.999999
assert ten.norms["q"] < 1e-10 * identity_head(0.0, 0.0, 0.0).norms["q"]
assert ten.norms["k"] < 1e-10 * identity_head(0.0, 0.0, 0.0).norms["k"]
assert ten.jacobian.singular_values().reshape(16, 16).std(1).max() < 1e-9
assert identity_head(10.0, 10.0, 10.0, image=2).kappa == float("inf")
assert identity_head(10.0, 10.0, 10.0, image=4).kappa > 1e9
assert abs(ten.kappa / float(torch.linalg.cond(ten.x)) - 1) < 1e-6
assert identity_head(0.0, 0.0, 10.0).kappa > 5 * identity_head(0.0, 0.0, 0.0).kappa

# %% [markdown]
# ## 7. Exercises
#
# Section 5 did one token, or one pair of tokens. You write each piece for all of them. No derivatives are needed any
# more, and no loops either.

# %% [markdown]
# ### Exercise 1: the softmax Jacobian
#
# *Difficulty 2 of 5 · 5 minutes · Why it matters: this matrix decides whether Q and K receive a gradient at all.*
#
# Write `softmax_jacobian(p)` for weights `p` of shape (…, n), a batch of rows that each sum to 1:
# $\Lambda = \operatorname{diag}(p) - p\,p^\top$ for every row, of shape (…, n, n).


# %% tags=["exercise"]
def softmax_jacobian(p):
    """(…, n) -> (…, n, n)."""
    raise NotImplementedError


check("02.softmax", softmax_jacobian)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# Two pieces: a batch of diagonal matrices, and a batch of outer products of each row with itself.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def softmax_jacobian(p):
#     diagonal = torch.diag_embed(...)
#     outer = p[..., :, None] * ...
#     return diagonal - outer
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def softmax_jacobian(p):
#     return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
# ```
#
# *Why:* $\partial p_j / \partial \ell_m = p_j(\delta_{jm} - p_m)$. The second term is what makes the rows sum to zero.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * `torch.diag(p)` works for one row only: for a batch it *extracts* a diagonal.
# * `p.mT @ p` mixes the rows of P; each row needs the outer product with itself.
# * p(1 − p) on the diagonal and nothing beside it is the sigmoid's derivative.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
softmax_jacobian = own_or_solution("02.softmax", softmax_jacobian)

# %% [markdown]
# ### Exercise 2: the slopes of all tokens
#
# *Difficulty 3 of 5 · 8 minutes · Why it matters: Q and K act on the output through N_i and nothing else.*
#
# Write `slopes(x, p, v, scale)` with `x` (n, D), `p` (n, n), `v` (n, d_v) and a number: $N_i = s\,V^\top\Lambda_iX$ for
# every token, of shape (n, d_v, D).


# %% tags=["exercise"]
def slopes(x, p, v, scale):
    """N_i of every token, (n, d_v, D)."""
    raise NotImplementedError


check("02.slopes", slopes)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# Matrix products with `@` run over leading dimensions: (d_v, n) @ (n, n, n) @ (n, D) is (n, d_v, D). You may use your
# function from exercise 1, or the covariance form with $v_j - a_i$.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def slopes(x, p, v, scale):
#     lam = torch.diag_embed(p) - ...      # (n, n, n)
#     return scale * v.mT @ ... @ ...
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def slopes(x, p, v, scale):
#     lam = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
#     return scale * v.mT @ lam @ x
# ```
#
# *Why:* row i of P gives Λ_i, and the batch dimension of `lam` is the token i. The covariance form,
# `scale * torch.einsum("ij,ijc,ja->ica", p, v[None] - (p @ v)[:, None], x)`, gives the same numbers.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * The factor `scale` forgotten: N_i is a derivative by $W_K q_i$, and the logits are $s$ times $X W_K q_i$.
# * No centring: `torch.diag_embed(p)` alone gives slopes even where all tokens carry the same value.
# * (n, D, d_v) in place of (n, d_v, D): value channels come first, as in the rows of J.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
slopes = own_or_solution("02.slopes", slopes)

# %% [markdown]
# ### Exercise 3: the Gram form
#
# *Difficulty 4 of 5 · 10 minutes · Why it matters: it makes exact κ(J) cheap enough to watch while a model trains.*
#
# Write `gram(x, q, px, slopes, w_k)` that returns $JJ^\top$, of shape (n d_v, n d_v), with rows ordered (token, value
# channel). The arguments: `x` and `px` (n, D), `q` (n, d_k), `slopes` (n, d_v, D), `w_k` (D, d_k).


# %% tags=["exercise"]
def gram(x, q, px, slopes, w_k):
    """J Jᵀ, (n·d_v, n·d_v)."""
    raise NotImplementedError


check("02.gram", gram)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# Stack all blocks $N_i$ into one matrix of n d_v rows: its product with its own transpose holds every $N_iN_j^\top$ at
# once. Then every d_v × d_v block has to be multiplied by one number, $q_i \cdot q_j$.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def gram(x, q, px, slopes, w_k):
#     n, d_v, _ = slopes.shape
#     ones = torch.ones(d_v, d_v, dtype=x.dtype)   # torch.kron(g, ones): every entry of g becomes a d_v × d_v block
#     for_q = (slopes @ w_k).reshape(n * d_v, -1)
#     for_k = ...
#     out = torch.kron(x @ x.mT, ones) * (for_q @ for_q.mT)
#     out = out + ...
#     return out + ...                             # the V term: which matrix in place of ones?
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def gram(x, q, px, slopes, w_k):
#     n, d_v, _ = slopes.shape
#     ones = torch.ones(d_v, d_v, dtype=x.dtype)
#     for_q = (slopes @ w_k).reshape(n * d_v, -1)
#     for_k = slopes.reshape(n * d_v, -1)
#     out = torch.kron(x @ x.mT, ones) * (for_q @ for_q.mT)
#     out = out + torch.kron(q @ q.mT, ones) * (for_k @ for_k.mT)
#     return out + torch.kron(px @ px.mT, torch.eye(d_v, dtype=x.dtype))
# ```
#
# *Why:* a row of the Q block is an outer product, $x_i \otimes (N_iW_K)_c$, and the inner product of two outer products
# is the product of the inner products.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * $x_i\cdot x_j$ in the K term: there it is $q_i\cdot q_j$.
# * $X$ in place of $PX$ in the V term: values are mixed by attention first.
# * `torch.kron(eye, px @ px.mT)`: that is the order (channel, token).
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
gram = own_or_solution("02.gram", gram)

# %% [markdown]
# ### Exercise 4: the rank of J
#
# *Difficulty 2 of 5 · 4 minutes · Why it matters: it tells you whether κ(J) is finite before you compute it.*
#
# Write `expected_rank(n, dim, d_k, d_v)`, the rank of $J$ for a random head with n tokens of width `dim` and d_k at
# most `dim`: take the bound of 5.6 as attained.


# %% tags=["exercise"]
def expected_rank(n, dim, d_k, d_v):
    """The rank of J, a whole number."""
    raise NotImplementedError


check("02.rank", expected_rank)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# Two limits, and the smaller one counts: the rows, and the columns that the output can see.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def expected_rank(n, dim, d_k, d_v):
#     rows = ...
#     columns = ...        # of W_Q, W_K and W_V together
#     hidden = ...         # entries of the gauge matrix M
#     return min(rows, columns - hidden)
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def expected_rank(n, dim, d_k, d_v):
#     return min(n * d_v, dim * (2 * d_k + d_v) - d_k**2)
# ```
#
# *Why:* 5.6. Biases, rotary positions, query and key norms, or shared keys change the gauge freedom: then count again,
# or compute the rank.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * d_k in place of d_k²: M is a matrix.
# * The rows forgotten: with few tokens they are the limit.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
expected_rank = own_or_solution("02.rank", expected_rank)

# %% [markdown]
# ## 8. Signature result
#
# Five digits, five initialisations, eight arms. All corrections are added to the layer's 32 × 32 matrices; the numbers
# are those of its first head.
#
# | arm | what it is | what it catches |
# | --- | --- | --- |
# | none | **baseline**: normal, standard deviation 0.02 | |
# | Xavier | **control for scale**: larger weights, no correction | a method that only makes up for small weights |
# | λ = 10 | the paper's default on Q, K and V **[reported]** | |
# | attention off | **negative control**: P = I by hand | the belief that a small κ(J) is good by itself |
# | 10 · rotations | **control for I**: a random rotation for each of Q, K, V | the belief that κ(W) decides κ(J) |
# | λ = 1 | near the saturation point of section 6 | |
# | rotations | the same control for λ = 1 | as above |
# | λ = 10 on V | the weight that cannot saturate anything | the belief that conditioning one factor must help |

# %%
from spectral_core import FixedCorrection, IdentityCorrection, condition_number


def rotations(size, seed):
    """`size` times a random rotation for each role."""
    draws = (torch.randn(32, 32, generator=torch.Generator().manual_seed(10 * seed + i)) for i in range(3))
    return {role: FixedCorrection(size * torch.linalg.qr(draw).Q) for role, draw in zip("qkv", draws, strict=True)}


# %%
by_ten, by_one = IdentityCorrection(10.0), IdentityCorrection(1.0)
arms = {
    "none": lambda i: None,
    "λ = 10": lambda i: {"q": by_ten, "k": by_ten, "v": by_ten},
    "10 · rotations": lambda i: rotations(10, i),
    "λ = 1": lambda i: {"q": by_one, "k": by_one, "v": by_one},
    "rotations": lambda i: rotations(1, i),
    "λ = 10 on V": lambda i: {"v": by_ten},
}
heads = {arm: [digit_head(make(i), seed=i, image=i) for i in range(5)] for arm, make in arms.items()}
heads["Xavier"] = [digit_head(init="xavier", seed=i, image=i) for i in range(5)]

# %%
kappas = {arm: [h.kappa for h in hs] for arm, hs in heads.items()}
saturations = {arm: [h.saturation for h in hs] for arm, hs in heads.items()}
shares = {arm: [h.query_key_share for h in hs] for arm, hs in heads.items()}
# P = I: the Q and K blocks are zero, and the singular values of the V block are those of X
kappas["attention off"] = [float(condition_number(h.x)) for h in heads["none"]]
saturations["attention off"], shares["attention off"] = [1.0] * 5, [0.0] * 5
table(
    ["arm", "κ(J), five digits", "mean of max p", "share of Q and K in ‖J‖"],
    [[arm, kappas[arm], saturations[arm], shares[arm]] for arm in kappas],
)

# %%
from spectral_core import plots

plots.seed_dots(
    {"κ(J)": kappas, "mean of max p": saturations, "share of Q and K in ‖J‖": shares},
    title="Eight arms, five digits each",
    log=["κ(J)"],
)

# %% tags=["assert"]
# the sentences below, checked
inf, median = float("inf"), {arm: sorted(values)[2] for arm, values in kappas.items()}
assert min(kappas["none"]) > 1e5
assert median["none"] > 30 * median["Xavier"]
assert abs(kappas["λ = 10"][0] / kappas["attention off"][0] - 1) < 1e-6
assert shares["λ = 10"][0] < 1e-9
assert sum(value > 1e6 for value in kappas["λ = 10"]) == 3
assert inf in kappas["λ = 10"]

# %% tags=["assert"]
# and those on saturation and rotations
assert min(saturations["λ = 10"]) > 0.98
assert kappas["10 · rotations"] == [inf] * 5
assert 40 < min(kappas["λ = 1"]) < max(kappas["λ = 1"]) < 250
assert all(r > 10 * i for r, i in zip(kappas["rotations"], kappas["λ = 1"], strict=True))
assert all(condition_number(h.w_q) < 2 for arm in ("λ = 1", "rotations") for h in heads[arm])
to_itself = {arm: [h.jacobian.attention().diagonal().mean() for h in heads[arm]] for arm in ("λ = 1", "rotations")}
assert min(to_itself["λ = 1"]) > 0.3
assert max(to_itself["rotations"]) < 0.1
assert min(shares["λ = 1"]) > 0.2
assert max(saturations["λ = 1"]) < 0.6
assert all(v > plain for v, plain in zip(kappas["λ = 10 on V"], kappas["none"], strict=True))

# %% [markdown]
# What it says **[measured]**:
#
# * **λ = 10 is nice where attention is off.** On the first digit κ(J) is that of *attention off* to six digits, the
#   mean of max p is 1, and Q and K hold less than a billionth of ‖J‖. The negative control reaches such numbers on
#   every digit, with no correction at all.
# * **And it is not nice everywhere.** On three of the five digits κ(J) is above a million, once infinite: look below.
# * **Part of the gain needs no correction.** Xavier weights have a κ(J) more than 30 times smaller than the baseline
#   (median): some of the trouble is that 0.02 is too small for D = 32.
# * **λ = 1 looks healthy here**: κ(J) between 40 and 250, attention still mixes (mean of max p below 0.6), and Q and K
#   hold over a fifth of ‖J‖.
# * **It is not κ(W) that did it.** Rotations of the same size condition W_Q, W_K and W_V about as well as λI, and
#   κ(J) is more than 10 times larger on every digit at size 1, and infinite on every digit at size 10. With I on both
#   Q and K a token attends to itself first; with two independent rotations, to some other token.
# * **V alone makes it worse** on all five digits.
#
# So: report κ(J) **together with** the mean of max p **and** the block norms. Each of the three can be made to look
# good alone.
#
# What happened at λ = 10 on the three bad digits? Each row of the next table is one digit.

# %%
rows = []
for i, bad in enumerate(heads["λ = 10"]):
    attention = bad.jacobian.attention()
    away = int((attention.argmax(-1) != torch.arange(16)).sum())
    rank = int(bad.jacobian.condition_number().rank)
    rows.append([f"digit {i}", bad.kappa, away, attention.amax(-1).min(), f"{rank} of 256"])
table(["λ = 10", "κ(J)", "tokens that attend to another", "least max p of a token", "rank"], rows)

# %% [markdown]
# Where a token attends to *another* one, two rows of $PX$ are (nearly) the same: the V block loses rank, and 16 value
# channels of that token hang on what little is left of the Q and K blocks.
#
# And a warning about the third dial: the share of Q and K in ‖J‖ is no count of living tokens. On digit 4 almost every
# token is switched off, but one is not, and λ = 10 on V makes its slopes so large that it alone gives Q and K most of
# ‖J‖.

# %% tags=["assert"]
# a token looks away exactly where κ(J) is bad
assert [row[2] > 0 for row in rows] == [value > 1e6 for value in kappas["λ = 10"]]
assert rows[kappas["λ = 10"].index(inf)][4] == "240 of 256"
alive = heads["λ = 10"][4].jacobian.attention().amax(-1)
assert sum(alive < 0.9) == 1
assert shares["λ = 10"][4] > 0.9

# %% [markdown]
# ## 9. Play
#
# The demo shows this very head (digit 0) and trains the model around it. Start it with `make demo`, then open
#
# * [λ = 10 on all three](http://127.0.0.1:7860/?kind=identity&lam_q=10&lam_k=10&lam_v=10): press
#   *Start* in the tab *Race* and watch whether a κ(J) of 11 helps
# * [λ = 1 on all three](http://127.0.0.1:7860/?kind=identity&lam_q=1&lam_k=1&lam_v=1)
# * [λ = 10 on V alone](http://127.0.0.1:7860/?kind=identity&roles=v&lam_v=10)

# %% tags=["play"]
# yours: other corrections, other digits, other initialisations
from spectral_core import PolarCorrection

mine = digit_head({"q": PolarCorrection(), "k": PolarCorrection()}, image=3)
table(["κ(J)", "mean of max p", "share of Q and K"], [[mine.kappa, mine.saturation, mine.query_key_share]])

# %% [markdown]
# ## 10. Limits
#
# What this lesson does not show:
#
# * **Training.** Everything here is at initialisation, and no loss was computed. Whether a smaller κ(J) *at healthy
#   saturation* speeds training up is a hypothesis; lessons to come test it with paired seeds and controls.
# * **One head of a small model**, 16 tokens, no biases, at five digits. The exact numbers depend on all of that, and so
#   does where λ saturates: λ_sat depends on n and d_k only as long as tokens come out of a LayerNorm.
# * **The paper's experiments.** Their code is not public **[reported]**; at which scale and to which matrices λ = 10
#   was applied is not known to us. Our head at λ = 10 is *a* reading of the method, not a statement about their models.
# * **κ(J) of one head is not κ of the network's Jacobian**, and neither is the curvature that the optimiser sees.
#
# **Where conditioning does not help:** λ = 10 on V. It takes κ(W_V) nearly to 1 and κ(J) up, on every digit above.
# Conditioning a factor of a product is no promise for the product.

# %% [markdown]
# ## 11. Recap
#
# The Jacobian of a head has three blocks; Q and K reach the output through the slopes $N_i = s\,V^\top\Lambda_iX$
# alone, a covariance that vanishes when attention saturates, and the V block is $PX \otimes I$. Its Gram form gives
# the exact κ(J) from a few matrix products, and its rank lacks d_k² for the gauge freedom of Q and K. κ(J) can be small
# because a head works well or because it is switched off: the attention map and the block norms, together, tell which.
#
# Three questions to take with you; put a letter in place of `"skipped"`.

# %%
quiz("02.quiz-null", "skipped")

# %%
quiz("02.quiz-value", "skipped")

# %%
quiz("02.quiz-beside", "skipped")

# %% [markdown]
# **Terms.** *Λ_i*: the softmax Jacobian of row i, diag(p_i) − p_i p_iᵀ. *Slopes N_i*: s VᵀΛ_iX, d_v × D. *Gram form*:
# JJᵀ block by block. *Gauge freedom*: W_Q M and W_K M⁻ᵀ attend as W_Q and W_K do. *Saturation*: the mean over tokens of
# max_j p_ij; 1/n for uniform attention, 1 when each token looks at one token only.
#
# **Links.**
# [lesson 1](01_condition_numbers.ipynb) ·
# [the paper](https://arxiv.org/abs/2603.07162) ·
# [the closed form as code](../spectral_core/jacobian.py) ·
# [the bound of Theorem 3.4, factor by factor](../spectral_core/bounds.py) ·
# [the demo](../app.py)
#
# **Next lesson.** [3. What governs κ(J)](03_what_governs_kappa.ipynb): the bound of Theorem 3.4, factor by factor, and
# what it is worth.
