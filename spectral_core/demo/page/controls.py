"""The controls beside the tabs: what to correct, how, and what to start from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from spectral_core.demo.settings import (
    ARMS,
    CHOICES,
    LARGEST,
    LIMITS,
    MOST_VALUES,
    RANGES,
    ROLES,
    Settings,
    control_names,
)

__all__ = [
    "HIDDEN", "SHOW_GROUPS", "Controls", "control_values", "group_updates", "make_controls", "make_race_controls",
]  # fmt: skip

HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "undocumented"}  # of all events
#: groups of sliders: the kinds that show them, and what they are called
GROUPS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "limits": (("targets", "profile"), {"max": "σ_max of W_{}", "min": "σ_min of W_{}"}),
    "decay": (("profile",), {"decay": "decay of W_{}"}),
    "kappa": (("kappa",), {"kappa": "target κ of W_{}"}),
    "identity": (("identity",), {"lam": "λ on W_{}"}),
    "drawn": (("drawn",), {"drawn": "singular values of W_{}"}),
}


#: the same as `group_updates`, in the browser
SHOW_GROUPS = f"""(kind) => {json.dumps([kinds for kinds, _ in GROUPS.values()])}.map((kinds) => (
  {{__type__: "update", visible: kinds.includes(kind) ? true : "hidden"}}))"""


@dataclass
class Controls:
    """The components by the names of `control_names`, and the groups that belong to some kinds only."""

    by_name: dict[str, Any] = field(default_factory=dict)
    groups: list[Any] = field(default_factory=list)

    @property
    def listed(self) -> list[Any]:
        return [self.by_name[name] for name in control_names()]


def make_controls(controls: Controls) -> None:
    """Draw the column; those of the race are drawn in its tab, by `make_race_controls`."""
    start = Settings()
    kinds = [(label, kind) for kind, label in CHOICES["kind"].items()]
    by_name = controls.by_name
    by_name["kind"] = gr.Radio(kinds, value=start.kind, label="Correction W → W + C", elem_id="kind")
    for group, (shown_for, names) in GROUPS.items():
        with gr.Group(visible=start.kind in shown_for or "hidden", elem_id=f"group-{group}") as box:
            for role in ROLES:
                for name, label in names.items():
                    by_name[f"{name}_{role}"] = _control(name, role, label.format(role.upper()))
        controls.groups.append(box)
    by_name["roles"] = gr.CheckboxGroup(
        [role.upper() for role in ROLES], value=[role.upper() for role in ROLES], label="Applied to", elem_id="roles"
    )
    with gr.Accordion("Where it is put, and at what size", open=False, elem_id="where"):
        by_name["scope"] = _choice("scope", "Each of these is one matrix", start.scope)
        by_name["preserve"] = _choice("preserve", "Rescale W + C to W's own norm", start.preserve)
    with gr.Accordion("Weights, tokens, seed", open=False, elem_id="start-from"):
        by_name["init"] = _choice("init", "Q, K, V start as", start.init)
        by_name["source"] = _choice("source", "Tokens, and task of the race", start.source)
        low, high, value, _ = LIMITS["seed"]
        by_name["seed"] = gr.Number(
            int(value), precision=0, minimum=low, maximum=high, label="Seed", elem_id="seed",
            info="Of the weights; with MiniLM it chooses one of 12 heads. The race takes it up at its next start.",
        )


def make_race_controls(controls: Controls) -> None:
    """Arms and learning rate."""
    start = Settings()
    arms = [(label, name) for name, label in ARMS.items()]
    controls.by_name["arms"] = gr.CheckboxGroup(
        arms, value=list(start.arms), label="Who races: up to four, same seed, same batches", elem_id="arms"
    )
    low, high, value, step = LIMITS["log_lr"]
    controls.by_name["log_lr"] = gr.Slider(
        low, high, value, step=step, label="log₁₀ of the learning rate, from the next start", elem_id="log-lr"
    )


def _choice(name: str, label: str, value: str) -> gr.Radio:
    return gr.Radio([(text, key) for key, text in CHOICES[name].items()], value=value, label=label, elem_id=name)


def _control(name: str, role: str, label: str) -> Any:
    if name == "drawn":
        hint = f"largest first, up to {MOST_VALUES} numbers from 0 to {LARGEST:g}" if role == "q" else None
        return gr.Textbox("", label=label, info=hint, lines=1, max_lines=1, elem_id=f"drawn-{role}")
    low, high, value, step = RANGES[name]
    return gr.Slider(low, high, value, step=step, label=label, elem_id=f"{name}-{role}")


def control_values(settings: Settings) -> list[object]:
    """The value of every control, in the order of `control_names`."""
    values: list[object] = []
    for name in control_names():
        stem, _, role = name.rpartition("_")
        if name == "roles":
            values.append([r.upper() for r in settings.roles])
        elif name == "arms":
            values.append(list(settings.arms))
        elif stem == "drawn":
            values.append(" ".join(f"{v:.4g}" for v in settings.drawn[role]))
        else:
            values.append(getattr(settings, stem)[role] if stem in RANGES else getattr(settings, name))
    return values


def group_updates(kind: object) -> list[Any]:
    """Show the groups of this kind; the others stay in the page, out of sight."""
    return [gr.update(visible=kind in shown_for or "hidden") for shown_for, _ in GROUPS.values()]
