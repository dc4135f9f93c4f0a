"""How fast is the training loop, beside a plain PyTorch loop and beside what the machine can do?

    python bench.py                                    # ResNet-14, γ and β trained: six minutes
    python bench.py --depths 14 110 --train bn all --images 2000
    python bench.py --grid --image-size 8              # one process with all threads, or several?
    python bench.py --busy                             # beside programs that keep the cores busy
    python bench.py --norms bn ln none                 # other normalisations, and none

A plain loop is made ours one part after the other:

    plain                       as public implementations have it: a DataLoader with PIL transforms,
                                its best number of workers, fp32 (on CUDA as PyTorch has it, with
                                TF32 in convolutions), NCHW, the loss read in every step
    data on the device          images stay there as uint8, are cropped and flipped in batches, and
                                nothing is read before the epoch ends; PyTorch's fused optimizer;
                                on CUDA algorithms that are deterministic, and fp32 throughout
    channels_last               weights and activations in NHWC
    bf16                        by autocast, where the hardware has it
    frozen weights cast once    and not by autocast in every step
    memory kept                 on a CPU: freed memory is not given back to the system
    oneDNN's layout             on one thread (OMP_NUM_THREADS=1) of Intel's and AMD's processors:
                                activations in the layout that oneDNN chooses, not in NHWC, where
                                images are larger than 8x8
    CUDA graph                  with --graph, on CUDA: the step is captured once and replayed
    compiled blocks             with --compile; and, with both, a graph of compiled blocks

Images are random, with CIFAR-10's size and form. A measurement is a process of its own, so that its
peak memory is, too; the measurements of all variants take turns, and a row has the medians over the
turns. epoch_s is that of 50,000 training and 10,000 test images. start_s is from the start of a
process to the end of its first step.

limit_s is what an epoch takes at least here, the longer of two times. One is its FLOPs at the rate
of a large matrix product in the same precision, measured in the same turns: a convolution of k x k
with c_in and c channels has 2 k² c_in c at each of its H x W outputs, once for the forward pass,
once for the gradient at its input if anything before it is trained, once for that at its weight if
this is trained. The other is its bytes at the rate of a large copy: each element of a BatchNorm's
input crosses memory 5 times forward in training (written by the convolution, read for the
statistics, read and written normalised, read by the next convolution), 4 times in testing; backward
4 times if the BatchNorm or anything before it is trained (its gradient written; gradient, input
and ReLU's output read for the sums over a channel), 5 more if anything before it is (the three
read again, the input's gradient written, and read by the convolution). A cache that holds a
layer's activations can beat the second.

The last rows say how a training step of all of it, but for compilation, spends its time
(share_of_step, by PyTorch's profiler).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import common  # before torch, which reads what it sets
from common import NEVER, changed, flag, number
import exp_norms

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from harness import onednn
from harness import speed as fast
from harness.files import write_table
from harness.runs import commit

TRAIN, TEST = 50_000, 10_000  # images of a CIFAR-10 epoch
# seconds of training that processes at once are measured for: they do not start together
WINDOW = 10
EAGER = (
    "data on the device",
    "channels_last",
    "bf16",
    "frozen weights cast once",
    "memory kept",
    "oneDNN's layout",
)
PARTS = (*EAGER, "CUDA graph", "compiled blocks")
COLUMNS = (
    "device threads torch commit arch depth width train image_size batch_size precision variant "
    "processes threads_each workers train_images_per_s test_images_per_s epoch_s speedup peak_mb "
    "limit_s limited_by share_of_limit start_s share_of_step turns"
).split()


@dataclass
class Settings(common.Settings):
    lists = {"depth": [14], "train": ["bn"]}

    image_size: int = changed("image_size", 32)
    optimizer: str = "sgd"  # as in the plain loop, with which the others are compared
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    gamma_init: str = "uniform"
    beta_init: str = "zeros"
    weight_init: str = "he_normal"
    images: int = flag(
        10_000,
        "of one pass in training; in testing a fifth of them",
        number(int, 100),
        record=NEVER,
    )
    turns: int = flag(3, "that the variants take", number(int, 1), record=NEVER)
    grid: bool = flag(
        False,
        "1, 2, 4, … processes at once instead, each with its share of the threads",
        record=NEVER,
    )
    busy: bool = flag(
        False,
        "all parts of the loop instead, beside other programs that keep the cores busy",
        record=NEVER,
    )

    norms: list[str] = flag(
        [],
        "all parts of the loop instead, with each of these kinds in BatchNorm's place, as "
        "exp_norms.py names them",
        exp_norms.kind,
        metavar="KIND",
        record=NEVER,
    )

    norm: str = "bn"  # that of one measurement
    dataset: str = "cifar10"  # the images are random, the recipe is the paper's
    data: str | None = None
    subset: int | None = None
    val_fraction: float = 0.0
    augment: str | None = None
    epochs: int | None = None
    schedule: str = "step"
    warmup_epochs: int | None = None
    seed: int = 0
    sync_bn: bool = False
    workers: int = 0
    checkpoints: str = "checkpoints"
    force: bool = False
    no_resume: bool = False
    time_limit: float = float("inf")
    tensorboard: bool = False
    dry_run: bool = False
    quiet: bool = True


# --------------------------------------------------------------------------------------- the loops


class Pictures(torch.utils.data.Dataset):
    """Images as torchvision's CIFAR10 gives them: each becomes a PIL image, whose transform makes a
    tensor of it."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, train: bool):
        from torchvision import transforms as T

        self.images, self.labels = images, labels
        augment = [T.RandomCrop(images.shape[1], padding=4), T.RandomHorizontalFlip()]
        scale = [T.ToTensor(), T.Normalize((0.5,) * 3, (0.25,) * 3)]
        self.transform = T.Compose([*augment, *scale] if train else scale)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i: int):
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


class PlainLoop:
    """What public implementations do, `workers` processes making the batches."""

    def __init__(self, model: nn.Module, data: common.Data, args: Settings, workers: int):
        self.model, self.data, self.device = model, data, args.device
        # as PyTorch has them, where speed.prepare, for build_model, has set them otherwise
        torch.backends.cudnn.allow_tf32 = True
        torch.use_deterministic_algorithms(False)
        trained = [p for p in model.parameters() if p.requires_grad]
        decay = args.weight_decay
        self.optimizer = torch.optim.SGD(trained, args.lr, args.momentum, weight_decay=decay)
        options = {"batch_size": args.batch_size, "num_workers": workers}
        options |= {"persistent_workers": workers > 0, "pin_memory": args.device.type == "cuda"}
        self.loaders = {}
        for split in ("train", "test"):
            images, labels = data.images[split].cpu().numpy(), data.labels[split].cpu().numpy()
            pictures, train = Pictures(images, labels, split == "train"), split == "train"
            self.loaders[split] = torch.utils.data.DataLoader(pictures, shuffle=train, **options)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        self.optimizer.step()
        return loss.item(), (logits.argmax(1) == y).sum().item()

    def train(self, batches: int | None = None):
        self.model.train()
        for x, y in itertools.islice(self.loaders["train"], batches):
            self.step(x.to(self.device), y.to(self.device))

    @torch.inference_mode()
    def test(self):
        self.model.eval()
        for x, y in self.loaders["test"]:
            logits, y = self.model(x.to(self.device)), y.to(self.device)
            F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).sum().item()


class OurLoop:
    """common.py's epochs, with those of their `parts` that are chosen."""

    def __init__(self, model: nn.Module, data: common.Data, args: Settings, parts: tuple[str, ...]):
        self.model, self.epoch = model, 0
        self.data = data if "channels_last" in parts else Contiguous(**vars(data))
        self.args = args.but(
            precision="bf16" if "bf16" in parts else "fp32",
            compile="compiled blocks" in parts,
            graph="CUDA graph" in parts,
        )
        if "memory kept" in parts:
            fast.keep_memory(args.device)
        self.held = ExitStack()
        if "oneDNN's layout" in parts:
            self.held.enter_context(common.arithmetic(model, self.args, data.size))
        elif "frozen weights cast once" in parts:
            self.held.enter_context(fast.frozen_in(torch.bfloat16, model))
        self.optimizer = common.recipe(model, self.args).optimizer
        step = fast.training_step(common.train_step, model, self.args)
        self.step = self.held.enter_context(step)
        batches = common.split_batches(data.labels["train"], args.batch_size)
        self.sizes = [len(batch) for batch in batches]

    def train(self, batches: int | None = None):
        self.epoch += 1
        data, sizes = self.data, self.sizes[:batches]
        with common.progress_bar(disable=True) as bar:
            step = self.step
            common.train_epoch(
                self.model, data, self.optimizer, self.args, self.epoch, sizes, bar, step
            )

    def test(self):
        common.evaluate(self.model, self.data, "test", self.args)


class Contiguous(common.Images):
    """Batches in NCHW."""

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        return super().normalise(images).contiguous()


def random_images(args: Settings, n: int) -> common.Images:
    """`n` training and a fifth as many test images, uint8, of ten classes, on the device."""
    draw, shape = torch.Generator().manual_seed(0), (args.image_size, args.image_size, 3)
    counts, images, labels = {"train": n, "test": max(1, n // 5)}, {}, {}
    for split, count in counts.items():
        pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=draw)
        images[split] = pixels.to(args.device)
        labels[split] = torch.randint(10, (count,), generator=draw).to(args.device)
    return common.Images("random", list("0123456789"), images, labels)


def build(args: Settings, parts: tuple[str, ...] | None, workers: int = 0):
    """The loop with these parts on a network and data of its own, at the random start of seed 0;
    without any, `None`, the plain one."""
    data = random_images(args, args.images)
    model = exp_norms.with_norm(common.build_model(args, data), args.norm)
    common.freeze(model, args.train if args.norm == "bn" else args.train.replace("bn", "norm"))
    if not parts or "channels_last" not in parts:
        model.to(memory_format=torch.contiguous_format)
    return (
        PlainLoop(model, data, args, workers)
        if parts is None
        else OurLoop(model, data, args, parts)
    )


# ------------------------------------------------------- measurements, each in a process of its own


def speed(args: Settings, parts, workers: int, seconds: float = 0) -> dict:
    """Images per second in training and in testing, over at least one pass and `seconds`, and the
    process's peak memory in MB."""
    loop = build(args, parts, workers)
    loop.train(batches=5)  # memory, compilers, a graph's first steps and its capture
    loop.test()
    passes, began = 0, time.perf_counter()
    while passes == 0 or time.perf_counter() - began < seconds:
        loop.train()
        passes += 1
    trained = time.perf_counter()
    loop.test()
    tested = time.perf_counter()
    test_images = len(loop.data.labels["test"])
    rates = {"train_images_per_s": passes * args.images / (trained - began)}
    rates |= {"test_images_per_s": test_images / (tested - trained)}
    return rates | {"epoch_s": epoch_seconds(rates), "peak_mb": peak_memory(args)}


def epoch_seconds(rates: dict) -> float:
    return TRAIN / rates["train_images_per_s"] + TEST / rates["test_images_per_s"]


def median(measured: list[dict], key: str) -> float:
    return statistics.median(one[key] for one in measured)


def speedup(base: list[dict], measured: list[dict]) -> float:
    """How many times as fast as `base`: the median over turns of the ratio within a turn."""
    turns = zip(base, measured, strict=True)
    return statistics.median(a["epoch_s"] / b["epoch_s"] for a, b in turns)


def medians(measured: list[dict]) -> dict:
    return {key: median(measured, key) for key in measured[0]}


def peak_memory(args: Settings) -> float:
    """In MB: what PyTorch has had on the GPU; on a CPU the memory of the process, whose libraries
    alone take some 300."""
    if args.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def start(args: Settings, parts, began: float) -> dict:
    """Seconds from `began`, when the process was started, to the end of its first step."""
    build(args, parts).train(batches=1)
    return {"start_s": time.time() - began}


OPERATORS = {
    "convolution": ("conv",),
    "BatchNorm": ("batch_norm", "NativeBatchNorm"),
    "ReLU": ("clamp_min", "threshold", "relu"),
    "addition": ("aten::add",),
    "optimizer": ("SGD", "sgd"),
    "data": (
        "aten::index",
        "flip",
        "randperm",
        "aten::div",
        "aten::sub",
        "uniform",
        "randint",
        "sort",
    ),
    "else": (),
}


def kind_of(operator: str) -> str:
    for kind, names in OPERATORS.items():
        if any(name in operator for name in names):
            return kind
    return "else"


def shares(args: Settings, parts) -> dict:
    """Of the time that a training step spends in PyTorch's operators, what each kind takes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # which is read at the import
    from torch.profiler import ProfilerActivity, profile

    cuda, loop, spent = args.device.type == "cuda", build(args, parts), dict.fromkeys(OPERATORS, 0)
    loop.train(batches=5)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        loop.train(batches=10)
    for event in profiler.key_averages():
        # on CUDA kernels come again by themselves
        if event.device_type == torch.autograd.DeviceType.CPU:
            took = event.self_device_time_total if cuda else event.self_cpu_time_total
            spent[kind_of(event.key)] += took
    return {kind: time / sum(spent.values()) for kind, time in spent.items()}


def limits(args: Settings) -> dict:
    """FLOP/s of a large matrix product in either precision, and bytes/s of a large copy, reading
    and writing."""
    cuda, found = args.device.type == "cuda", {}
    fast.prepare(args.device)
    fast.keep_memory(args.device)

    def best(work) -> float:
        times = []
        for _ in range(6):
            began = time.perf_counter()
            work()
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times)

    n = 8192 if cuda else 2048
    kinds = {"fp32": torch.float32}
    if fast.has_bf16(args.device):
        kinds["bf16"] = torch.bfloat16
    for name, dtype in kinds.items():
        a, b = (torch.randn(n, n, device=args.device, dtype=dtype) for _ in range(2))
        found[name] = 2 * n**3 / best(lambda a=a, b=b: a @ b)
    source = torch.ones((2**32 if cuda else 2**29) // 4, device=args.device)
    target = torch.empty_like(source)
    return found | {"copy": 2 * 4 * source.numel() / best(lambda: target.copy_(source))}


def work(args: Settings) -> dict[str, tuple[float, float]]:
    """FLOPs and crossings of memory by BatchNorms' inputs, of one training image and one test
    image, as above."""
    args = args.but(device=torch.device("cpu"))
    totals, kinds = {"train": [0, 0], "test": [0, 0]}, (nn.Conv2d, nn.Linear)
    model = common.build_model(args, random_images(args, 10))
    common.freeze(model, args.train)

    def count(layer, inputs, output):
        elements, before = output[0].numel(), inputs[0].requires_grad
        if isinstance(layer, nn.BatchNorm2d):
            totals["train"][1] += elements * (5 + 4 * output.requires_grad + 5 * before)
            totals["test"][1] += elements * 4
        else:
            weight = layer.weight
            flops = 2 * weight[0].numel() * elements
            totals["train"][0] += flops * (1 + before + weight.requires_grad)
            totals["test"][0] += flops

    for layer in model.modules():
        if isinstance(layer, (*kinds, nn.BatchNorm2d)):
            layer.register_forward_hook(count)
    model.train()(torch.randn(2, 3, args.image_size, args.image_size))
    return {split: tuple(found) for split, found in totals.items()}


def with_threads(threads: int, measure, *arguments) -> dict:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # which build_model keeps to
    torch.set_num_threads(threads)
    return measure(*arguments)


def in_processes(n: int, threads: int, measure, *arguments) -> list[dict]:
    """What `measure` returns in each of `n` new processes at once."""
    with ProcessPoolExecutor(n, multiprocessing.get_context("spawn")) as pool:
        try:
            begun = [pool.submit(with_threads, threads, measure, *arguments) for _ in range(n)]
            return [measured.result() for measured in begun]
        except BaseException:  # Ctrl-C and SIGTERM do not wait for them
            for process in multiprocessing.active_children():
                process.kill()
            raise


# --------------------------------------------------------------------------------------- the tables


def eager_parts(args: Settings, threads: int) -> tuple[str, ...]:
    """The parts of our loop here, without those of --graph and --compile."""
    bf16, cpu = args.precision == "bf16", args.device.type == "cpu"
    there = {"bf16": bf16, "frozen weights cast once": bf16, "memory kept": cpu}
    small = fast.are_small((args.image_size, args.image_size, 3))
    there["oneDNN's layout"] = onednn.here(args, threads) and not small  # as in common.arithmetic
    return tuple(part for part in EAGER if there.get(part, True))


def best_workers(args: Settings, threads: int) -> int:
    """How many make the plain loop fastest."""
    counts, rates = sorted({0, 1, 2, 4, 8, os.cpu_count()}), {}
    for count in counts:
        if count <= os.cpu_count():
            (measured,) = in_processes(1, threads, speed, args, None, count)
            rates[count] = measured["train_images_per_s"]
    return max(rates, key=rates.get)


def compare(args: Settings, threads: int) -> list[dict]:
    """A row per variant for one network."""
    eager = eager_parts(args, threads)
    variants = {"plain": None} | {part: eager[: i + 1] for i, part in enumerate(eager)}
    captured = [("CUDA graph",)] if args.graph else []
    compiled = [("compiled blocks",)] if args.compile else []
    both = [captured[0] + compiled[0]] if captured and compiled else []
    for further in captured + compiled + both:
        variants[", ".join(further)] = eager + further
    starts = {"all but compilation": eager}
    if args.compile:
        starts["compilation included"] = list(variants.values())[-1]
    few = args.but(images=min(args.images, 20 * args.batch_size))
    workers = best_workers(few, threads)
    found, started = {variant: [] for variant in variants}, {variant: [] for variant in starts}
    floors, kinds = [], []
    for _ in range(args.turns):
        floors += in_processes(1, threads, limits, args)
        for variant, chosen in variants.items():
            count = workers if chosen is None else 0
            found[variant] += in_processes(1, threads, speed, args, chosen, count)
        for variant, chosen in starts.items():
            started[variant] += in_processes(1, threads, start, args, chosen, time.time())
        kinds += in_processes(1, threads, shares, few, eager)

    needed, rows = work(args), []
    for variant, measured in found.items():
        precision = "bf16" if "bf16" in (variants[variant] or ()) else "fp32"
        least = least_seconds(needed, floors, precision)
        limit = max(least, key=least.get)
        row = medians(measured) | {"variant": variant, "processes": 1, "threads_each": threads}
        row |= {
            "workers": workers if variant == "plain" else 0,
            "speedup": speedup(found["plain"], measured),
        }
        row |= {"limit_s": least[limit], "limited_by": limit}
        rows.append(row | {"share_of_limit": least[limit] / row["epoch_s"]})
    for variant, times in started.items():
        took = median(times, "start_s")
        rows.append({"variant": f"start-up, {variant}", "processes": 1, "start_s": took})
    for kind in OPERATORS:
        share = median(kinds, kind)
        rows.append({"variant": f"of a step: {kind}", "processes": 1, "share_of_step": share})
    return rows


def least_seconds(needed: dict, floors: list[dict], precision: str) -> dict[str, float]:
    """What an epoch takes at least, by its arithmetic and by the memory it moves."""
    images = {"train": TRAIN, "test": TEST}
    flops = sum(count * needed[split][0] for split, count in images.items())
    elements = sum(count * needed[split][1] for split, count in images.items())
    size = 2 if precision == "bf16" else 4
    arithmetic, memory = median(floors, precision), median(floors, "copy")
    return {"arithmetic": flops / arithmetic, "memory": elements * size / memory}


def share_out(args: Settings, threads: int) -> list[dict]:
    """A row per number of processes that share the machine, each with a network and data of its
    own."""
    most = threads if args.device.type == "cpu" else 8
    counts, found = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= most], {}
    for _, n in itertools.product(range(args.turns), counts):
        each = max(1, threads // n)
        measured = in_processes(n, each, speed, args, eager_parts(args, each), 0, WINDOW)
        together = {key: sum(one[key] for one in measured) for key in measured[0]}
        found.setdefault(n, []).append(together | {"epoch_s": epoch_seconds(together)})
    rows = []
    for n, measured in found.items():
        key, turns = "train_images_per_s", zip(measured, found[1], strict=True)
        faster = statistics.median(one[key] / alone[key] for one, alone in turns)
        row = {
            "variant": "grid",
            "processes": n,
            "threads_each": max(1, threads // n),
            "workers": 0,
        }
        rows.append(medians(measured) | row | {"speedup": faster})
    return rows


def kinds_of_norm(args: Settings, threads: int) -> list[dict]:
    """A row per kind of normalisation: all parts of the loop."""
    found = {}
    for _, norm in itertools.product(range(args.turns), args.norms):
        one = args.but(norm=norm)
        measured = in_processes(1, threads, speed, one, eager_parts(args, threads), 0, WINDOW)
        found.setdefault(norm, []).extend(measured)
    first, rows = found[args.norms[0]], []
    for norm, measured in found.items():
        row = {"variant": f"norm {norm}", "processes": 1, "threads_each": threads, "workers": 0}
        rows.append(medians(measured) | row | {"speedup": speedup(first, measured)})
    return rows


def beside(args: Settings, _: int) -> list[dict]:
    """A row per neighbours: all parts of the loop, with the threads that a run takes by itself.
    Where these are several, once with the number of rounds that they spin before they sleep as
    harness/__init__.py sets it, and once with libgomp's own."""
    threads, found = fast.threads_for((args.image_size, args.image_size, 3)), {}
    loop = [sys.executable, "-c", "while True: pass"]
    script = str(Path(__file__).with_name("exp_bn_only.py"))
    training = [
        sys.executable,
        script,
        *"--dataset digits --depth 56 --epochs 100000 --quiet".split(),
    ]
    neighbours = {
        "nothing": [],
        "two loops": [loop] * 2,
        "two trainings of two threads": [training] * 2,
    }
    ours = os.environ["GOMP_SPINCOUNT"]
    spins = [ours, "300000"] if threads > 1 else [ours]
    for _, name, spin in itertools.product(range(args.turns), neighbours, spins):
        with TemporaryDirectory() as folder, ExitStack() as running:
            for i, words in enumerate(neighbours[name]):
                if words is training:
                    own = f"{folder}/{i}"
                    words = [*words, "--results", own, "--checkpoints", own]
                two = os.environ | {"OMP_NUM_THREADS": "2"}
                nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                process = subprocess.Popen(words, env=two, **nowhere)
                running.callback(process.wait)
                running.callback(process.kill)
            time.sleep(10 if "trainings" in name else 1)  # until they train
            os.environ["GOMP_SPINCOUNT"] = spin
            measured = in_processes(1, threads, speed, args, eager_parts(args, threads), 0, WINDOW)
            os.environ["GOMP_SPINCOUNT"] = ours
        found.setdefault((name, spin), []).extend(measured)
    quiet, rows = found["nothing", spins[-1]], []
    for (name, spin), measured in found.items():
        variant = f"beside {name}"
        if threads > 1:
            variant += f", spinning {int(spin):,} rounds"
        row = {"variant": variant, "processes": 1, "threads_each": threads, "workers": 0}
        rows.append(medians(measured) | row | {"speedup": speedup(quiet, measured)})
    return rows


def bench(args: Settings) -> int:
    import pandas as pd

    measures = {"grid": share_out, "busy": beside, "norms": kinds_of_norm}
    asked = [key for key in measures if getattr(args, key)]
    if len(asked) > 1:
        flags = " and ".join(f"--{key}" for key in asked)
        raise common.UserError(f"{flags} are different measurements: give one of them")
    measure, kind = compare, ""
    if asked:
        measure, kind = measures[asked[0]], f"-{asked[0]}"
    kind += "".join(f"-{norm.replace(':', '')}" for norm in args.norms)
    for part in ("compile", "graph"):
        if getattr(args, part):
            kind += f"-{part}"
    threads = torch.get_num_threads()
    runs = common.grid(args)
    if any(one.train == "none" for one in runs):
        instead = "bench.py measures training; give bn, all or other parts"
        raise common.UserError(f"--train none trains nothing: {instead}")
    for one in runs:
        name = fast.device_name(one.device)
        about = {"device": name, "threads": threads, "torch": torch.__version__, "commit": commit()}
        setting = "arch depth width train image_size batch_size precision turns".split()
        about |= {key: getattr(one, key) for key in setting}
        trained, machine = one.train.replace(":", ""), name.replace(" ", "-")
        what = f"{one.arch}{one.depth}-w{one.width}-{trained}-{one.image_size}px-b{one.batch_size}"
        what += f"-{one.precision}"
        path = Path(args.results, "bench", f"{machine}-{threads}-{what}{kind}.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [about | row for row in measure(one, threads)]
        write_table(path, COLUMNS, [[row.get(column, "") for column in COLUMNS] for row in rows])
        size = f"batches of {one.batch_size} images of {one.image_size}x{one.image_size}"
        where = f"on {name}, {threads} threads: medians of {one.turns} turns"
        print(f"\n{one.arch}-{one.depth}, {one.train}, {one.precision}, {size} {where}")
        shown = COLUMNS[COLUMNS.index("variant") : -1]
        table = pd.DataFrame(rows, columns=shown).dropna(axis="columns", how="all")
        print(table.to_string(index=False, na_rep="", float_format="{:.4g}".format))
        print(f"records: {path}")
    return 0


def main(argv=None):
    return common.main(bench, Settings, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
