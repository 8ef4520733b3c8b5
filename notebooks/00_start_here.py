# %% [markdown]
# # 0. Start here: the whole story in one picture
#
# **Claim.** A correction that makes the weights of attention look better and better, by the number that the paper
# proposes to improve, first helps training and then ruins it. Seen on a small vision transformer trained on real
# digits with six sizes of the correction and three seeds; the controls are another start without any correction, and
# attention switched off by hand.
#
# | | |
# | --- | --- |
# | **Time** | about 20 minutes, exercises included |
# | **Machine** | Runs in under 60 s and 900 MB on two cores. Nothing is downloaded. |
# | **You need** | to have met neural networks and matrices; no earlier lesson |
# | **Version** | written for spectral_core 0.1; `env_check()` below prints yours |
#
# Three marks tell where a statement comes from, here and in all lessons: **[reported]** public sources say it of the
# paper this course follows ([arXiv 2603.07162](https://arxiv.org/abs/2603.07162)); **[derived]** it is proved;
# **[measured]** a cell of the notebook computes it.

# %% [markdown]
# ## 1. Cold open
#
# Attention, the core of every transformer, has three weight matrices, $W_Q$, $W_K$ and $W_V$. We add the same simple
# matrix to each of them: λ on the main diagonal, zero elsewhere. Six models differ in λ and in nothing else. Before
# training we read three dials of each, then we train it, which takes a few seconds.

# %%
import torch

from spectral_core.lessons import figure

torch.set_num_threads(1)  # for matrices as small as these, more threads only wait for each other
figure("00.story")

# %% [markdown]
# Each marker is one run, the line runs through the medians. You need not know yet what the dials measure. Look at their
# shapes: dial 1 says that every step to the right is an improvement. Dial 4, the one that counts, disagrees.

# %% [markdown]
# ## 2. Objectives
#
# After this lesson you can
#
# 1. find your way in a lesson, and use a check that tells you what is wrong (check `00.ratio`);
# 2. tell the story of the course from its four dials (question `00.quiz-lie`);
# 3. choose a correction by two dials at once, as the rest of the course does (check `00.choose`);
# 4. name the comparison without which "it helped" means nothing (question `00.quiz-control`);
# 5. say why each result is shown for several seeds (question `00.quiz-seeds`).

# %% [markdown]
# ## 3. Setup
#
# The next cell looks at your installation. If a line says `[FAIL]`, the last line says how to repair it.

# %%
from spectral_core.lessons import check, device, env_check, explore, own_or_solution, predict, quiz, reveal, table

env_check()

# %%
print("lessons that train larger models will use:", device())

# %% [markdown]
# **How to use the course.** Run the cells from top to bottom (Shift + Enter). Every lesson has the same eleven
# sections. It begins with something to see; then you guess; then comes the idea, the equation, the code; then sliders;
# then two to four exercises that check themselves; then one result with controls; and at the end what it does *not*
# show. Folded cells hold checks of the numbers in the text: open one if you doubt a sentence. If you skip an exercise,
# the lesson goes on with its own solution. Words are in the [glossary](glossary.md), symbols on one page of
# [notation](notation.md).
#
# | lesson | question |
# | --- | --- |
# | [1](01_condition_numbers.ipynb) | What is a condition number, and why does gradient descent care? |
# | [2](02_attention_jacobian.ipynb) | What is the Jacobian of attention, and what does its condition number hide? |
# | [3](03_what_governs_kappa.ipynb) | What governs it? The paper's bound, and where it fails |
# | [4](04_polar_correction.ipynb), [5](05_identity_shortcut.ipynb) | The exact correction, and the cheap one |
# | [6](06_saturation.ipynb) | Why can a correction switch attention off? |
# | [7](07_choosing_a_correction.ipynb) | How do I choose one? What is it, really? |
# | [8](08_training_a_vit.ipynb) | Does it help training? How would one know? |
# | [9](09_real_architectures.ipynb), [10](10_language_and_long_sequences.ipynb) | Real architectures, real tasks |
# | [11](11_jacobians_at_scale.ipynb) | How are exact Jacobians computed at real sizes? |
# | [12](12_capstone.ipynb) | Your own model, and a correction of your own |

# %% [markdown]
# ## 4. Predict
#
# A guess before the answer makes the answer stick, and a wrong guess more so. Put `"a"`, `"b"` or `"c"` in place of
# `"skipped"`, and run the cell again. You have seen the picture: this one is easy.

# %%
guess_best = predict("00.best", "skipped")
guess_best

# %% [markdown]
# ## 5. Idea, equation, shapes, code
#
# ### 5.1 The dials in plain words
#
# A matrix stretches the space it acts on, more in some directions than in others. Its **condition number** κ is the
# largest stretch divided by the smallest:
#
# $$\kappa = \frac{\text{largest stretch}}{\text{smallest stretch}} \;\ge\; 1 .$$
#
# κ = 1 treats all directions alike. When κ is large, some directions are nearly lost, and gradient descent is slow
# along them. Lesson 1 makes that precise.
#
# | dial | of what | good is | lesson |
# | --- | --- | --- | --- |
# | 1. κ(W_Q) | the 32 × 32 weight matrix of the first layer | small | 1 |
# | 2. κ(J) | J says how the output of one attention head moves when its weights move | small | 2 |
# | 3. saturation | the largest weight that a token gives to one token, averaged; 1: it looks at one only | not 1 | 6 |
# | 4. training loss | cross-entropy on real digits, mean of the last 20 of 80 steps | small | 8 |
#
# ### 5.2 The paper in five lines
#
# The paper proves a bound on κ(J) in which the κ of $W_Q$, $W_K$ and $W_V$ appear as factors, and concludes that they
# should be made small **[reported]**. So it adds a fixed correction $C$ to each weight,
#
# $$W \;\to\; W + C ,$$
#
# once and for all, while $W$ itself trains. The cheap choice is $C = \lambda I$, by default with λ = 10. The paper
# reports gains on five tasks, for example from 80.7 to 81.7 % on ImageNet with a ViT-B **[reported]**. No code was
# published, and we know of no independent replication.
#
# ### 5.3 The same in code
#
# A model, the correction, and the first two dials. `condition` finds the three weights in every layer:

# %%
from spectral_core import IdentityCorrection, condition
from spectral_core.models import VisionTransformer

model = VisionTransformer(seed=0)
print(condition(model, IdentityCorrection(1.0)))

# %% [markdown]
# The table lists each weight matrix, W_Q, W_K and W_V of two layers, with its κ before and after. With λ = 1 all of
# them are below 2. If that were all that matters, the story would end here.

# %%
reveal(guess_best)

# %% [markdown]
# ## 6. See
#
# Three dials of one attention head, which looks at one digit; λ runs from 0 to 10. κ(W_Q) is now that of the head's own
# 16 columns, not of the whole matrix: it starts lower.

# %%
figure("00.dials")

# %%
sliders = explore("00.dials")
sliders

# %% [markdown]
# Three things to try, and what you should see:
#
# 1. **Pull λ from 0 to 10.** The first dial falls all the way to nearly 1.
# 2. **Watch κ(J) around λ = 1.** It has fallen by four orders of magnitude, and saturation is about one half.
# 3. **Go through the digits at λ = 10.** Saturation is nearly 1 for all of them, while κ(J) is between 10 and 25 for
#    some, many thousands for others, and infinite for a few: where its curve has a gap.

# %% tags=["assert", "widgets"]
# moves every slider to both of its ends and back: an error in a drawing would stop the notebook here
_ = sliders.sweep()
from spectral_core.lessons.lesson_02 import identity_head

zero, one = (identity_head(lam, lam, lam) for lam in (0.0, 1.0))
assert zero.kappa / one.kappa > 1e4
assert 0.4 < one.saturation < 0.6
tens = [identity_head(10.0, 10.0, 10.0, image=i) for i in range(10)]
assert min(head.saturation for head in tens) > 0.97
assert round(tens[0].kappa) == 11
assert 2 <= sum(10 < head.kappa < 25 for head in tens) <= 6
assert 1 <= sum(head.kappa == float("inf") for head in tens) <= 4

# %% [markdown]
# ## 7. Exercises
#
# Two warm-ups, so that you know what a check looks like. Replace the line with `raise` by your code, and run the cell.

# %% [markdown]
# ### Exercise 1: largest over smallest
#
# *Difficulty 1 of 5 · 3 minutes · Why it matters: this ratio is what all the lessons are about.*
#
# Write `stretch_ratio(values)` for a list of numbers, none negative: the largest divided by the smallest, and infinity
# if the smallest is 0.


# %% tags=["exercise"]
def stretch_ratio(values):
    """A number, 1 or more."""
    raise NotImplementedError


check("00.ratio", stretch_ratio)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# The list is in any order. Python has `max` and `min`, and infinity is `float("inf")`.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def stretch_ratio(values):
#     if ...:
#         return float("inf")
#     return ...
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def stretch_ratio(values):
#     if min(values) == 0:
#         return float("inf")
#     return max(values) / min(values)
# ```
#
# *Why:* a ratio does not change when everything is measured in another unit. A size would.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * The ratio upside down.
# * The first over the last: the list need not be sorted.
# * Dividing by zero raises an error in Python; it does not give infinity.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
stretch_ratio = own_or_solution("00.ratio", stretch_ratio)

# %% [markdown]
# ### Exercise 2: the better of two dials
#
# *Difficulty 2 of 5 · 5 minutes · Why it matters: lesson 7 chooses corrections for real models in this way.*
#
# Write `choose(lams, kappas, saturations, limit)` for three lists of the same length: the λ with the smallest κ(J)
# among those whose saturation is at most `limit`.


# %% tags=["exercise"]
def choose(lams, kappas, saturations, limit):
    """One of lams."""
    raise NotImplementedError


check("00.choose", choose)

# %% [markdown]
# <details><summary>Hint 1: the idea</summary>
#
# First throw out what is not allowed; then compare κ(J) among the rest, and remember which λ it belongs to.
#
# </details>
#
# <details><summary>Hint 2: the skeleton</summary>
#
# ```python
# def choose(lams, kappas, saturations, limit):
#     allowed = [(kappa, lam) for lam, kappa, full in zip(lams, kappas, saturations) if ...]
#     return min(allowed)[...]
# ```
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def choose(lams, kappas, saturations, limit):
#     allowed = [(kappa, lam) for lam, kappa, full in zip(lams, kappas, saturations) if full <= limit]
#     return min(allowed)[1]
# ```
#
# *Why:* pairs are compared by their first entry, so the smallest pair has the smallest κ(J), and brings its λ along.
#
# </details>
#
# <details><summary>Common bugs</summary>
#
# * Returning κ(J) in place of λ.
# * The limit itself is allowed: `<=`.
#
# </details>

# %% tags=["solution"]
# goes on with your function if it passes all checks, else with the course's own
choose = own_or_solution("00.choose", choose)

# %% [markdown]
# ## 8. Signature result
#
# The runs of the picture once more, with what they have to be compared with. Six arms, three seeds each:
#
# | arm | what it is | what it catches |
# | --- | --- | --- |
# | no correction | **baseline**: weights drawn with standard deviation 0.02, as is usual in vision transformers | |
# | λ = 1 | λI on W_Q, W_K and W_V | |
# | λ = 10 | the paper's default **[reported]** | |
# | Xavier start | **control for scale**: larger weights, no correction | thanking λI for what larger weights do |
# | attention off | **negative control**: each token looks at itself alone | taking a good κ for working attention |
# | attention off, λ = 10 | λ = 10 with attention off, so that W_V alone still counts | how much of the damage is V's |
#
# An *arm* is one way of training in a comparison. *Xavier* weights are random with a standard deviation of 0.18 here,
# in place of 0.02. A *negative control* is a case known to be bad; a dial that calls it good is no good dial.

# %%
from spectral_core.lessons.lesson_00 import train

arms = {
    "no correction": [train(seed) for seed in range(3)],
    "λ = 1": [train(seed, 1.0) for seed in range(3)],
    "λ = 10": [train(seed, 10.0) for seed in range(3)],
    "Xavier start": [train(seed, init="xavier") for seed in range(3)],
    "attention off": [train(seed, attention_off=True) for seed in range(3)],
    "attention off, λ = 10": [train(seed, 10.0, attention_off=True) for seed in range(3)],
}
losses = {arm: [run.loss for run in runs] for arm, runs in arms.items()}
table(
    ["arm", "training loss, three seeds", "κ(W_Q), three seeds"],
    [[arm, losses[arm], [run.kappa_w for run in runs]] for arm, runs in arms.items()],
)

# %%
from spectral_core import plots

columns = {"training loss": losses, "κ(W_Q)": {arm: [run.kappa_w for run in runs] for arm, runs in arms.items()}}
plots.seed_dots(columns, title="Six arms, three seeds each", log=["κ(W_Q)"])

# %% [markdown]
# And your `choose` on the picture's own numbers, with a limit of 0.6 on saturation, seed by seed:

# %%
from spectral_core.lessons.lesson_00 import STORY

picked = []
for seed in range(3):
    runs = [train(seed, lam) for lam in STORY]
    picked.append(choose(STORY, [run.kappa_j for run in runs], [run.saturation for run in runs], 0.6))
best = [min(STORY, key=lambda lam: train(seed, lam).loss) for seed in range(3)]
table(["", "three seeds"], [["λ chosen before training, by two dials", picked], ["λ of the lowest loss", best]])

# %% tags=["assert"]
# the sentences below, checked
plain, one, ten, xavier, off, off_ten = losses.values()
assert all(a < b for a, b in zip(one, plain, strict=True))
assert all(abs(b - a) < 0.15 for a, b in zip(one, xavier, strict=True))
assert sum(xavier) < sum(plain)
assert min(ten) > 2 * max(plain)
assert min(ten) > 1.3 * max(off)
assert min(off) > 1.3 * max(plain)
assert all(abs(a - b) < 0.4 for a, b in zip(ten, off_ten, strict=True))

# %% tags=["assert"]
# and those on κ and on the choice
assert all(run.kappa_w < 1.1 for run in arms["λ = 10"])
assert all(run.kappa_w > 30 for run in arms["no correction"])
medians = [sorted(train(seed, lam).kappa_w for seed in range(3))[1] for lam in STORY]
assert medians == sorted(medians, reverse=True)
assert picked == best == [1.0, 1.0, 1.0]

# %% [markdown]
# What it says **[measured]**:
#
# * **λ = 1 helps.** On every seed its loss is below that of no correction.
# * **Most of that is scale.** A Xavier start without any correction comes close to it. Whether anything is left is a
#   matter of more seeds, better controls and intervals: lesson 8.
# * **λ = 10 ruins it**, with the best κ(W_Q) of all, below 1.1. Its loss is more than twice the baseline's, and even
#   worse than with attention switched off by hand. The last arm says why: with attention off *and* 10 I in W_V the
#   loss is about the same as at λ = 10. On W_Q and W_K it switches attention off (lesson 6 derives that); on W_V it
#   drowns the small trainable part of the values.
# * **Two dials together would have told.** The smallest κ(J) with saturation at most 0.6 picks λ = 1 before the first
#   step of training, on all three seeds, and that is the λ with the lowest loss of the six.

# %% [markdown]
# ## 9. Play
#
# The demo trains two such models beside each other while you move the sliders. Start it with `make demo`, then open
#
# * [λ = 1 on all three](http://127.0.0.1:7860/?kind=identity&lam_q=1&lam_k=1&lam_v=1)
# * [λ = 10 on all three](http://127.0.0.1:7860/?kind=identity&lam_q=10&lam_k=10&lam_v=10)
#
# Or train another one here:

# %% tags=["play"]
# yours: another λ (try 0.7), another seed, another start
mine = train(seed=3, lam=0.7)
table(["κ(W_Q)", "κ(J)", "saturation", "loss"], [[mine.kappa_w, mine.kappa_j, mine.saturation, mine.loss]])

# %% [markdown]
# ## 10. Limits
#
# What this lesson does not show:
#
# * **Anything about large models.** Two layers of width 32, 8 × 8 pixels, 80 steps. The paper's models are a thousand
#   times larger, and we have not trained those.
# * **Three seeds** say that λ = 10 is bad here. They do not settle the small differences.
# * **Training loss only**; what the model does on new digits is lesson 8.
# * **λ = 10 in the paper may mean something else.** To which matrices and at which scale it was applied, we do not
#   know.
#
# **Where the correction does not help:** look at λ = 2 and λ = 4 in the picture. κ(W_Q) is better than at λ = 1, and
# the loss is worse.

# %% tags=["assert"]
# the last sentence, checked
for seed in range(3):
    runs = {lam: train(seed, lam) for lam in (1.0, 2.0, 4.0)}
    assert runs[4.0].kappa_w < runs[2.0].kappa_w < runs[1.0].kappa_w
    assert runs[4.0].loss > runs[2.0].loss > runs[1.0].loss

# %% [markdown]
# ## 11. Recap
#
# The paper's idea is to make κ of the attention weights small by adding a fixed correction, since it enters a bound on
# κ(J). On a small model that helps up to λ ≈ 1, and most of the help is also to be had from a better start; beyond,
# attention is switched off while κ(W) still improves. So this course reads several dials at once, and compares with
# controls.
#
# Three questions to take with you; put a letter in place of `"skipped"`.

# %%
quiz("00.quiz-lie", "skipped")

# %%
quiz("00.quiz-control", "skipped")

# %%
quiz("00.quiz-seeds", "skipped")

# %% [markdown]
# **Terms.** *Control*: a comparison that would look the same if the claim were wrong for a certain reason. *Seed*: the
# number that fixes all random choices of a run. *Correction*: a fixed matrix C added to a weight, W + C.
#
# **Links.**
# [the paper](https://arxiv.org/abs/2603.07162) ·
# [what was found so far, with tables](../README.md) ·
# [how long each lesson takes](../results/course.md) ·
# [notation](notation.md) · [glossary](glossary.md)
#
# **Next lesson.** [1. Condition numbers](01_condition_numbers.ipynb): one slow direction holds everything up.
