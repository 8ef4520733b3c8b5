"""Inputs for a model that is audited: texts or images from a folder, or random ones."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_core.audit.reading import AuditError, read_json
from spectral_core.audit.store import Checkpoint

__all__ = ["check_folder", "image_batch", "text_batch"]

TEXTS = (".txt", ".md", ".rst")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
LONGEST = 4_000_000  # characters of text that are read at most
RANDOM = "random {} (seed 0), which say little about real ones"


def check_folder(data: str) -> Path | None:
    """The folder, or None for "random".

    Raises:
        AuditError: no such folder.
    """
    if data == "random":
        return None
    folder = Path(os.path.expanduser(data))
    if not folder.is_dir():
        raise AuditError(f"--data: expected a folder of texts or images, or random, got {data!r}")
    return folder


def text_batch(
    checkpoint: Path | None, folder: Path | None, examples: int, tokens: int, vocabulary: int
) -> tuple[Tensor, str]:
    """Token ids (examples, tokens), and what they are in words."""
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary, (examples, tokens), generator=generator)
        return ids, RANDOM.format(f"tokens, {examples} × {tokens}")
    files = _files(folder, TEXTS, "texts")
    tokenizer = _tokenizer(checkpoint)
    text = "\n".join(_texts(files))
    ids = tokenizer(text[:LONGEST], add_special_tokens=False, verbose=False)["input_ids"]
    start, end = _special(tokenizer)
    inner = tokens - len(start) - len(end)
    if inner < 1 or len(ids) < examples * inner:
        raise AuditError(
            f"--data: expected texts of at least {examples} × {max(inner, 1)} tokens, got {len(ids)}; use fewer "
            "--examples or --tokens, or more text"
        )
    # spread over all that was read: the beginning may be a title, a table or a row of dashes
    step = (len(ids) - inner) // max(examples - 1, 1)
    rows = [[*start, *ids[i * step : i * step + inner], *end] for i in range(examples)]
    return torch.tensor(rows), f"{examples} × {tokens} tokens of {folder} ({len(files)} files)"


def image_batch(
    model: nn.Module, folder: Path | None, examples: int, stored: Checkpoint
) -> tuple[Tensor, str]:
    """Images (examples, channels, H, W), scaled as the model expects them, and what they are in words."""
    channels, height, width = _image_shape(model, stored)
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(examples, channels, height, width, generator=generator)
        return images, RANDOM.format(f"images, {examples} of {height} × {width}")
    files = _files(folder, IMAGES, "images")
    if len(files) < examples:
        raise AuditError(f"--data: expected at least {examples} images in {folder}, got {len(files)}")
    mean, std = _statistics(model, stored, channels)
    images = torch.stack([_read_image(file, channels, height, width) for file in files[:examples]])
    images = (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    return images, f"{examples} of {len(files)} images of {folder}, {height} × {width}"


def _files(folder: Path, endings: tuple[str, ...], what: str) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() in endings)
    if not files:
        raise AuditError(f"--data: expected {what} ({', '.join(endings)}) in {folder}, got none")
    return files


def _texts(files: Iterable[Path]) -> Iterable[str]:
    left = LONGEST
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")[:left]
        yield text
        left -= len(text)
        if left <= 0:
            return


def _tokenizer(checkpoint: Path | None) -> Any:
    from spectral_core.audit.live import import_transformers

    # without its files, transformers would make up one that knows no word
    if checkpoint is None or not any((checkpoint / name).is_file() for name in TOKENIZERS):
        raise AuditError(
            f"--data: expected a tokenizer beside the weights ({', '.join(TOKENIZERS)}), got none; use --data random"
        )
    try:
        return import_transformers().AutoTokenizer.from_pretrained(
            str(checkpoint), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise AuditError(
            f"--data: expected a tokenizer beside the weights, got none that can be read ({str(error)[:120]}); "
            "use --data random"
        ) from error


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    pieces = tokenizer("a", add_special_tokens=True)["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    before = next((i for i in range(len(pieces)) if pieces[i : i + len(bare)] == bare), 0)
    return pieces[:before], pieces[before + len(bare) :]


def _image_shape(model: nn.Module, stored: Checkpoint) -> tuple[int, int, int]:
    known = _timm_settings(model, stored).get("input_size")
    if isinstance(known, (list, tuple)) and len(known) == 3:
        return known[0], known[1], known[2]
    config = getattr(model, "config", None)
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return getattr(config, "num_channels", 3), height, width


def _statistics(model: nn.Module, stored: Checkpoint, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that the images were scaled with; 0.5 where nothing says it."""
    source: Any = _timm_settings(model, stored)
    keys = ("mean", "std")
    path = stored.folder / "preprocessor_config.json" if stored.folder else None
    if not source and path is not None and path.is_file():
        source, keys = read_json(path), ("image_mean", "image_std")
    values = [source.get(key) if isinstance(source, dict) else None for key in keys]
    fit = all(isinstance(v, (list, tuple)) and len(v) == channels for v in values)
    mean, std = values if fit else ([0.5] * channels, [0.5] * channels)
    return torch.tensor(mean), torch.tensor(std)


def _timm_settings(model: nn.Module, stored: Checkpoint) -> dict[str, Any]:
    """Of the weights at hand, which may be another set than timm's default for this model."""
    default = getattr(model, "pretrained_cfg", None)
    own = (stored.config or {}).get("pretrained_cfg")
    return {**default, **(own if isinstance(own, dict) else {})} if isinstance(default, dict) else {}


def _read_image(file: Path, channels: int, height: int, width: int) -> Tensor:
    import numpy as np

    try:
        from PIL import Image, ImageOps

        with Image.open(file) as image:
            fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (width, height))
            pixels = torch.from_numpy(np.array(fitted)).float() / 255
    except ImportError as error:
        raise AuditError("--data: images need Pillow: pip install 'spectral-core[models]'") from error
    except Exception as error:
        raise AuditError(f"--data: {file.name} cannot be read as an image ({error})") from error
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
