"""The page's words and look."""

from __future__ import annotations

from html import escape

from spectral_core.demo import audit_panel, race_view, shape_view
from spectral_core.demo.presets import PRESETS, lesson_address
from spectral_core.demo.settings import to_query

__all__ = ["INTRO", "NOTES", "STYLE", "story"]

INTRO = """# Spectral conditioning of attention, live
Transformers train through the Jacobian of attention, and its condition number κ(J) depends on W_Q, W_K and W_V.
Add a correction C to each, watch **exact** spectra, κ(J) and the attention map answer, then let models race and keep
moving the sliders while they train. After Saratchandran & Lucey, NeurIPS 2025
([arXiv 2603.07162](https://arxiv.org/abs/2603.07162)). The story in six clicks:"""

NOTES = """**What this does not show.** Tiny models (two layers of two heads, width 32, 16 tokens), one seed a run, one
learning rate for all who race; records every 5 steps, κ(J) of one head at one example. Differences of a few percent
are noise: change the seed. All see the same batches, AdamW, weight decay 0.05. Dotted verticals mark where a slider
took effect. With ten paired seeds on the digits no correction beats plain Xavier by more than its interval; who leads
depends on the learning rate. The address bar holds every setting and the seed: copy it to share what you see."""

STYLE = shape_view.STYLE + race_view.STYLE + audit_panel.STYLE + """
.gradio-container { max-width: 1500px !important; }
.offscreen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.gradio-container :focus-visible { outline: 3px solid var(--base) !important; outline-offset: 1px; }
.gradio-container [role=tab][aria-selected=true] { color: var(--cond) !important; }
.story { color: var(--ink); margin: 0; min-height: 1.5em; }
.buttons { gap: .5rem; } .buttons > * { flex: 1 1 auto; }
@media (min-width: 1000px) {
  #controls { position: sticky; top: 0; max-height: 100vh; overflow-y: auto; padding-bottom: 2rem; }
}
@media (prefers-reduced-motion: reduce) {
  *, *::before, *::after { transition: none !important; animation: none !important; }
}
"""


def story(preset: str) -> str:
    """What the preset shows, and the lesson that explains it; for other settings, where to begin.

    The page's script shows the hidden words while the settings are no longer those of the preset.
    """
    if preset not in PRESETS:
        lesson, about, text = "00_start_here", "the course begins here", "Your own settings."
    else:
        chosen = PRESETS[preset]
        lesson, about, text = chosen.lesson, chosen.about, chosen.story
    number = lesson.partition("_")[0]
    text_of_link = f"lesson {int(number)}: {escape(about)}"
    link = f'<a href="{lesson_address(lesson)}" target="_blank" rel="noopener">{text_of_link}</a>'
    query = to_query(PRESETS[preset].settings) if preset in PRESETS else ""
    return (
        f'<p class="story" data-preset="{escape(preset, quote=True)}" data-query="{escape(query, quote=True)}">'
        f'<span class="left" hidden>You have moved on; this preset was: </span>{escape(text)} More in {link}.</p>'
    )
