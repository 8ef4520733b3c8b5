"""The Long Range Arena and the endless tasks: labels checked by other means, batches that depend on (seed, step) alone,
and readers of the Arena's files on files made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from spectral_core import listops
from spectral_core.experiments import long_range, long_range_data, streams
from spectral_core.experiments.pathfinder import generate
from spectral_core.experiments.task import Setting, Task
from spectral_core.projections import find_projections

TASKS = {task.name: task for task in (*long_range.tasks(), *streams.tasks())}
ARENA = [task.name for task in long_range.tasks()]
SMALL = Setting()


def full(name: str, folder):
    return TASKS[name].data(Setting("full", folder))


@pytest.fixture(params=TASKS)
def task(request) -> Task:
    return TASKS[request.param]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Pathfinder


@pytest.mark.parametrize(("size", "length", "distractors"), [(16, 5, 1), (32, 14, 3), (32, 6, 4)])
def test_a_dot_is_joined_to_the_other_exactly_if_the_label_says_so(size, length, distractors):
    images, labels = generate(32, size=size, contour_length=length, distractors=distractors, seed=5)
    assert images.shape == (32, 1, size, size)
    assert images.dtype == np.float32
    assert images.min() == 0.0
    assert 0.9 < images.max() <= 1.0
    for image, label in zip(images[:, 0], labels, strict=True):
        dots = two_dots(image)
        joined = components(image)
        assert (joined[dots[0]] == joined[dots[1]]) == label
        assert joined.max() == 2 + distractors


def two_dots(image: np.ndarray) -> list[tuple[int, int]]:
    """Where nine neighbouring pixels are brightest: a dash is one pixel wide."""
    body = ndimage.uniform_filter(np.pad(image, 3), 3)[3:-3, 3:-3]
    peaks = (body == ndimage.maximum_filter(body, 3)) & (body > 0.6)
    named, count = ndimage.label(ndimage.binary_dilation(peaks))
    assert count == 2
    return [tuple(map(round, place)) for place in ndimage.center_of_mass(peaks, named, [1, 2])]


def components(image: np.ndarray, reach: float = 2.3) -> np.ndarray:
    """Numbers of the groups of bright pixels, joined where two are at most `reach` apart; 0 elsewhere."""
    places = np.argwhere(image > 0.4)
    near = ((places[:, None] - places) ** 2).sum(-1) <= reach**2
    named = np.zeros(image.shape, int)
    for first in range(len(places)):
        if named[tuple(places[first])]:
            continue
        group = np.zeros(len(places), bool)
        group[first] = True
        while (more := near[group].any(0) | group).sum() > group.sum():
            group = more
        named[tuple(places[group].T)] = named.max() + 1
    return named


def test_pathfinder_is_balanced_and_a_function_of_its_seed():
    images, labels = generate(50, size=16, contour_length=4, distractors=1, seed=3)
    again, _ = generate(50, size=16, contour_length=4, distractors=1, seed=3)
    other, _ = generate(50, size=16, contour_length=4, distractors=1, seed=4)
    assert labels.sum() == 25
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)


def test_pathfinder_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        generate(0)
    with pytest.raises(ValueError, match="expected room for contours of"):
        generate(1, size=8, contour_length=14)


# Small tasks


def test_batches_are_a_function_of_seed_and_step(task):
    data = task.data(SMALL)
    first = data.batch(0, 3, 8)
    assert same(first, data.batch(0, 3, 8))
    assert not same(first, data.batch(0, 4, 8))
    assert not same(first, data.batch(1, 3, 8))
    assert all(len(column) == 8 for column in first.values())


def test_held_out_batches_stay_and_differ_between_parts(task):
    data = task.data(SMALL)
    validation, test = data.held_out("validation"), data.held_out("test")
    assert all(map(same, test, data.held_out("test")))
    assert not same(validation[0], test[0])
    name = next(iter(test[0]))
    count = sum(len(batch[name]) for batch in test)
    assert count >= 512
    assert sum(len(batch[name]) for batch in validation) >= 200


def test_one_step_lowers_the_loss_of_its_own_batch(task):
    data = task.data(SMALL)
    model = task.model(SMALL, data, 0)
    batch = data.batch(0, 0, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = task.loss(model, batch)
    before = loss.item()
    loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    optimizer.step()
    assert 0 < task.loss(model, batch).item() < before
    assert np.isfinite(task.evaluate(model, data.held_out("validation")[:1]))


def test_models_have_their_seed_and_projections(task):
    data = task.data(SMALL)
    one, same_seed, other = (task.model(SMALL, data, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same_seed[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    roles = [p.role for p in find_projections(task.model(SMALL, data, 0))]
    assert roles.count("q") == roles.count("k") == roles.count("v") >= 2


def test_inputs_are_one_example_as_the_model_takes_it(task):
    data = task.data(SMALL)
    given = task.inputs(data.batch(0, 0, 4))
    model = task.model(SMALL, data, 0)
    out = model(**given) if isinstance(given, dict) else model(given)
    assert len(out) == 1


def test_listops_labels_are_the_values():
    batch = TASKS["listops"].data(SMALL).batch(2, 7, 32)
    for ids, label in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        assert ids[0] == 1
        assert label == listops.evaluate([listops.TOKENS[i] for i in ids[1:] if i])


def rows_of(part: str, name: str, column: str = "input_ids") -> set[bytes]:
    return {bytes(row.tolist()) for row in TASKS[name].data(SMALL).parts[part][column]}


@pytest.mark.parametrize("name", ["text", "image", "retrieval"])
def test_held_out_examples_are_not_in_training(name):
    train = rows_of("train", name)
    common = [len(train & rows_of(part, name)) for part in ("validation", "test")]
    assert max(common) <= 2  # two pages may cut one phrase at one place, two digits are never alike


def test_text_is_balanced_and_its_passages_are_in_documents_of_their_part():
    table, kinds = TASKS["text"].data(SMALL), long_range_data.documents()
    for part, columns in table.parts.items():
        assert columns["labels"].double().mean() == 0.5
        for ids, label in list(zip(columns["input_ids"].tolist(), columns["labels"].tolist(), strict=True))[::97]:
            passage = bytes(ids[1:]).decode()
            texts = list(kinds[1 - label].values())
            places = [place for place, text in enumerate(texts) if passage in ascii_of(text)]
            assert places
            assert any(place % 10 in {"test": (3, 7), "validation": (5,)}.get(part, range(10)) for place in places)


def ascii_of(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def test_a_pair_has_label_1_exactly_if_one_document_holds_both():
    columns = TASKS["retrieval"].data(SMALL).parts["test"]
    texts = [ascii_of(text) for kind in long_range_data.documents() for text in kind.values()]
    for i in range(0, 512, 13):
        one, two = (bytes(columns[name][i, 1:].tolist()).decode() for name in ("input_ids", "other_ids"))
        assert one != two or not columns["labels"][i]
        assert any(one in text and two in text for text in texts) == bool(columns["labels"][i])


def test_induction_asks_for_what_followed_the_last_time():
    batch = TASKS["induction"].data(SMALL).batch(0, 0, 16)
    for row, labels in zip(batch["inputs"].tolist(), batch["labels"].tolist(), strict=True):
        start = next(place for place, label in enumerate(labels) if label >= 0)
        assert all(label >= 0 for label in labels[start:])
        period = start  # the first token that is asked about is the second of the repetition
        whole = [*row, labels[-1]]
        assert len(row) // 4 <= period <= len(row) // 2
        assert all(labels[t] == whole[t + 1] == whole[t + 1 - period] for t in range(start, len(row)))


def test_regression_has_one_weight_for_each_row():
    batch = TASKS["in-context-regression"].data(SMALL).batch(0, 0, 8)
    for x, y in zip(batch["x"].double(), batch["y"].double(), strict=True):
        w = torch.linalg.lstsq(x[:4], y[:4, None]).solution
        torch.testing.assert_close((x @ w)[:, 0], y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["induction", "in-context-regression"])
def test_streams_predict_from_the_past_alone(name):
    task = TASKS[name]
    data = task.data(SMALL)
    model = task.model(SMALL, data, 0)
    given = task.inputs(data.batch(0, 0, 4))
    changed = given.clone()
    if name == "induction":
        changed[:, 10:] = (changed[:, 10:] + 1) % 16
    else:
        changed[:, 10:] += 1.0
        changed[:, 9, -1] += 1.0  # a place does not see its own y
    torch.testing.assert_close(model(given)[:, :10], model(changed)[:, :10])


# Files of the Arena


def write(path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_listops(folder, value: str = "9") -> None:
    for part in ("train", "val", "test"):
        write(folder / "listops-1000" / f"basic_{part}.tsv", f"Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t{value}\n")


def write_pairs(folder, label: str = "1.0") -> None:
    for part in ("train", "eval", "test"):
        write(folder / f"new_aan_pairs.{part}.tsv", f"{label}\tA\tB\tone text\tand another\n")


def write_cifar(folder, label: int = 3) -> None:
    row = bytes([label]) + bytes([255]) * 1024 + bytes(2048)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        write(folder / "cifar-10-batches-bin" / f"{name}.bin", 4 * row)


def write_paths(folder, label: int = 1, side: int = 32) -> None:
    root = folder / "pathfinder32" / "curv_contour_length_14"
    (root / "imgs" / "0").mkdir(parents=True)
    for i in range(10):
        Image.new("L", (side, side), 10 * i).save(root / "imgs" / "0" / f"sample_{i}.png")
    lines = "".join(f"imgs/0 sample_{i}.png {i} {label} 0 1 2 14 0.5\n" for i in range(10))
    write(root / "metadata" / "0.npy", lines)


def test_listops_files(tmp_path):
    write_listops(tmp_path)
    batch = full("listops", tmp_path).batch(0, 0, 1)
    assert batch["input_ids"].shape == (1, 2048)
    assert [listops.TOKENS[i] for i in batch["input_ids"][0, :6]] == ["[CLS]", "[MAX", "2", "9", "]", "[PAD]"]
    assert batch["labels"].tolist() == [9]


def test_text_files(tmp_path):
    for part in ("train", "test"):
        for kind in ("pos", "neg"):
            for i in range(10):
                write(tmp_path / "aclImdb" / part / kind / f"{i}_7.txt", f"{kind} {i} é")
    data = full("text", tmp_path)
    assert {part: len(columns["labels"]) for part, columns in data.parts.items()} == {
        "train": 18, "validation": 2, "test": 20,
    }  # fmt: skip
    batch = data.held_out("test")[0]
    assert batch["input_ids"].shape == (20, 4096)
    for ids, label in zip(batch["input_ids"], batch["labels"], strict=True):
        text = bytes(ids[1:].tolist()).rstrip(b"\0").decode()
        assert text.startswith("pos" if label else "neg")
        assert text.endswith("é")


def test_retrieval_files(tmp_path):
    write_pairs(tmp_path)
    batch = full("retrieval", tmp_path).held_out("validation")[0]
    texts = [bytes(batch[name][0, 1:].tolist()).rstrip(b"\0") for name in ("input_ids", "other_ids")]
    assert texts == [b"one text", b"and another"]
    assert batch["labels"].tolist() == [1]


def test_image_files(tmp_path):
    write_cifar(tmp_path)
    data = full("image", tmp_path)
    assert [len(data.parts[part]["labels"]) for part in ("train", "validation", "test")] == [18, 2, 4]
    batch = data.batch(0, 0, 2)
    assert batch["input_ids"].shape == (2, 1024)
    assert set(batch["input_ids"].flatten().tolist()) == {76}  # 0.2989 · 255
    assert batch["labels"].tolist() == [3, 3]


def test_pathfinder_files(tmp_path):
    write_paths(tmp_path)
    data = full("pathfinder", tmp_path)
    assert [len(data.parts[part]["labels"]) for part in ("train", "validation", "test")] == [8, 1, 1]
    assert data.held_out("test")[0]["input_ids"].unique().tolist() == [90]


@pytest.mark.parametrize("name", ARENA)
def test_an_empty_folder_is_told_what_belongs_there(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected .*(basic_train|aclImdb|new_aan|data_batch_1|pathfinder32)"):
        full(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("listops", lambda at: write_listops(at, "10"), "expected labels 0 to 9, got 10"),
        ("listops", lambda at: write_listops(at, "x"), "basic_train.tsv:2: expected a whole number as label, got 'x'"),
        ("listops", lambda at: write_listops(at, "1\t2"), "expected 2 columns .Source, Target., got 3"),
        ("retrieval", lambda at: write_pairs(at, "2.0"), "expected labels 0 to 1, got 2"),
        ("retrieval", lambda at: write_pairs(at, "1\t1"), "expected 5 columns"),
        ("image", lambda at: write_cifar(at, 10), "expected labels 0 to 9, got 10"),
        ("pathfinder", lambda at: write_paths(at, 2), "expected labels 0 to 1, got 2"),
        ("pathfinder", lambda at: write_paths(at, 1, 16), "expected 32 × 32 pixels, got 16 × 16"),
    ],
)
def test_files_of_another_format_are_refused(name, make, message, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        full(name, tmp_path)


def test_binary_files_are_refused(tmp_path):
    write_cifar(tmp_path)
    write(tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin", b"abc")
    with pytest.raises(ValueError, match=r"expected rows of 3073 bytes .*, got 3 bytes"):
        full("image", tmp_path)
    write_paths(tmp_path)
    write(tmp_path / "pathfinder32" / "curv_contour_length_14" / "metadata" / "0.npy", b"\x93NUMPY")
    with pytest.raises(ValueError, match="expected lines of text, got binary data"):
        full("pathfinder", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARENA)
def test_full_models_have_the_sizes_of_the_arena(name, tmp_path):
    model = TASKS[name].model(Setting("full", tmp_path), None, 0)
    config = model.encoder.config
    assert (config.hidden_size, config.num_landmarks) == (64, 128)
    assert config.max_position_embeddings % config.num_landmarks == 0
