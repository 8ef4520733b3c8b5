"""ListOps: values against a recursive reference on trees, examples by hand, the Arena's rules, seeds, errors."""

import random
import statistics
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_core.listops import END, OPERATORS, TOKENS, encode, evaluate, generate, random_tree, to_tokens

REFERENCE = {
    "[MIN": min, "[MAX": max, "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}  # fmt: skip

trees = st.recursive(
    st.integers(0, 9), lambda inner: st.tuples(st.sampled_from(OPERATORS), st.lists(inner, min_size=1, max_size=6))
)


def value(tree):
    """By recursion on the tree: shares nothing with the stack of `evaluate`."""
    return tree if isinstance(tree, int) else REFERENCE[tree[0]]([value(argument) for argument in tree[1]])


def depth(tokens):
    deepest = now = 0
    for token in tokens:
        now += (token in OPERATORS) - (token == END)
        deepest = max(deepest, now)
    return deepest


@given(trees)
@settings(max_examples=300, deadline=None)
def test_evaluate_agrees_with_recursion_on_the_tree(tree):
    assert evaluate(to_tokens(tree)) == value(tree)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("7", 7), ("[MIN 4 7 ]", 4), ("[MAX 4 7 ]", 7), ("[SM 4 7 ]", 1), ("[SM 5 5 ]", 0), ("[MED 4 7 ]", 5),
        ("[MED 9 1 5 ]", 5), ("[MED 9 2 [SM 6 7 ] 4 ]", 3), ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9), ("[MED 0 1 ]", 0),
        ("[MIN [MAX 1 [SM 9 9 9 ] ] [MED 8 8 3 ] ]", 7),
    ],
)  # fmt: skip
def test_by_hand(expression, expected):
    assert evaluate(expression.split()) == expected
    assert evaluate(tuple(expression.split())) == expected


def test_generated_expressions_keep_the_limits_and_differ():
    found = generate(300, min_length=10, max_length=40, max_depth=4, max_args=5, seed=1)
    assert len({tuple(tokens) for tokens in found}) == 300
    assert all(10 < len(tokens) < 40 for tokens in found)
    assert max(map(depth, found)) == 3  # depth 4 is digits
    assert Counter(token for tokens in found for token in tokens).keys() == set(TOKENS[2:])
    assert {evaluate(tokens) for tokens in found} == set(range(10))
    lengths = {len(tokens) for tokens in found}
    assert min(lengths) == 11
    assert max(lengths) == 39


def test_draws_follow_the_arenas_rules():
    rng = random.Random(0)
    drawn = [random_tree(rng, max_depth=10, max_args=10) for _ in range(8000)]
    inner = [tree for tree in drawn if not isinstance(tree, int)]
    assert len(inner) / len(drawn) == pytest.approx(0.25, abs=0.02)
    assert Counter(len(tree[1]) for tree in inner).keys() == set(range(2, 11))
    for counts in (Counter(tree[0] for tree in inner), Counter(tree for tree in drawn if isinstance(tree, int))):
        assert min(counts.values()) > 0.75 * max(counts.values())
    assert all(isinstance(random_tree(rng, max_depth=1), int) for _ in range(50))


def test_the_arenas_own_size():
    found = generate(3)
    assert all(500 < len(tokens) < 2000 for tokens in found)
    assert all(0 <= evaluate(tokens) <= 9 for tokens in found)
    assert max(map(depth, found)) <= 9


def test_seeds():
    settings = {"min_length": 5, "max_length": 30, "max_depth": 4, "max_args": 4}
    assert generate(20, **settings) == generate(20, **settings)
    assert generate(20, **settings) != generate(20, **settings, seed=1)
    assert generate(5, **settings) == generate(20, **settings)[:5]
    state = random.getstate()
    generate(5, **settings)
    assert random.getstate() == state


def test_encoding_can_be_read_back():
    expressions = generate(10, min_length=5, max_length=20, max_depth=4, max_args=4)
    ids = encode(expressions, 24)
    assert ids.shape == (10, 24)
    assert ids.dtype == torch.int64
    assert bool((ids[:, 0] == TOKENS.index("[CLS]")).all())
    for row, tokens in zip(ids.tolist(), expressions, strict=True):
        assert [TOKENS[i] for i in row if i > 1] == tokens
        assert row[len(tokens) + 1 :] == [0] * (23 - len(tokens))
    assert TOKENS[:3] == ("[PAD]", "[CLS]", "0")
    assert TOKENS[11:] == ("9", "[MIN", "[MAX", "[MED", "[SM", "]")
    assert len(TOKENS) == len(set(TOKENS)) == 17


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: evaluate([]), "expected one whole expression, got 0 open brackets and 0 values"),
        (lambda: evaluate(["1", "2"]), "expected one whole expression, got 0 open brackets and 2 values"),
        (lambda: evaluate(["[MIN", "1", "2"]), "expected one whole expression, got 1 open brackets"),
        (lambda: evaluate(["[MIN", "]"]), r"token 1: expected a digit or an operator, got ']'"),
        (lambda: evaluate(["1", "]"]), r"token 1: expected a digit or an operator, got ']'"),
        (lambda: evaluate(["[MIN", "1", "10", "]"]), r"token 2: expected one of 0 1 .*, got '10'"),
        (lambda: evaluate(["[CLS]", "1"]), r"token 0: expected one of .*, got '\[CLS\]'"),
        (lambda: generate(0), "count: expected a number >= 1, got 0"),
        (lambda: generate(2.5), "count: expected a whole number, got 2.5"),
        (lambda: generate(1, max_args=1), "max_args: expected a number >= 2, got 1"),
        (lambda: generate(1, min_length=10, max_length=11), "max_length: expected a number >= 12, got 11"),
        (lambda: generate(1, min_length=3, max_length=9, max_depth=1), "expected 1 different expressions .* found 0"),
        (lambda: generate(99, min_length=0, max_length=2, max_depth=1), "expected 99 different .* found 10 in"),
        (lambda: encode([["1", "2"]], 2), r"length: expected at least 3 for \[CLS\] and the tokens, got 2"),
        (lambda: encode([["x"]], 4), "expected tokens among .*, got x"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected(call, said):
    with pytest.raises(ValueError, match=said):
        call()
