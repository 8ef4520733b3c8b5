"""The demo's computing, without a browser: settings from untrusted values, one head, the race."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.demo import KINDS, RANGES, ROLES, Settings, corrections, head_view, new_model, parse_settings, race

ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers()),
                     st.dictionaries(st.text(max_size=2), st.integers()))
NAMES = ["kind", "roles", "preserve", "init", "source", "seed", *(f"{n}_{r}" for n in RANGES for r in ROLES), "other"]


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING))
@settings(deadline=None, max_examples=200)
def test_any_input_gives_settings_inside_their_limits(raw) -> None:
    out, notices = parse_settings(raw)
    for name, (low, high, _, _) in RANGES.items():
        assert all(low <= getattr(out, name)[r] <= high for r in ROLES)
    assert out.kind in KINDS
    assert set(out.roles) <= set(ROLES)
    assert 0 <= out.seed <= 9999
    assert all(len(n) < 200 for n in notices)
    corrections(out)  # never refused


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"kind": "svd"}, "kind: 'svd' is not one of targets, kappa, identity, polar; targets is used"),
        ({"lam_q": float("inf")}, "lam_q: inf is outside [0, 12]; the nearest limit is used"),
        ({"lam_q": "abc"}, "lam_q: 'abc' is not a number; 1 is used"),
        ({"kappa_k": 0.5}, "kappa_k: 0.5 is outside [1, 100]; the nearest limit is used"),
        ({"seed": True}, "seed: True is not a number; 0 is used"),
        ({"roles": 3}, "roles: 3 is not a subset of Q, K, V; all three are used"),
        ({"min_v": 3, "max_v": 2}, "σ_min 3 is above σ_max 2 for V; 2 is used for both"),
    ],
)
def test_each_clamp_is_said(raw, said) -> None:
    assert parse_settings(raw)[1] == [said]


def test_good_input_is_taken_without_a_word() -> None:
    out, notices = parse_settings({"kind": "identity", "roles": ["Q", "V"], "lam_q": "2.5", "seed": 7})
    assert (out.kind, out.roles, out.lam["q"], out.seed, notices) == ("identity", "qv", 2.5, 7, [])


@pytest.mark.parametrize("kind", KINDS)
def test_head_view_agrees_with_numpy(kind) -> None:
    """κ(W), κ(J), saturation and norms of head 1 from hand-corrected weights and autodiff."""
    chosen = parse_settings({"kind": kind, "init": "xavier", "seed": 3, "lam_q": 0.7, "roles": "qv"})[0]
    view = head_view(chosen)
    model = new_model("xavier", "digits", 3)
    from spectral_core.data import load_digits

    with torch.no_grad():
        x = model.attention_input(load_digits("digits").test_x[:1])[0].double()
    weights = {}
    for role, name in zip(ROLES, ("query", "key", "value"), strict=True):
        w = getattr(model.blocks[0].attention, name).weight.detach().double().numpy()
        u, s, vh = np.linalg.svd(w)
        if role != "k":
            w = {"targets": (u * np.clip(s, 0.5, 2.0)) @ vh, "kappa": (u * np.maximum(s, s[0] / 4)) @ vh,
                 "identity": w + {"q": 0.7, "v": 1.0}[role] * np.eye(32), "polar": w + s[0] * u @ vh}[kind]
        weights[role] = w
        assert view.after.kappa_w[role] == pytest.approx(np.linalg.cond(w), rel=1e-4)
    q, k, v = (torch.tensor(weights[r][:16].T) for r in ROLES)

    def head(q, k, v):
        return (((x @ q) @ (x @ k).T / 4).softmax(-1) @ (x @ v)).reshape(-1)

    blocks = [j.reshape(j.shape[0], -1) for j in torch.func.jacrev(head, argnums=(0, 1, 2))(q, k, v)]
    s = np.linalg.svd(torch.cat(blocks, 1).numpy(), compute_uv=False)
    assert view.after.kappa_j == pytest.approx(s[0] / s[-1], rel=2e-3)  # the weights are float32
    assert [view.after.block_norms[r] for r in ROLES] == pytest.approx([float(b.norm()) for b in blocks], rel=1e-5)
    p = ((x @ q) @ (x @ k).T / 4).softmax(-1)
    assert view.after.saturation == pytest.approx(float(p.amax(-1).mean()), rel=1e-5)
    assert np.allclose(view.after.attention, p, atol=1e-6)


def test_paper_default_switches_attention_off() -> None:
    view = head_view(parse_settings({"kind": "identity", "lam_q": 10, "lam_k": 10, "lam_v": 10})[0])
    assert view.after.kappa_j < 1e-3 * view.before.kappa_j
    assert view.after.saturation > 0.99
    assert view.after.block_norms["q"] < 1e-6 * view.before.block_norms["q"]


def test_race_with_no_correction_is_a_tie() -> None:
    chosen = parse_settings({"roles": []})[0]
    for frame in race(lambda: chosen, steps=10):
        assert frame.baseline.loss == frame.conditioned.loss
        assert frame.baseline.kappa_j == frame.conditioned.kappa_j


def test_race_takes_new_settings_from_the_next_step_on() -> None:
    now = {"settings": parse_settings({"kind": "identity", "lam_q": 0, "lam_k": 0, "lam_v": 0})[0]}
    frames = []
    for frame in race(lambda: now["settings"], steps=20, every=5):
        frames.append(frame)
        if frame.baseline.step == 10:
            now["settings"] = parse_settings({"kind": "polar"})[0]  # another kind altogether
    assert [f.changed for f in frames] == [False, False, False, True, False]
    assert [f.baseline.loss == f.conditioned.loss for f in frames] == [True, True, True, False, False]
    assert frames[-1].conditioned.kappa_w["q"] <= 2.001 < frames[-1].baseline.kappa_w["q"]


def test_default_settings_are_valid() -> None:
    assert parse_settings({}) == (Settings(), [])
