"""timm and transformers on a CPU-only torch: declare the operators that torchvision's wheel cannot bring.

The default wheel of torchvision holds operators compiled for CUDA. Beside a CPU-only torch they do not load, and
`import torchvision` then fails with "operator torchvision::nms does not exist", and with it `import timm` and most of
transformers, although neither needs them. With the two missing schemas declared the import goes through; *calling*
`torchvision.ops.nms` still fails, with a message of torch's own.

    from spectral_core.torchvision_schemas import declare_missing
    declare_missing()      # once, before the first import of timm, transformers or torchvision
    import timm
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

__all__ = ["declare_missing"]

# these two alone are looked up by name when torchvision is imported (torchvision/_meta_registrations.py)
SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_library: torch.library.Library | None = None  # the schemas live as long as this


def declare_missing() -> list[str]:
    """Declare torchvision's schemas if it is installed without operators that load here; else do nothing.

    Nothing is imported. May be called any number of times.

    Returns:
        The names of the operators that were declared.

    Raises:
        RuntimeError: an earlier import of torchvision has failed half-way in this process.
    """
    global _library
    spec = importlib.util.find_spec("torchvision") if "torchvision" not in sys.modules else None
    if spec is None or _library is not None or not spec.submodule_search_locations:
        return []
    if "torchvision.extension" in sys.modules:
        raise RuntimeError(
            "expected to be called before the first import of torchvision, timm or transformers, got a process in "
            "which that import has already failed; start again and call declare_missing() first"
        )
    for path in Path(spec.submodule_search_locations[0]).glob("_C*"):
        if path.suffix in (".so", ".pyd", ".dylib"):
            try:
                torch.ops.load_library(path)
                return []
            except (OSError, ImportError):
                pass
    _library = torch.library.Library("torchvision", "DEF")
    for name, schema in SCHEMAS.items():
        _library.define(name + schema)
    return list(SCHEMAS)
