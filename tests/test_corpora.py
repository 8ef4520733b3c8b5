"""Text of the language tasks: hidden places, passages by topic, folders of text and GLUE's files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectral_core import text
from spectral_core.experiments import Run, Setting, train
from spectral_core.experiments.corpora import IGNORED, embedded, folder_corpus, glue, hide, topics


def test_every_row_hides_the_same_number_of_places_by_berts_rule():
    ids = torch.randint(1, 29, (400, 40), generator=torch.Generator().manual_seed(0))
    x, y = hide(ids, 0.25, 0, 29, torch.Generator().manual_seed(1))
    chosen = y != IGNORED
    assert chosen.sum(1).tolist() == [10] * 400
    assert torch.equal(y[chosen], ids[chosen])
    assert torch.equal(x[~chosen], ids[~chosen])
    masked = float((x[chosen] == 0).double().mean())
    assert abs(masked - (0.8 + 0.1 / 29)) < 0.03
    own = float((x[chosen] == ids[chosen]).double().mean())
    assert abs(own - (0.1 + 0.1 / 29)) < 0.03


def test_batches_are_functions_of_seed_and_step_and_labels_follow_inputs():
    corpus = embedded(32, 0.0)
    one, same, other = corpus.batch(1, 2, 8), corpus.batch(1, 2, 8), corpus.batch(1, 3, 8)
    assert torch.equal(one["x"], same["x"])
    assert not torch.equal(one["x"], other["x"])
    assert torch.equal(one["x"][:, 1:], one["y"][:, :-1])
    parts = corpus.ids
    whole = text.load_text(test_share=0.2)
    assert torch.equal(torch.cat([parts["train"], parts["validation"], parts["test"]]),
                       torch.cat([whole.train, whole.test]))  # fmt: skip


def test_topics_come_from_disjoint_stretches():
    from pydoc_data.topics import topics as articles

    data = topics(64)
    assert data.classes == 8
    longest = sorted(articles, key=lambda name: (-len(articles[name]), name))[:8]
    for part, (low, high) in {"train": (0, 0.7), "validation": (0.7, 0.8), "test": (0.8, 1)}.items():
        for label in (0, 7):
            whole = text.clean(articles[longest[label]])
            piece = whole[int(low * len(whole)) : int(high * len(whole))]
            rows = data.x[part][data.y[part] == label]
            assert len(rows) > 5
            assert all(text.decode(row) in piece for row in (rows[0], rows[-1]))


@pytest.fixture
def folder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [f"w{i}" for i in range(50)]
    vocabulary = {"[MASK]": 0, "[UNK]": 1} | {word: i + 2 for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "corpus").mkdir()
    rng = np.random.default_rng(0)
    (tmp_path / "corpus" / "a.txt").write_text(" ".join(rng.choice(words, 9000)))
    return tmp_path


def tsv(folder, name, **files):
    (folder / "glue" / name).mkdir(parents=True)
    for part, lines in files.items():
        (folder / "glue" / name / f"{part}.tsv").write_text("\n".join("\t".join(line) for line in lines) + "\n")
    return folder


def test_a_folder_of_text_trains_bert_and_gpt2(folder):
    corpus = folder_corpus(folder, 16, 0.25)
    assert corpus.vocabulary == 52
    written = (folder / "corpus" / "a.txt").read_text().split()
    assert corpus.ids["train"][:5].tolist() == [int(word[1:]) + 2 for word in written[:5]]
    for task in ("bert", "gpt2"):
        record = train(Run(task, "identity", 0, 1e-3, steps=2, batch_size=2, setting=Setting("small", folder)))
        assert 3 < record["test"] < 5  # log 52 = 3.95


def test_folders_of_text_that_do_not_fit(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer of Hugging Face in .*tokenizer.json, got none"):
        folder_corpus(tmp_path / "none", 16, 0.25)
    with pytest.raises(ValueError, match="expected over 12800 tokens of text, got 9000"):
        folder_corpus(folder, 128, 0.25)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json: expected a tokenizer of Hugging Face, got"):
        folder_corpus(folder, 17, 0.25)
    (folder / "corpus" / "a.txt").unlink()
    with pytest.raises((FileNotFoundError, ValueError)):
        folder_corpus(folder, 18, 0.25)


def test_glue_reads_columns_by_name_and_cola_by_place(folder):
    rows = [("w1 w2", "0"), ("w3", "1")] * 10
    tsv(folder, "SST-2", train=[("sentence", "label"), *rows], dev=[("sentence", "label"), *rows[:2]])
    data = glue(folder, 4)
    assert data.classes == 2
    assert data.x["test"].tolist() == [[3, 4, 0, 0], [5, 0, 0, 0]]
    assert data.y["test"].tolist() == [0, 1]
    assert len(data.y["train"]) + len(data.y["validation"]) == 20
    record = train(Run("finetune", "plain", 0, 1e-3, steps=202, batch_size=2, setting=Setting("small", folder)))
    assert record["test"] in (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("name", "train_rows", "dev_rows", "error", "message"),
    [
        ("none", [], [], FileNotFoundError, "expected one of CoLA, SST-2, .*, got none"),
        ("RTE", [("sentence1", "label")], [("a", "b")], ValueError, "expected columns sentence2, got sentence1, label"),
        ("SST-2", [("sentence", "label"), ("w1",)], [("sentence", "label")], ValueError, "over 1 columns in every"),
        ("SST-2", [("sentence", "label"), ("w1", "0")], [("sentence", "label"), ("w1", "3")], ValueError,
         "expected labels 0 as in train.tsv, got 3"),
    ],
)  # fmt: skip
def test_glue_that_does_not_fit(folder, name, train_rows, dev_rows, error, message):
    tsv(folder, name, train=train_rows, dev=dev_rows)
    with pytest.raises(error, match=message):
        glue(folder, 5)


def test_a_missing_file_of_glue_is_named(folder):
    tsv(folder, "MRPC", train=[("Quality", "#1 String", "#2 String"), ("1", "w1", "w2")])
    with pytest.raises(FileNotFoundError, match=r"expected GLUE's MRPC in .*dev.tsv, got no such file"):
        glue(folder, 6)
