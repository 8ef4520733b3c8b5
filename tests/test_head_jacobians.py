"""attention_jacobians: what it captures against inputs taken by hand, what it leaves behind, and what it refuses."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from spectral_core import AttentionJacobian, IdentityCorrection, _progress, attention_jacobians, condition
from spectral_core import condition_number as kappa
from spectral_core.models import VisionTransformer


class Attention(nn.Module):
    """Self- or cross-attention with separate layers, in the ways that people write it."""

    def __init__(self, dim=12, num_heads=3, *, kv_heads=None, bias=True, written_out=False, rope=False, dropout=0.0,
                 causal=False, scale=None, context=None):
        super().__init__()
        self.num_heads, self.kv_heads = num_heads, kv_heads or num_heads
        self.d, context = dim // num_heads, context or dim
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(context, self.kv_heads * self.d, bias=bias)
        self.v_proj = nn.Linear(context, self.kv_heads * self.d, bias=bias)
        self.out_proj = nn.Linear(dim, dim)
        self.written_out, self.rope, self.dropout, self.causal, self.fixed = written_out, rope, dropout, causal, scale

    def forward(self, x, context=None, mask=None):
        y = x if context is None else context
        q, k, v = (layer(t).unflatten(-1, (-1, self.d)).transpose(-3, -2)
                   for layer, t in ((self.q_proj, x), (self.k_proj, y), (self.v_proj, y)))
        if self.rope:
            q = q * torch.linspace(0.5, 1.5, q.shape[-2])[:, None]
        repeat = self.num_heads // self.kv_heads
        k, v = k.repeat_interleave(repeat, -3), v.repeat_interleave(repeat, -3)
        if self.written_out:
            logits = q @ k.mT * (self.fixed or self.d**-0.5)
            if self.causal:
                logits = logits.masked_fill(torch.ones_like(logits).triu(1) > 0, -torch.inf)
            if mask is not None:
                logits = logits + mask
            out = F.dropout(logits.softmax(-1), self.dropout, self.training) @ v
        else:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=self.causal, scale=self.fixed,
                dropout_p=self.dropout if self.training else 0.0,
            )
        return self.out_proj(out.transpose(-3, -2).flatten(-2))


class Model(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(12), Attention(**settings)

    def forward(self, x, mask=None):
        return x + self.attn(self.norm(x), mask=mask)


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head_weights(layer, count, head, repeat=1):
    return layer.weight.detach().unflatten(0, (count, -1))[head // repeat].T


def expected(attention, x, head, context=None, **settings):
    """The same head's Jacobian, from weights cut out by hand."""
    repeat = attention.num_heads // attention.kv_heads
    w_q = head_weights(attention.q_proj, attention.num_heads, head)
    w_k, w_v = (head_weights(layer, attention.kv_heads, head, repeat)
                for layer in (attention.k_proj, attention.v_proj))
    bias = attention.q_proj.bias
    b_q = None if bias is None else bias.detach().unflatten(0, (attention.num_heads, -1))[head]
    return AttentionJacobian(x, w_q, w_k, w_v, b_q=b_q, x_kv=context, **settings)


@pytest.mark.parametrize("written_out", [False, True])
@pytest.mark.parametrize("settings", [
    {}, {"bias": False}, {"kv_heads": 1}, {"causal": True}, {"scale": 0.7}, {"num_heads": 1}, {"num_heads": 4},
], ids=str)
def test_records_are_those_of_heads_cut_out_by_hand(settings, written_out):
    torch.manual_seed(0)
    model = Model(**settings, written_out=written_out)
    if written_out and "scale" in settings:
        model.attn.scaling = settings["scale"]  # as transformers names it
    x = tokens(2, 5, 12)
    records = attention_jacobians(model, x)
    assert [(r.layer, r.head) for r in records] == [("attn", h) for h in range(model.attn.num_heads)]
    more = {"is_causal": settings.get("causal", False), "scale": settings.get("scale")}
    for record in records:
        for e in range(2):
            jac = expected(model.attn, model.norm(x)[e], record.head, **more)
            result = jac.condition_number()
            assert record.condition_number[e].item() == pytest.approx(float(result), rel=1e-6)
            assert record.effective_condition_number[e].item() == pytest.approx(float(result.effective_value), rel=1e-6)
            assert record.rank[e].item() == result.rank.item()
            assert record.converged[e]
            assert record.saturation[e].item() == pytest.approx(jac.attention().amax(-1).mean().item(), rel=1e-6)
            for role, norm in jac.norms().items():
                assert record.norms[role][e].item() == pytest.approx(norm.item(), rel=1e-6)
        for role, name in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj")):
            count = model.attn.num_heads if role == "q" else model.attn.kv_heads
            w = head_weights(getattr(model.attn, name), count, record.head, model.attn.num_heads // count)
            assert record.kappa_w[role] == pytest.approx(kappa(w).item(), rel=1e-5)


def test_cross_attention_takes_both_inputs():
    torch.manual_seed(0)
    attention = Attention(context=7)
    x, context = tokens(1, 4, 12), tokens(1, 6, 7, seed=1)

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = attention

        def forward(self, x, context):
            return self.attn(x, context)

    for batch in ((x, context), {"x": x, "context": context}):
        for record in attention_jacobians(Wrapper(), batch):
            jac = expected(attention, x[0], record.head, context[0])
            assert record.condition_number.item() == pytest.approx(float(jac.condition_number()), rel=1e-6)


@pytest.mark.parametrize("kind", ["boolean", "additive", "per example"])
def test_masks_are_the_models_own(kind):
    torch.manual_seed(0)
    model, x = Model(), tokens(2, 5, 12)
    allowed = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1)) > 0.4
    allowed = allowed | torch.eye(5, dtype=torch.bool)
    if kind != "per example":
        allowed = allowed[:1]
    mask = allowed if kind == "boolean" else torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo().min)
    for record in attention_jacobians(model, {"x": x, "mask": mask}, heads=[1]):
        for e in range(2):
            jac = expected(model.attn, model.norm(x)[e], 1, mask=allowed[e if len(allowed) > 1 else 0, 0])
            assert record.condition_number[e].item() == pytest.approx(float(jac.condition_number()), rel=1e-6)


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = VisionTransformer(depth=2, dim=16, num_heads=2)
    model.blocks[0].attention.eval()  # a mixture of modes comes back too
    condition(model, IdentityCorrection(0.5))
    images = tokens(2, 1, 8, 8)
    before, out = copy.deepcopy(model.state_dict()), model(images)
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    attention_jacobians(model, images)
    assert torch.equal(model(images), out)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(p.grad is None for p in model.parameters())


def test_corrections_are_included():
    torch.manual_seed(0)
    model, x = Model(bias=False), tokens(1, 5, 12)
    condition(model, IdentityCorrection(0.5))
    weights = [layer.weight.detach() for layer in (model.attn.q_proj, model.attn.k_proj, model.attn.v_proj)]
    for record in attention_jacobians(model, x):
        cut = [w.unflatten(0, (3, 4))[record.head].T for w in weights]
        jac = AttentionJacobian(model.norm(x)[0], *cut)
        assert record.condition_number.item() == pytest.approx(float(jac.condition_number()), rel=1e-6)


@pytest.mark.parametrize("error", [RuntimeError("inside"), KeyboardInterrupt()])
def test_hooks_are_removed_even_on_error(error):
    model = Model()

    def fail(*_):
        raise error

    handle = model.attn.out_proj.register_forward_hook(fail)
    model.train()
    with pytest.raises(type(error)):
        attention_jacobians(model, tokens(1, 5, 12))
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.training
    assert model.attn.training


def test_dropout_is_off_and_a_pass_changes_no_statistics():
    torch.manual_seed(0)
    model, x = Model(dropout=0.5), tokens(1, 5, 12)
    model.train()
    first, second = (attention_jacobians(model, x)[0].condition_number for _ in range(2))
    assert torch.equal(first, second)


def test_chunks_give_what_one_piece_gives():
    torch.manual_seed(0)
    model, x = Model(), tokens(5, 4, 12)
    whole = attention_jacobians(model, x)
    one = expected(model.attn, model.norm(x)[0], 0).bytes_needed()
    for factor in (1, 2, 7):
        pieces = attention_jacobians(model, x, max_bytes=factor * one)
        for a, b in zip(whole, pieces, strict=True):
            torch.testing.assert_close(a.condition_number, b.condition_number, rtol=1e-9, atol=0)
            torch.testing.assert_close(a.norms["q"], b.norms["q"])


def test_layers_and_heads_are_chosen():
    torch.manual_seed(0)
    model, images = VisionTransformer(depth=3, dim=16, num_heads=2), tokens(1, 1, 8, 8)
    everything = attention_jacobians(model, images)
    names = [f"blocks.{i}.attention" for i in range(3)]
    assert [(r.layer, r.head) for r in everything] == [(name, h) for name in names for h in range(2)]
    for layers in ([1], 1, names[1], [names[1]], [-2]):
        chosen = attention_jacobians(model, images, layers=layers, heads=[1])
        assert [(r.layer, r.head) for r in chosen] == [(names[1], 1)]
        torch.testing.assert_close(chosen[0].condition_number, everything[3].condition_number, rtol=1e-9, atol=0)


def test_a_layer_that_runs_twice_has_two_records():
    torch.manual_seed(0)
    attention = Attention(num_heads=1)
    model, x = nn.Sequential(attention, attention), tokens(1, 4, 12)
    records = attention_jacobians(model, x)
    assert [r.layer for r in records] == ["0", "0#2"]
    for record, seen in zip(records, (x[0], attention(x)[0]), strict=True):
        result = expected(attention, seen, 0).condition_number()
        assert record.condition_number.item() == pytest.approx(float(result), rel=1e-6)


def test_a_bar_appears_after_a_second_and_only_then(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(_progress, "Console", lambda **_: Console(file=text, force_terminal=True, width=80))
    clock = iter(range(1000))
    model, x = Model(), tokens(3, 4, 12)
    one = expected(model.attn, model.norm(x)[0], 0).bytes_needed()
    attention_jacobians(model, x, max_bytes=one, progress=False)
    assert text.getvalue() == ""
    monkeypatch.setattr(_progress.time, "monotonic", lambda: 0.0)
    attention_jacobians(model, x, max_bytes=one)
    assert text.getvalue() == ""
    monkeypatch.setattr(_progress.time, "monotonic", lambda: 2.0 * next(clock))
    attention_jacobians(model, x, max_bytes=one)
    assert "κ(J) of attention heads" in text.getvalue()


class KeysMoved(Attention):
    def forward(self, x, context=None, mask=None):
        q, k, v = (layer(t).unflatten(-1, (-1, self.d)).transpose(-3, -2)
                   for layer, t in ((self.q_proj, x + 1), (self.k_proj, x + 1), (self.v_proj, x)))
        return F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2)


@pytest.mark.parametrize(("build", "settings", "message"), [
    (lambda: nn.Sequential(nn.Linear(12, 12)), {}, r"expected a model with query, key and value weights"),
    (Model, {"layers": [3]}, r"layers: expected positions below 1 or names among \['attn'\], got 3"),
    (Model, {"layers": "encoder"}, r"layers: expected positions .* got 'encoder'"),
    (Model, {"heads": [0, 3]}, r"heads: expected indices from 0 to 2 \(attn\), got 3"),
    (Model, {"max_bytes": 10}, r"max_bytes: expected at least \d+ for one head of attn \(5 tokens\), got 10; raise"),
    (Model, {"max_bytes": 0}, r"max_bytes: expected a positive integer, got 0"),
    (Model, {"max_bytes": 1e9}, r"max_bytes: expected a positive integer, got 1000000000.0"),
    (Model, {"wrt": ""}, r'wrt: expected a non-empty subset of "qkvx" without repeats, got \'\''),
    (Model, {"method": "dense"}, r"method: expected one of"),
    (lambda: Model(rope=True), {}, r"attn: expected queries straight from their linear layer, got queries that are "
                                   r"changed before attention \(rotary positions or a norm\?\).*leave it out"),
    (lambda: Model(rope=True, written_out=True), {}, r"attn: expected softmax attention through F.scaled_dot_product"
                                                     r".*tried \['3 heads, scale 0.5', '3 heads, scale 0.5, causal'"),
    (KeysMoved, {}, r"expected keys and values from the same tokens, got different inputs"),
])
def test_bad_calls_are_refused(build, settings, message):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=message):
        attention_jacobians(build(), tokens(1, 5, 12), **settings)


def test_bad_inputs_are_refused():
    model = Model()
    bias = torch.linspace(0, 1, 25).reshape(1, 1, 5, 5)
    with pytest.raises(ValueError, match=r"attn: expected a mask of 0 and large negative numbers, .* position bias\?"):
        attention_jacobians(model, {"x": tokens(1, 5, 12), "mask": bias})
    with pytest.raises(ValueError, match=r"attn: input of its q layer: expected finite entries, got 60 inf or nan"):
        attention_jacobians(model, torch.full((1, 5, 12), torch.nan))
    off = torch.ones(1, 1, 5, 5) > 0
    off[..., 2, :] = False
    with pytest.raises(ValueError, match=r"mask: .* fully masked row at index \[0, 0, 2\]"):
        attention_jacobians(model, {"x": tokens(1, 5, 12), "mask": off})
    idle = nn.ModuleDict({"used": Attention(), "idle": Attention()})
    idle.forward = lambda x: idle["used"](x)
    with pytest.raises(ValueError, match=r"attention layer to run on this batch, got no call of \['idle'\]"):
        attention_jacobians(idle, tokens(1, 5, 12))
    assert len(attention_jacobians(idle, tokens(1, 5, 12), layers="used")) == 3
