"""Write a folder for `--size full` language tasks from what every machine has: the sources of Python's library.

    python benchmarks/stdlib_corpus.py FOLDER

FOLDER/corpus/*.txt are the library's modules (several million tokens of code and English), FOLDER/tokenizer.json is a
byte-level BPE of 8 192 tokens trained on them.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def main(folder: Path) -> None:
    source = Path(sysconfig.get_path("stdlib"))
    skip = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3", "encodings"}
    files = [p for p in sorted(source.rglob("*.py")) if not skip & set(p.relative_to(source).parts)]
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[str]] = {}
    for i, path in enumerate(files):
        groups.setdefault(f"{i % 40:02}", []).append(path.read_text(encoding="utf-8", errors="replace"))
    for name, texts in groups.items():
        (folder / "corpus" / f"{name}.txt").write_text("\n\n".join(texts), encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=8192, special_tokens=["[MASK]"], show_progress=False)
    tokenizer.train([str(p) for p in sorted((folder / "corpus").glob("*.txt"))], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    print(f"{len(files)} modules, {sum(p.stat().st_size for p in files) / 1e6:.1f} MB, in {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
