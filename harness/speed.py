"""What makes the training loop fast, each thing of which `bench.py` can switch off: threads and
memory of a CPU, frozen weights that are cast once, compiled blocks, the step as a CUDA graph.

None of it changes a result by more than rounding."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize

ALL_THREADS = torch.get_num_threads()
SMALL = 8 * 8 * 3  # values of an image, up to which several threads are not worth a busy machine


def are_small(size: tuple[int, ...]) -> bool:
    """Whether images of this `size`, height, width and channels, are as small as those of digits
    may be."""
    return math.prod(size) <= SMALL


def threads_for(size: tuple[int, ...]) -> int:
    """Of a run on a CPU whose images have this `size`: one where they are small, else PyTorch's."""
    return 1 if are_small(size) else ALL_THREADS


def prepare(device: torch.device, size: tuple[int, ...] = ()) -> None:
    """PyTorch's settings that every run shares; for images of `size` also the number of threads,
    unless OMP_NUM_THREADS has set it."""
    if size and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_for(size))
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    # On a CPU, too, it decides about fused attention, whose backward pass in bf16 is slow there:
    # without it a step of exp_norms.py's transformer took 105 instead of 312 ms on one core.
    torch.backends.cuda.enable_flash_sdp(device.type == "cuda")
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False


def keep_memory(device: torch.device) -> None:
    """On a CPU freed memory stays with the process, where the allocator is glibc's."""
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        # glibc gives every freed activation back to the system, and faults its pages in again at
        # the next step. To keep them took a step of ResNet-14 from 134 to 104 ms on one core.
        # M_TOP_PAD, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of mallopt(3):
        for option, value in ((-2, 64 << 20), (-3, 32 << 20), (-1, 2**31 - 1)):
            libc.mallopt(option, value)


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16: elsewhere it can be slower than fp32 by orders of
    magnitude (pytorch #183815)."""
    if device.type == "cpu":
        return bool(cpu_bf16())
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_bf16() -> str:
    """What a CPU multiplies bf16 with, if anything: matrices (AMX) or vectors."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512 bf16" if torch.cpu._is_avx512_bf16_supported() else ""


def device_name(device: torch.device) -> str:
    """What the records call a device: by the name of the GPU, or of the processor and, since
    virtual machines of one name can have or lack it, what that multiplies bf16 with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu ({' with '.join(filter(None, [processor(), cpu_bf16()]))})"
    return str(device)


@cache
def processor() -> str:
    """The processor's own name, where the system tells it; else its architecture."""
    try:
        if sys.platform == "linux":
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            return next(line for line in lines if line.startswith("model name")).split(": ")[1]
        if sys.platform == "darwin":
            words = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, StopIteration, IndexError, subprocess.SubprocessError):
        pass  # a Linux on ARM names no model
    return platform.processor() or platform.machine()


@contextmanager
def stand_ins(parameters, change):
    """Within it the data of each of `parameters` are what `change` makes of them, and their `exact`
    what they were."""
    parameters = list(dict.fromkeys(parameters))  # two layers may share one
    for parameter in parameters:
        parameter.exact = parameter.data
        parameter.data = change(parameter.exact)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.data = parameter.exact
            del parameter.exact


@contextmanager
def exact_weights(model: nn.Module):
    """Within it no other data stand in for those of the network's parameters."""
    replaced = [(p, p.data) for p in model.parameters() if hasattr(p, "exact")]
    for parameter, _ in replaced:
        parameter.data = parameter.exact
    try:
        yield
    finally:
        for parameter, data in replaced:
            parameter.data = data


@contextmanager
def frozen_in(dtype: torch.dtype, model: nn.Module):
    """Within it the frozen weights of convolutions and linear layers are of `dtype`, rounded once.

    Autocast, whose cache holds trained weights alone, would round these again, to the same values,
    in every step."""
    frozen = []
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and not parametrize.is_parametrized(layer):
            parameters = layer.parameters(recurse=False)
            frozen += [p for p in parameters if not p.requires_grad]
    with stand_ins(frozen, lambda exact: exact.to(dtype)):
        yield


COMPILED_KINDS = 64  # of a block, in one run: three stages, strides, dtypes, batch sizes
BLOCKS = ("Block", "BasicBlock", "Bottleneck")


def compile_blocks(model: nn.Module) -> None:
    """Compiles the blocks that a ResNet repeats, each kind once: the whole of a ResNet-866 would
    take many minutes. Other networks are compiled as a whole.

    Where more kinds are needed than the budget has (with random:K every block is one of its own),
    PyTorch would go on without compiling: here it stops, so that what a record says is true."""
    torch._dynamo.config.recompile_limit = COMPILED_KINDS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    blocks = [module for module in model.modules() if type(module).__name__ in BLOCKS]
    for block in blocks or [model]:
        block.compile(dynamic=False)


@contextmanager
def training_step(step, model: nn.Module, args):
    """`step`; with --compile from compiled blocks, with --graph as a CUDA graph, in a stream
    of its own."""
    if args.compile:
        torch.compiler.reset()  # compiled code counts against a budget of the process
        compile_blocks(model)
    if not args.graph:
        yield step
        return
    torch.cuda.synchronize(args.device)
    with torch.cuda.stream(torch.cuda.Stream(args.device)):  # the default one cannot be captured
        yield GraphedStep(step, args.batch_size)
    torch.cuda.synchronize(args.device)


class GraphedStep:
    """A training step captured once as a CUDA graph, and replayed: Python launches a deep network's
    thousands of kernels more slowly than they run.

    A graph repeats what it has seen, in the memory where it has seen it. So batches are copied into
    fixed tensors, and the learning rates are tensors, too, which take whatever number the schedule
    has put in their place. The first steps run as they are, and start what a capture must not
    (memory, compilers, cuDNN), as do batches of another size. Capturing runs nothing, so every step
    is made exactly once."""

    STARTING = 3

    def __init__(self, step, batch_size: int):
        self.step, self.batch_size = step, batch_size
        self.steps, self.graph = 0, None

    def __call__(self, model, x, y, optimizer, args, loss_scale: float = 1) -> torch.Tensor:
        self.steps += 1
        if self.steps <= self.STARTING or len(y) != self.batch_size:
            return self.step(model, x, y, optimizer, args, loss_scale)
        if self.graph is None:
            self.capture(model, x, y, optimizer, args, loss_scale)
        self.put_rates(optimizer)
        self.x.copy_(x)
        self.y.copy_(y)
        self.graph.replay()
        return self.tally

    def capture(self, model, x, y, optimizer, args, loss_scale: float) -> None:
        groups = optimizer.param_groups if optimizer else []
        self.rates = [torch.tensor(float(group["lr"]), device=x.device) for group in groups]
        self.x, self.y, self.graph = x.clone(), y.clone(), torch.cuda.CUDAGraph()
        self.put_rates(optimizer)
        stream = torch.cuda.current_stream()
        # thread_local: a data loader's thread that pins memory is no part of it
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.tally = self.step(model, self.x, self.y, optimizer, args, loss_scale)

    def put_rates(self, optimizer) -> None:
        """Whatever rate has been put in the place of a tensor goes into the tensor."""
        groups = optimizer.param_groups if optimizer else []
        for group, rate in zip(groups, self.rates, strict=True):
            if group["lr"] is not rate:
                rate.fill_(group["lr"])
                group["lr"] = rate
