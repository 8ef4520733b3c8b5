"""The attention module against explicit NumPy loops over heads and tokens."""

import numpy as np
import pytest
import torch

from spectral_core import IdentityCorrection, PolarCorrection, SpectralConditionedAttention

DIM, HEADS, N = 6, 2, 5


def module(seed=0, **settings):
    torch.manual_seed(seed)
    return SpectralConditionedAttention(DIM, HEADS, **settings).double()


def inputs(*shape, seed=1):
    return torch.randn(*shape, N, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(m, x, is_causal=False):
    """(output (n, D), maps (heads, n, n)) of one sequence, token by token, biases included."""
    layers = {name: getattr(m, name) for name in ("query", "key", "value", "out")}
    weights = {name: layer.weight.detach().numpy() for name, layer in layers.items()}
    biases = {name: 0 if m.bias is None else m.bias.detach().numpy() for name, m in layers.items()}
    x, d = x.numpy(), DIM // HEADS
    maps, joined = np.zeros((HEADS, N, N)), np.zeros((N, DIM))
    q, k, v = (x @ weights[name].T + biases[name] for name in ("query", "key", "value"))
    for h in range(HEADS):
        part = slice(h * d, (h + 1) * d)
        for i in range(N):
            seen = i + 1 if is_causal else N
            e = np.exp([q[i, part] @ k[j, part] / np.sqrt(d) for j in range(seen)])
            maps[h, i, :seen] = e / e.sum()
            joined[i, part] = maps[h, i] @ v[:, part]
    return joined @ weights["out"].T + biases["out"], maps


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("correction", [
    None, IdentityCorrection(1.5), {"q": PolarCorrection(), "v": IdentityCorrection(-1.0)},
])
def test_forward_and_map_equal_the_formula(bias, is_causal, correction):
    m, x = module(bias=bias, correction=correction), inputs(3)
    out = m(x, is_causal=is_causal)
    again, maps = m(x, is_causal=is_causal, need_weights=True)
    assert torch.equal(out, again)
    assert maps.shape == (3, HEADS, N, N)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, HEADS, N, dtype=torch.float64))
    for b in range(3):
        expected, expected_maps = by_hand(m, x[b], is_causal)
        np.testing.assert_allclose(out[b].detach().numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(maps[b].detach().numpy(), expected_maps, atol=1e-12)
    if is_causal:
        assert not maps.triu(1).any()


def test_the_correction_is_part_of_the_weights_used():
    m = module(correction=IdentityCorrection(1.5))
    plain = module()
    assert torch.equal(m.query.weight, plain.query.weight + 1.5 * torch.eye(DIM))
    assert torch.equal(m.out.weight, plain.out.weight)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3)])
def test_any_leading_dimensions(leading):
    m, x = module(), inputs(*leading)
    out, maps = m(x, need_weights=True)
    assert out.shape == x.shape
    assert maps.shape == (*leading, HEADS, N, N)
    for index in np.ndindex(leading):
        expected, expected_maps = by_hand(m, x[index])
        np.testing.assert_allclose(out[index].detach().numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(maps[index].detach().numpy(), expected_maps, atol=1e-12)


def test_head_weights_act_on_the_right_and_belong_to_their_head():
    m, d = module(correction=IdentityCorrection(0.5)), DIM // HEADS
    for layer, heads in zip((m.query, m.key, m.value), m.head_weights(), strict=True):
        assert heads.shape == (HEADS, DIM, d)
        assert not heads.requires_grad
        w = layer.weight.detach().numpy()
        assert not np.allclose(w, w.T)
        for h in range(HEADS):
            for column in range(d):
                np.testing.assert_array_equal(heads[h, :, column].numpy(), w[h * d + column])


def test_jacobian_is_that_of_each_heads_output():
    m, x, d = module(correction=IdentityCorrection(0.5)), inputs(2), DIM // HEADS
    jac = m.jacobian(x)
    dense = jac.dense()
    assert dense.shape == (2, HEADS, N * d, 3 * DIM * d)
    for b, h in np.ndindex(2, HEADS):

        def head(q, k, v, x=x[b]):
            return ((x @ q @ (x @ k).T) / d**0.5).softmax(-1) @ x @ v

        rows = slice(h * d, (h + 1) * d)
        weights = tuple(layer.weight.detach()[rows].T.clone() for layer in (m.query, m.key, m.value))
        blocks = torch.func.jacrev(head, argnums=(0, 1, 2))(*weights)
        expected = torch.cat([block.reshape(N * d, -1) for block in blocks], -1)
        torch.testing.assert_close(dense[b, h], expected, rtol=1e-10, atol=1e-12)
    _, maps = m(x, need_weights=True)
    torch.testing.assert_close(jac.attention(), maps)


def test_jacobian_with_biases_is_refused():
    with pytest.raises(ValueError, match="jacobian: expected attention without biases, got bias=True"):
        module(bias=True).jacobian(inputs())


@pytest.mark.parametrize(("dim", "heads"), [(5, 2), (4, 0), (4, -2), (0, 1), (2, 4)])
def test_bad_sizes_are_refused(dim, heads):
    message = f"expected dim to be a positive multiple of num_heads, got dim={dim}, num_heads={heads}"
    with pytest.raises(ValueError, match=message):
        SpectralConditionedAttention(dim, heads)


def normed_by_hand(m, x, is_causal=False):
    """As `by_hand`, with every head's queries and keys brought to root mean square 1, then scaled."""
    layers = {name: getattr(m, name).weight.detach().numpy() for name in ("query", "key", "value", "out")}
    scale = {name: getattr(m, name).weight.detach().numpy() for name in ("norm_q", "norm_k")}
    x, d, eps = x.numpy(), DIM // HEADS, np.finfo(np.float64).eps
    q, k, v = (x @ layers[name].T for name in ("query", "key", "value"))
    maps, joined = np.zeros((HEADS, N, N)), np.zeros((N, DIM))
    for h in range(HEADS):
        part = slice(h * d, (h + 1) * d)
        a, b = ([row[part] / np.sqrt((row[part] ** 2).mean() + eps) * scale[name] for row in rows]
                for rows, name in ((q, "norm_q"), (k, "norm_k")))
        for i in range(N):
            seen = i + 1 if is_causal else N
            e = np.exp([a[i] @ b[j] / np.sqrt(d) for j in range(seen)])
            maps[h, i, :seen] = e / e.sum()
            joined[i, part] = maps[h, i] @ v[:, part]
    return joined @ layers["out"].T, maps


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("correction", [None, IdentityCorrection(1.5)])
def test_normalised_queries_and_keys_equal_the_formula(is_causal, correction):
    m, x = module(qk_norm=True, correction=correction), inputs(3)
    for norm in (m.norm_q, m.norm_k):
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    out, maps = m(x, is_causal=is_causal, need_weights=True)
    for b in range(3):
        expected, expected_maps = normed_by_hand(m, x[b], is_causal)
        np.testing.assert_allclose(out[b].detach().numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(maps[b].detach().numpy(), expected_maps, atol=1e-12)


def test_normalised_logits_are_bounded_however_large_the_weights():
    m, x = module(qk_norm=True), inputs()
    m.query.weight.data *= 1e6
    _, maps = m(x, need_weights=True)
    maps = maps.detach()
    ratio = maps.amax(-1) / maps.amin(-1)
    assert float(ratio.max()) <= np.exp(2 * np.sqrt(DIM // HEADS))  # |q · k| / √d ≤ √d
    assert float(maps.max()) < 0.95


def test_only_normalised_attention_says_that_it_is():
    assert module(qk_norm=True).has_qk_norm
    assert not module().has_qk_norm
    assert {n for n, _ in module(qk_norm=True).named_parameters()} - {n for n, _ in module().named_parameters()} == {
        "norm_q.weight", "norm_k.weight"
    }


def test_jacobian_with_normalised_queries_is_refused():
    message = "jacobian: expected attention without qk_norm; spectral_core.probe differentiates it"
    with pytest.raises(ValueError, match=message):
        module(qk_norm=True).jacobian(inputs())
