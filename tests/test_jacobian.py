"""AttentionJacobian against torch.func.jacrev of attention written plainly, and against NumPy's SVD."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_core import AttentionJacobian

SUBSETS = ["".join(c) for k in (1, 2, 3) for c in combinations("qkv", k)]
# n, D, d_k, d_v
SIZES = {
    "n<D": (4, 7, 2, 3), "n>D": (9, 3, 2, 4), "n=D": (5, 5, 3, 2), "d=1": (4, 3, 1, 1), "n=1": (1, 4, 2, 3),
}


def problem(n, dim, d_k, d_v, *, seed=0, lead=((), (), (), ())):
    """x, w_q, w_k, w_v in float64 with the given leading dimensions."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((n, dim), (dim, d_k), (dim, d_k), (dim, d_v))
    return [torch.randn(*a, *b, dtype=torch.float64, generator=g) for a, b in zip(lead, shapes, strict=True)]


def near_duplicate(exponent, n=6, dim=10, d_k=3, d_v=4, seed=0):
    """A head whose last token is the first one plus 10^-exponent of noise: κ(J) grows with the exponent."""
    x, *weights = problem(n, dim, d_k, d_v, seed=seed)
    x[-1] = x[0] + 10.0**-exponent * x[-1]
    return x, *(w / dim**0.5 for w in weights)


def jacrev(x, w_q, w_k, w_v, wrt="qkv", scale=None, allowed=None):
    """J of one head: rows (token, value channel), columns W_Q, W_K, W_V, each row-major."""
    scale = w_k.shape[-1] ** -0.5 if scale is None else scale

    def attention(q, k, v):
        logits = scale * (x @ q) @ (x @ k).T
        if allowed is not None:
            logits = torch.where(allowed, logits, torch.tensor(-torch.inf, dtype=logits.dtype))
        return torch.softmax(logits, -1) @ (x @ v)

    blocks = torch.func.jacrev(attention, argnums=(0, 1, 2))(w_q, w_k, w_v)
    rows = x.shape[0] * w_v.shape[1]
    return torch.cat([b.reshape(rows, -1) for role, b in zip("qkv", blocks, strict=True) if role in wrt], 1)


def numpy_values(j):
    return np.linalg.svd(j.numpy(), compute_uv=False)


def check_all(jac, reference, wrt):
    """Every method of `jac` against the matrix `reference`."""
    torch.testing.assert_close(jac.dense(wrt), reference, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(jac.gram(wrt), reference @ reference.T, rtol=1e-10, atol=1e-11)
    values = numpy_values(reference)
    found = jac.singular_values(wrt)
    assert found.shape == values.shape
    np.testing.assert_allclose(found.numpy(), values, atol=1e-12 * max(1, values[0]))
    start = 0
    for role, width in zip("qkv", (jac.d_k, jac.d_k, jac.d_v), strict=True):
        if role in wrt:
            block = np.linalg.norm(reference[:, start : start + jac.dim * width].numpy())
            assert jac.norms(wrt)[role].item() == pytest.approx(block, rel=1e-11, abs=1e-13)
            start += jac.dim * width
    assert list(jac.norms(wrt)) == [role for role in "qkv" if role in wrt]


@pytest.mark.parametrize("wrt", SUBSETS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_method_equals_autodiff(sizes, wrt):
    head = problem(*sizes)
    jac = AttentionJacobian(*head)
    assert jac.shape == (sizes[0] * sizes[3], sizes[1] * (2 * sizes[2] + sizes[3]))
    check_all(jac, jacrev(*head, wrt), wrt)


@pytest.mark.parametrize("wrt", SUBSETS)
@pytest.mark.parametrize("settings", [
    {"scale": 1.0}, {"scale": -0.7}, {"is_causal": True}, {"mask": True},
    {"mask": True, "is_causal": True, "scale": 2},
], ids=str)
def test_scale_causality_and_mask(settings, wrt):
    head, n = problem(5, 7, 2, 3), 5
    allowed = torch.ones(n, n, dtype=torch.bool)
    if "mask" in settings:
        random = torch.rand(n, n, generator=torch.Generator().manual_seed(3)) > 0.4
        settings = {**settings, "mask": random | torch.eye(n, dtype=torch.bool)}
        assert 0 < int((~settings["mask"]).sum()) < n * n
        allowed &= settings["mask"]
    if settings.get("is_causal"):
        allowed &= torch.ones(n, n).tril() > 0
    jac = AttentionJacobian(*head, **settings)
    assert not jac.attention()[~allowed].any()
    check_all(jac, jacrev(*head, wrt, settings.get("scale"), allowed), wrt)


@pytest.mark.parametrize("wrt", ["qkv", "q", "k", "v", "kv"])
@pytest.mark.parametrize("lead", [
    ((3,), (), (), ()), ((), (3,), (3,), (3,)), ((), (), (), (3,)), ((), (3,), (), ()),
    ((3,), (3,), (3,), (3,)), ((2, 1), (3,), (3,), (3,)), ((), (2, 3), (3,), ()), ((1,), (2, 1), (1, 3), ()),
], ids=str)
@pytest.mark.parametrize("sizes", [SIZES["n<D"], SIZES["n>D"]], ids=["n<D", "n>D"])
def test_leading_dimensions_broadcast(lead, wrt, sizes):
    head = problem(*sizes, lead=lead)
    jac = AttentionJacobian(*head)
    shape = torch.broadcast_shapes(*lead)
    dense, gram, values, norms = jac.dense(wrt), jac.gram(wrt), jac.singular_values(wrt), jac.norms(wrt)
    kappa = jac.condition_number(wrt)
    assert jac.batch_shape == shape
    for field in (kappa.value, kappa.rank, kappa.sigma_min, kappa.converged, *norms.values()):
        assert field.shape == shape
    for index in np.ndindex(shape):
        single = [w.expand(*shape, *w.shape[-2:])[index] for w in head]
        reference = jacrev(*single, wrt)
        torch.testing.assert_close(dense[index], reference, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(gram[index], reference @ reference.T, rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(values[index].numpy(), numpy_values(reference), atol=1e-11)
        for role, norm in AttentionJacobian(*single).norms(wrt).items():
            torch.testing.assert_close(norms[role][index], norm)


def test_a_batched_mask():
    head = problem(4, 5, 2, 3)
    mask = torch.stack([torch.ones(4, 4).tril(), torch.ones(4, 4).triu(), torch.eye(4)]) > 0
    jac = AttentionJacobian(*head, mask=mask)
    for i in range(3):
        torch.testing.assert_close(jac.dense()[i], jacrev(*head, allowed=mask[i]), rtol=1e-11, atol=1e-12)


def test_rows_are_tokens_then_channels_and_columns_row_major():
    head, h = problem(4, 5, 2, 3), 1e-6
    n, dim, d_k, d_v = 4, 5, 2, 3
    dense = AttentionJacobian(*head).dense()

    def output(q, k, v):
        x = head[0]
        return ((x @ q @ (x @ k).T) / d_k**0.5).softmax(-1) @ x @ v

    for which, (a, b), column in [(0, (1, 1), 3), (1, (4, 0), dim * d_k + 8), (2, (2, 1), 2 * dim * d_k + 7)]:
        weights = [[w.clone() for w in head[1:]] for _ in range(2)]
        weights[0][which][a, b] += h
        weights[1][which][a, b] -= h
        change = (output(*weights[0]) - output(*weights[1])) / (2 * h)
        for token, channel in np.ndindex(n, d_v):
            found = dense[token * d_v + channel, column].item()
            assert found == pytest.approx(change[token, channel].item(), abs=1e-8)


@pytest.mark.parametrize("sizes", [SIZES["n<D"], SIZES["n>D"], SIZES["n=D"]])
def test_value_block_has_the_singular_values_of_px_each_d_v_times(sizes):
    head = problem(*sizes)
    jac = AttentionJacobian(*head)
    px = numpy_values(jac.attention() @ head[0])
    rounding = 5 * np.finfo(float).eps * px[0]  # of two SVDs
    np.testing.assert_allclose(jac.singular_values("v").numpy(), np.repeat(px, sizes[3]), rtol=1e-12, atol=rounding)
    kappa = jac.condition_number("v")
    assert float(kappa) == pytest.approx(px[0] / px[-1], rel=max(1e-12, rounding / px[-1]))
    assert kappa.rank.item() == len(px) * sizes[3]


GRAM_SWEEP = [(e, seed, (6, 10, 3, 4)) for e in (0, 1, 2, 2.5, 3) for seed in range(4)]
GRAM_SWEEP += [(e, seed, (7, 5, 3, 2)) for e in (-1, 0, 1, 2, 3, 4) for seed in range(4)]
GRAM_SWEEP += [(e, seed, (5, 24, 4, 16)) for e in (0, 1, 1.3) for seed in range(3)]  # up to 13 small values


def test_gram_and_svd_agree_with_numpy_over_a_sweep_of_kappa():
    seen = []
    for exponent, seed, sizes in GRAM_SWEEP:
        head = near_duplicate(exponent, *sizes, seed=seed)
        values = numpy_values(jacrev(*head))
        true = values[0] / values[-1]
        seen.append(true)
        for method in ("gram", "svd", "auto"):
            result = AttentionJacobian(*head).condition_number(method=method)
            assert float(result) == pytest.approx(true, rel=1e-8), (method, exponent, seed, sizes)
            assert result.converged
            assert result.method == ("gram" if method == "auto" else method)
            assert result.rank.item() == len(values)
            assert float(result.effective_value) == pytest.approx(true, rel=1e-8)
            assert result.sigma_max.item() == pytest.approx(values[0], rel=1e-11)
            assert result.sigma_min.item() == pytest.approx(values[-1], rel=1e-8)
    assert min(seen) < 1e2
    assert sum(1e5 < kappa < 2e6 for kappa in seen) >= 5


def test_a_batch_of_easy_and_hard_heads_by_gram():
    heads = [near_duplicate(e, seed=1) for e in (0.0, 2.0, 3.5, 6.0)]
    result = AttentionJacobian(*map(torch.stack, zip(*heads, strict=True))).condition_number(method="gram")
    assert result.converged.tolist() == [True, True, True, False]
    for kappa, head in zip(result.value[:3].tolist(), heads, strict=False):
        values = numpy_values(jacrev(*head))
        assert kappa == pytest.approx(values[0] / values[-1], rel=1e-8)


@pytest.mark.parametrize("wrt", ["q", "k", "qk", "kv"])
def test_gram_with_more_rows_than_columns(wrt):
    head = problem(20, 3, 1, 4, seed=2)  # d_k = 1: the gauge costs one dimension of Q and K together
    values = numpy_values(jacrev(*head, wrt))
    result = AttentionJacobian(*head).condition_number(wrt, method="gram")
    if wrt == "qk":
        assert not result.converged
        assert AttentionJacobian(*head).condition_number(wrt).rank.item() == len(values) - 1
    else:
        assert result.converged
        assert float(result) == pytest.approx(values[0] / values[-1], rel=1e-8)
        assert AttentionJacobian(*head).condition_number(wrt).method == "svd"


@pytest.mark.parametrize("exponent", [0, 3, 4, 5])
@pytest.mark.parametrize("wrt", ["q", "k"])
def test_gram_skips_the_left_null_space_of_a_tall_block(wrt, exponent):
    x, *weights = problem(20, 3, 1, 4, seed=2)
    x[:, 2] = x[:, 0] + 10.0**-exponent * x[:, 2]
    values = numpy_values(jacrev(x, *weights, wrt))
    result = AttentionJacobian(x, *weights).condition_number(wrt, method="gram")
    assert result.converged
    assert values[0] / values[-1] > 10.0**exponent
    assert float(result) == pytest.approx(values[0] / values[-1], rel=1e-8)


@pytest.mark.parametrize("exponent", [6, 7, 8, 9])
@pytest.mark.parametrize("seed", [0, 1])
def test_beyond_gram_auto_takes_the_svd_and_gram_admits_it(exponent, seed):
    head = near_duplicate(exponent, seed=seed)
    values = numpy_values(jacrev(*head))
    true = values[0] / values[-1]
    assert true > 1e7
    auto = AttentionJacobian(*head).condition_number()
    assert (auto.method, bool(auto.converged)) == ("svd", True)
    assert float(auto) == pytest.approx(true, rel=1e-5)
    gram = AttentionJacobian(*head).condition_number(method="gram")
    assert gram.method == "gram"
    assert not gram.converged
    assert 1e6 < float(gram) <= true


def test_the_unresolved_value_is_a_lower_bound_at_the_edge_too():
    verdicts = []
    for seed in range(3):
        sizes = (16, 32, 8, 8)
        start = float(AttentionJacobian(*near_duplicate(3, *sizes, seed)).condition_number(method="svd"))
        for target in (2.0e6, *np.linspace(2.12e6, 2.1222e6, 15), 2.25e6):  # κ grows as 10^exponent
            jac = AttentionJacobian(*near_duplicate(3 + math.log10(target / start), *sizes, seed))
            gram, true = jac.condition_number(method="gram"), float(jac.condition_number(method="svd"))
            verdicts.append(bool(gram.converged))
            if gram.converged:
                assert float(gram) == pytest.approx(true, rel=1e-8)
            else:
                assert float(gram) <= true
    assert len(set(verdicts)) == 2  # the edge lies inside the sweep


@pytest.mark.parametrize("sizes", [(12, 3, 2, 2), (20, 4, 3, 3), (24, 4, 2, 2), (9, 2, 1, 5)])
def test_the_gauge_costs_d_k_squared(sizes):
    _, dim, d_k, d_v = sizes
    jac = AttentionJacobian(*problem(*sizes))
    assert jac.shape[0] >= jac.shape[1]
    result = jac.condition_number()
    values = numpy_values(jacrev(*problem(*sizes)))
    rank = 2 * dim * d_k + dim * d_v - d_k**2
    assert result.rank.item() == rank
    assert float(result) == math.inf
    assert result.effective_value.item() == pytest.approx(values[0] / values[rank - 1], rel=1e-8)
    for role, width in zip("qkv", (d_k, d_k, d_v), strict=True):  # each block alone has full column rank
        block = jac.condition_number(role)
        assert block.rank.item() == dim * width
        assert math.isfinite(float(block))


@pytest.mark.parametrize("method", ["auto", "svd"])
def test_duplicate_tokens_are_rank_deficient(method):
    x, *weights = problem(5, 8, 3, 4)
    x[3] = x[1]
    result = AttentionJacobian(x, *weights).condition_number(method=method)
    assert result.rank.item() == 4 * 4  # equal tokens have equal rows
    assert (float(result), result.method) == (math.inf, "svd")
    values = numpy_values(jacrev(x, *weights))
    assert result.effective_value.item() == pytest.approx(values[0] / values[15], rel=1e-9)
    assert not AttentionJacobian(x, *weights).condition_number(method="gram").converged


@pytest.mark.parametrize("method", ["auto", "gram", "cholesky", "svd"])
@pytest.mark.parametrize("wrt", ["q", "k", "qk"])
def test_saturated_attention_has_zero_blocks_and_infinite_kappa(method, wrt):
    x, _, _, w_v = problem(4, 6, 6, 3)
    jac = AttentionJacobian(x, 1e4 * torch.eye(6), 1e4 * torch.eye(6), w_v)
    assert torch.equal(jac.attention(), torch.eye(4, dtype=torch.float64))
    assert not any(jac.norms(wrt).values())
    result = jac.condition_number(wrt, method=method)
    assert float(result) == math.inf
    assert result.rank.item() == 0
    x_values = numpy_values(x)  # P = I: what is left is the V block, and κ(J) → κ(X)
    assert float(jac.condition_number()) == pytest.approx(x_values[0] / x_values[-1], rel=1e-10)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 6), dim=st.integers(1, 6), log_scale=st.floats(-20, 20))
def test_orthogonal_and_scale_invariance(seed, n, dim, log_scale):
    x, w_q, w_k, w_v = problem(n, dim, 2, 3, seed=seed)
    rng = np.random.default_rng(seed)
    turns = (np.linalg.qr(rng.standard_normal((d, d)))[0] for d in (dim, 2, 3))
    turn, turn_k, turn_v = map(torch.from_numpy, turns)
    plain = AttentionJacobian(x, w_q, w_k, w_v)
    values = plain.singular_values()
    moved = AttentionJacobian(x @ turn, turn.T @ w_q @ turn_k, turn.T @ w_k @ turn_k, turn.T @ w_v @ turn_v)
    close = {"rtol": 1e-9, "atol": 1e-10 * values[0].item()}
    torch.testing.assert_close(moved.singular_values(), values, **close)
    order = torch.from_numpy(rng.permutation(n))
    torch.testing.assert_close(AttentionJacobian(x[order], w_q, w_k, w_v).singular_values(), values, **close)
    scaled = AttentionJacobian(x, w_q, w_k, 10.0**log_scale * w_v)
    torch.testing.assert_close(scaled.dense("qk"), 10.0**log_scale * plain.dense("qk"))
    torch.testing.assert_close(scaled.singular_values("v"), plain.singular_values("v"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_everything_is_computed_in_float64(dtype):
    head = [w.to(dtype).requires_grad_() for w in problem(4, 7, 2, 3)]
    jac = AttentionJacobian(*head)
    exact = AttentionJacobian(*(w.detach().double() for w in head))
    assert jac.dense().dtype == torch.float64
    assert not jac.dense().requires_grad
    assert torch.equal(jac.dense(), exact.dense())
    assert torch.equal(jac.condition_number().value, exact.condition_number().value)


X, WQ, WK, WV = problem(4, 6, 2, 3)
ONES = torch.ones(4, 4, dtype=torch.bool)
ROW = ONES.clone()
ROW[2] = False


@pytest.mark.parametrize(("changes", "message"), [
    ({"x": X.numpy()}, r"x: expected a torch.Tensor, got ndarray"),
    ({"w_q": WQ.int()}, r"w_q: expected a real floating-point tensor, got dtype torch.int32"),
    ({"w_k": WK[0]}, r"w_k: expected at least 2 dimensions, got shape \(2,\)"),
    ({"x": X[:0]}, r"x: expected a non-empty tensor, got shape \(0, 6\)"),
    ({"w_v": WV / 0}, r"w_v: expected finite entries, got 18 inf or nan of 18"),
    ({"w_q": WQ.T}, r"w_q: expected 6 rows \(the width D of x\), got shape \(2, 6\); .*nn.Linear.weight.T"),
    ({"w_v": WV[1:]}, r"w_v: expected 6 rows \(the width D of x\), got shape \(5, 3\)"),
    ({"w_k": WV}, r"expected w_q and w_k of the same width d_k, got 2 and 3"),
    ({"x": X.expand(2, 4, 6), "w_v": WV.expand(3, 6, 3)},
     r"expected leading dimensions that broadcast, got \{'x': \(2, 4, 6\), .*'w_v': \(3, 6, 3\)\}"),
    ({"x": X.expand(2, 4, 6), "mask": ONES.expand(3, 4, 4)}, r"expected leading .*'mask': \(3, 4, 4\)\}"),
    ({"scale": math.nan}, r"scale: expected a finite number, got nan"),
    ({"scale": "auto"}, r"scale: expected a real number, got 'auto'"),
    ({"mask": ONES.float()}, r"mask: .* boolean tensor .*, True where allowed, got torch.float32 \(4, 4\)"),
    ({"mask": ONES[:3]}, r"mask: expected a boolean tensor \(…, 4, 4\), .* got torch.bool \(3, 4\)"),
    ({"mask": ONES[0]}, r"mask: expected a boolean tensor .* got torch.bool \(4,\)"),
    ({"mask": ONES.tolist()}, r"mask: expected a boolean tensor .* got list"),
    ({"mask": ROW}, r"mask: .* one allowed token per row, got a fully masked row at index \[2\]"),
    ({"mask": torch.stack([ONES, ROW])}, r"got a fully masked row at index \[1, 2\]"),
    ({"mask": ONES.triu(1) | ROW.tril(-1), "is_causal": True}, r"got a fully masked row at index \[0\]"),
])
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AttentionJacobian(**{"x": X, "w_q": WQ, "w_k": WK, "w_v": WV, **changes})


@pytest.mark.parametrize("method", ["dense", "gram", "singular_values", "condition_number", "norms"])
@pytest.mark.parametrize("wrt", ["", "z", "qq", "qkvo", None, ("q",)])
def test_bad_wrt_is_refused(method, wrt):
    message = r'wrt: expected a non-empty subset of "qkvx" without repeats, got'
    with pytest.raises(ValueError, match=message):
        getattr(AttentionJacobian(X, WQ, WK, WV), method)(wrt)


def test_wrt_keeps_the_order_qkv_and_an_unknown_method_is_refused():
    jac = AttentionJacobian(X, WQ, WK, WV)
    assert torch.equal(jac.dense("vq"), jac.dense("qv"))
    with pytest.raises(ValueError, match=r"method: expected one of \('auto', 'gram', 'cholesky', 'svd'\), got 'lanc"):
        jac.condition_number(method="lanczos")
