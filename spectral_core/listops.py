"""ListOps by the rules of the Long Range Arena: nested lists of digits under MIN, MAX, MED and SM, values 0 to 9.

    [MAX 2 9 [MIN 4 7 ] 0 ]        is 9

A node is an operator with probability 1/4, unless it lies at the greatest depth, else a digit; an operator has 2 to
`max_args` arguments. MED is the median rounded down, SM the sum modulo 10. Expressions are drawn until their length
lies strictly between two limits, and no expression is kept twice. In the Arena depth and arguments are at most 10 and
lengths between 500 and 2000, the defaults here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_core._checks import check_number

__all__ = ["END", "OPERATORS", "TOKENS", "Tree", "encode", "evaluate", "generate", "random_tree", "to_tokens"]

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
END = "]"
TOKENS = ("[PAD]", "[CLS]", *map(str, range(10)), *OPERATORS, END)  # the id of a token is its place
NODE = 0.25  # probability of an operator
TRIES = 20_000  # draws for one expression of a wanted length

Tree = int | tuple[str, list]  # a digit, or (operator, arguments)


def random_tree(rng: random.Random, *, max_depth: int = 10, max_args: int = 10, depth: int = 1) -> Tree:
    """One draw, a lone digit three times in four.

    >>> random_tree(random.Random(8), max_depth=3, max_args=3)
    ('[SM', [('[MAX', [1, 2]), 8, ('[SM', [7, 7])])
    """
    if depth >= max_depth or rng.random() > NODE:
        return rng.randrange(10)
    count = rng.randint(2, max_args)
    arguments = [random_tree(rng, max_depth=max_depth, max_args=max_args, depth=depth + 1) for _ in range(count)]
    return rng.choice(OPERATORS), arguments


def to_tokens(tree: Tree) -> list[str]:
    """Read a tree from left to right.

    >>> " ".join(to_tokens(("[MAX", [2, 9, ("[MIN", [4, 7]), 0])))
    '[MAX 2 9 [MIN 4 7 ] 0 ]'
    """
    if isinstance(tree, int):
        return [str(tree)]
    operator, arguments = tree
    return [operator, *(token for argument in arguments for token in to_tokens(argument)), END]


def generate(
    count: int, *, min_length: int = 500, max_length: int = 2000, max_depth: int = 10, max_args: int = 10, seed: int = 0
) -> list[list[str]]:
    """`count` different expressions, each a list of tokens with min_length < length < max_length.

    Raises:
        ValueError: limits that are no whole numbers, that no expression can keep, or that none has kept in many draws.

    >>> [" ".join(tokens) for tokens in generate(2, min_length=3, max_length=8, max_depth=3, max_args=3)]
    ['[MAX 4 5 3 ]', '[MED 5 1 ]']
    """
    low = {"count": 1, "min_length": 0, "max_length": min_length + 2, "max_depth": 1, "max_args": 2}
    given = (count, min_length, max_length, max_depth, max_args)
    for (name, least), value in zip(low.items(), given, strict=True):
        if check_number(value, name, minimum=least) != int(value):
            raise ValueError(f"{name}: expected a whole number, got {value!r}")
    rng, found = random.Random(seed), dict[tuple[str, ...], None]()
    for _ in range(TRIES * count):
        tokens = tuple(to_tokens(random_tree(rng, max_depth=max_depth, max_args=max_args)))
        if min_length < len(tokens) < max_length:
            found[tokens] = None
            if len(found) == count:
                return [list(tokens) for tokens in found]
    raise ValueError(
        f"expected {count} different expressions with {min_length} < length < {max_length} at max_depth={max_depth} "
        f"and max_args={max_args}, found {len(found)} in {TRIES * count} draws; allow more lengths, depth or arguments"
    )


def evaluate(tokens: Sequence[str]) -> int:
    """The value of an expression, with a stack; knows nothing of how it was drawn.

    Raises:
        ValueError: an unknown token, or brackets that do not match.

    >>> evaluate("[MED 9 2 [SM 6 7 ] 4 ]".split())                  # the median of 2, 3, 4, 9 is 3.5
    3
    """
    stack: list[tuple[str, list[int]]] = [("", [])]
    for place, token in enumerate(tokens):
        if token in OPERATORS:
            stack.append((token, []))
        elif token == END:
            operator, arguments = stack.pop()
            if not operator or not arguments:
                raise ValueError(f"token {place}: expected a digit or an operator, got {END!r}")
            stack[-1][1].append(_apply(operator, sorted(arguments)))
        elif token in TOKENS[2:12]:
            stack[-1][1].append(int(token))
        else:
            raise ValueError(f"token {place}: expected one of {' '.join(TOKENS[2:])}, got {token!r}")
    if len(stack) != 1 or len(stack[0][1]) != 1:
        values = len(stack[0][1])
        raise ValueError(f"expected one whole expression, got {len(stack) - 1} open brackets and {values} values")
    return stack[0][1][0]


def _apply(operator: str, ordered: list[int]) -> int:
    """The value of one operator at arguments in ascending order."""
    if operator == "[SM":
        return sum(ordered) % 10
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) // 2
    return {"[MIN": ordered[0], "[MAX": ordered[-1], "[MED": median}[operator]


def encode(expressions: Sequence[Sequence[str]], length: int) -> Tensor:
    """[CLS], the tokens, then [PAD] up to `length`: ids (N, length) in int64.

    Raises:
        ValueError: an expression that does not fit, or an unknown token.

    >>> encode([["[MIN", "4", "7", "]"]], 7).tolist()
    [[1, 12, 6, 9, 16, 0, 0]]
    """
    ids = torch.zeros(len(expressions), length, dtype=torch.int64)
    for row, tokens in zip(ids, expressions, strict=True):
        if len(tokens) >= length:
            raise ValueError(f"length: expected at least {len(tokens) + 1} for [CLS] and the tokens, got {length}")
        unknown = sorted(set(tokens) - set(TOKENS))
        if unknown:
            raise ValueError(f"expected tokens among {' '.join(TOKENS)}, got {' '.join(unknown)}")
        row[: len(tokens) + 1] = torch.tensor([1, *map(TOKENS.index, tokens)])
    return ids
