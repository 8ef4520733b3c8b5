"""The audit of a checkpoint from end to end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectral_core._checks import check_choice
from spectral_core.audit.inputs import check_folder
from spectral_core.audit.live import Look, look
from spectral_core.audit.measure import measure
from spectral_core.audit.result import Audit
from spectral_core.audit.skeleton import locate
from spectral_core.audit.store import AuditError, Checkpoint, open_checkpoint, printable
from spectral_core.layouts import Layout
from spectral_core.matching import Patterns, matches

__all__ = ["audit_checkpoint"]

SCOPES = ("both", "head", "matrix")


def audit_checkpoint(
    target: str | Path,
    *,
    checkpoint: str | Path | None = None,
    scope: str = "both",
    allow_pickle: bool = False,
    layouts: Mapping[str, Layout] | None = None,
    heads: int | None = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    data: str | None = None,
    examples: int = 1,
    tokens: int = 16,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Audit:
    """κ, ranks and spectra of the query, key and value weights of a checkpoint, without building its model.

    Args:
        target: a .safetensors file, a folder as Hugging Face writes it, `package:NAME` for a checkpoint that an
            installed package carries, or the name of a timm model whose weights `checkpoint` names.
        checkpoint: weights of a timm model.
        scope: "matrix" (each role of a layer as one matrix), "head" (each head's rows), or "both".
        allow_pickle: read .bin and .pt files too, by `torch.load(weights_only=True)`.
        layouts: of fused weights that neither the configuration nor timm explains, as in `find_projections`.
        heads: query heads of every layer, where no configuration says it.
        include, exclude: attention modules by name, as in `condition`.
        data: a folder of texts or images, or "random": builds the model too (timm or transformers), for κ(J),
            saturation and block norms of every head there, and the advice of `calibrate`.
        examples, tokens: with data, how many texts or images, and tokens of each text.
        device: where the spectra are computed, in float64.
        progress: show a bar on standard error when this takes over a second.

    Returns:
        an `Audit`; what could not be read is in it, under `gaps`.

    Raises:
        AuditError: nothing could be audited; says what was expected, what came, and what to do.
        ValueError: an unknown scope or device.
    """
    started = time.perf_counter()
    check_choice(scope, "scope", SCOPES)
    place = check_device(device)
    stored = open_checkpoint(target if checkpoint is None else checkpoint, allow_pickle=allow_pickle)
    stored = replace(stored, target=str(target))
    timm_name = str(target) if checkpoint is not None else _timm_architecture(stored)
    model = None if timm_name is None else _timm_model(timm_name)
    if model is not None:
        _check_names(stored, model, str(timm_name))
    located = locate(stored, model=model, layouts=layouts, heads=heads)

    def chosen(name: str) -> bool:
        wanted = include is None or matches(name, include)
        return wanted and not (exclude is not None and matches(name, exclude))

    projections = [p for p in located.projections if chosen(p.attention)]
    if not projections:
        names = list(dict.fromkeys(p.attention for p in located.projections))
        raise AuditError(f"include, exclude: expected to leave some of {names[:6]}, got none of {len(names)}")
    if data is not None:
        check_folder(data)
    every = list(dict.fromkeys(p.attention for p in located.projections))
    rows = measure(stored, projections, layers=every, scope=scope, device=place, progress=progress)
    seen = Look((), "", "", ())
    if data is not None:
        try:
            seen = look(
                stored, located.projections, {row.layer for row in rows}, data, timm_name=timm_name, layouts=layouts,
                examples=examples, tokens=tokens, device=place, progress=progress,
            )
        except AuditError as error:  # the weights are known all the same
            seen = Look((), f"{data}, in vain", "", (str(error),))
    problems, notes = [*stored.problems, *located.problems, *seen.problems], list(stored.notes)
    if scope != "matrix" and any(p.layout.heads is None for p in projections):
        text = (
            "The number of heads of some layers is not known (no config.json tells it): whole matrices alone. State it "
            "with --heads."
        )
        (problems if scope == "head" else notes).append(text)
    return Audit(
        target=printable(str(target)), matrices=tuple(map(_shown, rows)), heads=tuple(map(_shown, seen.heads)),
        data=printable(seen.data), advice=printable(seen.advice),
        unmatched=tuple(_shown(u) for u in located.unmatched if chosen(u.name)),
        problems=tuple(map(printable, problems)), notes=tuple(map(printable, notes)),
        seconds=time.perf_counter() - started,
    )


def _shown(row: Any) -> Any:
    """A copy whose texts, names from a file among them, can be shown anywhere."""
    texts = {f.name: value for f in fields(row) if isinstance(value := getattr(row, f.name), str)}
    return replace(row, **{name: printable(text) for name, text in texts.items()})


def check_device(device: str | torch.device) -> torch.device:
    """The device, if it can be used here."""
    try:
        place = torch.device(device)
        float(torch.zeros(1, device=place))  # the meta device has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device: expected one that can be used here, such as cpu, got {device} ({reason})") from error
    return place


def _timm_architecture(stored: Checkpoint) -> str | None:
    """The timm model that a configuration in timm's own format names."""
    config = stored.config or {}
    name = config.get("architecture")
    return name if isinstance(name, str) and "model_type" not in config else None


def _timm_model(name: str) -> nn.Module:
    """A timm model on the meta device: its classes say how weights are stored, and it takes no memory."""
    try:
        from spectral_core.torchvision_schemas import declare_missing

        declare_missing()
        import timm
    except ImportError as error:
        raise AuditError("a timm model needs timm: pip install 'spectral-core[models]'") from error
    if not timm.is_model(name):
        near = ", ".join(get_close_matches(name, timm.list_models())) or "none"
        raise AuditError(f"{name}: expected the name of a timm model, got none of that name; near names: {near}")
    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False)
    except Exception as error:  # an unknown tag after the dot, or a model that cannot be built without weights
        raise AuditError(f"{name}: expected a timm model that can be built, got {str(error)[:200]}") from error


def _check_names(stored: Checkpoint, model: nn.Module, name: str) -> None:
    """A checkpoint of another model has other names or shapes."""
    own = dict(model.named_parameters())
    shared = [key for key in own if key in stored.tensors]
    wrong = [key for key in shared if (s := stored.tensors[key].shape) is not None and s != tuple(own[key].shape)]
    heads = ("head.", "fc.", "classifier.")
    missing = [key for key in own if key not in stored.tensors and not key.startswith(heads)]
    wrong = [key for key in wrong if not key.startswith(heads)]
    if missing or wrong:
        key = (missing or wrong)[0]
        came = "none of that name" if missing else f"shape {stored.tensors[key].shape}"
        raise AuditError(
            f"{name}: expected its weights in the checkpoint, got others ({len(missing)} of {len(own)} tensors "
            f"missing, {len(wrong)} of other shapes; first {key}, {tuple(own[key].shape)}: {came})"
        )
