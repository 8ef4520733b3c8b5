"""Layouts against explicit row numbers, for any sizes, groups and orientations."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_core import Layout


@st.composite
def layouts(draw):
    """A layout with a parameter that fits it, and {role: rows} written out one by one."""
    roles = draw(st.permutations("qkv-").map("".join))[: draw(st.integers(1, 4))]
    roles = roles if set(roles) != {"-"} else "q"
    groups = draw(st.integers(1, 4))
    sizes = tuple(draw(st.lists(st.integers(1, 3), min_size=len(roles), max_size=len(roles))))
    transposed = draw(st.booleans())
    rows, at = {role: [] for role in roles}, 0
    for _ in range(groups):
        for role, size in zip(roles, sizes, strict=True):
            rows[role] += range(at, at + size)
            at += size
    columns = draw(st.integers(1, 4))
    stored = torch.from_numpy(np.random.default_rng(at).standard_normal((at, columns)))
    given_sizes = None if len(set(sizes)) == 1 and draw(st.booleans()) else sizes
    layout = Layout(roles, given_sizes, groups, transposed)
    return layout, stored.mT.contiguous() if transposed else stored, stored, rows


@given(layouts())
def test_take_gives_the_rows_and_put_writes_them(case):
    layout, stored, rows_of_all, rows = case
    for role in set(rows) - {"-"}:
        assert torch.equal(layout.take(stored, role), rows_of_all[rows[role]])
        new = torch.randn(len(rows[role]), rows_of_all.shape[1], dtype=torch.float64)
        expected = rows_of_all.clone()
        expected[rows[role]] = new
        out = layout.put(stored, {role: new})
        assert out.shape == stored.shape
        assert torch.equal(out.mT if layout.transposed else out, expected)
    assert torch.equal(layout.unmatrix(layout.matrix(stored), stored), stored)


@given(layouts())
def test_put_of_several_roles_is_a_copy_with_a_gradient_for_each(case):
    layout, stored, rows_of_all, rows = case
    roles = [role for role in rows if role != "-"]
    new = {role: torch.zeros(len(rows[role]), rows_of_all.shape[1], dtype=torch.float64) for role in roles}
    for value in new.values():
        value.requires_grad_()
    before = stored.clone()
    layout.put(stored, new).sum().backward()
    assert torch.equal(stored, before)
    assert all(torch.equal(value.grad, torch.ones_like(value)) for value in new.values())


def test_heads_in_a_third_dimension_and_convolutions():
    stored = torch.randn(2, 3, 5)  # (heads, d, in)
    assert torch.equal(Layout("q").take(stored, "q"), torch.cat([stored[0], stored[1]]))
    columns = torch.randn(2, 5, 3)  # (heads, in, d)
    w = Layout("v", transposed=True).take(columns, "v")
    assert torch.equal(w, torch.cat([columns[0].mT, columns[1].mT]))
    assert torch.equal(Layout("v", transposed=True).put(columns, {"v": w + 1}), columns + 1)
    assert torch.equal(Layout("q").put(stored, {"q": Layout("q").take(stored, "q") + 1}), stored + 1)
    kernel = torch.randn(6, 5, 1, 1)
    assert torch.equal(Layout("qkv").take(kernel, "k"), kernel[2:4, :, 0, 0])
    assert Layout("qkv").put(kernel, {"k": torch.zeros(2, 5)}).shape == kernel.shape


def test_a_separate_weight_is_taken_as_it_is():
    w = torch.nn.Parameter(torch.randn(3, 2))
    assert Layout("k").take(w, "k") is w
    assert Layout("k").put(w, {"k": w}) is w
    assert Layout("k").is_whole(w)
    assert not Layout("k", transposed=True).is_whole(w)


@pytest.mark.parametrize(("layout", "kind"), [
    (Layout("q"), "separate"), (Layout("qkv"), "q|k|v"), (Layout("kv", transposed=True), "k|v in columns"),
    (Layout("qkv", groups=4), "q|k|v in 4 groups"), (Layout("qkv", (2, 2, 2)), "q|k|v"),
    (Layout("qkv", (12, 6, 6), 2), "q|k|v of 12|6|6 in 2 groups"), (Layout("-qkv", (5, 2, 2, 2)), "-|q|k|v of 5|2|2|2"),
])  # fmt: skip
def test_kinds_in_words(layout, kind):
    assert layout.kind == kind


def test_heads_by_role():
    layout = Layout("qkv", (4, 2, 2), heads=4)
    assert [layout.heads_of(role) for role in "qkv"] == [4, 4, 4]
    assert [layout.with_heads(8, 2).heads_of(role) for role in "qkv"] == [4, 2, 2]
    assert Layout("q").heads_of("q") is None


@pytest.mark.parametrize(("settings", "message"), [
    ({"roles": "qq"}, r"roles: expected letters among .* got 'qq'"),
    ({"roles": "qo"}, r"roles: expected letters among .* got 'qo'"),
    ({"roles": "--"}, r"roles: expected letters among .* got '--'"),
    ({"roles": 3}, r"roles: expected letters among .* got 3"),
    ({"roles": "qkv", "groups": 0}, r"groups: expected a positive integer, got 0"),
    ({"roles": "qkv", "heads": 2.0}, r"heads: expected a positive integer, got 2.0"),
    ({"roles": "qkv", "kv_heads": True}, r"kv_heads: expected a positive integer, got True"),
    ({"roles": "qkv", "sizes": (1, 2)}, r"sizes: expected 3 positive integers, one for each of 'qkv', got \(1, 2\)"),
    ({"roles": "qkv", "sizes": (1, 2, 0)}, r"sizes: expected 3 positive integers"),
])
def test_contradictions_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Layout(**settings)


@pytest.mark.parametrize(("layout", "shape", "message"), [
    (Layout("qkv"), (8, 4), r"w: expected a multiple of 3 outputs for the layout 'q.k.v', got 8 in shape \(8, 4\)"),
    (Layout("qkv", groups=4), (18, 4), r"w: expected a multiple of 12 outputs .* got 18"),
    (Layout("qkv", (4, 2, 2), 2), (18, 4), r"w: expected 16 outputs .* got 18"),
    (Layout("qkv", transposed=True), (6, 4), r"w: expected a multiple of 3 outputs .* got 4"),
    (Layout("qkv", heads=3), (12, 4), r"w: expected the 4 rows of q to be a multiple of 3 heads"),
    (Layout("qkv"), (12,), r"w: expected a matrix for the layout 'q.k.v', got shape \(12,\)"),
    (Layout("q", transposed=True), (3, 4, 1, 1), r"w: expected a matrix .* got shape \(3, 4, 1, 1\)"),
    (Layout("qkv"), (2, 4), r"w: expected a multiple of 3 outputs .* got 2"),
])
def test_parameters_that_do_not_fit_are_refused(layout, shape, message):
    with pytest.raises(ValueError, match=message):
        layout.section_sizes(torch.Size(shape), "w")
