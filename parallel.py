"""One run on several processes, as torchrun starts them: each takes its share of every batch, the first alone writes.

Gradients are averaged by PyTorch's DistributedDataParallel. Without torchrun there is one process, and all of this changes nothing. A grid needs none
of it: there every process makes runs of its own. The experiments use this through common.py."""
from __future__ import annotations

import gc
import math
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
    """Whether this process is the first that torchrun started, or the only one, though they may make runs of their own."""
    return int(os.environ.get("RANK", 0)) == 0


def local_rank() -> int:
    """This process's number on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


ALL_THREADS = torch.get_num_threads()
SMALL = 8 * 8 * 3  # values of an image, up to which a second thread gains little (README, "A busy machine")


def threads_for(size: tuple[int, ...]) -> int:
    """Of a run on a CPU whose images have this `size`: one where they are small, else PyTorch's default."""
    return 1 if math.prod(size) <= SMALL else ALL_THREADS


def set_threads(size: tuple[int, ...]) -> None:
    """Sets them, unless OMP_NUM_THREADS has."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_for(size))


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


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
    """Joins the processes of a run, by nccl on CUDA and gloo elsewhere."""
    # A day, not NCCL's ten minutes: the others wait in a collective while the first downloads, decodes or evaluates. torchrun
    # stops all of them when one dies.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1), device_id=device if device.type == "cuda" else None)
    try:
        yield
    finally:
        gc.collect()  # DistributedDataParallel is part of a cycle: a group that it holds until the interpreter ends aborts there (pytorch #190489)
        dist.destroy_process_group()


@contextmanager
def first_goes_first():
    """The other processes wait until the first has been through: what it downloads or decodes they find."""
    if not first():
        dist.barrier()
    yield
    if processes() > 1 and first():
        dist.barrier()


def share(batch: torch.Tensor) -> torch.Tensor:
    """This process's part of a batch: every sample is in exactly one."""
    return batch if processes() == 1 else batch[dist.get_rank()::processes()]


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
    """A network that averages its gradients over the processes, where there are several and something is trained. BatchNorm normalises each process's
    share by itself, and the first's running statistics are every one's, unless `sync_bn` shares them within every batch."""
    if processes() == 1 or not any(p.requires_grad for p in model.parameters()):
        return model
    return nn.parallel.DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model) if sync_bn else model)
