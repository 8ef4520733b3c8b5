"""The parametrization that `condition` puts on one stored weight, and how it is taken off again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectral_core.corrections import Correction
from spectral_core.layouts import Layout

__all__ = ["SCOPES", "ConditionedWeight", "conditioned_weights", "put_on", "take_off"]

SCOPES = ("matrix", "head", "packed")


class ConditionedWeight(nn.Module):
    """Stored weight -> stored weight with W + C in the rows of each corrected role.

    Corrections are shared with other weights, not copied. Every one sees an (out, in) matrix, as `nn.Linear` stores it:
    all of a role (scope "matrix"), (heads, rows of one, in) at once ("head"), or the whole parameter ("packed").

    Args:
        layout: where the roles are.
        corrections: by role; for "packed" the same one for each.
        scope: one of the three.
        order: the parameters of the module before it was conditioned, to put them back in this order.
    """

    def __init__(
        self, layout: Layout, corrections: dict[str, Correction], scope: str, order: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.layout, self.scope, self.order = layout, scope, tuple(order)
        self.corrections = nn.ModuleDict(corrections)

    def forward(self, stored: Tensor) -> Tensor:
        """Any shape that the layout fits -> the same shape and dtype."""
        if self.scope == "packed":
            return self.layout.unmatrix(self.corrected(stored, next(iter(self.corrections))), stored)
        values = {role: self.corrected(stored, role) for role in self.corrections}
        if self.scope == "head":
            values = {role: w.flatten(0, 1) for role, w in values.items()}
        return self.layout.put(stored, values)

    def plain(self, stored: Tensor, role: str) -> Tensor:
        """W as the correction of this role sees it: (out, in), or (heads, rows of one, in) with scope "head"."""
        if self.scope == "packed":
            return self.layout.matrix(stored)
        w = self.layout.take(stored, role)
        return w if self.scope == "matrix" else w.unflatten(0, (self.layout.heads_of(role), -1))

    def corrected(self, stored: Tensor, role: str) -> Tensor:
        """W + C in that shape."""
        w = self.plain(stored, role)
        return self.corrections[role](w) if w is stored else self.corrections[role](w, (stored, role))

    def update(self, **changes: Any) -> None:
        """`Correction.update` of the corrections in use here; other weights that share them change with it."""
        for correction in dict.fromkeys(self.corrections.values()):
            correction.update(**changes)  # type: ignore[operator]

    def right_inverse(self, value: Tensor) -> Tensor:
        # torch takes this error at registration for "keep the weight as it is", and raises it on assignment
        raise NotImplementedError(
            "a conditioned weight cannot be assigned to, since W or W + C could be meant: write to "
            ".parametrizations.<name>.original, or unfold(model) or fold(model) first"
        )

    def extra_repr(self) -> str:
        return f"{self.layout.kind}, scope={self.scope!r}"


def conditioned_weights(model: nn.Module) -> list[tuple[str, nn.Module, str, ConditionedWeight]]:
    """(name of the module, module, parameter, parametrization) of every conditioned weight.

    Raises:
        ValueError: a weight carries a parametrization of someone else's beside ours.
    """
    found = []
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for parameter, stack in module.parametrizations.items():  # type: ignore[union-attr, operator]
            ours = [isinstance(step, ConditionedWeight) for step in stack]
            if any(ours) and not all(ours):
                raise ValueError(
                    f"{name}.{parameter}: expected corrections only, got the parametrizations "
                    f"{[type(step).__name__ for step in stack]}; remove the others first"
                )
            if any(ours):
                found.append((name, module, parameter, stack[0]))
    return found


def parameter_order(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters in the order in which the module had them before any was conditioned."""
    if parametrize.is_parametrized(module):
        for stack in module.parametrizations.values():  # type: ignore[union-attr, operator]
            if isinstance(stack[0], ConditionedWeight):
                return stack[0].order
    return tuple(module._parameters)


def put_on(module: nn.Module, parameter: str, weight: ConditionedWeight) -> None:
    """Register the parametrization; what it needs has been checked, and no forward is run."""
    if parametrize.is_parametrized(module):
        _own_class(module)
    parametrize.register_parametrization(module, parameter, weight, unsafe=True)
    cls: Any = type(module)  # made by torch for this module alone
    base = cls.__bases__[0]

    def load(self: nn.Module, state_dict: dict, prefix: str, *rest: Any) -> None:
        _rename_plain_keys(self, state_dict, prefix)
        base._load_from_state_dict(self, state_dict, prefix, *rest)

    cls._load_from_state_dict = load
    cls.__getstate__ = _refuse_pickle


def take_off(module: nn.Module, parameter: str) -> None:
    """Remove the parametrization of one weight and leave the stored W, the same object, in its old place."""
    order = module.parametrizations[parameter][0].order  # type: ignore[index, union-attr]
    _own_class(module)
    parametrize.remove_parametrizations(module, parameter, leave_parametrized=False)
    kept = dict(module._parameters)
    # optimizers save their state by the order of the parameters
    for key in [*(key for key in order if key in kept), *(key for key in kept if key not in order)]:
        delattr(module, key)
        module.register_parameter(key, kept[key])


def _own_class(module: nn.Module) -> None:
    """A deepcopy shares the class that torch made, and torch adds and deletes the properties of weights in it."""
    cls = type(module)
    own = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(cls.__name__, cls.__bases__, own)


def _rename_plain_keys(module: nn.Module, state_dict: dict, prefix: str) -> None:
    """Give the keys of a plain checkpoint the names that they have under the parametrization."""
    for parameter, stack in module.parametrizations.items():  # type: ignore[union-attr, operator]
        inner = f"{prefix}parametrizations.{parameter}."
        if f"{prefix}{parameter}" in state_dict and f"{inner}original" not in state_dict:
            state_dict[f"{inner}original"] = state_dict.pop(f"{prefix}{parameter}")
            for key, value in stack.state_dict().items():  # a learned λ is not in plain checkpoints: it stays
                state_dict.setdefault(inner + key, value)


def _refuse_pickle(self: nn.Module) -> None:
    raise RuntimeError(
        "a conditioned model cannot be pickled whole, with torch.save(model) or to another process: save "
        "plain_state_dict(model), which loads into the model before or after condition, or fold(model) first; "
        "copy.deepcopy works"
    )
