"""What a visitor can set: any raw value gives settings within their limits, said in short notices, and an address."""

import math
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spectral_core.demo.settings import (
    ARMS,
    CHOICES,
    KINDS,
    LARGEST,
    LIMITS,
    MOST_ARMS,
    MOST_VALUES,
    RANGES,
    ROLES,
    Settings,
    control_names,
    parse_settings,
    to_query,
)

HUGE = 10**5000  # more digits than Python writes
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.none().map(lambda _: HUGE), st.floats(), st.text(max_size=60),
    st.binary(max_size=4),
    st.sampled_from(["nan", "inf", "-1", "1e999", "3,2,1", "Q", "qk", "minilm", "drawn", "plain,polar", "0,0", ","]),
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=40), st.dictionaries(st.text(max_size=2), inner)),
    max_leaves=12,
)


def read(query):
    return parse_settings(dict(parse_qsl(query)))


@given(st.dictionaries(st.sampled_from([*control_names(), "other", ""]), ANYTHING, max_size=8))
@example({"roles": [HUGE], "arms": [HUGE], "seed": HUGE, "drawn_q": [HUGE], "kind": [HUGE], "init": HUGE})
@example({"drawn_q": [[1.0]], "drawn_k": {"a": 1}, "drawn_v": [True, False], "arms": [["plain"]], "roles": [["q"]]})
@settings(max_examples=100)
def test_any_input_gives_settings_inside_their_limits(raw):
    out, notices = parse_settings(raw)
    for name, (low, high, _, _) in RANGES.items():
        assert all(low <= getattr(out, name)[role] <= high for role in ROLES)
    for name, allowed in CHOICES.items():
        assert getattr(out, name) in allowed
    assert out.roles in ("", "q", "k", "v", "qk", "qv", "kv", "qkv")
    assert type(out.seed) is int
    assert all(low <= getattr(out, name) <= high for name, (low, high, _, _) in LIMITS.items())
    assert 1 <= len(out.arms) <= MOST_ARMS
    assert list(out.arms) == [arm for arm in ARMS if arm in out.arms]
    for values in out.drawn.values():
        assert len(values) <= MOST_VALUES
        assert list(values) == sorted(values, reverse=True)
        assert all(0 <= v <= LARGEST for v in values)
        assert not values or values[0] > 0
    if out.kind in ("targets", "profile"):
        assert all(out.min[role] <= out.max[role] for role in ROLES)
    assert all(len(notice) < 250 and "\n" not in notice for notice in notices)
    assert len(notices) <= len(raw) + 6


NUMBERS = {  # multiples of the slider's step, as a page gives them
    name: st.integers(0, round((high - low) / step)).map(
        lambda i, low=low, high=high, step=step: min(high, float(f"{low + i * step:.4g}"))
    )
    for name, (low, high, _, step) in RANGES.items()
}
DRAWN = st.lists(st.floats(0, LARGEST), max_size=MOST_VALUES).map(
    lambda values: tuple(sorted((float(f"{v:.3g}") for v in values), reverse=True))
).filter(lambda values: not values or values[0] > 0)


@st.composite
def any_settings(draw):
    by_role = {name: {role: draw(NUMBERS[name]) for role in ROLES} for name in RANGES}
    by_role["min"] = {role: min(by_role["min"][role], by_role["max"][role]) for role in ROLES}
    arms = draw(st.sets(st.sampled_from(list(ARMS)), min_size=1, max_size=MOST_ARMS))
    return Settings(
        **{name: draw(st.sampled_from(list(allowed))) for name, allowed in CHOICES.items()}, **by_role,
        roles="".join(r for r in ROLES if draw(st.booleans())), seed=draw(st.integers(0, 9999)),
        drawn={role: draw(DRAWN) for role in ROLES}, arms=tuple(a for a in ARMS if a in arms),
        log_lr=draw(st.integers(-40, -15)) / 10,
    )


@given(any_settings())
@example(Settings(roles=""))
@settings(max_examples=200)
def test_the_address_of_settings_leads_back_to_them(chosen):
    assert read(to_query(chosen)) == (chosen, [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arm", ARMS)
def test_every_kind_and_arm_has_an_address(kind, arm):
    chosen = Settings(kind=kind, arms=(arm,), seed=9999, drawn={"q": (5.55, 0.0123), "k": (), "v": (6.0,) * 32})
    assert read(to_query(chosen)) == (chosen, [])


@pytest.mark.parametrize(("chosen", "query"), [
    (Settings(), "seed=0"),
    (Settings(kind="identity", lam={"q": 10.0, "k": 1.0, "v": 0.05}), "kind=identity&seed=0&lam_q=10&lam_v=0.05"),
    (Settings(kind="drawn", drawn={"q": (3.0, 2.5, 0.0), "k": (), "v": ()}), "kind=drawn&seed=0&drawn_q=3,2.5,0"),
    (Settings(seed=12, arms=("plain", "qk-norm"), log_lr=-2.5), "seed=12&arms=plain,qk-norm&log_lr=-2.5"),
    (Settings(roles="qv"), "roles=qv&seed=0"),
])
def test_an_address_says_what_differs_from_the_defaults(chosen, query):
    assert to_query(chosen) == query


def test_defaults_are_valid_and_said_without_a_word():
    assert parse_settings({}) == (Settings(), [])
    assert parse_settings({"unknown": object()}) == (Settings(), [])
    assert Settings().lr == pytest.approx(1e-3)
    for low, high, default, step in [*RANGES.values(), *LIMITS.values()]:
        assert low <= default <= high
        assert abs((high - low) / step - round((high - low) / step)) < 1e-9
    assert set(control_names()) == {
        *CHOICES, "roles", "arms", *LIMITS, *(f"{n}_{r}" for n in (*RANGES, "drawn") for r in ROLES)
    }


@pytest.mark.parametrize(("raw", "said"), [
    ({"kind": "svd"}, "kind: 'svd' is not one of targets, kappa, profile, drawn, identity, polar; targets is used"),
    ({"scope": None}, "scope: None is not one of matrix, head, packed; matrix is used"),
    ({"preserve": ["spectral"]}, "preserve: ['spectral'] is not one of none, spectral, frobenius; none is used"),
    ({"source": 3}, "source: 3 is not one of digits, mnist, listops, text; digits is used"),
    ({"init": {}}, "init: {} is not one of trunc-normal, xavier, gaussian, orthogonal, collapsed, minilm; "
                   "trunc-normal is used"),
    ({"lam_q": math.inf}, "lam_q: inf is outside [0, 12]; the nearest limit is used"),
    ({"lam_q": -math.inf}, "lam_q: -inf is outside [0, 12]; the nearest limit is used"),
    ({"lam_q": "abc"}, "lam_q: 'abc' is not a number; 1 is used"),
    ({"lam_k": math.nan}, "lam_k: nan is not a number; 1 is used"),
    ({"lam_v": [1.0]}, "lam_v: [1.0] is not a number; 1 is used"),
    ({"max_q": HUGE}, "max_q: a huge number is not a number; 2 is used"),
    ({"decay_q": "x" * 100}, "decay_q: '" + "x" * 36 + "… is not a number; 1 is used"),
    ({"kappa_k": 0.5}, "kappa_k: 0.5 is outside [1, 100]; the nearest limit is used"),
    ({"seed": True}, "seed: True is not a number; 0 is used"),
    ({"seed": 10000}, "seed: 10000 is outside [0, 9999]; the nearest limit is used"),
    ({"log_lr": 0}, "log_lr: 0 is outside [-4, -1.5]; the nearest limit is used"),
    ({"roles": 3}, "roles: 3 is not a subset of Q, K, V; all three are used"),
    ({"roles": "qx"}, "roles: 'qx' is not a subset of Q, K, V; all three are used"),
    ({"min_v": 3, "max_v": 2}, "σ_min 3 is above σ_max 2 for V; 2 is used for both"),
    ({"arms": 3}, f"arms: 3 is not a choice of {', '.join(ARMS)}; plain, shaped, xavier used"),
    ({"arms": "plain,fast"}, f"arms: 'plain,fast' is not a choice of {', '.join(ARMS)}; plain used"),
    ({"arms": []}, f"arms: [] is not a choice of {', '.join(ARMS)}; plain, shaped, xavier used"),
    ({"arms": list(ARMS)}, "arms: at most 4 can race, got 8; plain, shaped, identity, polar race"),
    ({"drawn_q": "1,two"}, "drawn_q: '1,two' is not up to 32 numbers from 0 to 16; it is ignored"),
    ({"drawn_q": "1 nan"}, "drawn_q: '1 nan' is not up to 32 numbers from 0 to 16; it is ignored"),
    ({"drawn_q": 5}, "drawn_q: 5 is not up to 32 numbers from 0 to 16; it is ignored"),
    ({"drawn_k": [True]}, "drawn_k: [True] is not up to 32 numbers from 0 to 16; it is ignored"),
    ({"drawn_k": [1] * 33}, "drawn_k: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, … is not up to 32 numbers from 0 to 16; "
                            "it is ignored"),
    ({"drawn_v": [17, 1]}, "drawn_v: values outside [0, 16]; the nearest limit is used"),
    ({"drawn_v": "0,0"}, "drawn_v: all zero, which leaves nothing of W; it is ignored"),
])
def test_each_value_that_is_not_taken_is_said(raw, said):
    assert parse_settings(raw)[1] == [said]


def test_what_is_refused_keeps_its_default_and_what_is_clamped_its_nearest_limit():
    raw = {"lam_q": math.inf, "lam_k": "-1", "lam_v": None, "seed": 1e9, "log_lr": -9, "drawn_q": "19,-1,2", "kind": 1}
    out, notices = parse_settings(raw)
    assert out.lam == {"q": 12.0, "k": 0.0, "v": 1.0}
    assert (out.seed, out.log_lr, out.kind) == (9999, -4.0, "targets")
    assert out.drawn == {"q": (16.0, 2.0, 0.0), "k": (), "v": ()}
    assert len(notices) == 7


@pytest.mark.parametrize(("raw", "drawn"), [
    ("1, 3 2", (3.0, 2.0, 1.0)), ([0.12345, 2], (2.0, 0.1235)), (("2", 1), (2.0, 1.0)), ("", ()), (None, ()), ([], ()),
    ((), ()), (",", ()), ("5.99999", (6.0,)), ([1] * 32, (1.0,) * 32),
])
def test_a_drawn_spectrum_is_sorted_and_rounded(raw, drawn):
    out, notices = parse_settings({"drawn_q": raw})
    assert out.drawn == {"q": drawn, "k": (), "v": ()}
    assert notices == []


@pytest.mark.parametrize(("raw", "roles"), [
    (["Q", "V"], "qv"), ("VQ", "qv"), ((), ""), ([], ""), ("", ""), ("none", ""), ("kk", "k"),
])
def test_roles_come_in_one_order(raw, roles):
    out, notices = parse_settings({"roles": raw})
    assert (out.roles, notices) == (roles, [])


def test_limits_between_min_and_max_count_only_where_both_are_used():
    for kind in KINDS:
        out, notices = parse_settings({"kind": kind, "min_q": 3, "max_q": 2})
        used = kind in ("targets", "profile")
        assert (out.min["q"], len(notices)) == ((2.0, 1) if used else (3.0, 0))


def test_arms_come_in_the_order_of_the_list():
    out, notices = parse_settings({"arms": "xavier,plain"})
    assert (out.arms, notices) == (("plain", "xavier"), [])
