"""Layers beyond one plain head: the input, W_O, cross-attention, biases and products, against torch.func.jacrev."""

import mpmath
import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from exact import exact_jacobian
from hypothesis import given
from hypothesis import strategies as st

from spectral_core import AttentionJacobian

F64 = torch.float64


def draw(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=F64, generator=g) for shape in shapes]


def layer(x, w_q, w_k, w_v, *, scale, w_o=None, x_kv=None, b_q=None, b_k=None, b_v=None, allowed=None):
    """Plain multi-head attention: weights (H, D, d); without w_o exactly one head."""
    y = x if x_kv is None else x_kv
    outs = []
    for h in range(len(w_q)):
        q, k, v = x @ w_q[h], y @ w_k[h], y @ w_v[h]
        q, k, v = (t if b is None else t + b[h] for t, b in ((q, b_q), (k, b_k), (v, b_v)))
        logits = scale * q @ k.T
        if allowed is not None:
            logits = torch.where(allowed, logits, torch.tensor(-torch.inf, dtype=F64))
        out = logits.softmax(-1) @ v
        outs.append(out if w_o is None else out @ w_o[h])
    return sum(outs)


def reference(x, w_q, w_k, w_v, wrt="qkvx", **settings):
    """J by autodiff: rows (token, channel), columns role by role, head by head."""
    if settings.get("scale") is None:
        settings["scale"] = w_q.shape[-1] ** -0.5

    def call(x, w_q, w_k, w_v):
        return layer(x, w_q, w_k, w_v, **settings)

    blocks = dict(zip("xqkv", torch.func.jacrev(call, argnums=(0, 1, 2, 3))(x, w_q, w_k, w_v), strict=True))
    return torch.cat([blocks[role].flatten(2).flatten(0, 1) for role in "qkvx" if role in wrt], -1)


# name: (n, m or None, D, E or None, d_k, d_v, H, D_out or None)
LAYERS = {
    "one head, n<D": (4, None, 7, None, 2, 3, 1, None),
    "one head, n>D": (7, None, 3, None, 2, 4, 1, None),
    "wide head": (4, None, 3, None, 5, 6, 1, None),
    "cross": (4, 5, 6, 7, 2, 3, 1, None),
    "cross, tall": (5, 9, 3, 2, 2, 3, 1, None),
    "cross, one query": (1, 6, 4, 5, 2, 3, 1, None),
    "layer": (4, None, 6, None, 2, 3, 3, 6),
    "layer, n>D": (8, None, 4, None, 2, 2, 2, 4),
    "layer, one head": (4, None, 6, None, 2, 3, 1, 5),
    "layer, wide output": (3, None, 4, None, 1, 2, 2, 9),
    "cross layer": (3, 5, 4, 6, 2, 3, 2, 4),
}


def build(name, seed=0):
    n, m, dim, dim_y, d_k, d_v, heads, out = LAYERS[name]
    e = dim if dim_y is None else dim_y
    x, w_q, w_k, w_v = draw((n, dim), (heads, dim, d_k), (heads, e, d_k), (heads, e, d_v), seed=seed)
    w_q, w_k, w_v = (w / w.shape[-2] ** 0.5 for w in (w_q, w_k, w_v))  # not saturated: the rank has a clear edge
    settings = {}
    if m is not None:
        settings["x_kv"] = draw((m, e), seed=seed + 1)[0]
    if out is not None:
        settings["w_o"] = draw((heads, d_v, out), seed=seed + 2)[0]
    return (x, w_q, w_k, w_v), settings


def construct(weights, settings, **more):
    x, *w = weights
    return AttentionJacobian(x, *(w if "w_o" in settings else (t[0] for t in w)), **settings, **more)


def assert_close(found, expected):
    scale = expected.abs().max().item() + 1e-300
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11 * scale)


@pytest.mark.parametrize("wrt", ["qkv", "x", "qkvx", "kx", "v", "q"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_method_equals_autodiff(name, wrt):
    weights, settings = build(name)
    jac, j = construct(weights, settings), reference(*weights, wrt, **settings)
    assert_close(jac.dense(wrt), j)
    assert_close(jac.gram(wrt), j @ j.T)
    values = np.linalg.svd(j.numpy(), compute_uv=False)
    np.testing.assert_allclose(jac.singular_values(wrt).numpy(), values, atol=1e-12 * values[0])
    total = sum(norm.item() ** 2 for norm in jac.norms(wrt).values()) ** 0.5
    assert total == pytest.approx(np.linalg.norm(j.numpy()), rel=1e-11)
    right, left = draw((j.shape[1], 3), (j.shape[0], 3), seed=9)
    assert_close(jac.matmat(right, wrt), j @ right)
    assert_close(jac.rmatmat(left, wrt), j.T @ left)
    rank = int((values > max(j.shape) * np.finfo(float).eps * values[0]).sum())
    result = jac.condition_number(wrt, method="svd")
    assert result.rank.item() == rank
    assert float(result.effective_value) == pytest.approx(values[0] / values[rank - 1], rel=1e-8)


@pytest.mark.parametrize("name", ["one head, n<D", "cross", "layer", "cross layer"])
@pytest.mark.parametrize("masked", [False, True])
def test_matvec_and_rmatvec_take_and_give_the_weights_own_shapes(name, masked):
    weights, settings = build(name)
    x, w_q, w_k, w_v = weights
    n, m = len(x), len(settings.get("x_kv", x))
    more, allowed = {}, None
    if masked:
        allowed = torch.rand(n, m, generator=torch.Generator().manual_seed(5)) > 0.4
        allowed[:, 0] = True
        more = {"mask": allowed}
    jac, j = construct(weights, settings, **more), reference(*weights, allowed=allowed, **settings)
    changes = draw(w_q.shape, w_k.shape, w_v.shape, x.shape, seed=4)
    shaped = changes if "w_o" in settings else [*(t[0] for t in changes[:3]), changes[3]]
    out = jac.matvec(*shaped)
    assert out.shape == (n, j.shape[0] // n)
    assert_close(out.flatten(), j @ torch.cat([t.flatten() for t in changes]))
    u = draw(tuple(out.shape), seed=6)[0]
    back = jac.rmatvec(u, "qkvx")
    for part, change in zip(back, shaped, strict=True):
        assert part.shape == change.shape
    assert_close(torch.cat([t.flatten() for t in back]), j.T @ u.flatten())
    # one role alone, by name
    assert_close(jac.matvec(dw_k=shaped[1]).flatten(), reference(*weights, "k", allowed=allowed, **settings)
                 @ changes[1].flatten())
    (only_v,) = jac.rmatvec(u, "v")
    assert_close(only_v, back[2])


def test_products_batch_over_leading_dimensions():
    x, w_q, w_k, w_v = draw((2, 1, 4, 6), (3, 6, 2), (3, 6, 2), (3, 6, 5))
    jac = AttentionJacobian(x, w_q, w_k, w_v)
    change, u = draw((3, 6, 2), (2, 3, 4, 5), seed=1)
    out, (back, _) = jac.matvec(dw_q=change), jac.rmatvec(u, "qk")
    assert out.shape == (2, 3, 4, 5)
    assert back.shape == (2, 3, 6, 2)
    for b, h in np.ndindex(2, 3):
        j = AttentionJacobian(x[b, 0], w_q[h], w_k[h], w_v[h]).dense("q")
        assert_close(out[b, h].flatten(), j @ change[h].flatten())
        assert_close(back[b, h].flatten(), j.T @ u[b, h].flatten())
    block = draw((30, 2), seed=3)[0]
    assert_close(jac.matmat(block, "v")[1, 2], jac.dense("v")[1, 2] @ block)


def test_a_layer_batches_over_examples_and_takes_the_fused_w_o():
    x, w_q, w_k, w_v, w_o = draw((2, 1, 4, 6), (3, 6, 2), (3, 6, 2), (3, 6, 4), (12, 6))
    jac = AttentionJacobian(x, w_q, w_k, w_v, w_o=w_o)
    assert jac.batch_shape == (2,)
    assert jac.attention().shape == (2, 3, 4, 4)
    for b in range(2):
        j = reference(x[b, 0], w_q, w_k, w_v, "qkv", w_o=w_o.reshape(3, 4, 6))
        assert_close(jac.dense()[b], j)
        assert_close(jac.gram()[b], j @ j.T)
        values = np.linalg.svd(j.numpy(), compute_uv=False)
        assert jac.condition_number().value[b].item() == pytest.approx(values[0] / values[-1], rel=1e-9)


def test_biases_enter_through_the_queries_alone():
    (x, w_q, w_k, w_v), _ = build("one head, n<D")
    b_q, b_k, b_v = draw((1, 2), (1, 2), (1, 3), seed=8)
    j = reference(x, w_q, w_k, w_v, "qkvx", b_q=b_q, b_k=b_k, b_v=b_v)
    jac = AttentionJacobian(x, w_q[0], w_k[0], w_v[0], b_q=b_q[0])
    assert_close(jac.dense("qkvx"), j)
    right = draw((j.shape[1], 2), seed=1)[0]
    assert_close(jac.matmat(right, "qkvx"), j @ right)
    assert not torch.allclose(jac.dense(), AttentionJacobian(x, w_q[0], w_k[0], w_v[0]).dense())


def test_scipy_reads_the_operator():
    weights, settings = build("cross")
    jac, j = construct(weights, settings), reference(*build("cross")[0], "qkv", **settings).numpy()
    op = jac.as_linear_operator()
    assert op.shape == j.shape
    assert op.dtype == np.float64
    rng = np.random.default_rng(0)
    for shape in ((j.shape[1],), (j.shape[1], 1), (j.shape[1], 4)):
        block = rng.standard_normal(shape)
        np.testing.assert_allclose(op @ block, j @ block, atol=1e-12 * abs(j).max() * 100)
        back = rng.standard_normal((j.shape[0], *shape[1:]))
        np.testing.assert_allclose(op.H @ back, j.T @ back, atol=1e-12 * abs(j).max() * 100)
    top = scipy.sparse.linalg.svds(op, k=2, return_singular_vectors=False, random_state=0)
    np.testing.assert_allclose(np.sort(top)[::-1], np.linalg.svd(j, compute_uv=False)[:2], rtol=1e-9)
    # numbers of other types are taken too
    np.testing.assert_allclose(op @ np.ones(j.shape[1], dtype=np.float32), j.sum(1), rtol=1e-9)


@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 6), dim=st.integers(1, 7), d_k=st.integers(1, 4),
    d_v=st.integers(1, 5), wrt=st.sampled_from(["qkv", "qkvx", "qx", "k"]), log_scale=st.floats(-3, 1.5),
)
def test_products_are_adjoint_and_linear(seed, n, dim, d_k, d_v, wrt, log_scale):
    x, w_q, w_k, w_v = draw((n, dim), (dim, d_k), (dim, d_k), (dim, d_v), seed=seed)
    jac = AttentionJacobian(x, w_q, w_k, w_v, scale=10.0**log_scale)
    dense = jac.dense(wrt)
    right, left = draw((dense.shape[1], 2), (dense.shape[0], 2), seed=seed + 1)
    scale = dense.norm() + 1e-300
    torch.testing.assert_close(jac.matmat(right, wrt) / scale, dense @ right / scale, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(jac.rmatmat(left, wrt) / scale, dense.T @ left / scale, rtol=1e-8, atol=1e-11)


def test_saturated_attention_keeps_relative_precision():
    """N_i is about e^-30 here: against 60-digit arithmetic, not against another float64 formula."""
    head, scale = draw((3, 2), (2, 2), (2, 2), (2, 2), seed=1), 60.0
    with mpmath.workdps(60):
        expected = torch.tensor(exact_jacobian(*head, "q", scale=scale).tolist(), dtype=F64)
    jac = AttentionJacobian(*head, scale=scale)
    assert 1e-300 < expected.abs().min() < 1e-12
    # the logits themselves are rounded at 1e-16 · their size: that is all that is lost
    torch.testing.assert_close(jac.dense("q"), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(jac.matmat(torch.eye(4, dtype=F64), "q"), expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(jac.rmatmat(torch.eye(6, dtype=F64), "q").T, expected, rtol=1e-11, atol=0)


X, WQ, WK, WV = draw((4, 6), (6, 2), (6, 2), (6, 3), seed=7)


@pytest.mark.parametrize(("changes", "message"), [
    ({"x_kv": X[:, :5]}, r"w_k: expected 5 rows \(the width D of x_kv\), got shape \(6, 2\)"),
    ({"x_kv": X / 0}, r"x_kv: expected finite entries, got \d+ inf or nan of 24"),
    ({"x_kv": X[:3], "mask": torch.ones(4, 4) > 0}, r"mask: expected a boolean tensor \(…, 4, 3\), .*\(4, 4\)"),
    ({"b_q": torch.ones(3)}, r"b_q: expected 2 entries \(d_k\), got shape \(3,\)"),
    ({"b_q": torch.tensor(1.0)}, r"b_q: expected at least 1 dimensions, got shape \(\)"),
    ({"b_q": torch.ones(5, 2), "w_q": WQ.expand(3, 6, 2)}, r"expected leading dimensions that broadcast, .*'b_q'"),
    ({"w_o": torch.ones(4, 6)}, r"w_o: expected shape \(heads · d_v, width\) = \(3, width\) or .*, got \(4, 6\)"),
    ({"w_o": torch.full((3, 6), torch.nan)}, r"w_o: expected finite entries, got 18 inf or nan of 18"),
    ({"w_o": torch.ones(3, 6), "x": X.expand(2, 4, 6)},
     r"x: with w_o, all heads read the same tokens: .* got \(2, 4, 6\); pass x.unsqueeze\(-3\)"),
    ({"x": 1e200 * X, "w_q": 1e200 * WQ}, r"expected finite attention logits, got inf or nan: .* rescale x"),
])
def test_bad_layers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AttentionJacobian(**{"x": X, "w_q": WQ, "w_k": WK, "w_v": WV, **changes})


@pytest.mark.parametrize(("call", "message"), [
    (lambda jac: jac.matvec(), r"matvec: expected at least one of dw_q, dw_k, dw_v, dx, got none"),
    (lambda jac: jac.matvec(WV), r"dw_q: expected shape \(…, 6, 2\), got \(6, 3\)"),
    (lambda jac: jac.matvec(dx=X.T), r"dx: expected shape \(…, 4, 6\), got \(6, 4\)"),
    (lambda jac: jac.matvec(dw_v=WV.int()), r"dw_v: expected a real floating-point tensor, got dtype torch.int32"),
    (lambda jac: jac.rmatvec(X), r"u: expected shape \(…, 4, 3\), got \(4, 6\)"),
    (lambda jac: jac.rmatvec(X[:, :3] / 0), r"u: expected finite entries"),
    (lambda jac: jac.matmat(X), r"block: expected shape \(…, 42, k\), got \(4, 6\)"),
    (lambda jac: jac.rmatmat(X, "x"), r"block: expected shape \(…, 12, k\), got \(4, 6\)"),
    (lambda jac: jac.matmat(X, "z"), r'wrt: expected a non-empty subset of "qkvx"'),
])
def test_bad_products_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(AttentionJacobian(X, WQ, WK, WV))


def test_a_batch_has_no_scipy_operator():
    with pytest.raises(ValueError, match=r"expected one Jacobian, got leading dimensions \(2,\)"):
        AttentionJacobian(X.expand(2, 4, 6), WQ, WK, WV).as_linear_operator()
