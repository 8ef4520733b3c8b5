"""What weights alone cannot say: κ(J), saturation and block norms of the model that a checkpoint belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_core.audit.inputs import check_folder, image_batch, text_batch
from spectral_core.audit.reading import one_line
from spectral_core.audit.result import HeadAudit
from spectral_core.audit.skeleton import tensor_name
from spectral_core.audit.store import AuditError, Checkpoint
from spectral_core.calibration import calibrate
from spectral_core.head_jacobians import HeadJacobian, attention_jacobians
from spectral_core.layouts import Layout
from spectral_core.projections import Projection, find_projections

__all__ = ["Look", "look"]

CALIBRATED = 3, 4  # layers (the first, one in the middle, the last) and heads of each that `calibrate` looks at


@dataclass(frozen=True)
class Look:
    """Heads at the inputs, the inputs in words, advice of `calibrate`, and what could not be measured."""

    heads: tuple[HeadAudit, ...]
    data: str
    advice: str
    problems: tuple[str, ...]


def look(
    stored: Checkpoint,
    projections: list[Projection],
    chosen: set[str],
    data: str,
    *,
    timm_name: str | None = None,
    layouts: Mapping[str, Layout] | None = None,
    examples: int = 1,
    tokens: int = 16,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Look:
    """Build the model, run it on `data` ("random" or a folder of texts or images), and measure every head.

    Args:
        stored: the checkpoint.
        projections: where its queries, keys and values are; chosen: names of the attention modules to look at.
        timm_name: of the model, if it is timm's.
        layouts: as in `find_projections`.
        examples: texts or images; tokens: of each text.

    Raises:
        AuditError: the model cannot be built or fed; says why.
    """
    folder = check_folder(data)
    with _as_audit_errors(stored.target):
        model = _timm(timm_name, stored) if timm_name else _transformers(stored)
        model = model.to(device).float().eval()
        batch, words = _inputs(model, stored, folder, examples, tokens, is_timm=timm_name is not None)
        batch = {k: v.to(device) for k, v in batch.items()} if isinstance(batch, Mapping) else batch.to(device)
    refused: dict[str, str] = {}
    layers = list(dict.fromkeys(p.attention for p in projections))
    with _as_audit_errors(stored.target):
        names = _names(stored, projections, find_projections(model, layouts=layouts))
        wanted = [name for name, own in names.items() if own in chosen]
        with torch.random.fork_rng():
            torch.manual_seed(0)  # some models mask at random (ViT-MAE)
            records = attention_jacobians(
                model, batch, layers=wanted, layouts=layouts, refused=refused, progress=progress
            )
    heads = []
    for record in records:
        name, _, call = record.layer.partition("#")
        heads.append(_summarize(record, names[name], layers.index(names[name]), int(call or 1)))
    reasons = (why.replace("leave it out with layers=", "leave it out with --exclude") for why in refused.values())
    problems = [f"κ(J) of {why}" for why in dict.fromkeys(reasons)]
    seen = {h.layer for h in heads} | {names[name.partition("#")[0]] for name in refused}
    problems += [
        f"κ(J) of {own}: no layer of the model that was built has its weights"
        for own in layers
        if own in chosen and own not in seen
    ]
    counts = Counter(record.layer for record in records if "#" not in record.layer)
    advice = _advice(model, batch, layouts, list(counts), min(counts.values(), default=0), progress)
    return Look(tuple(heads), words, advice, tuple(problems))


def _advice(
    model: nn.Module, batch: Any, layouts: Mapping[str, Layout] | None, layers: list[str], fewest: int, progress: bool
) -> str:
    if not layers:
        return ""
    count, most = CALIBRATED
    some = list(dict.fromkeys(layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)))
    heads = range(min(most, fewest))
    one = {key: value[:1] for key, value in batch.items()} if isinstance(batch, Mapping) else batch[:1]
    try:
        found = calibrate(model, one, layers=some, heads=heads, layouts=layouts, progress=progress)
        return f"{found.reason} (Looked at: {len(heads)} heads each of {', '.join(some)}.)"
    except Exception as error:  # the measurements are worth more than the advice
        return f"no advice, since {one_line(error)}"


def _summarize(record: HeadJacobian, layer: str, index: int, call: int) -> HeadAudit:
    worst = int(record.condition_number.argmax())
    sure = bool(record.converged[worst])
    kappa = float(record.condition_number[worst])
    if kappa == float("inf") and sure:  # more rows than the gauge leaves: over the rank that there is
        kappa = float(record.effective_condition_number[worst])
    norms = {role: float(values.median()) for role, values in record.norms.items()}
    return HeadAudit(
        layer=layer, index=index, head=record.head, call=call, kappa_j=kappa, lower_bound=not sure,
        rank=int(record.rank[worst]), saturation=float(record.saturation.mean()), norm_q=norms["q"],
        norm_k=norms["k"], norm_v=norms["v"],
    )


def _names(stored: Checkpoint, projections: list[Projection], built: list[Projection]) -> dict[str, str]:
    """{attention module of the model: its name in the checkpoint}, by the queries' weights.

    Names differ by a prefix ("bert.encoder…") or altogether, where a library renames what it loads. Weights that are
    not the checkpoint's, freshly drawn ones for instance, match nothing.
    """
    own: dict[tuple, list[str]] = {}
    for p in projections:
        name = tensor_name(p)
        if p.role == "q" and not stored.tensors[name].problem:
            w = stored.read(name)
            if w.is_floating_point() and w.shape == p.stored.shape:
                own.setdefault(_fingerprint(p.layout.take(w, "q").float()), []).append(p.attention)
    found = {}
    for p in built:
        if p.role == "q":
            same = own.get(_fingerprint(p.weight.detach().float()), [])
            ends = [name for name in same if f".{name}".endswith(f".{p.attention}") or p.attention.endswith(f".{name}")]
            if len(same) == 1 or len(ends) == 1:
                found[p.attention] = (ends or same)[0]
    return found


def _fingerprint(w: Tensor) -> tuple:
    """Shape and two moments: the same tensor has the same, another practically never."""
    w = w.cpu().double()
    return (*w.shape, repr(float(w.sum())), repr(float(w.square().sum())))  # as text, nan is nan


# ---- the model -------------------------------------------------------------------------------------------------------


@contextmanager
def _as_audit_errors(target: str) -> Iterator[None]:
    """Libraries raise anything; one sentence of it is enough."""
    try:
        yield
    except AuditError:
        raise
    except ImportError as error:
        raise AuditError(f"--data builds the model: pip install 'spectral-core[models]' ({error})") from error
    except Exception as error:
        raise AuditError(f"--data: {target} could not be built or run: {one_line(error)}") from error


def _timm(name: str, stored: Checkpoint) -> nn.Module:
    import timm  # its schemas are declared by now

    model = timm.create_model(name, pretrained=False)
    own = model.state_dict()
    # not strict: a classifier of another size does not matter to attention, and all else was compared before
    shapes = {key: tensor.shape for key, tensor in stored.tensors.items()}
    fits = {key: stored.read(key) for key, value in own.items() if shapes.get(key) == tuple(value.shape)}
    model.load_state_dict(fits, strict=False)
    return model


def _transformers(stored: Checkpoint) -> nn.Module:
    if stored.config is None or "model_type" not in stored.config or stored.folder is None:
        raise AuditError(
            "--data: expected a folder with config.json, from which transformers builds the model, or a timm model's "
            "name and --checkpoint; got weights alone"
        )
    transformers = import_transformers()
    # the tensors that were audited, not whatever file of the folder transformers would choose
    weights = {name: stored.read(name) for name, tensor in stored.tensors.items() if not tensor.problem}
    with quiet(transformers):
        config = transformers.AutoConfig.from_pretrained(
            str(stored.folder), local_files_only=True, trust_remote_code=False
        )
        kind = _model_class(transformers, config)
        load = partial(
            kind.from_pretrained, None, config=config, state_dict=weights, dtype=torch.float32,
            output_loading_info=True,
        )  # fmt: skip
        try:
            model, report = load(attn_implementation="sdpa")
        except ValueError as error:
            if "implementation" not in str(error):
                raise
            model, report = load(attn_implementation="eager")
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    missing = sorted(name for name in report["missing_keys"] if name in learned and "pooler" not in name)
    if missing:
        raise AuditError(
            f"--data: expected all weights of {kind.__name__} in the checkpoint, got none of {', '.join(missing[:3])} "
            f"({len(missing)} in all): they would be random, and κ(J) with them"
        )
    return model


def _model_class(transformers: Any, config: Any) -> Any:
    """The class that the configuration names, or the one without a head for its model type."""
    named = getattr(transformers, (config.architectures or [""])[0] or "-", None)
    if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
        return named
    with torch.device("meta"):
        return type(transformers.AutoModel.from_config(config, trust_remote_code=False))


def import_transformers() -> Any:
    """transformers, on a CPU-only torch too."""
    from spectral_core.torchvision_schemas import declare_missing

    declare_missing()
    import transformers

    return transformers


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without its bars and notices, which would mix with the audit's own output."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    was_on = logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        logging.set_verbosity(level)
        if was_on:
            logging.enable_progress_bar()


def _inputs(
    model: nn.Module, stored: Checkpoint, folder: Path | None, examples: int, tokens: int, *, is_timm: bool
) -> tuple[Tensor | dict[str, Tensor], str]:
    kind = "pixel_values" if is_timm else getattr(model, "main_input_name", "")
    if kind == "pixel_values":
        batch, words = image_batch(model, folder, examples, stored)
        return (batch if is_timm else {kind: batch}), words
    size = getattr(model.config, "vocab_size", None)
    if kind != "input_ids" or not isinstance(size, int):
        raise AuditError(f"--data: expected a model of texts or of images, got one of {kind or 'neither'}")
    ids, words = text_batch(stored.folder, folder, examples, tokens, size)
    both = getattr(model.config, "is_encoder_decoder", False)
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if both else {}), words
