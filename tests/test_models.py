"""The small transformers: patches and ids by hand, initialisation schemes, seeds, causality, and refusals."""

import math
import re

import numpy as np
import pytest
import torch

from spectral_core import SpectralConditionedAttention
from spectral_core.models import INITS, SequenceTransformer, VisionTransformer, course_vit

QKV = ("query.weight", "key.weight", "value.weight")


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("size", "patch", "channels"), [(8, 2, 1), (8, 4, 3), (6, 6, 2), (5, 1, 1)])
def test_tokens_are_embedded_patches_in_reading_order(size, patch, channels):
    model = VisionTransformer(size, patch, channels=channels, dim=4, depth=1)
    x = images(3, channels, size, size)
    tokens = model.tokens(x).detach().numpy()
    weight, bias = model.embed.weight.detach().numpy(), model.embed.bias.detach().numpy()
    across = size // patch
    assert tokens.shape == (3, across**2, 4)
    for b, i, j in np.ndindex(3, across, across):
        pixels = x[b, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].numpy().reshape(-1)
        expected = weight @ pixels + bias + model.position[0, i * across + j].detach().numpy()
        np.testing.assert_allclose(tokens[b, i * across + j], expected, atol=1e-5)


def test_forward_is_pre_norm_blocks_then_the_mean_over_tokens():
    model, x = VisionTransformer(dim=8, depth=2, num_heads=2, mlp_ratio=3, num_classes=5), images(4, 1, 8, 8)
    tokens = model.tokens(x)
    for block in model.blocks:
        assert isinstance(block.attention, SpectralConditionedAttention)
        assert block.mlp[0].out_features == 24
        tokens = tokens + block.attention(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    expected = model.head(model.norm(tokens).mean(dim=1))
    assert expected.shape == (4, 5)
    torch.testing.assert_close(model(x), expected)


def test_a_class_token_stands_first_and_is_what_the_head_reads():
    model, plain = (VisionTransformer(dim=8, depth=1, class_token=c) for c in (True, False))
    x = images(3, 1, 8, 8)
    torch.nn.init.normal_(model.class_token)
    tokens = model.tokens(x)
    assert tokens.shape == (3, 17, 8)
    torch.testing.assert_close(tokens[:, 0], (model.class_token + model.position)[:, 0].expand(3, -1))
    plain.embed.load_state_dict(model.embed.state_dict())
    torch.testing.assert_close(tokens[:, 1:] - model.position[:, 1:], plain.tokens(x) - plain.position)
    block = model.block(0)
    after = tokens + block.attention(block.norm1(tokens))
    after = after + block.mlp(block.norm2(after))
    torch.testing.assert_close(model(x), model.head(model.norm(after)[:, 0]))


def test_the_course_vit():
    model = course_vit()
    assert model.attention_input(images(2, 1, 28, 28), 3).shape == (2, 50, 64)
    assert len(model.blocks) == model.block(0).attention.num_heads == 4


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_attention_input_is_what_the_attention_of_that_block_sees(layer):
    model, x, seen = VisionTransformer(depth=3), images(2, 1, 8, 8), []
    model.blocks[layer].attention.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(x)
    torch.testing.assert_close(model.attention_input(x, layer), seen[0])
    assert len(seen) == 1


@pytest.mark.parametrize("init", INITS)
def test_the_seed_alone_decides_the_weights(init):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = VisionTransformer(init=init, seed=3)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not moved
    torch.manual_seed(2)
    again, other = (VisionTransformer(init=init, seed=seed).state_dict() for seed in (3, 4))
    constant = ("bias", "norm1.weight", "norm2.weight", "norm.weight")
    for name, value in first.state_dict().items():
        assert torch.equal(value, again[name])
        assert torch.equal(value, other[name]) == name.endswith(constant)


def test_initialisation_schemes():
    models = {init: VisionTransformer(dim=64, num_heads=4, init=init).state_dict() for init in INITS}
    for name, value in models["xavier"].items():
        if name.endswith(QKV):
            std = {init: models[init][name].std().item() for init in INITS}
            assert std["trunc-normal"] == pytest.approx(0.02, rel=0.05)
            assert std["xavier"] == pytest.approx(math.sqrt(1 / 64), rel=0.05)
            limit = math.sqrt(3 / 64)
            assert 0.95 * limit < value.abs().max().item() <= limit
            orthogonal = models["orthogonal"][name].numpy()
            np.testing.assert_allclose(orthogonal @ orthogonal.T, np.eye(64), atol=1e-5)
        elif value.ndim == 2:
            limit = math.sqrt(6 / sum(value.shape))
            assert 0.8 * limit < value.abs().max().item() <= limit
            assert value.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.15)
        elif name == "position":
            assert value.std().item() == pytest.approx(0.3, rel=0.1)
        else:
            assert torch.equal(value, torch.full_like(value, 0.0 if name.endswith("bias") else 1.0))


@pytest.mark.parametrize(("settings", "message"), [
    ({"image_size": 9}, r"expected image_size to be a positive multiple of patch_size, got 9 and 2"),
    ({"image_size": 0}, r"expected image_size to be .* got 0 and 2"),
    ({"patch_size": 0}, r"expected image_size to be .* got 8 and 0"),
    ({"dim": 30, "num_heads": 4}, r"dim to be a positive multiple of num_heads, got dim=30, num_heads=4"),
    ({"init": "he"}, r"init: expected one of \('trunc-normal', 'xavier', 'orthogonal'\), got 'he'"),
])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**settings)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 3, 8, 8), (2, 1, 8, 7), (2, 1, 28, 28)])
def test_images_of_another_shape_are_refused(shape):
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"images: expected shape \(batch, 1, 8, 8\), got {got}"):
        VisionTransformer()(torch.zeros(shape))


# ---- sequences


def ids(count, length, vocabulary, seed=0):
    return torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


def sequence(**settings):
    return SequenceTransformer(11, 6, num_classes=4, **{"dim": 8, "depth": 2, "init": "xavier", **settings})


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_sequence_is_embedded_and_goes_through_the_blocks(is_causal, qk_norm):
    model, x = sequence(is_causal=is_causal, qk_norm=qk_norm), ids(3, 6, 11)
    tokens = model.embed.weight[x] + model.position
    torch.testing.assert_close(model.tokens(x), tokens)
    for layer, block in enumerate(model.blocks):
        seen = block.norm1(tokens)
        torch.testing.assert_close(model.attention_input(x, layer), seen)
        tokens = tokens + block.attention(seen, is_causal=is_causal)
        tokens = tokens + block.mlp(block.norm2(tokens))
    expected = model.head(model.norm(tokens) if is_causal else model.norm(tokens).mean(1))
    assert expected.shape == ((3, 6, 4) if is_causal else (3, 4))
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_causal_model_does_not_look_ahead(qk_norm):
    x = ids(5, 6, 11)
    for place in range(6):
        later = x.clone()
        later[:, place] = (later[:, place] + 1) % 11
        causal, other = (sequence(is_causal=c, qk_norm=qk_norm) for c in (True, False))
        before, after = causal(x), causal(later)
        torch.testing.assert_close(after[:, :place], before[:, :place])
        changed = (after - before).abs().amax(-1)
        assert (changed[:, place:] > 1e-5).all()  # this place and all later ones see it
        inside, moved = causal.attention_input(x, 1), causal.attention_input(later, 1)
        torch.testing.assert_close(moved[:, :place], inside[:, :place])
        assert ((other(later) - other(x)).abs().amax(-1) > 1e-6).all()


def test_every_attention_of_a_causal_model_has_a_lower_triangular_map():
    model, x = sequence(is_causal=True), ids(2, 6, 11)
    for layer, block in enumerate(model.blocks):
        _, maps = block.attention(model.attention_input(x, layer), is_causal=True, need_weights=True)
        assert not maps.triu(1).any()


def test_the_seed_alone_decides_the_weights_of_a_sequence_model():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = sequence(seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = sequence(seed=3).state_dict(), sequence(seed=4).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


@pytest.mark.parametrize("bad", [
    torch.zeros(2, 5, dtype=torch.int64), torch.zeros(6, dtype=torch.int64), torch.zeros(2, 6),
    torch.zeros(2, 6, dtype=torch.int32), torch.zeros(1, 2, 6, dtype=torch.int64),
], ids=str)
def test_ids_of_another_length_or_type_are_refused(bad):
    said = re.escape(f"ids: expected int64 of shape (batch, 6), got {bad.dtype} {tuple(bad.shape)}")
    with pytest.raises(ValueError, match=said):
        sequence()(bad)


def test_an_unknown_initialisation_of_a_sequence_model_is_refused():
    with pytest.raises(ValueError, match=r"init: expected one of \('trunc-normal', 'xavier', 'orthogonal'\), got 'he'"):
        sequence(init="he")


def test_qk_norm_adds_norms_and_changes_no_other_weight():
    plain, normed = VisionTransformer(seed=5), VisionTransformer(seed=5, qk_norm=True)
    shared, more = plain.state_dict(), normed.state_dict()
    assert set(more) - set(shared) == {
        f"blocks.{i}.attention.norm_{r}.weight" for i in range(2) for r in "qk"
    }
    assert all(torch.equal(value, more[name]) for name, value in shared.items())
    x = images(2, 1, 8, 8)
    assert not torch.allclose(plain(x), normed(x), atol=1e-4)
