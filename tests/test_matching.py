"""Names by glob, regular expression and list, compared with what peft's rules say."""

import re

import pytest

from spectral_core.matching import matches, near_names

NAMES = ["blocks.1.attn.qkv", "blocks.10.attn.qkv", "decoder.layers.0.self_attn.q_proj", "q_proj", "layers.0.mlp.up"]


@pytest.mark.parametrize(("patterns", "hits"), [
    ("blocks.1.*", [0]),  # as a regular expression it would take blocks.10 too
    ("*qkv", [0, 1]),
    ("*", [0, 1, 2, 3, 4]),
    ("blocks.1?.attn.qkv", [1]),
    ("blocks.[12].attn.qkv", [0]),
    ("q_proj", [3]),  # a string is the whole name
    (r".*\.(q_proj|qkv)", [0, 1, 2]),
    (r"blocks\.\d+\.attn\.qkv", [0, 1]),
    (r"blocks\.\d", []),  # fullmatch, as in peft
    (".*q_proj", [2, 3]),
    (re.compile(r".*attn.*"), [0, 1, 2]),
    (re.compile("attn"), []),
    (["q_proj"], [2, 3]),  # the end of a name, as in peft
    (["proj"], []),  # after a dot only
    (["attn.qkv", "up"], [0, 1, 4]),
    ([r".*\.q_proj", "*.up"], [2, 4]),
    ([re.compile(r"blocks\.1\..*")], [0]),
    (("qkv",), [0, 1]),
    ({"qkv"}, [0, 1]),
    ([], []),
])  # fmt: skip
def test_what_is_meant(patterns, hits):
    assert [i for i, name in enumerate(NAMES) if matches(name, patterns)] == hits


@pytest.mark.parametrize(("patterns", "message"), [
    (3, r"expected a glob, a regular expression or a list of them, got 3"),
    ([3], r"expected a glob or a regular expression, got 3"),
    (["blocks.*", None], r"expected a glob or a regular expression, got None"),
    (r"(blocks", r"expected a valid regular expression, got '\(blocks': missing \)"),
])
def test_other_things_are_refused(patterns, message):
    with pytest.raises(ValueError, match=message):
        matches("blocks.0", patterns)


def test_near_names():
    assert "q_proj" in near_names(["q_prj"], NAMES)
    assert near_names("blocks.1.attn.qvk", NAMES)[0] == "blocks.1.attn.qkv"
    assert "up" not in near_names("zzzz", NAMES)
    assert near_names(re.compile(r".*\.self_atn\.q_proj"), NAMES)
