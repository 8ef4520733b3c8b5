"""Every figure of the lessons, one function each: numbers in, a `matplotlib.figure.Figure` out.

No pyplot, so no global state and nothing to close; matplotlib is imported at the first figure. Every figure carries
`alt`, its content in words. Colours are Okabe and Ito's and never stand alone: a dash, a marker or a label is with
each of them.
"""

from spectral_core.plots.attention import attention_head, jacobian_blocks, jacobian_spectrum
from spectral_core.plots.calibration import calibration_sweep
from spectral_core.plots.compare import curves, seed_dots, sweep
from spectral_core.plots.descent import descent, shifted_kappa, steps_against_kappa
from spectral_core.plots.monitor import spectral_history
from spectral_core.plots.style import png

__all__ = [
    "attention_head",
    "calibration_sweep",
    "curves",
    "descent",
    "jacobian_blocks",
    "jacobian_spectrum",
    "png",
    "seed_dots",
    "shifted_kappa",
    "spectral_history",
    "steps_against_kappa",
    "sweep",
]
