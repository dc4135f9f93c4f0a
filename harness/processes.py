"""One run on several processes, as torchrun starts them: each takes its share of every batch, the
first alone writes. Without torchrun there is one process, and all of this changes nothing.

Gradients are averaged by PyTorch's DistributedDataParallel. A grid needs none of it: there every
process makes runs of its own."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn


def started() -> bool:
    """Whether torchrun started several processes."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def rank_zero() -> bool:
    """Whether this is the first process that torchrun started, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


def local_rank() -> int:
    """This process's number on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def processes() -> int:
    """How many make this run together."""
    if _alone or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def first() -> bool:
    """Whether this process is the one that writes."""
    return processes() == 1 or dist.get_rank() == 0


_alone = False


@contextmanager
def alone():
    """Within it, a process works on its own: `share` gives everything, `total` adds nothing."""
    global _alone
    _alone, before = True, _alone
    try:
        yield
    finally:
        _alone = before


@contextmanager
def together(device: torch.device):
    """Joins the processes of a run, by NCCL on CUDA and Gloo elsewhere.

    The others wait in a collective while the first downloads, decodes or evaluates: for a day, not
    NCCL's ten minutes. torchrun stops all of them when one dies."""
    cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo", timeout=timedelta(days=1), device_id=device if cuda else None
    )
    try:
        yield
    finally:
        # DistributedDataParallel is part of a cycle, and a group that it holds until the
        # interpreter ends aborts there (pytorch #190489)
        gc.collect()
        dist.destroy_process_group()


@contextmanager
def first_goes_first():
    """The others wait until the first has been through: what it downloads or decodes they find."""
    if not first():
        dist.barrier()
    yield
    if processes() > 1 and first():
        dist.barrier()


def share(batch: torch.Tensor) -> torch.Tensor:
    """This process's part of a batch: every sample is in exactly one."""
    return batch if processes() == 1 else batch[dist.get_rank() :: processes()]


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    if processes() > 1:
        dist.all_reduce(values)
    return values


def from_first(value):
    """The first process's `value`, in all of them."""
    values = [value]
    if processes() > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


@torch.no_grad()
def like_first(tensors: list[torch.Tensor]) -> None:
    """Gives every process the first's values of `tensors`."""
    if processes() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def data_parallel(model: nn.Module, sync_bn: bool) -> nn.Module:
    """A network that averages its gradients over the processes, where there are several.

    BatchNorm normalises each process's share by itself, and the first's running statistics are
    every one's, unless `sync_bn` shares them within every batch."""
    if processes() == 1 or not any(p.requires_grad for p in model.parameters()):
        return model
    if sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return nn.parallel.DistributedDataParallel(model)
