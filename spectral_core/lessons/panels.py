"""`figure("01.descent")` draws a view once; `explore("01.descent")` puts sliders on the same drawing function.

Errors come out: the callbacks are `observe` callbacks that raise (`interact` and output capture swallow what is
raised under headless execution), and the page shows the message too.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from spectral_core._checks import check_choice, check_number
from spectral_core.lessons.registry import Choice, Slider, View, find
from spectral_core.plots import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Panel", "explore", "figure"]


def figure(view_id: str, **values: Any) -> Figure:
    """Draw a view at its default values, or with some of them replaced.

    Raises:
        ValueError: an unknown view or control, or a value outside the control's range.
    """
    view = find(View, view_id)
    return view.draw(**{**view.defaults, **_checked(view, values)})


def explore(view_id: str, **start: Any) -> Panel:
    """A view with a control for each of its numbers; `start` replaces default values.

    Raises:
        ValueError: as `figure`.
        ImportError: ipywidgets is missing; the message names the extra that brings it.
    """
    return Panel(find(View, view_id), **start)


class Panel:
    """Controls, a reset button, the figure, and its text alternative below it.

    Args:
        view: what to draw.
        start: values that replace the defaults.
    """

    def __init__(self, view: View, **start: Any) -> None:
        try:
            import ipywidgets as widgets
        except ImportError as error:
            raise ImportError("sliders need ipywidgets: pip install 'spectral-core[course]'") from error
        self.view, self.start = view, {**view.defaults, **_checked(view, start)}
        self.inputs = {control.name: _input(widgets, control, self.start[control.name]) for control in view.controls}
        self.image, self.words = widgets.Image(format="png"), widgets.HTML()
        reset = widgets.Button(description="Reset", tooltip="Back to the values at the start")
        reset.on_click(lambda _: self.set(**self.start))
        notes = {control.name: widgets.Label(control.note) for control in view.controls}
        rows = [widgets.HBox([box, notes[name]]) for name, box in self.inputs.items()]
        self.box = widgets.VBox([*rows, reset, self.image, self.words])
        self._held = False
        for box in self.inputs.values():
            box.observe(self._redraw, names="value")
        self._redraw()

    @property
    def values(self) -> dict[str, Any]:
        """The value of every control, by name."""
        return {name: box.value for name, box in self.inputs.items()}

    def set(self, **values: Any) -> Panel:
        """Move controls as a hand would, with one redraw at the end.

        Raises:
            ValueError: an unknown control, or a value outside its range.
        """
        checked = _checked(self.view, values)
        self._held = True
        try:
            for name, value in checked.items():
                self.inputs[name].value = value
        finally:
            self._held = False
        self._redraw()
        return self

    def sweep(self) -> Panel:
        """Drive every control to both of its ends, one at a time, and back: raises what the drawing raises."""
        for control in self.view.controls:
            for end in control.ends:
                self.inputs[control.name].value = end
            self.inputs[control.name].value = self.start[control.name]
        return self

    def _redraw(self, change: object = None) -> None:
        if self._held:
            return
        try:
            drawn = self.view.draw(**self.values)
        except Exception as error:
            self.words.value = f"<strong>{escape(f'{type(error).__name__}: {error}')}</strong>"
            raise
        self.image.value = png(drawn)
        self.words.value = f"<small>{escape(drawn.alt)}</small>"  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"sliders of {self.view.id}: {', '.join(f'{name}={value}' for name, value in self.values.items())}"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        labels = ", ".join(escape(control.label) for control in self.view.controls)
        bundle = self.box._repr_mimebundle_()
        # what a saved notebook shows, where no kernel runs
        saved = f"<p>▶ Run this cell to get sliders for {labels} on the figure above.</p>"
        return {**bundle, "text/plain": repr(self), "text/html": saved}


def _input(widgets: Any, control: Slider | Choice, value: Any) -> Any:
    common = {
        "description": control.label, "tooltip": control.note, "style": {"description_width": "initial"},
        "layout": {"width": "340px"},
    }  # fmt: skip
    if isinstance(control, Choice):
        return widgets.Dropdown(options=control.values, value=value, **common)
    whole = all(number == int(number) for number in (control.low, control.high, control.step))
    kind = widgets.IntSlider if whole else widgets.FloatSlider
    limits = {"min": control.low, "max": control.high, "step": control.step}
    return kind(value=value, continuous_update=False, **limits, **common)


def _checked(view: View, values: dict[str, Any]) -> dict[str, Any]:
    controls = {control.name: control for control in view.controls}
    for name, value in values.items():
        if name not in controls:
            raise ValueError(f"{view.id}: expected controls among {', '.join(controls)}, got {name!r}")
        control = controls[name]
        if isinstance(control, Choice):
            check_choice(value, name, control.values)
        else:
            check_number(value, name, minimum=control.low, maximum=control.high)
    return values
