"""The story in six clicks: settings, a race computed beforehand, what to see, and the lesson that explains it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from spectral_core.demo.history import History
from spectral_core.demo.settings import Settings, parse_settings

__all__ = ["FOLDER", "PRESETS", "Preset", "lesson_address", "read_history", "write_histories"]

REPOSITORY = "https://github.com/spectral-core/spectral-core"  # as in pyproject.toml, which a Space does not have
FOLDER = Path(__file__).parent / "races"


@dataclass(frozen=True)
class Preset:
    """One click.

    Attributes:
        title: of the button; story: what to see, in a sentence or two.
        query: the settings, as an address.
        lesson: the notebook's name, without its ending; about: what the link says.
    """

    title: str
    story: str
    query: str
    lesson: str
    about: str

    @property
    def settings(self) -> Settings:
        return parse_settings(dict(pair.split("=", 1) for pair in self.query.split("&")))[0]


def _lam(q: float, k: float, v: float) -> str:
    return f"lam_q={q:g}&lam_k={k:g}&lam_v={v:g}"


PRESETS: dict[str, Preset] = {
    "healthy": Preset(
        "1 Healthy",
        "Xavier weights, nothing corrected: κ(J) is sixty times smaller than with small ones. It trains fast.",
        f"kind=identity&init=xavier&{_lam(0, 0, 0)}&arms=plain,conditioned,qk-norm",
        "01_condition_numbers", "what a condition number says",
    ),
    "ill-conditioned": Preset(
        "2 Ill-conditioned",
        "Small weights (std 0.02, as usual) in a narrow model: κ(J) is near a million; training starts slowly.",
        f"kind=identity&{_lam(0, 0, 0)}&arms=plain,xavier",
        "03_what_governs_kappa", "what governs κ(J)",
    ),
    "small-lambda": Preset(
        "3 The paper's λ·I, small",
        "λ = 1 on Q, K and V: κ(J) falls twenty-thousandfold, and training starts faster. With Xavier, too.",
        f"kind=identity&{_lam(1, 1, 1)}&arms=plain,identity,xavier",
        "05_identity_shortcut", "why λ·I works, and when not",
    ),
    "saturation": Preset(
        "4 Saturation",
        "λ = 10, the paper's default: κ(J) is smallest of all, because attention has switched off. It trains worst.",
        f"kind=identity&{_lam(10, 10, 10)}&arms=plain,identity,xavier",
        "06_saturation", "how λ switches attention off",
    ),
    "calibrated": Preset(
        "5 Calibrated",
        "Chosen by the exact κ(J) within a limit on saturation. In this run Xavier starts faster and ends level.",
        f"kind=identity&{_lam(0.3, 1, 0)}&roles=qk&arms=plain,calibrated,conditioned,xavier",
        "07_choosing_a_correction", "how to choose",
    ),
    "over-conditioned": Preset(
        "6 Over-conditioned",
        "Every singular value moved to 3: all κ(W) are 1, the best there is. κ(J) is a thousand times worse for it.",
        "kind=targets&init=xavier&min_q=3&max_q=3&min_k=3&max_k=3&min_v=3&max_v=3&arms=plain,shaped,polar",
        "04_polar_correction", "what κ(W) = 1 does not buy",
    ),
}  # fmt: skip


@cache
def read_history(name: str) -> History:
    """The race of a preset to its end; not to be written to.

    Raises:
        FileNotFoundError: it was never computed (`python app.py --presets`).
        ValueError: the file is not a history.
    """
    stored = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return History.from_json(stored["history"])


def write_histories() -> None:
    """Run every preset's race to its end and store it, with what made it."""
    import torch
    from rich.progress import track

    from spectral_core.demo.race import Race

    FOLDER.mkdir(exist_ok=True)
    for name, preset in PRESETS.items():
        race, history = Race(preset.settings), History()
        history.append(race.frame())
        for _ in track(range(120), description=preset.title):
            history.append(race.advance())
        about = {"made_by": "python app.py --presets", "torch": torch.__version__, "query": preset.query}
        text = json.dumps({"about": about, "history": history.to_json()}, separators=(",", ":"))
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def lesson_address(lesson: str) -> str:
    """Where the lesson can be read."""
    return f"{REPOSITORY}/blob/main/notebooks/{lesson}.ipynb"
