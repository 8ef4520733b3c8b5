"""κ(J) of every attention head of a model, at the input that the head really sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectral_core._progress import progress_bar
from spectral_core.capture import capture_calls, choose_layers
from spectral_core.head_plans import Plan, lay_out
from spectral_core.layouts import Layout
from spectral_core.projections import ROLES
from spectral_core.spectrum import condition_number

__all__ = ["HeadJacobian", "attention_jacobians"]


@dataclass(frozen=True)
class HeadJacobian:
    """One attention head at the captured input; tensors have one entry per example of the batch.

    Attributes:
        layer: name of the attention module in the model; "#2" is added for its second call in one pass, and so on.
        head: index of the head.
        condition_number, effective_condition_number, rank, converged, bound: of J, per head, as in `JacobianCondition`.
        method, note: how κ was found for the chunks that hold this head, and what limits it there.
        norms: Frobenius norm of J's block for each role of `wrt`.
        saturation: mean over tokens of the largest attention weight.
        kappa_w: κ of this head's own W_Q, W_K, W_V (D × d), corrections included.
    """

    layer: str
    head: int
    condition_number: Tensor
    effective_condition_number: Tensor
    rank: Tensor
    converged: Tensor
    bound: Tensor
    method: str
    note: str
    norms: dict[str, Tensor]
    saturation: Tensor
    kappa_w: dict[str, float]


def attention_jacobians(
    model: nn.Module,
    batch: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    layers: Iterable[int | str] | None = None,
    heads: Iterable[int] | None = None,
    wrt: str = "qkv",
    method: str = "auto",
    max_bytes: int = 4 * 2**30,
    layouts: Mapping[str, Layout] | None = None,
    refused: dict[str, str] | None = None,
    progress: bool = True,
) -> list[HeadJacobian]:
    """One record per attention layer and head of `model`, at the inputs that `batch` produces.

    Args:
        model: any model of `find_projections` with softmax attention, its weights fused or not. It is left as it
            was: same outputs, training mode, hooks and state.
        batch: what the model is called with: a tensor, a tuple of arguments, or a mapping of keyword arguments.
            κ is computed for every example of it, so pass few.
        layers: attention layers to look at, by position or by name; None for all.
        heads: indices of heads; None for all.
        wrt, method: as in `AttentionJacobian.condition_number`.
        max_bytes: memory for one chunk of heads and examples, beyond the model's own.
        layouts: as in `find_projections`.
        refused: a dict that takes {layer: why} for layers whose Jacobian is another one, instead of an error.
        progress: show a bar on standard error when this takes over a second.

    Raises:
        ValueError: no supported attention, an unknown layer or head, a layer that is not plain softmax attention, or
            `max_bytes` too small for one head.
    """
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
        raise ValueError(f"max_bytes: expected a positive integer, got {max_bytes!r}")
    chosen = choose_layers(model, layers, layouts)
    wanted = None if heads is None else list(heads)
    plans = []
    for name, call in capture_calls(model, batch, chosen, refused):
        module = name.partition("#")[0]
        try:
            plans.append(lay_out(name, model.get_submodule(module), chosen[module], call, wanted))
        except (ValueError, RuntimeError) as error:
            if refused is None:
                raise
            refused[name] = str(error) if isinstance(error, ValueError) else f"{name}: {error}"
    records: list[HeadJacobian] = []
    with progress_bar("κ(J) of attention heads", sum(plan.pairs for plan in plans), shown=progress) as advance:
        for plan in plans:
            try:
                records += _measure(plan, wrt, method, max_bytes, advance)
            except (ValueError, RuntimeError) as error:
                if refused is None:
                    raise
                refused[plan.name] = f"{plan.name}: {error}"
    return records


def _measure(plan: Plan, wrt: str, method: str, max_bytes: int, advance) -> list[HeadJacobian]:
    one = plan.jacobian(slice(0, 1), slice(0, 1)).bytes_needed(wrt, method=method)
    fit = max_bytes // one
    if fit < 1:
        raise ValueError(
            f"max_bytes: expected at least {one} for one head of {plan.name} ({plan.x.shape[-2]} tokens), got "
            f"{max_bytes}; raise max_bytes, or pass fewer tokens"
        )
    per_heads = min(fit, len(plan.heads))
    per_examples = max(1, fit // len(plan.heads))
    columns = []
    for h in range(0, len(plan.heads), per_heads):
        rows = []
        for e in range(0, len(plan.x), per_examples):
            jac = plan.jacobian(slice(e, e + per_examples), slice(h, h + per_heads))
            result = jac.condition_number(wrt, method=method, max_bytes=max_bytes)
            rows.append((result, jac.norms(wrt), jac.attention().amax(-1).mean(-1)))
            advance(jac.batch_shape.numel())
        columns.append(rows)
    kappa_w = {role: condition_number(w).tolist() for role, w in plan.weights.items()}
    records = []
    for i, head in enumerate(plan.heads):
        rows, j = columns[i // per_heads], i % per_heads

        def gather(pick, rows=rows, j=j) -> Tensor:
            return torch.cat([pick(row)[:, j] for row in rows])

        records.append(HeadJacobian(
            layer=plan.name, head=head,
            condition_number=gather(lambda row: row[0].value),
            effective_condition_number=gather(lambda row: row[0].effective_value),
            rank=gather(lambda row: row[0].rank), converged=gather(lambda row: row[0].converged),
            bound=gather(lambda row: row[0].bound),
            method=", ".join(dict.fromkeys(result.method for result, *_ in rows)),
            note="; ".join(dict.fromkeys(result.note for result, *_ in rows if result.note)),
            norms={role: gather(lambda row, role=role: row[1][role]) for role in rows[0][1]},
            saturation=gather(lambda row: row[2]), kappa_w={role: kappa_w[role][i] for role in ROLES},
        ))
    return records
