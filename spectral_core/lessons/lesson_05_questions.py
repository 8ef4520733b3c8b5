"""Lesson 5, the λI shortcut: its predictions and quiz, as data."""

from __future__ import annotations

from spectral_core.lessons.registry import Option, Question

__all__ = ["ENTRIES"]

ENTRIES = (
    Question(
        "05.half",
        "W is a random 32 × 32 matrix with entries of standard deviation 2/√32, and we add 2·I. "
        "How often does κ fall?",
        {
            "a": Option("always: λ = 2 is what the theorem asks for", "Not without its side conditions. σ_max is about "
                        "4 here, so λ is only half of it."),
            "b": Option("in about three of four draws", "λ = 2 is about σ_max/2, the edge of the disc that the "
                        "eigenvalues fill: it is often enough, and never certain."),
            "c": Option("in one of two draws, like a coin", "That is right for a λ well below σ_max/2, where W + λI is "
                        "just another random matrix."),
        },
        "b",
    ),
    Question(
        "05.heads",
        "A random 768 × 768 matrix has κ near 3 000. We cut it into twelve heads of 64 columns. What is κ of a head?",
        {
            "a": Option("near 3 000 too: a part is no better than the whole", "A part can be far better: the direction "
                        "that the whole matrix nearly loses mixes columns of all the heads."),
            "b": Option("near 250: a twelfth", "κ is not shared out among the parts."),
            "c": Option("below 2", "Tall Gaussian matrices are well conditioned, (1 + √(d/D))/(1 − √(d/D)) = 1.81 for "
                        "d/D = 1/12. Only the square one is not."),
        },
        "c",
    ),
    Question(
        "05.quiz-cancel",
        "Which of these 2 × 2 matrices W makes κ(W + I) infinite? All have κ(W) = 1.",
        {
            "a": Option("a rotation by 90°", "Nothing is turned right around: W + I is √2 times a rotation by 45°, and "
                        "κ stays 1."),
            "b": Option("the reflection diag(1, −1)", "It turns one direction around and leaves the other: W + I = "
                        "diag(2, 0)."),
            "c": Option("a rotation by 10°", "W x and x point nearly the same way and add up: κ stays 1."),
        },
        "b",
    ),
    Question(
        "05.quiz-packed",
        "A layer keeps W_Q, W_K and W_V in one stored weight of 3D rows, Q on top. A rectangular λI is added to that "
        "one matrix. What does it change?",
        {
            "a": Option("W_Q, W_K and W_V, each by λI", "That takes three identities. A rectangle has one main "
                        "diagonal, and it ends in row D."),
            "b": Option("W_Q alone", "The main diagonal of a 3D × D matrix lies in its first D rows, and those are "
                        "W_Q: K and V stay as they were."),
            "c": Option("every third row of all three", "The ones are in rows 1, 2, …, D, not spread over all 3D."),
        },
        "b",
    ),
    Question(
        "05.quiz-governs",
        "We overwrite head 2 with a copy of head 1, so that the fused W_Q, W_K and W_V all have κ = ∞. What happens to "
        "κ(J) of head 1?",
        {
            "a": Option("nothing, to the last digit", "The output of head 1 is a function of its own columns. κ of the "
                        "fused matrix is about columns of different heads, which no head combines."),
            "b": Option("it becomes infinite as well", "J of head 1 has not changed in any entry: its weights are "
                        "the same."),
            "c": Option("it doubles", "Head 1 does not know that head 2 exists until the output layer mixes them."),
        },
        "a",
    ),
)  # fmt: skip
