"""One of two gloo processes: `two_processes.py FOLDER RANK`. Trains under DDP and FSDP2 and writes what came out."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from by_hand import LR, mean_square
from families import TIMM, TRANSFORMERS, Asymmetric
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from spectral_core import PolarCorrection, SpectralMonitor, condition, fold, plain_state_dict, unfold

FAMILY = {family.name: family for family in TIMM + TRANSFORMERS}
NAMES = ("GPT-2", "Falcon, key-value groups", "timm ViT")
FULL = StateDictOptions(full_state_dict=True)


def mine(family, rank):
    batch = family.batch
    if isinstance(batch, dict):
        return {key: value[rank : rank + 1] for key, value in batch.items()}
    return batch[rank : rank + 1]


def train(model, family, rank):
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    batch = mine(family, rank)
    for _ in range(3):
        optimizer.zero_grad()
        out = model(**batch) if isinstance(batch, dict) else model(batch)
        mean_square(out if isinstance(out, torch.Tensor) else out[0]).backward()
        optimizer.step()


def shard(model):
    for block in getattr(model, "blocks", None) or model.h:
        fully_shard(block)
    return fully_shard(model)


def run(engine, family, rank, folder):
    model = family.model().train()
    condition(model, Asymmetric())
    if engine == "fsdp":
        wrapped = shard(model)
    else:
        wrapped = DistributedDataParallel(model)
        if engine == "ddp-compiled":
            wrapped = torch.compile(wrapped, backend="aot_eager")
    # κ(J) is measured by the first process alone, through a wrapper whose buffers are synchronised by both
    batch = family.batch if engine != "fsdp" and family.name == "timm ViT" else None
    monitor = SpectralMonitor(model if engine == "fsdp" else wrapped, every=3, batch=batch)
    train(wrapped, family, rank)
    (folder / f"{engine} {family.name} {rank}.json").write_text(json.dumps(monitor.step(3)))
    state = get_model_state_dict(model, options=FULL)
    if rank == 0:
        weights, folded = plain_state_dict(model, state), plain_state_dict(model, state, folded=True)
        torch.save({"weights": weights, "folded": folded}, folder / f"{engine} {family.name}.pt")
    return model


def said(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing"


def main(folder, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    init_device_mesh("cpu", (2,))
    for name in NAMES:
        for engine in ("ddp", "ddp-compiled", "fsdp"):
            model = run(engine, FAMILY[name], rank, folder)
    refusals = {
        "fold": said(lambda: fold(model)),
        "unfold": said(lambda: unfold(model)),
        "folded": said(lambda: plain_state_dict(model, folded=True)),
        "batch": said(lambda: SpectralMonitor(model, batch=FAMILY["timm ViT"].batch).step(0)),
        "condition": said(lambda: condition(shard(FAMILY["timm ViT"].model()), Asymmetric())),
    }
    model = FAMILY["GPT-2"].model()
    condition(model, PolarCorrection())
    train(shard(model), FAMILY["GPT-2"], rank)
    state = get_model_state_dict(model, options=FULL)
    if rank == 0:
        torch.save(plain_state_dict(model, state, folded=True), folder / "polar.pt")
        (folder / "refusals.json").write_text(json.dumps(refusals))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
