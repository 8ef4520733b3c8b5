"""The first tab's numbers against NumPy, autodiff and transformers' own MiniLM: corrections, heads, the λ_sat law."""

import copy
import math

import numpy as np
import pytest
import torch

from spectral_core import SpectralConditionedAttention, attention_jacobians, suggest_lambda
from spectral_core.audit.locations import in_package
from spectral_core.demo import head as head_module
from spectral_core.demo.head import GRID, head_view
from spectral_core.demo.live import DrawnSpectrum, Live, correct, corrections_differ, profile
from spectral_core.demo.settings import KINDS, PRESERVES, ROLES, SCOPES, Settings
from spectral_core.demo.starts import HEADS, IDS, MINILM, SENTENCE, Start, load_start
from spectral_core.demo.tasks import load_task, new_model

DRAWN = {"q": (3.0, 2.0, 0.5), "k": (1.0,), "v": ()}
SLIDERS = Settings(
    min={"q": 0.4, "k": 0.6, "v": 0.0}, max={"q": 1.5, "k": 0.9, "v": 0.7}, decay={"q": 2.0, "k": 0.5, "v": 0.0},
    kappa={"q": 3.0, "k": 1.0, "v": 50.0}, lam={"q": 0.7, "k": 2.0, "v": 0.0}, drawn=DRAWN,
)


def given(**changes):
    return Settings(**{**SLIDERS.__dict__, **changes})


def by_hand(w, settings, role):
    """U f(s) Vᵀ, at the norm that is to be kept; NumPy, one matrix."""
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    low, high = settings.min[role], settings.max[role]
    t = np.linspace(0, 1, len(s))
    if settings.kind == "targets":
        new = np.clip(s, low, high)
    elif settings.kind == "kappa":
        new = np.maximum(s, s[0] / settings.kappa[role])
    elif settings.kind == "profile":
        grid = np.linspace(0, 1, 32)
        new = np.interp(t, grid, low + (high - low) * (1 - grid) ** settings.decay[role])
    elif settings.kind == "drawn":
        if not settings.drawn[role]:
            return w
        values = settings.drawn[role]
        new = np.interp(t, np.linspace(0, 1, len(values)), values)
    elif settings.kind == "polar":
        new = s + s[0]
    out = w + settings.lam[role] * np.eye(*w.shape) if settings.kind == "identity" else (u * new) @ vh
    if settings.preserve != "none":
        order = 2 if settings.preserve == "spectral" else "fro"
        out = out * np.linalg.norm(w, order) / np.linalg.norm(out, order)
    return out


def all_by_hand(weights, settings, heads):
    stacked = np.concatenate([weights[r] for r in ROLES])
    out = {}
    for i, role in enumerate(ROLES):
        rows = len(weights[role])
        if role not in settings.roles:
            out[role] = weights[role]
        elif settings.scope == "packed":
            out[role] = by_hand(stacked, settings, "q")[i * rows : (i + 1) * rows]
        else:
            parts = np.split(weights[role], heads if settings.scope == "head" else 1)
            out[role] = np.concatenate([by_hand(part, settings, role) for part in parts])
    return out


def some_weights(seed=3):
    g = torch.Generator().manual_seed(seed)
    return {role: torch.randn(12, 12, generator=g) / 3 for role in ROLES}


@pytest.mark.parametrize("preserve", PRESERVES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_corrected_weights_equal_numpy(kind, scope, preserve):
    weights = some_weights()
    before = copy.deepcopy(weights)
    for roles in ("qkv", "kv", ""):
        settings = given(kind=kind, scope=scope, preserve=preserve, roles=roles)
        got = correct(settings, weights, heads=3)
        expected = all_by_hand({r: w.double().numpy() for r, w in weights.items()}, settings, 3)
        for role in ROLES:
            np.testing.assert_allclose(got[role], expected[role], atol=5e-6)
            assert torch.equal(weights[role], before[role])
            if role not in roles:
                assert torch.equal(got[role], before[role])
    assert not got["q"].requires_grad


def test_a_drawn_spectrum_is_interpolated_to_any_size():
    g = torch.Generator().manual_seed(0)
    for shape in ((5, 5), (3, 7), (9, 4), (1, 4), (2, 6, 6)):
        w = torch.randn(*shape, generator=g, dtype=torch.float64)
        for values in ((4.0, 1.0), (2.0,), (5.0, 3.0, 3.0, 0.0), tuple(range(20, 0, -1))):
            count = min(shape[-2:])
            wanted = np.interp(np.linspace(0, len(values) - 1, count), np.arange(len(values)), values)
            got = np.linalg.svd(DrawnSpectrum(values)(w).numpy(), compute_uv=False)
            np.testing.assert_allclose(got, np.broadcast_to(wanted, got.shape), atol=1e-12)


def test_a_profile_goes_from_top_to_bottom():
    assert profile(3.0, 1.0, 1.0, 5) == [3.0, 2.5, 2.0, 1.5, 1.0]
    assert profile(3.0, 1.0, 0.0, 3) == [3.0, 3.0, 3.0]  # 0 ** 0 is 1: flat to the last
    assert profile(3.0, 1.0, 2.0, 3) == [3.0, 1.5, 1.0]
    assert profile(3.0, 1.0, 2.0, 1) == [3.0]


# ---- in a module that trains


def attention(seed=1, **options):
    torch.manual_seed(seed)
    return SpectralConditionedAttention(12, 3, **options)


def tokens(seed=2):
    return torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(seed))


LAYERS = {"q": "query", "k": "key", "v": "value"}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_live_module_acts_and_learns_like_weights_edited_by_hand(kind, scope):
    settings = given(kind=kind, scope=scope, roles="qv")
    live_module, edited = attention(), attention()
    weights = {role: getattr(edited, name).weight.detach().double().numpy() for role, name in LAYERS.items()}
    for role, w in all_by_hand(weights, settings, 3).items():
        getattr(edited, LAYERS[role]).weight.data = torch.tensor(w, dtype=torch.float32)
    Live(live_module, settings)
    out, expected = live_module(tokens()), edited(tokens())
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    (out**2).sum().backward()
    (expected**2).sum().backward()
    for name in LAYERS.values():  # d/dW f(W + C) = f'(W + C): C is a constant
        stored = getattr(live_module, name).parametrizations.weight.original
        torch.testing.assert_close(stored.grad, getattr(edited, name).weight.grad, rtol=1e-3, atol=1e-4)


def test_live_corrections_can_be_exchanged_and_taken_off():
    module, plain = attention(), attention()
    live, x = Live(module, None), tokens()
    assert torch.equal(module(x), plain(x))
    assert torch.equal(live.target("k", plain.key.weight), plain.key.weight)
    original = plain.key.weight.detach()
    for settings in (given(kind="polar"), given(kind="identity"), given(kind="identity", roles="qv")):
        live.settings = settings
        expected = all_by_hand({r: getattr(plain, n).weight.detach().double().numpy() for r, n in LAYERS.items()},
                               settings, 3)
        for role, name in LAYERS.items():
            np.testing.assert_allclose(getattr(module, name).weight.detach(), expected[role], atol=5e-6)
    live.settings = None
    assert torch.equal(module(x), plain(x))
    assert torch.equal(module.key.parametrizations.weight.original, original)  # W itself was never written
    assert len(list(module.parameters())) == len(list(plain.parameters()))


def test_settings_that_only_a_start_takes_up_make_no_difference():
    plain = Settings()
    for same in ({"seed": 4}, {"init": "xavier"}, {"source": "text"}, {"arms": ("polar",)}, {"log_lr": -2.0}):
        assert not corrections_differ(plain, Settings(**same))
    by_role = {name: dict.fromkeys(ROLES, 3.0) for name in ("min", "max", "decay", "kappa", "lam")}
    others = {"kind": "polar", "roles": "q", "preserve": "spectral", "scope": "head", "drawn": DRAWN, **by_role}
    for name, value in others.items():
        assert corrections_differ(plain, Settings(**{name: value}))


# ---- the numbers of a head


def blocks_by_autodiff(x, q, k, v, b_q=0.0, is_causal=False):
    """J's blocks (n d, D d) and P of one head, float64."""

    def logits(q, k):
        z = (x @ q + b_q) @ (x @ k).T / math.sqrt(q.shape[1])
        return z.masked_fill(torch.ones_like(z, dtype=torch.bool).triu(1), -torch.inf) if is_causal else z

    def out(q, k, v):
        return (logits(q, k).softmax(-1) @ (x @ v)).flatten()

    blocks = torch.func.jacrev(out, argnums=(0, 1, 2))(q, k, v)
    return [b.flatten(1).numpy() for b in blocks], logits(q, k).softmax(-1).numpy()


@pytest.mark.parametrize(("start", "changes"), [
    ({"init": "xavier", "source": "digits", "seed": 3}, {"kind": "targets", "roles": "qv"}),
    ({"init": "gaussian", "source": "listops", "seed": 1}, {"kind": "identity", "scope": "head"}),
    ({"init": "orthogonal", "source": "text", "seed": 2}, {"kind": "profile", "scope": "packed"}),
    ({"init": "trunc-normal", "source": "text", "seed": 0}, {"kind": "drawn"}),
    ({"init": "xavier", "source": "digits", "seed": 0}, {"kind": "polar", "preserve": "frobenius"}),
    ({"init": "minilm", "source": "digits", "seed": 5}, {"kind": "kappa"}),
])
def test_every_number_of_a_head_equals_numpy_and_autodiff(start, changes):
    settings = given(**start, **changes)
    view, origin = head_view(settings), load_start(**start)
    stored = {r: w.double().numpy() for r, w in origin.weights.items()}
    x = origin.x.double()
    states = [(view.after, all_by_hand(stored, settings, origin.heads)), (view.before, stored)]
    for state, weights in states[: 1 if start["init"] == "minilm" else 2]:  # its J is large, and comes again below
        rows = len(weights["q"]) // origin.heads
        q, k, v = (torch.tensor(weights[r][:rows].T) for r in ROLES)
        b_q = 0.0 if origin.b_q is None else origin.b_q.double()
        blocks, p = blocks_by_autodiff(x, q, k, v, b_q, origin.is_causal)
        s = np.linalg.svd(np.concatenate(blocks, 1), compute_uv=False)
        assert state.full == min(blocks[0].shape[0], 3 * blocks[0].shape[1]) == len(s)
        rank = int((s > s[0] * max(blocks[0].shape[0], 3 * blocks[0].shape[1]) * 2.3e-16).sum())
        assert state.rank == rank
        assert state.kappa_j_effective == pytest.approx(s[0] / s[rank - 1], rel=2e-3)  # the weights are float32
        assert state.kappa_j == (pytest.approx(s[0] / s[-1], rel=2e-3) if rank == len(s) else math.inf)
        assert not state.is_bound
        assert [state.block_norms[r] for r in ROLES] == pytest.approx([np.linalg.norm(b) for b in blocks], rel=1e-4)
        np.testing.assert_allclose(state.attention, p, atol=1e-5)
        assert state.saturation == pytest.approx(p.max(1).mean(), rel=1e-4)
        stacked = np.concatenate([weights[r] for r in ROLES])
        share = rows if settings.scope == "head" else None
        for role in ROLES:
            shaped = stacked if settings.scope == "packed" else weights[role][:share]
            values = np.linalg.svd(shaped, compute_uv=False)
            np.testing.assert_allclose(state.spectra[role], values, atol=1e-5)
            assert state.kappa_w[role] == pytest.approx(values[0] / values[-1], rel=2e-3)
        factors_by_hand(state.factors, x.numpy(), q.numpy(), k.numpy(), v.numpy(), p)
        assert state.lam == pytest.approx(math.sqrt(max(0, np.trace(q.numpy() @ k.numpy().T)) / rows), rel=1e-4,
                                          abs=1e-3)
    assert view.shape == (*x.shape, rows)
    assert view.name == origin.name


def factors_by_hand(factors, *named):
    def effective(matrix):
        s = np.linalg.svd(matrix, compute_uv=False)
        return s[0] / s[s > s[0] * max(matrix.shape) * 2.3e-16][-1]

    x, q, k, v, p = named
    expected = {"kappa_x": x, "kappa_wq": q, "kappa_wk": k, "kappa_wv": v, "kappa_softmax": p}
    for name, matrix in expected.items():
        assert factors[name] == pytest.approx(effective(matrix), rel=2e-3), name
    s = np.concatenate([np.linalg.svd(np.diag(row) - np.outer(row, row), compute_uv=False) for row in p])
    kept = s[s > s.max() * len(p) ** 2 * 2.3e-16]
    assert factors["kappa_lambda"] == pytest.approx(kept.max() / kept.min(), rel=2e-2)
    weights = factors["kappa_wv"] * (factors["kappa_wq"] + factors["kappa_wk"])
    right = factors["kappa_x"] ** 3 * factors["kappa_lambda"] * weights + factors["kappa_x"] * factors["kappa_softmax"]
    assert factors["right"] == pytest.approx(right, rel=1e-9)


def test_lam_of_a_head_that_is_lambda_i_is_lambda(monkeypatch):
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    zero = Start(x, {r: torch.zeros(12, 12) for r in ROLES}, 3, False, None, "zero weights")
    monkeypatch.setattr(head_module, "load_start", lambda *_: zero)
    for cached in (head_module._before, head_module._law):
        monkeypatch.setattr(head_module, cached.__name__, cached.__wrapped__)
    for lam in (0.3, 1.0, 7.5):
        view = head_view(Settings(kind="identity", lam=dict.fromkeys(ROLES, lam)))
        assert view.after.lam == pytest.approx(lam, rel=1e-6)
        assert view.before.lam == 0


@pytest.mark.parametrize("start", [
    ("trunc-normal", "digits", 0), ("xavier", "text", 1), ("minilm", "digits", 2),
])
def test_the_measured_law_is_saturation_with_lambda_i_on_q_and_k(start):
    origin = load_start(*start)
    law = head_view(Settings(init=start[0], source=start[1], seed=start[2])).law
    rows = len(origin.weights["q"]) // origin.heads
    x = origin.x.double()
    q, k = (origin.weights[r][:rows].T.double() for r in "qk")
    eye = torch.eye(*q.shape, dtype=torch.float64)
    for i in (0, 15, 32):
        b_q = 0.0 if origin.b_q is None else origin.b_q.double()
        _, p = blocks_by_autodiff(x, q + GRID[i] * eye, k + GRID[i] * eye, q, b_q, origin.is_causal)
        assert law.measured[i] == pytest.approx(p.max(1).mean(), rel=1e-9)
    n = len(x)
    for lam, predicted in zip(GRID, law.predicted, strict=True):
        e = math.exp(lam**2 * math.sqrt(rows)) if lam**2 * math.sqrt(rows) < 700 else math.inf
        assert predicted == pytest.approx(e / (e + n - 1) if e < math.inf else 1.0)
    assert law.limit == suggest_lambda(n, rows)
    assert (GRID[0], GRID[-1]) == (pytest.approx(0.1), pytest.approx(12, rel=1e-4))


def test_the_law_holds_for_orthogonal_layer_normed_tokens_without_weights(monkeypatch):
    x = math.sqrt(16) * torch.eye(16)  # ‖x_i‖² = D
    zero = Start(x, {r: torch.zeros(16, 16) for r in ROLES}, 1, False, None, "orthogonal tokens")
    monkeypatch.setattr(head_module, "load_start", lambda *_: zero)
    monkeypatch.setattr(head_module, "_law", head_module._law.__wrapped__)
    law = head_module._law("", "", 0)
    assert law.measured == pytest.approx(law.predicted, rel=1e-6)
    assert law.predicted[0] < 0.08 < 0.999 < law.predicted[-1]


def test_the_collapsed_start_has_two_large_singular_values():
    for source in ("digits", "text"):
        for seed in (0, 7):
            view = head_view(Settings(init="collapsed", source=source, seed=seed))
            for values in view.before.spectra.values():
                assert values[1] > 0.1 * values[0]
                assert values[2] < 0.01 * values[1]
                assert np.linalg.norm(values) == pytest.approx(math.sqrt(32), rel=1e-5)


def test_lambda_ten_switches_attention_off():
    view = head_view(Settings(kind="identity", lam=dict.fromkeys(ROLES, 10.0)))
    assert view.after.kappa_j < 1e-3 * view.before.kappa_j
    assert view.after.saturation > 0.99
    assert view.after.block_norms["q"] < 1e-6 * view.before.block_norms["q"]


# ---- where heads come from


def test_a_start_is_head_one_of_block_one_of_the_demos_model():
    for source in ("digits", "text"):
        start, model = load_start("xavier", source, 4), new_model("xavier", source, 4)
        seen = []
        model.block(0).attention.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model(load_task(source).test_x[:3])
        torch.testing.assert_close(start.x, seen[0][0])
        assert torch.equal(start.weights["k"], model.block(0).attention.key.weight)
        assert (start.heads, start.is_causal, start.b_q) == (2, source == "text", None)
    assert load_start("xavier", "digits", 4).name == "head 1 of layer 1 at a real digit"


@pytest.fixture(scope="module")
def minilm():
    from families import hf  # which makes transformers importable here

    folder = in_package(MINILM)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    return hf.AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval(), tokenizer(SENTENCE)["input_ids"]


def test_the_ids_are_what_the_tokenizer_says(minilm):
    assert tuple(minilm[1]) == IDS
    assert len(IDS) == 16


@pytest.mark.parametrize("seed", [0, 5, 11, 12, 9999])
def test_the_minilm_head_is_that_of_transformers(minilm, seed):
    model, ids = minilm
    head = seed % HEADS
    start = load_start("minilm", "digits", seed)
    layer = model.encoder.layer[0].attention.self
    with torch.no_grad():
        x = model.embeddings(input_ids=torch.tensor([ids]))[0]
    torch.testing.assert_close(start.x, x, rtol=1e-5, atol=1e-6)
    rows = slice(32 * head, 32 * head + 32)
    for role, module in zip(ROLES, (layer.query, layer.key, layer.value), strict=True):
        assert torch.equal(start.weights[role], module.weight[rows])
    assert torch.equal(start.b_q, layer.query.bias[rows])
    assert start.name == f"MiniLM, layer 1, head {head + 1} at a sentence"
    assert (start.heads, start.is_causal) == (1, False)


@pytest.mark.parametrize("head", [0, 7])
def test_kappa_j_and_the_map_of_a_minilm_head_are_those_of_the_whole_model(minilm, head):
    model, ids = minilm
    [record] = attention_jacobians(model, {"input_ids": torch.tensor([ids])}, layers=[0], heads=[head], progress=False)
    state = head_view(Settings(init="minilm", seed=head)).before
    assert state.kappa_j_effective == pytest.approx(float(record.effective_condition_number), rel=1e-3)
    assert state.rank == int(record.rank)
    assert state.saturation == pytest.approx(float(record.saturation), rel=1e-5)
    assert [state.kappa_w[r] for r in ROLES] == pytest.approx([record.kappa_w[r] for r in ROLES], rel=1e-4)
    for role in ROLES:
        assert state.block_norms[role] == pytest.approx(float(record.norms[role]), rel=1e-4)
    seen = copy.deepcopy(model)
    seen.set_attn_implementation("eager")
    with torch.no_grad():
        maps = seen(input_ids=torch.tensor([ids]), output_attentions=True).attentions[0]
    np.testing.assert_allclose(state.attention, maps[0, head], atol=1e-5)
