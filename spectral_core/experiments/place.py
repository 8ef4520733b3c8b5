"""Where a run trains: one process, or one of several that `accelerate launch` or `torchrun` has started.

Both set WORLD_SIZE, RANK and LOCAL_RANK. The model is then replicated (DistributedDataParallel), or, where Accelerate
was configured for FSDP, sharded by torch's `fully_shard` (FSDP2).
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spectral_core.audit.run import check_device
from spectral_core.experiments.task import Batch

__all__ = ["Place", "to_device"]


class Place:
    """The device of this process, and its part in a batch.

    Raises:
        ValueError: a device that there is not.
    """

    def __init__(self, device: str) -> None:
        self.processes, self.index = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if self.processes > 1 and device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        self.device = check_device(device)
        self.is_sharded = self.processes > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
        if self.processes > 1 and not dist.is_initialized():
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model for several processes. Make optimizers afterwards: sharding replaces parameters."""
        if self.processes == 1:
            return model
        if not self.is_sharded:
            # a head may wait for its phase of the training
            return DistributedDataParallel(model, find_unused_parameters=True)
        from torch.distributed.fsdp import fully_shard

        for module in model.modules():
            if isinstance(module, nn.ModuleList):
                for block in module:
                    if any(True for _ in block.parameters()) and not isinstance(block, nn.ModuleList):
                        fully_shard(block)
        fully_shard(model)  # in place
        return model

    def share(self, batch: Batch, size: int) -> Batch:
        """This process's consecutive part of a batch of `size` examples.

        Raises:
            ValueError: the processes do not divide it.
        """
        if self.processes == 1:
            return batch
        if size % self.processes:
            raise ValueError(f"batch_size: expected a multiple of the {self.processes} processes, got {size}")
        part = size // self.processes
        at = slice(self.index * part, (self.index + 1) * part)
        return {key: value[at] for key, value in batch.items()}

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes of tensors of one shape."""
        if self.processes > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.processes
        return values

    def autocast(self, dtype: str) -> AbstractContextManager:
        """bfloat16 where it is safe, by `torch.autocast`."""
        return torch.autocast(self.device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors in dicts, lists and tuples, moved."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(one, device) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(one, device) for one in value)
    return value
