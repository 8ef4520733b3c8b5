"""What all figures share: an empty figure in one style, its palette, and its bytes."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLORS", "DASHES", "INK", "MARKERS", "new_figure", "png"]

DPI = 80
INK = "#222222"
COLORS = ("#D55E00", "#0072B2", "#009E73", "#AA4499", "#806000", "#000000")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colours: no pair comes twice in 42


def new_figure(panels: int, size: tuple[float, float], alt: str, *, rows: int = 1) -> tuple[Figure, list[Any]]:
    """A figure of empty panels, row by row, `size` in inches, and `alt` as its text alternative.

    Raises:
        ImportError: matplotlib is missing; the message names the extra that brings it.
    """
    figure = _figure_class()(figsize=size, dpi=DPI, layout="constrained")
    figure.alt = alt
    axes = list(figure.subplots(rows, panels // rows, squeeze=False).flat)
    for ax in axes:
        ax.grid(color="#DDDDDD", lw=0.6)
        ax.set_axisbelow(True)
        ax.title.set_fontsize(10.5)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Figure) -> bytes:
    """The figure as PNG with 256 colours, half the size of full colour; the same bytes for the same figure."""
    from PIL import Image  # comes with matplotlib

    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", metadata={"Software": None})
    figure.set_layout_engine("none")  # a second layout would move things by a fraction of a pixel
    Image.open(full).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    return small.getvalue()


@cache
def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the figures need matplotlib: pip install 'spectral-core[course]'") from error

    class LessonFigure(Figure):
        """A figure that a notebook shows without pyplot."""

        alt = ""

        def __repr__(self) -> str:
            return self.alt

        def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
            return {"image/png": png(self), "text/plain": self.alt}, {"image/png": {"alt": self.alt}}

    return LessonFigure
