"""Characters of real English: the alphabet there and back, windows, BERT's masking against its shares, entropy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_core import text
from spectral_core.text import (
    CHARACTERS,
    IGNORED,
    MASK,
    VOCABULARY,
    clean,
    decode,
    encode,
    load_text,
    mask_tokens,
    unigram_entropy,
    windows,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_text_is_english_prose_and_split_without_overlap():
    data = load_text(test_share=0.25)
    whole = decode(torch.cat([data.train, data.test]))
    assert 0.24 < len(data.test) / len(whole) < 0.26
    assert 100_000 < len(whole) < 1_000_000
    words = whole.replace(",", " ").replace(".", " ").split()
    assert sum(word in {"the", "a", "of", "is", "to", "and", "in"} for word in words) > 0.15 * len(words)
    assert "  " not in whole
    assert torch.equal(load_text().train, load_text().train)
    assert torch.equal(torch.cat([load_text().train, load_text().test]), torch.cat([data.train, data.test]))


def test_nobody_can_spoil_the_text_for_the_next():
    before = load_text().train.clone()
    load_text().train.zero_()
    load_text().test.zero_()
    assert torch.equal(load_text().train, before)


@given(st.text(alphabet=CHARACTERS))
def test_encode_and_decode_are_opposites(written):
    ids = encode(written)
    assert ids.dtype == torch.int64
    assert decode(ids) == written
    assert not len(ids) or (int(ids.min()) >= 1 and int(ids.max()) < VOCABULARY)


@given(st.text())
def test_cleaned_text_can_be_encoded_and_stays_as_it_is(written):
    cleaned = clean(written)
    assert decode(encode(cleaned)) == cleaned == clean(cleaned)


def test_by_hand():
    assert VOCABULARY == 30
    assert encode(" az,.").tolist() == [1, 2, 27, 28, 29]
    assert clean("  It's 3 o'clock.\n\nRUN, now!") == "it s o clock. run, now"
    assert decode(torch.tensor([MASK, 2])) == "_a"


def test_windows_are_stretches_of_the_text_from_everywhere():
    ids = torch.arange(20)
    found = windows(ids, 5, 2000, seeded())
    assert found.shape == (2000, 5)
    assert bool((found.diff() == 1).all())
    assert set(found[:, 0].tolist()) == set(range(16))  # first and last start included
    assert torch.equal(found, windows(ids, 5, 2000, seeded()))
    assert not torch.equal(found, windows(ids, 5, 2000, seeded(1)))
    assert windows(ids, 20, 1, seeded()).tolist() == [list(range(20))]


def test_masking_has_berts_shares():
    ids = torch.randint(1, VOCABULARY, (2000, 100), generator=seeded())
    inputs, labels = mask_tokens(ids, seeded(1))
    chosen = labels != IGNORED
    assert torch.equal(inputs[~chosen], ids[~chosen])
    assert torch.equal(labels[chosen], ids[chosen])
    assert float(chosen.double().mean()) == pytest.approx(0.15, abs=0.005)
    masked = inputs[chosen] == MASK
    kept = inputs[chosen] == ids[chosen]
    assert float(masked.double().mean()) == pytest.approx(0.8, abs=0.01)
    assert float(kept.double().mean()) == pytest.approx(0.1 + 0.1 / 29, abs=0.01)  # a random one may be the same
    others = inputs[chosen][~masked & ~kept]
    counts = torch.bincount(others, minlength=VOCABULARY)[1:]
    assert float(counts.min()) > 0.6 * float(counts.double().mean())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_chosen_places_can_be_set(share):
    inputs, labels = mask_tokens(torch.full((100, 100), 5), seeded(), share=share)
    assert float((labels != IGNORED).double().mean()) == pytest.approx(share, abs=0.02)
    assert share or bool((inputs == 5).all())


def test_masking_is_seeded_and_keeps_its_argument():
    ids = torch.randint(1, VOCABULARY, (8, 8), generator=seeded())
    before = ids.clone()
    pairs = [mask_tokens(ids, seeded(3)) for _ in range(2)]
    assert torch.equal(pairs[0][0], pairs[1][0])
    assert torch.equal(pairs[0][1], pairs[1][1])
    assert torch.equal(ids, before)


def test_entropy():
    assert unigram_entropy(torch.tensor([4, 4, 4])) == 0.0
    assert unigram_entropy(torch.arange(8)) == pytest.approx(math.log(8))
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert unigram_entropy(torch.tensor([[0, 0], [0, 1]])) == pytest.approx(expected)
    assert 2.7 < unigram_entropy(load_text().train) < 3.0  # English


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: load_text(test_share=1.0), r"test_share: expected a number in \(0, 1\), got 1.0"),
        (lambda: load_text(test_share=True), r"test_share: expected a number in \(0, 1\), got True"),
        (lambda: encode("A?"), r"expected characters among .*, got '\?A'; clean\(\) the text first"),
        (lambda: decode(torch.tensor([30])), "expected ids .* from 0 to 29, got"),
        (lambda: decode(torch.tensor([-1])), "expected ids .* from 0 to 29, got"),
        (lambda: decode(torch.tensor([[1]])), "expected ids"),
        (lambda: windows(torch.arange(4), 5, 1, seeded()), r"ids: expected a row of at least 5, got shape \(4,\)"),
        (lambda: windows(torch.arange(4), 0, 1, seeded()), "length: expected a number >= 1, got 0"),
        (lambda: windows(torch.arange(4), 2, 1.5, seeded()), "count: expected a whole number, got 1.5"),
        (lambda: mask_tokens(torch.arange(4), seeded(), share=1.5), "share: expected a number <= 1"),
        (lambda: unigram_entropy(torch.tensor([], dtype=torch.int64)), "ids: expected at least one, got none"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_every_public_name_exists():
    assert all(hasattr(text, name) for name in text.__all__)
