"""One head by automatic differentiation, against the closed form where that holds, and finite differences elsewhere."""

import copy

import numpy as np
import pytest
import torch

from spectral_core import IdentityCorrection, condition
from spectral_core.demo.tasks import load_task, new_model
from spectral_core.jacobian import AttentionJacobian
from spectral_core.models import VisionTransformer
from spectral_core.probe import differentiated_jacobian, probe_head

ROLES = {"q": "query", "k": "key", "v": "value"}
EPS = torch.finfo(torch.float32).eps


def output(attention, x, head, is_causal):
    """The head's output by the module's own forward, before the output layer: (n d,)."""
    d = attention.dim // attention.num_heads
    attention.out.weight.data = torch.eye(attention.dim, dtype=x.dtype)
    return attention(x, is_causal=is_causal)[:, head * d : (head + 1) * d].detach().flatten()


def by_differences(attention, x, head, is_causal, step=1e-6):
    """J's blocks, one entry of one weight matrix after the other, moved both ways."""
    attention, d = copy.deepcopy(attention).double(), attention.dim // attention.num_heads
    for norm in (attention.norm_q, attention.norm_k):
        if hasattr(norm, "eps"):
            norm.eps = EPS  # as in float32, in which the model runs
    blocks = {}
    for role, name in ROLES.items():
        weight, columns = getattr(attention, name).weight.data, []
        for i in range(attention.dim):  # (D, d) row-major; nn.Linear stores the transpose
            for j in range(head * d, (head + 1) * d):
                ends = []
                for sign in (1, -1):
                    weight[j, i] += sign * step
                    ends.append(output(attention, x, head, is_causal))
                    weight[j, i] -= sign * step
                columns.append((ends[0] - ends[1]) / (2 * step))
        blocks[role] = torch.stack(columns, 1)
    return blocks


def setup(source, *, qk_norm, init="xavier", seed=2):
    model = new_model(init, source, seed, qk_norm=qk_norm)
    if qk_norm:  # scales that are not all 1
        g = torch.Generator().manual_seed(5)
        for block in model.blocks:
            for norm in (block.attention.norm_q, block.attention.norm_k):
                norm.weight.data = 0.5 + torch.rand(16, generator=g)
    return model, load_task(source).test_x[0]


@pytest.mark.parametrize(("source", "head"), [("digits", 0), ("text", 1)])
def test_the_differentiated_jacobian_is_that_of_the_modules_forward(source, head):
    model, example = setup(source, qk_norm=True)
    x = model.attention_input(example[None], 1)[0].detach().double()
    attention = model.block(1).attention
    blocks, p = differentiated_jacobian(attention, x, head, is_causal=model.is_causal)
    for role, expected in by_differences(attention, x, head, model.is_causal).items():
        assert blocks[role].shape == expected.shape == (16 * 16, 32 * 16)
        assert (blocks[role] - expected).norm() < 1e-6 * expected.norm()
    twin = copy.deepcopy(attention).double()
    for norm in (twin.norm_q, twin.norm_k):
        norm.eps = EPS
    _, maps = twin(x, is_causal=model.is_causal, need_weights=True)
    torch.testing.assert_close(p, maps[head].detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("source", ["digits", "listops", "text"])
def test_without_norms_it_equals_the_closed_form(source):
    model, example = setup(source, qk_norm=False)
    condition(model, IdentityCorrection(0.4))
    attention = model.block(0).attention
    x = model.attention_input(example[None])[0].detach()
    blocks, p = differentiated_jacobian(attention, x, 1, is_causal=model.is_causal)
    jac = AttentionJacobian(x, *(w[1] for w in attention.head_weights()), is_causal=model.is_causal)
    torch.testing.assert_close(torch.cat(list(blocks.values()), 1), jac.dense(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(p, jac.attention())
    probe = probe_head(model, example, head=1)
    assert probe.kappa_j == pytest.approx(float(jac.condition_number().value), rel=1e-6)


@pytest.mark.parametrize(("source", "layer", "head"), [("digits", 0, 0), ("text", 1, 1)])
def test_the_probe_of_a_head_with_norms(source, layer, head):
    model, example = setup(source, qk_norm=True)
    probe = probe_head(model, example, layer=layer, head=head)
    attention = model.block(layer).attention
    x = model.attention_input(example[None], layer)[0].detach().double()
    blocks = by_differences(attention, x, head, model.is_causal)
    values = np.linalg.svd(torch.cat(list(blocks.values()), 1).numpy(), compute_uv=False)
    rank = int((values > 1e-7 * values[0]).sum())  # of differences; a causal head's first token has no Q and K rows
    assert rank == len(values)
    assert probe.kappa_j == pytest.approx(values[0] / values[-1], rel=1e-3)
    for role, block in blocks.items():
        assert probe.block_norms[role] == pytest.approx(float(block.norm()), rel=1e-6)
        weight = getattr(attention, ROLES[role]).weight.detach().double().numpy()
        assert probe.kappa_w[role] == pytest.approx(np.linalg.cond(weight), rel=1e-4)
    _, maps = attention(x.float(), is_causal=model.is_causal, need_weights=True)
    maps = maps.detach()
    torch.testing.assert_close(probe.attention.float(), maps[head], rtol=1e-4, atol=1e-6)
    assert probe.saturation == pytest.approx(float(maps[head].amax(-1).mean()), rel=1e-4)
    assert not probe.attention.requires_grad


def test_norms_make_the_jacobian_blind_to_the_scale_of_q_and_k():
    """RMS(a x W) = RMS(x W): P does not change, and the Q block shrinks by a. Without norms saturation goes up."""
    rest = {}
    for qk_norm in (True, False):
        model, example = setup("digits", qk_norm=qk_norm)
        before = probe_head(model, example)
        with torch.no_grad():
            model.block(0).attention.query.weight *= 30
        after = probe_head(model, example)
        rest[qk_norm] = before, after
    before, after = rest[True]
    torch.testing.assert_close(after.attention, before.attention, rtol=1e-4, atol=1e-6)
    assert after.block_norms["q"] == pytest.approx(before.block_norms["q"] / 30, rel=1e-3)
    assert after.block_norms["v"] == pytest.approx(before.block_norms["v"], rel=1e-4)
    assert rest[False][1].saturation > 0.7 > 0.3 > rest[False][0].saturation


def test_a_probe_moves_no_gradient_and_no_weight():
    model = VisionTransformer(dim=16, depth=1, qk_norm=True)
    before = copy.deepcopy(model.state_dict())
    probe_head(model, load_task("digits").test_x[0])
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
