"""Choose the correction for a model by what it does to the exact κ(J) on a real batch, within limits on the softmax.

κ(J) alone would be fooled: attention that has collapsed to the identity has few directions left, and weights can be
scaled until nothing but the largest logit counts. So every candidate is also held to a limit on saturation and to
one on the change of the logits' scale, layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from spectral_core._checks import check_number
from spectral_core._progress import progress_bar
from spectral_core.bounds import suggest_lambda
from spectral_core.candidate_scores import Candidate, check_limits, score
from spectral_core.capture import call_model, capture_calls, choose_layers, evaluation
from spectral_core.conditioning import corrected
from spectral_core.corrections import Correction, IdentityCorrection
from spectral_core.head_plans import Plan, lay_out
from spectral_core.layouts import Layout
from spectral_core.polar_correction import PolarCorrection
from spectral_core.projections import ROLES, find_projections
from spectral_core.readiness import check_ready
from spectral_core.spectrum_target import SpectrumTarget

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Calibration", "Candidate", "calibrate"]

LAMBDAS = (0.1, 0.3, 1.0, 3.0, 10.0)

By = dict[str, Correction]


@dataclass(frozen=True)
class Calibration:
    """The choice, the table it comes from (best first, refused last), and the reason in a paragraph.

    Attributes:
        choice: corrections by role, as `condition` takes them; empty when the model is best left alone.
        table: every candidate, the chosen one first.
        reason: one paragraph.
        roles: those that could be corrected.
        max_saturation, max_logit_change: the limits.
    """

    choice: By
    table: tuple[Candidate, ...]
    reason: str
    roles: str
    max_saturation: float
    max_logit_change: float

    def __str__(self) -> str:
        width = max(len(c.name) for c in self.table)
        lines = [f"{'candidate':<{width}}  {'κ(J), mean':>10}  {'worst':>9}  {'saturation':>10}  {'logits':>7}"]
        for c in self.table:
            kappa, worst = (("≥ " if c.lower_bound else "") + f"{k:.3g}" for k in (c.kappa, c.kappa_worst))
            if math.isnan(c.kappa):
                kappa = worst = "–"
            logits = max(c.logit_scale.values())
            line = f"{c.name:<{width}}  {kappa:>10}  {worst:>9}  {c.mean_saturation:>10.2f}  {logits:>7.2g}"
            lines.append(line + (f"  refused: {c.refused}" if c.refused else ""))
        return "\n".join(lines)

    def plot(self) -> Figure:
        """κ(J) and saturation against λ on all chosen roles, with the limit and the choice marked.

        Raises:
            ImportError: matplotlib is missing; the message names the extra that brings it.
        """
        from spectral_core.plots import calibration_sweep

        plain = next(c for c in self.table if not c.corrections)
        sweep = {0.0: plain} | {lam: c for c in self.table if (lam := _common_lambda(c, self.roles)) is not None}
        points = [
            (lam, (c := sweep[lam]).kappa, c.mean_saturation, c.lower_bound, bool(c.refused)) for lam in sorted(sweep)
        ]
        best = self.table[0]
        return calibration_sweep(points, (best.name, best.kappa, best.mean_saturation), limit=self.max_saturation)


def calibrate(
    model: nn.Module,
    batch: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    roles: str = "qkv",
    candidates: Mapping[str, Correction | By] | Iterable[Correction | By] | None = None,
    layers: Iterable[int | str] | None = None,
    heads: Iterable[int] | None = None,
    max_saturation: float = 0.5,
    max_logit_change: float = 4.0,
    exact: bool = False,
    layouts: Mapping[str, Layout] | None = None,
    progress: bool = True,
) -> Calibration:
    """The corrections, by role, that minimise the exact κ(J) of `model` on `batch` within two limits.

    Every candidate is put on for one forward pass and taken off again, so that each layer sees what the corrected
    layers before it give. It is scored by the geometric mean of κ(J) over layers, heads and examples, each from the
    extreme eigenvalues of J Jᵀ. It is refused when a layer's mean of max_j p_ij passes `max_saturation` (or what the
    plain model has there, if that is more), or when the spread of a layer's logits grows or shrinks by more than
    `max_logit_change` (growth up to a standard deviation of 2, where softmax is still soft, is always allowed).

    Args:
        model: with query, key and value layers that are known, fused or not, not conditioned. It is left as it was.
        batch: what the model is called with: a tensor, a tuple of arguments, or a mapping of keyword arguments. Every
            example of it costs the same again, so pass one or few.
        roles: those that may be corrected, any subset of "qkv".
        candidates: corrections for all of `roles`, or dicts by role, in a list or under names of their own; None for
            λ I with λ in (0.1, 0.3, 1, 3, 10), the polar correction, singular-value targets, and a search role by
            role around the best of those. The plain model is always among them.
        layers, heads: as in `attention_jacobians`, to look at a part of a large model.
        max_saturation: in (0, 1].
        max_logit_change: ≥ 1.
        exact: where κ(J) is beyond 2·10⁶, which a Gram matrix cannot tell, take an SVD (of J with up to 1 024 rows), so
            that candidates do not tie at a lower bound. Slower.
        layouts: as in `find_projections`.
        progress: show a bar on standard error when this takes over a second.

    Raises:
        ValueError: a model without supported attention or conditioned already, a batch that does not fit it, unknown
            roles, or candidates and limits that are none.
    """
    if not isinstance(roles, str) or not roles or set(roles) - set(ROLES):
        raise ValueError(f'roles: expected a non-empty subset of "qkv", got {roles!r}')
    limit = check_number(max_saturation, "max_saturation", minimum=0.0, exclusive=True, maximum=1.0)
    change = check_number(max_logit_change, "max_logit_change", minimum=1.0)
    roles = "".join(r for r in ROLES if r in roles)
    given = None if candidates is None else _named(candidates, roles)
    projections = find_projections(model, layouts=layouts)
    check_ready(model, projections, projections)
    _check_batch(model, batch)
    chosen, wanted = choose_layers(model, layers, layouts), None if heads is None else list(heads)

    def plans(by_role: By) -> list[Plan]:
        with corrected(projections, by_role):
            calls = capture_calls(model, batch, chosen)
            layers_of = ((name, name.partition("#")[0], call) for name, call in calls)
            return [lay_out(n, model.get_submodule(m), chosen[m], call, wanted) for n, m, call in layers_of]

    total = 1 + (len(given) if given is not None else len(LAMBDAS) + 3 + 4 * len(roles))
    with progress_bar("candidates", total, shown=progress) as advance:
        plain = score("plain", {}, plans({}), refuse=lambda *_: "", exact=exact)
        advance(1)

        def judge(name: str, by_role: By, *, always: bool) -> Candidate:
            advance(1)
            return score(
                name, by_role, plans(by_role), always=always, exact=exact,
                refuse=lambda saturation, scale: check_limits(saturation, scale, plain, limit, change),
            )

        if given is not None:
            table = [plain, *(judge(name, by_role, always=True) for name, by_role in given.items())]
        else:
            table = [plain, *(judge(name, by_role, always=True) for name, by_role in _common(roles).items())]
            _improve(table, roles, lambda name, by_role: judge(name, by_role, always=False))
    table.sort(key=lambda c: (bool(c.refused), c.kappa if not math.isnan(c.kappa) else math.inf))
    reason = _explain(table, plain, roles, limit, plans({})[0])
    return Calibration(dict(table[0].corrections), tuple(table), reason, roles, limit, change)


# ---- candidates ------------------------------------------------------------------------------------------------------


def _common(roles: str) -> dict[str, By]:
    """The same correction on all roles."""
    options: dict[str, Correction] = {f"λ = {lam:g}": IdentityCorrection(lam) for lam in LAMBDAS}
    options["polar"] = PolarCorrection()
    options["polar, ‖W‖_F kept"] = PolarCorrection(preserve="frobenius")
    options["target κ = 4, ‖W‖_F kept"] = _target()
    return {f"{name} on {_words(roles)}": dict.fromkeys(roles, fix) for name, fix in options.items()}


def _target() -> SpectrumTarget:
    return SpectrumTarget(kappa=4.0, gradient="straight-through", preserve="frobenius")


def _single() -> Iterator[Correction | None]:
    """What the search tries for one role while the others stay."""
    yield None
    yield IdentityCorrection(0.3)
    yield IdentityCorrection(1.0)
    yield PolarCorrection(preserve="frobenius")


def _improve(table: list[Candidate], roles: str, judge) -> None:
    """Change one role at a time, starting from the best so far; appends every new candidate to `table`."""
    for role in reversed(roles):  # W_V first: it cannot saturate attention
        best = min((c for c in table if not c.refused), key=lambda c: c.kappa)
        seen = {_key(c.corrections) for c in table}
        for fix in _single():
            by_role = {r: f for r in roles if (f := fix if r == role else best.corrections.get(r)) is not None}
            if _key(by_role) not in seen:
                table.append(judge(_describe(by_role), by_role))


def _key(by_role: By) -> tuple:
    return tuple((role, repr(by_role[role])) for role in ROLES if role in by_role)


def _describe(by_role: By) -> str:
    """Roles with the same correction together: "λ = 1 on Q and K, polar on V"."""
    groups: dict[str, str] = {}
    for role in ROLES:
        if role in by_role:
            groups[_short(by_role[role])] = groups.get(_short(by_role[role]), "") + role
    return "; ".join(f"{name} on {_words(r)}" for name, r in groups.items()) or "plain"


def _short(fix: Correction) -> str:
    kept = {"frobenius": ", ‖W‖_F kept", "spectral": ", ‖W‖₂ kept", None: ""}[fix.preserve]
    if type(fix) is IdentityCorrection and not (fix.relative or fix.learnable or fix.schedule):
        return f"λ = {fix.lam:g}{kept}"
    if type(fix) is PolarCorrection and fix.strength == 1:
        return f"polar{kept}"
    if type(fix) is SpectrumTarget and fix.sigma_min is fix.sigma_max is None:
        return f"target κ = {fix.kappa:g}{kept}"
    return repr(fix)


def _words(roles: str) -> str:
    names = [r.upper() for r in roles]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _named(candidates: object, roles: str) -> dict[str, By]:
    """{name: {role: correction}} from what the caller gave."""
    if isinstance(candidates, (str, Correction)) or not isinstance(candidates, (Mapping, Iterable)):
        raise ValueError(f"candidates: expected a list or a mapping by name, got {type(candidates).__name__}")
    pairs = list(candidates.items()) if isinstance(candidates, Mapping) else [(None, value) for value in candidates]
    out: dict[str, By] = {}
    for name, value in pairs:
        by_role = dict.fromkeys(roles, value) if isinstance(value, Correction) else value
        valid = isinstance(by_role, dict) and by_role and all(isinstance(v, Correction) for v in by_role.values())
        if not valid or set(by_role) - set(roles):
            raise ValueError(
                f"candidates: expected corrections, or dicts of them by roles among {roles!r}, got {value!r}"
            )
        label = unique = str(name) if name is not None else _describe(by_role)
        for number in count(2):
            if unique not in out:
                break
            unique = f"{label} ({number})"  # settings that the name does not show
        out[unique] = by_role
    if not out:
        raise ValueError("candidates: expected at least one, got none")
    return out


def _common_lambda(candidate: Candidate, roles: str) -> float | None:
    """λ, where λ I is on all of `roles` alike."""
    fixes = list(candidate.corrections.values())
    names = {_short(f) for f in fixes}
    if len(fixes) < len(roles) or len(names) > 1 or not isinstance(fixes[0], IdentityCorrection):
        return None
    lam = fixes[0].settings()["lam"]
    return lam if lam >= 0 and names == {f"λ = {lam:g}"} else None


def _check_batch(model: nn.Module, batch: Tensor | Sequence[Any] | Mapping[str, Any]) -> None:
    try:
        with evaluation(model):
            call_model(model, batch)
    except Exception as error:
        raise ValueError(
            f"batch: expected what the model can be called with, got {type(error).__name__}: {error}"
        ) from error


def _explain(table: list[Candidate], plain: Candidate, roles: str, limit: float, plan: Plan) -> str:
    best = table[0]
    bound = "at least " if plain.lower_bound else ""
    heads = f"{len(plain.saturation)} layers"
    if best.corrections:
        text = (
            f"Chosen: {best.name}. It takes the geometric mean of κ(J) over the heads of {heads} from "
            f"{bound}{plain.kappa:.3g} to {'at least ' * best.lower_bound}{best.kappa:.3g}, with a mean largest "
            f"attention weight of {best.mean_saturation:.2f} (plain {plain.mean_saturation:.2f}, limit {limit:g}) and "
            f"logits that spread by {max(best.logit_scale.values()):.2g} at most (plain "
            f"{max(plain.logit_scale.values()):.2g})."
        )
    else:
        text = (
            f"Chosen: no correction. None of the others within the limits has a lower geometric mean of κ(J) over the "
            f"heads of {heads} than the plain model, {bound}{plain.kappa:.3g}."
        )
    rivals = [c for c in table if not c.refused and c is not best and _common_lambda(c, roles) is not None]
    if rivals:
        text += f" The best fixed λ within the limits is {rivals[0].name}, at {rivals[0].kappa:.3g}."
    refused = [c for c in table if c.refused]
    if refused:
        shown = max(refused, key=lambda c: _common_lambda(c, roles) or 0.0)
        text += f" Refused: {len(refused)} of {len(table)}, among them {shown.name}: {shown.refused}."
        if shown.mean_saturation > 0.95:
            lam = suggest_lambda(plan.x.shape[-2], plan.weights["k"].shape[-1])
            text += (
                " Every token then attends to one token alone, the Q and K blocks of J vanish, and they stop learning; "
                f"the closed-form limit for λ on both is about {lam:.2g} here (suggest_lambda)."
            )
    if best.lower_bound:
        text += " κ(J) is beyond what float64 resolves here, so that it hardly tells the candidates apart."
    return text + " κ(J) is measured at the weights as they are now; training may tell another story."
