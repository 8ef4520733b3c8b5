"""Where the query, key and value weights of a model are.

A name is not a layout: only modules that own three separate `nn.Linear` layers under a known triple of names
are taken. Everything else is refused with a list of what was found; fused layouts are still to come.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Projection", "find_projections"]

ROLES = "qkv"
SEPARATE_NAMES = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("to_q", "to_k", "to_v"),
    ("q_lin", "k_lin", "v_lin"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
)


@dataclass(frozen=True)
class Projection:
    """One projection weight of one attention module.

    Attributes:
        name: dotted name of the module that holds the weight, from the root of the model.
        role: "q", "k" or "v".
        module: that module.
        parameter: name of the parameter in it.
        layout: how the role lies in the parameter; "separate" is all of an (out, in) `nn.Linear` weight.
    """

    name: str
    role: str
    module: nn.Module
    parameter: str = "weight"
    layout: str = "separate"

    @property
    def weight(self) -> Tensor:
        """The weight that the model uses now, correction included, (out, in)."""
        return getattr(self.module, self.parameter)


def find_projections(model: nn.Module) -> list[Projection]:
    """All separate query, key and value layers of `model`, in module order.

    Raises:
        ValueError: none found; the message lists modules that look like attention, with their parameters.
    """
    found = []
    for prefix, module in model.named_modules():
        for names in SEPARATE_NAMES:
            layers = [layer for name in names if isinstance(layer := getattr(module, name, None), nn.Linear)]
            if len(layers) == len(names):
                for role, name, layer in zip(ROLES, names, layers, strict=True):
                    found.append(Projection(f"{prefix}.{name}" if prefix else name, role, layer))
                break
    if not found:
        raise ValueError(
            "expected a model with separate nn.Linear layers for query, key and value, under one of the names "
            f"{', '.join('/'.join(names) for names in SEPARATE_NAMES)}; got {type(model).__name__} with "
            f"{_describe_attention(model)}"
        )
    return found


def _describe_attention(model: nn.Module) -> str:
    lines = []
    for prefix, module in model.named_modules():
        if "att" in type(module).__name__.lower() and not parametrize.is_parametrized(module):
            shapes = ", ".join(f"{name} {tuple(p.shape)}" for name, p in module.named_parameters())
            lines.append(f"{prefix or '(root)'}: {type(module).__name__}({shapes})")
    return "these attention-like modules: " + "; ".join(lines) if lines else "no attention-like module"
