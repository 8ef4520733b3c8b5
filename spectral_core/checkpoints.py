"""Checkpoints of conditioned models under the plain model's keys."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spectral_core.conditioned_weight import conditioned_weights

__all__ = ["plain_state_dict"]


@torch.no_grad()
def plain_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor] | None = None, *, folded: bool = False
) -> dict[str, Tensor]:
    """The `state_dict` of a conditioned model with the keys, order and shapes that it had before `condition`.

    By default the weights are W, as trained: the checkpoint loads into the model before or after `condition`, which
    adds the same C again. With `folded` they are W + C, for use without this package. A learned λ is not in it.

    Args:
        model: conditioned or plain; nothing is changed.
        state_dict: one of that model gathered elsewhere (FSDP, Accelerate), instead of `model.state_dict()`.
        folded: whether to write W + C.

    Returns:
        A new dict; tensors are not copied, but for W + C.

    Raises:
        ValueError: a weight carries a parametrization of someone else's beside the correction, a `state_dict` of
            another model or of its wrapper, or with `folded` a weight that is sharded.
    """
    found = {(id(module), parameter): weight for _, module, parameter, weight in conditioned_weights(model)}
    given = dict(model.state_dict() if state_dict is None else state_dict)
    rank: dict[str, int] = {}
    seen: set[str] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        ours = {key: weight for (owner, key), weight in found.items() if owner == id(module)}
        order = next(iter(ours.values())).order if ours else tuple(module._parameters)
        for key in [*order, *module._buffers]:
            rank[prefix + key] = len(rank)
        for key, weight in ours.items():
            inner = f"{prefix}parametrizations.{key}."
            if f"{inner}original" not in given:
                continue
            seen.add(f"{inner}original")
            w = given[f"{inner}original"]
            if folded and hasattr(w, "placements"):
                raise ValueError(
                    f"{prefix}{key}: expected a weight that is not sharded, got a DTensor; gather the state_dict first"
                )
            given = {k: value for k, value in given.items() if not k.startswith(inner)}
            given[prefix + key] = weight(w).contiguous() if folded else w
    endings = tuple(f".parametrizations.{name}.original" for _, name in found)
    left = [key for key in given if f".{key}".endswith(endings)]
    if left and not seen:
        raise ValueError(
            f"state_dict: expected the keys of this model, got others, such as {left[0]!r}; give the model that the "
            "state_dict is of, without the wrapper of DistributedDataParallel or torch.compile"
        )
    last = -1
    place = {}
    for key in given:  # what no module lists, such as extra state, stays behind its neighbour
        last = rank.get(key, last)
        place[key] = last
    return dict(sorted(given.items(), key=lambda item: place[item[0]]))
