"""Predictions made before the evidence, revealed after it, and the quiz at the end of a lesson."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from spectral_core._checks import check_choice
from spectral_core.lessons.display import Shown
from spectral_core.lessons.registry import Question, find

__all__ = ["Answer", "Prediction", "predict", "quiz", "reveal"]

SKIPPED = "skipped"
CONFIDENCES = ("", "unsure", "sure")


@dataclass(frozen=True, repr=False)
class Prediction(Shown):
    """A question and what the learner predicts; `reveal` takes it."""

    question: Question
    choice: str = SKIPPED
    confidence: str = ""

    @property
    def recorded(self) -> str:
        """What was noted, in one line."""
        if self.choice == SKIPPED:
            *most, last = (f'"{letter}"' for letter in self.question.options)
            return f'Skipped so far. Put {", ".join(most)} or {last} in place of "skipped" and run the cell again.'
        return f"Your prediction: {self.choice}{self.confidence and f' ({self.confidence})'}."

    def text(self) -> str:
        """The question, its options and what was noted."""
        options = [f"  {letter}) {option.text}" for letter, option in self.question.options.items()]
        return "\n".join([self.question.text, *options, self.recorded])

    def html(self) -> str:
        """As `text`."""
        items = "".join(f"<br>{letter}) {escape(o.text)}" for letter, o in self.question.options.items())
        return f"<p><strong>{escape(self.question.text)}</strong>{items}</p><p>{escape(self.recorded)}</p>"


@dataclass(frozen=True, repr=False)
class Answer(Shown):
    """What is said after a choice: the feedback for it, or the answer folded away if it was skipped."""

    question: Question
    choice: str = SKIPPED
    confidence: str = ""

    @property
    def correct(self) -> bool:
        """Whether the right option was chosen."""
        return self.choice == self.question.answer

    @property
    def verdict(self) -> str:
        """Right or not, and why; with the reason for the right answer when another one was chosen."""
        right = self.question.options[self.question.answer]
        if self.choice == SKIPPED:
            return f"The answer is {self.question.answer}) {right.text}: {right.feedback}"
        said = f"Right: {right.feedback}"
        if not self.correct:
            mine = self.question.options[self.choice].feedback
            said = f"Not quite. {mine} It is {self.question.answer}) {right.text}: {right.feedback}"
        surprise = " You were sure, so this is the one to remember." if self.confidence == "sure" else ""
        return said + (surprise if not self.correct else "")

    def text(self) -> str:
        """The question and the verdict."""
        return f"{self.question.text}\n  {self.verdict}"

    def html(self) -> str:
        """As `text`; a skipped question keeps its answer folded."""
        verdict = f"<p>{escape(self.verdict)}</p>"
        if self.choice == SKIPPED:
            verdict = f"<details><summary>You skipped this one: show the answer</summary>{verdict}</details>"
        return f"<p><strong>{escape(self.question.text)}</strong></p>{verdict}"


def predict(question_id: str, choice: str = SKIPPED, confidence: str = "") -> Prediction:
    """Note a prediction: the letter of an option, or "skipped"; `confidence` is "unsure" or "sure".

    Raises:
        ValueError: an unknown question, option or confidence.
    """
    question = find(Question, question_id)
    check_choice(choice, "choice", (*question.options, SKIPPED))
    check_choice(confidence, "confidence", CONFIDENCES)
    return Prediction(question, choice, confidence)


def reveal(prediction: Prediction) -> Answer:
    """Compare a prediction with the answer."""
    return Answer(prediction.question, prediction.choice, prediction.confidence)


@dataclass(frozen=True, repr=False)
class QuizAnswer(Answer):
    """A quiz question shows its options too, as nothing was shown before."""

    def text(self) -> str:
        """The question with its options, and the verdict unless it was skipped."""
        asked = Prediction(self.question, self.choice).text()
        return asked if self.choice == SKIPPED else f"{asked}\n  {self.verdict}"

    def html(self) -> str:
        """As `text`; a skipped question keeps its answer folded."""
        asked = Prediction(self.question, self.choice).html()
        verdict = escape(self.verdict)
        if self.choice == SKIPPED:
            return f"{asked}<details><summary>Show the answer</summary><p>{verdict}</p></details>"
        return f"{asked}<p>{verdict}</p>"


def quiz(question_id: str, choice: str = SKIPPED) -> Answer:
    """A question of the recap with feedback on `choice`.

    Raises:
        ValueError: an unknown question or option.
    """
    asked = predict(question_id, choice)
    return QuizAnswer(asked.question, asked.choice)
