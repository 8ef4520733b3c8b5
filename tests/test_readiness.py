"""What cannot be conditioned is refused with what was found, names that are near, and the next step."""

import os

import pytest
import torch
import torch.distributed as dist
from families import TRANSFORMERS, Asymmetric
from torch import nn

from spectral_core import (
    IdentityCorrection,
    Layout,
    SpectralConditionedAttention,
    SpectralMonitor,
    condition,
    find_projections,
    initialize,
    spectral_penalty,
)

ONE = IdentityCorrection(1.0)


class Fused(nn.Module):
    """Attention of our own with a weight whose order only its author knows: v q k, two heads."""

    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.vqk = nn.Linear(width, 3 * width)
        self.num_heads = 2

    def forward(self, x):
        v, q, k = (t.unflatten(-1, (2, -1)).transpose(-3, -2) for t in self.vqk(x).chunk(3, -1))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"self_attn": Fused(), "mlp": nn.Linear(8, 8)}) for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = layer["mlp"](layer["self_attn"](x))
        return x


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pattern", ["*.vqk", "vqk", r"layers\.\d\.self_attn\.vqk", "layers.*.vqk.weight"])
def test_an_explicit_layout_conditions_what_is_not_known(pattern):
    model, expected = Model(), Model()
    for layer in expected.layers:
        w = layer["self_attn"].vqk.weight
        w.data[8:16] += 0.5 * torch.eye(8)  # q
    layouts = {pattern: Layout("vqk")}
    report = condition(model, IdentityCorrection(0.5), projections="q", layouts=layouts)
    assert [(p.name, p.layout) for p in report] == [(f"layers.{i}.self_attn.vqk", "v|q|k") for i in (0, 1)]
    torch.testing.assert_close(model(X), expected(X))
    found = find_projections(model, layouts=layouts)
    assert [p.attention for p in found[::3]] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert {p.layout.heads_of(p.role) for p in found} == {2}


def test_an_explicit_layout_serves_the_other_tools_too():
    layouts, model, plain = {"vqk": Layout("vqk")}, Model(), Model()
    initialize(model, "identity-shift", lam=2.0, layouts=layouts)
    for mine, theirs in zip(model.layers, plain.layers, strict=True):
        expected = theirs["self_attn"].vqk.weight + 2 * torch.eye(8).repeat(3, 1)
        torch.testing.assert_close(mine["self_attn"].vqk.weight, expected)
    key = plain.layers[1]["self_attn"].vqk.weight[16:].unflatten(0, (2, 4))
    condition(plain, IdentityCorrection(0.5), scope="head", layouts=layouts)
    values = SpectralMonitor(plain, layouts=layouts).step(0)
    worst = torch.linalg.cond(key + 0.5 * torch.eye(4, 8)).max()
    assert values["spectral/layer01/k/kappa"] == pytest.approx(float(worst), rel=1e-4)
    assert float(spectral_penalty(plain, layouts=layouts)) > 0


def test_an_explicit_layout_comes_before_what_is_known():
    model = nn.MultiheadAttention(8, 2)
    (p, *_) = find_projections(model, layouts={"in_proj_weight": Layout("kqv")})
    assert (p.role, p.layout.kind) == ("k", "k|q|v")


def test_separate_parts_stated_one_by_one_know_their_groups():
    parts = {"wide": nn.Linear(8, 12), "a": nn.Linear(8, 6), "b": nn.Linear(8, 6)}
    model = nn.ModuleDict({"attn": nn.ModuleDict(parts)})
    model["attn"].num_heads = 4
    layouts = {"wide": Layout("q"), "attn.a": Layout("k"), "*.b": Layout("v")}
    found = find_projections(model, layouts=layouts)
    assert [(p.role, p.layout.heads, p.layout.kv_heads) for p in found] == [("q", 4, 2), ("k", 4, 2), ("v", 4, 2)]


@pytest.mark.parametrize(("layouts", "message"), [
    ({"*.qvk": Layout("vqk")}, r"layouts: expected '\*.qvk' to name a module .*, got no match; near names: .*vqk"),
    ({"zzz": Layout("q")}, r"got no match; parameters there are: \['layers.0.self_attn.vqk.weight', "),
    ({"*.vqk": "qkv"}, r"layouts\['\*.vqk'\]: expected a Layout, got str"),
    ({"*.vqk": Layout("q", (7,))}, r"layers.0.self_attn.vqk.weight: expected 7 outputs .* got 24"),
    ({"*.vqk": Layout("qkv"), "layers.1*.vqk": Layout("vqk")},
     r"layers.1.self_attn.vqk.weight: expected one layout, got two, by '\*.vqk' and by 'layers.1\*.vqk'"),
    ({"*.vqk.bias": Layout("q")}, r"layers.0.self_attn.vqk.bias: expected a matrix .* got shape \(24,\)"),
    ({"(": Layout("q")}, r"expected a valid regular expression, got '\('"),
])
def test_layouts_that_do_not_fit_are_refused(layouts, message):
    for call in (lambda: find_projections(Model(), layouts=layouts), lambda: condition(Model(), ONE, layouts=layouts)):
        with pytest.raises(ValueError, match=message):
            call()


def test_nothing_known_lists_what_looks_like_attention():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.wqkv = nn.Linear(4, 12)

    with pytest.raises(ValueError, match=r"0: Attention, ambiguous layout: wqkv \(12, 4\) may hold .* State where"):
        condition(nn.Sequential(Attention()), ONE)


@pytest.mark.parametrize(("settings", "message"), [
    ({"include": "*.q_prj"}, r"got none with roles 'qkv', include='\*.q_prj', .*near names: .*q_proj.*; the model has"),
    ({"include": "q_proj"}, r"a string is a glob on the whole name, a list like \[\"q_proj\"\] matches the ends"),
    ({"exclude": ["q_proj", "k_proj", "v_proj"]}, r"the model has \['layers.0.self_attn.q_proj', "),
    ({"include": 3}, r"include: expected a glob, a regular expression or a list of them, got 3"),
    ({"exclude": "("}, r"exclude: expected a valid regular expression, got '\('"),
    ({"projections": "o"}, r'projections: expected a non-empty subset of "qkv", got \'o\''),
])
def test_nothing_left_shows_names_that_are_near(settings, message):
    model = next(f for f in TRANSFORMERS if f.name == "Llama").model()
    with pytest.raises(ValueError, match=message):
        condition(model, ONE, **settings)


def test_peft_lists_and_regular_expressions_choose():
    llama = next(f for f in TRANSFORMERS if f.name == "Llama")
    for patterns in (["q_proj", "v_proj"], r".*\.(q|v)_proj", ["*.q_proj", "self_attn.v_proj"]):
        report = condition(llama.model(), ONE, include=patterns)
        assert [p.name for p in report] == [f"layers.{i}.self_attn.{r}_proj" for i in (0, 1) for r in "qv"]
    report = condition(llama.model(), ONE, exclude="layers.0.*")
    assert [(u.name, u.kind, u.reason) for u in report.unmatched] == [
        ("layers.0.self_attn", "LlamaAttention", "left out by include, exclude or projections")
    ]
    assert "layers.0.self_attn (LlamaAttention): left out by" in str(report)


def test_meta_weights():
    with torch.device("meta"):
        model = Fused()
    with pytest.raises(ValueError, match=r"vqk: expected a weight with values, got one on the meta device; load the"):
        condition(model, ONE, layouts={"vqk": Layout("vqk")})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_quantised_weights(dtype):
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("query", "key", "value")})
    model["key"].weight = nn.Parameter(torch.zeros(8, 1).to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match=r"key: expected a plain floating-point weight, got Param.*quantise it"):
        condition(model, ONE)
    with pytest.raises(ValueError, match="quantised"):
        initialize(model, "orthogonal")


def test_quantised_layers_are_not_taken_for_known_ones():
    model = nn.Sequential(nn.ModuleDict({name: nn.Linear(4, 4) for name in ("query", "key", "value")}))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match="expected a model with query, key and value weights that are known"):
        condition(quantised, ONE)


def test_lazy_weights_and_tensor_subclasses():
    model = nn.ModuleDict({name: nn.LazyLinear(4) for name in ("query", "key", "value")})
    with pytest.raises(ValueError, match=r"query: expected a weight with values, got UninitializedParameter; run"):
        condition(model, ONE)


def test_weights_that_zero_3_has_partitioned():
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("query", "key", "value")})
    model["query"].weight.ds_shape = (4, 4)
    with pytest.raises(ValueError, match=r"query: .* one that ZeRO-3 has partitioned; condition the model before"):
        condition(model, ONE)


def test_weights_that_the_module_computes():
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("query", "key", "value")})
    w = model["query"].weight
    del model["query"].weight
    model["query"].weight = w.detach() * 2
    with pytest.raises(ValueError, match=r"query: expected a parameter, got Tensor that the module computes"):
        condition(model, ONE)


@pytest.fixture
def one_process(tmp_path):
    os.environ.update(MASTER_ADDR="127.0.0.1")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_sharded_weights(one_process):
    from torch.distributed.fsdp import fully_shard

    model = SpectralConditionedAttention(4, 2)
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    with pytest.raises(ValueError, match=r"query: .* a DTensor that is already sharded; condition the model first and"):
        condition(model, ONE)


def test_a_correction_that_answers_nonsense_is_refused_before_anything_changes():
    class Wrong(Asymmetric):
        def correct(self, w):
            return w[:2]

    model = Model()
    message = r"self_attn.vqk: expected Wrong.* to keep shape \(8, 8\) and torch.float32, got \(2, 8\)"
    with pytest.raises(ValueError, match=message):
        condition(model, Wrong(), layouts={"vqk": Layout("vqk")})
    assert list(model.state_dict()) == list(Model().state_dict())


def test_scopes_that_do_not_fit():
    model = nn.MultiheadAttention(8, 2)
    message = r'in_proj_weight: scope "packed" corrects q.k.v as one matrix: expected one correction for all of'
    with pytest.raises(ValueError, match=message):
        condition(model, ONE, scope="packed", projections="qk")
    with pytest.raises(ValueError, match=message):
        condition(model, {"q": ONE, "k": ONE, "v": IdentityCorrection(2.0)}, scope="packed")
    condition(model, {"q": ONE, "k": ONE, "v": ONE}, scope="packed")


def test_a_one_dimensional_convolution_is_not_taken_for_heads():
    model = nn.ModuleDict({"qkv": nn.Conv1d(8, 24, 1)})
    with pytest.raises(ValueError, match=r"qkv.weight: .* got a 1-D convolution of shape \(24, 8, 1\); use an nn"):
        condition(model, ONE, layouts={"qkv": Layout("qkv")})


def test_iterators_of_names_are_read_whole():
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("query", "key", "value")})
    report = condition(model, ONE, include=(n for n in ("query", "key")), exclude=iter(["key"]))
    assert [p.name for p in report] == ["query"]


def test_tied_weights_with_other_heads_are_not_corrected_head_by_head():
    model = nn.ModuleList([SpectralConditionedAttention(8, heads) for heads in (2, 4)])
    for name in ("query", "key", "value"):
        getattr(model[1], name).weight = getattr(model[0], name).weight
    with pytest.raises(ValueError, match=r"0.query: .* with several corrections or layouts"):
        condition(model, ONE, scope="head")
    assert len(condition(model, ONE)) == 3


def test_what_is_beside_attention_at_the_root_is_listed():
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("query", "key", "value")})
    model["other"] = nn.ModuleDict({"wqkv": nn.Linear(4, 12)})
    assert [(u.name, u.kind) for u in condition(model, ONE).unmatched] == [("other", "ModuleDict")]
