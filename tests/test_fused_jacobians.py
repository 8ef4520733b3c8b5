"""κ(J) of heads whose weights are fused: against autodiff through the model's own forward, row by row."""

import pytest
import torch
import torch.nn.functional as F
from families import TIMM, TRANSFORMERS
from torch import nn
from torch.overrides import TorchFunctionMode

from spectral_core import AttentionJacobian, IdentityCorrection, attention_jacobians, calibrate, condition

FAMILY = {family.name: family for family in TIMM + TRANSFORMERS}
FUSED = ["timm ViT", "timm DeiT", "timm MaxViT, roles first", "GPT-2", "GPT-BigCode, multi-query",
         "GPT-BigCode, interleaved"]


class First(TorchFunctionMode):
    """Keeps the output of the first call of F.scaled_dot_product_attention."""

    out = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and self.out is None:
            self.out = result
        return result


def jacobian_by_autodiff(family, model, head):
    """J of one head of the first layer on the first example: a gradient for every output, at the head's own rows."""
    with First() as first:
        family.run(model)
    out = first.out.reshape(len(first.out), family.heads, -1, first.out.shape[-1])[0, head]
    _, parameter, rows = next(iter(family.parameters(model)))
    picked = []
    for role, index in rows.items():
        heads = family.heads if role == "q" else family.kv_heads or family.heads
        d = len(index) // heads
        own = head * heads // family.heads
        picked += index[own * d : (own + 1) * d]
    grads = [torch.autograd.grad(value, parameter, retain_graph=True)[0] for value in out.flatten()]
    return torch.stack([(g.T if family.columns else g)[picked].flatten() for g in grads])


@pytest.mark.parametrize("is_conditioned", [False, True])
@pytest.mark.parametrize("name", FUSED)
def test_kappa_is_that_of_autodiff(name, is_conditioned):
    family = FAMILY[name]
    model = family.model().double()
    batch = family.batch.double() if isinstance(family.batch, torch.Tensor) else family.batch
    family = type(family)(**{**vars(family), "batch": batch})
    edited = family.model().double()
    if is_conditioned:
        family.by_hand(edited, lambda role, w: w + 0.3 * torch.eye(*w.shape).numpy())
        condition(model, IdentityCorrection(0.3))
    records = attention_jacobians(model, batch, layers=[0], progress=False)
    assert [r.head for r in records] == list(range(family.heads))
    layer = next(name for name, _, _ in family.parameters(edited)).rpartition(".")[0].rpartition(".")[0]
    for record in records:
        s = torch.linalg.svdvals(jacobian_by_autodiff(family, edited, record.head))
        kappa = float(s[0] / s[record.rank[0] - 1])
        assert float(record.effective_condition_number[0]) == pytest.approx(kappa, rel=1e-5)
        assert record.layer == layer


class Around(nn.Module):
    def __init__(self, *, batch_first, need_weights, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=batch_first, **settings)
        nn.init.normal_(self.attention.in_proj_bias)
        nn.init.normal_(self.attention.out_proj.bias)
        self.need_weights = need_weights

    def forward(self, x):
        x = x if self.attention.batch_first else x.transpose(0, 1)
        memory = x[..., : self.attention.kdim]
        return self.attention(x, value=memory, key=memory, need_weights=self.need_weights)[0]


@pytest.mark.parametrize("settings", [{}, {"kdim": 8, "vdim": 8}])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_torchs_own_attention(batch_first, need_weights, settings):
    torch.manual_seed(1)
    model, x = Around(batch_first=batch_first, need_weights=need_weights, **settings), torch.randn(2, 5, 12)
    own = model.attention
    weights = (own.q_proj_weight, own.k_proj_weight, own.v_proj_weight) if settings else own.in_proj_weight.chunk(3)
    expected = AttentionJacobian(
        x[1], *(w[4:8].T for w in weights), x_kv=x[1][:, :8] if settings else None, b_q=own.in_proj_bias[4:8]
    ).condition_number()
    record = attention_jacobians(model, x, progress=False)[1]
    assert record.layer == "attention"
    assert float(record.condition_number[1]) == pytest.approx(float(expected.value), rel=1e-6)


def test_the_fast_path_of_evaluation_is_seen_and_left_as_it_was():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 20, batch_first=True), 2).eval()
    before = torch.backends.mha.get_fastpath_enabled()
    records = attention_jacobians(encoder, torch.randn(1, 5, 16), progress=False)
    assert [r.layer for r in records] == ["layers.0.self_attn"] * 4 + ["layers.1.self_attn"] * 4
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_a_window_of_two_dimensions_is_refused_by_name():
    family = FAMILY["timm MaxViT"]
    with pytest.raises(ValueError, match=r"attn_block.attn: expected queries .*leave it out with layers="):
        attention_jacobians(family.model(), family.batch, progress=False)


def test_calibrate_takes_fused_weights():
    family, half = FAMILY["timm ViT"], IdentityCorrection(0.5)
    found = calibrate(family.model(), family.batch[:1], layers=[0], candidates=[half], progress=False)
    plain = next(c for c in found.table if c.name == "plain")
    records = attention_jacobians(family.model(), family.batch[:1], layers=[0], progress=False)
    kappas = torch.stack([r.effective_condition_number for r in records])
    assert plain.kappa == pytest.approx(float(kappas.log().mean().exp()), rel=1e-6)
    assert {c.name for c in found.table} == {"plain", "λ = 0.5 on Q, K and V"}
