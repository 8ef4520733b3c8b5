"""Every figure of the lessons, one function each: numbers in, a `matplotlib.figure.Figure` out.

No pyplot, so no global state and nothing to close; matplotlib is imported at the first figure. Every figure carries
`alt`, its content in words. Colours are Okabe and Ito's and never stand alone: a dash, a marker or a label is with
each of them.
"""

from spectral_core.plots.attention import attention_head, jacobian_blocks, jacobian_spectrum
from spectral_core.plots.bound import LinePanel, coin_shadow, left_against_right, line_panels
from spectral_core.plots.calibration import calibration_sweep
from spectral_core.plots.choice import candidate_map, spectra_pair
from spectral_core.plots.compare import curves, seed_dots, sweep
from spectral_core.plots.descent import descent, shifted_kappa, steps_against_kappa
from spectral_core.plots.identity import before_after, identity_patterns, kappa_tail, shifted_plane, success_curves
from spectral_core.plots.landmarks import landmark_inverse
from spectral_core.plots.monitor import spectral_history
from spectral_core.plots.overview import dials, story
from spectral_core.plots.polar import lines_against, polar_iterate
from spectral_core.plots.runs import by_step, differences, paired
from spectral_core.plots.saturation import families
from spectral_core.plots.scale import ritz_history
from spectral_core.plots.storage import head_grid, reading, storage
from spectral_core.plots.style import png

__all__ = [
    "LinePanel",
    "attention_head",
    "before_after",
    "by_step",
    "calibration_sweep",
    "candidate_map",
    "coin_shadow",
    "curves",
    "descent",
    "dials",
    "differences",
    "families",
    "head_grid",
    "identity_patterns",
    "jacobian_blocks",
    "jacobian_spectrum",
    "kappa_tail",
    "landmark_inverse",
    "left_against_right",
    "line_panels",
    "lines_against",
    "paired",
    "png",
    "polar_iterate",
    "reading",
    "ritz_history",
    "seed_dots",
    "shifted_kappa",
    "shifted_plane",
    "spectra_pair",
    "spectral_history",
    "steps_against_kappa",
    "storage",
    "story",
    "success_curves",
    "sweep",
]
