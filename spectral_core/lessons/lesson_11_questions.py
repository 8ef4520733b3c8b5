"""Lesson 11, Jacobians at scale: its predictions and quiz, as data."""

from __future__ import annotations

from spectral_core.lessons.registry import Option, Question

__all__ = ["ENTRIES"]

ENTRIES = (
    Question(
        "11.digits",
        "A matrix J has κ(J) = 10⁹. You form J Jᵀ in float64 (16 digits) and ask eigvalsh for its smallest eigenvalue. "
        "What do you get for σ_min?",
        {
            "a": Option("about 7 correct digits: 16 less 9", "That is what an SVD of J itself gives. J Jᵀ has "
                        "κ = 10¹⁸, and squaring has already thrown σ_min² away."),
            "b": Option("the right order of magnitude", "σ_min² is 10⁻¹⁸ of the largest eigenvalue, and rounding alone "
                        "moves every eigenvalue by about 10⁻¹⁶ of it."),
            "c": Option("noise, perhaps the root of a negative number", "σ_min² is a hundred times smaller than what "
                        "rounding adds or takes away."),
        },
        "c",
    ),
    Question(
        "11.products",
        "A head of the size of ViT-B/16's: n = 197, D = 768, d = 64. Somebody has J stored, all 15 GB, and multiplies "
        "it with a vector. You compute the same product from the formulas of attention. How many times fewer "
        "operations do you need?",
        {
            "a": Option("about 50 times fewer", "2 n d_v · D(2d_k + d_v) against 2 n (D + n)(2d_k + d_v): a factor of "
                        "d_v D/(D + n) = 51."),
            "b": Option("about as many: the result is the same", "The result is, the way is not. J repeats the same "
                        "numbers over and over: its V block holds each row of PX 64 times."),
            "c": Option("about a million times fewer", "You still have to read all the weights, and to mix all pairs "
                        "of tokens."),
        },
        "a",
    ),
    Question(
        "11.quiz-smallest",
        "Forty Lanczos steps give σ_max to ten digits and σ_min not even to one. Why?",
        {
            "a": Option("small singular values are lost in rounding", "They are not: with κ = 100 float64 has room for "
                        "all of them. More steps would find σ_min in the end."),
            "b": Option("beside the spread of all σ², the smallest ones lie almost on one point", "Lanczos works with "
                        "σ². The gap at the lower end, as a share of σ_max², is tiny: about 1/κ²."),
            "c": Option("Lanczos looks at the largest alone", "It looks at everything in its Krylov space. The other "
                        "Ritz values are there, still too large."),
        },
        "b",
    ),
    Question(
        "11.quiz-residual",
        "A pair (u, v) has ‖J v − σ u‖ = 10⁻⁹ and Jᵀu = σ v. What is certain?",
        {
            "a": Option("σ is σ_max to within 10⁻⁹", "It could be the second singular value: a start without the top "
                        "direction ends there, with residual 0."),
            "b": Option("nothing: the start was random", "The bound holds for every pair, however it was found."),
            "c": Option("some singular value lies within 10⁻⁹ of σ", "That is the theorem of 5.7. Which one it is, the "
                        "residual does not say."),
        },
        "c",
    ),
    Question(
        "11.quiz-bound",
        "condition_number() returns value = 3·10⁷ with converged = False and bound = ∞. What may you write down?",
        {
            "a": Option("κ(J) ≥ 3·10⁷", "σ_min has an upper bound only, so κ has a lower one."),
            "b": Option("κ(J) ≈ 3·10⁷", "The true κ can be a thousand times larger: float64 did not resolve σ_min."),
            "c": Option("κ(J) = ∞", "That would say that J has lost rank. All we know is that σ_min is small."),
        },
        "a",
    ),
)  # fmt: skip
