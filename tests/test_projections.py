"""Where find_projections finds query, key and value layers, and how it refuses what it does not know."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from spectral_core import IdentityCorrection, SpectralConditionedAttention, find_projections
from spectral_core.models import VisionTransformer
from spectral_core.projections import SEPARATE_NAMES


class Attention(nn.Module):
    """Three layers under the given names, of different shapes, registered in reverse order."""

    def __init__(self, names, layer=nn.Linear):
        super().__init__()
        for name, width in zip(reversed(names), (3, 5, 4), strict=True):
            self.add_module(name, layer(6, width))


@pytest.mark.parametrize("names", SEPARATE_NAMES, ids="/".join)
def test_every_triple_of_names_is_known(names):
    module = Attention(names)
    found = find_projections(module)
    assert [(p.name, p.role) for p in found] == list(zip(names, "qkv", strict=True))
    for p, width in zip(found, (4, 5, 3), strict=True):
        assert p.module is getattr(module, p.name)
        assert (p.parameter, p.layout.kind) == ("weight", "separate")
        assert p.weight is p.module.weight
        assert p.weight.shape == (width, 6)


def test_names_come_from_the_root_in_module_order():
    model = nn.Sequential(nn.Linear(6, 6), nn.ModuleDict({"self": Attention(("wq", "wk", "wv"))}))
    model.append(Attention(("query", "key", "value")))
    assert [p.name for p in find_projections(model)] == [
        "1.self.wq", "1.self.wk", "1.self.wv", "2.query", "2.key", "2.value",
    ]
    names = [p.name for p in find_projections(VisionTransformer(depth=2))]
    assert names == [f"blocks.{i}.attention.{name}" for i in (0, 1) for name in ("query", "key", "value")]


def test_a_module_used_twice_is_listed_once():
    block = Attention(("q", "k", "v"))
    assert [p.name for p in find_projections(nn.ModuleList([block, block]))] == ["0.q", "0.k", "0.v"]


def test_layers_with_two_names_are_listed_once():
    module = Attention(("query", "key", "value"))
    module.q, module.k, module.v = module.query, module.key, module.value
    assert [p.name for p in find_projections(module)] == ["query", "key", "value"]


def test_weight_is_the_one_that_the_model_uses():
    module = Attention(("q", "k", "v"))
    plain = module.k.weight.detach().clone()
    parametrize.register_parametrization(module.k, "weight", IdentityCorrection(2.0))
    found = {p.role: p for p in find_projections(module)}
    assert torch.equal(found["k"].weight, plain + 2 * torch.eye(5, 6))


def test_a_triple_must_be_complete_and_linear():
    convolutions = Attention(("query", "key", "value"), lambda n, m: nn.Conv1d(n, m, 1))
    for module in (Attention(("query", "key", "other")), convolutions, nn.ModuleList([convolutions])):
        with pytest.raises(ValueError, match=r"no query, key and value weights under known names in") as caught:
            find_projections(module)
        assert "Attention" in str(caught.value)


def test_every_attention_like_module_is_listed_with_the_reason():
    class FusedSelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 12, bias=False)

    class Pooling(nn.Module):  # no name says attention, but for a parameter
        def __init__(self):
            super().__init__()
            self.to_kv = nn.Linear(4, 6)

    class OtherAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 4, bias=False)

    model = nn.Sequential(FusedSelfAttention(), nn.Linear(4, 4), nn.Sequential(Pooling(), OtherAttention()))
    with pytest.raises(ValueError, match="expected a model with query, key and value weights") as caught:
        find_projections(model)
    assert (
        "got Sequential with these attention-like modules: 0: FusedSelfAttention, ambiguous layout: qkv (12, 4) may "
        "hold its roles in any order; state it with layouts=; 2.0: Pooling, ambiguous layout: to_kv (6, 4) may hold "
        "its roles in any order; state it with layouts=; 2.1: OtherAttention, no query, key and value weights under "
        "known names in (a.weight (3, 4), a.bias (3,), b.weight (4, 3)); state them with layouts=. State where"
    ) in str(caught.value)


def test_a_model_without_attention_says_so():
    with pytest.raises(ValueError, match="got Sequential with no attention-like module"):
        find_projections(nn.Sequential(nn.Linear(2, 2)))


def test_the_packages_own_attention_is_found():
    module = SpectralConditionedAttention(6, 2)
    assert [p.module for p in find_projections(module)] == [module.query, module.key, module.value]
