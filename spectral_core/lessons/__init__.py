"""What the notebooks of the course call: checks, questions, figures with sliders, a look at the environment.

A lesson is data in `ENTRIES` of the modules `lesson_NN*`: exercises, questions and views, with ids that begin with
its number, as in "01.kappa". Adding a lesson is adding such files: nothing else lists them.

Nothing here prints. Every function returns a small frozen result that a notebook shows as HTML and a terminal as
plain text.
"""

from spectral_core.lessons.checking import CheckResult, check, own_or_solution
from spectral_core.lessons.display import Table, table
from spectral_core.lessons.environment import EnvReport, device, env_check
from spectral_core.lessons.panels import Panel, explore, figure
from spectral_core.lessons.questions import Answer, Prediction, predict, quiz, reveal

__all__ = [
    "Answer",
    "CheckResult",
    "EnvReport",
    "Panel",
    "Prediction",
    "Table",
    "check",
    "device",
    "env_check",
    "explore",
    "figure",
    "own_or_solution",
    "predict",
    "quiz",
    "reveal",
    "table",
]
