"""How fast is the training loop, beside a plain PyTorch loop and beside what the machine can do?

    python bench.py                                               # ResNet-14, γ and β trained: six minutes on two CPU cores
    python bench.py --depths 14 110 --train bn all --images 2000
    python bench.py --grid --image-size 8                         # many small runs: one process with all threads, or several with fewer?
    python bench.py --busy                                        # beside other programs that keep the cores busy

A plain loop is made ours one part after the other:

    plain                       as public implementations have it: a DataLoader with PIL transforms and its best number of workers, fp32, NCHW, the loss read in every step
    data on the device          images stay there as uint8, are cropped and flipped in batches, and nothing is read before the epoch ends; PyTorch's fused optimizer
    channels_last               weights and activations in NHWC
    bf16                        by autocast, where the hardware has it
    frozen weights cast once    and not by autocast in every step
    memory kept                 on a CPU: freed memory is not given back to the system
    CUDA graph                  with --graph, on CUDA: the step is captured once and replayed
    compiled blocks             with --compile

Images are random, with CIFAR-10's size and form. A measurement is a process of its own, so that its peak memory is, too; the measurements of all variants take turns, and a row
has the medians over the turns. epoch_s is that of 50,000 training and 10,000 test images. start_s is from the start of a process to the end of its first step.

limit_s is what an epoch takes at least here, the longer of two times. One is its FLOPs at the rate of a large matrix product in the same precision, measured in the same turns: a convolution
of k x k with c_in and c channels has 2 k² c_in c at each of its H x W outputs, once for the forward pass, once for the gradient at its input if anything before it is trained, once for
that at its weight if this is trained. The other is its bytes at the rate of a large copy: each element of a BatchNorm's input crosses memory 5 times forward in training (written by the
convolution, read for the statistics, read and written normalised, read by the next convolution), 4 times in testing; backward 4 times if the BatchNorm or anything before it is trained (its
gradient written; gradient, input and ReLU's output read for the sums over a channel), 5 more if anything before it is (the three read again, the input's gradient written, and read by the
convolution). A cache that holds a layer's activations can beat the second.

The last rows say how a training step of all of it, but for compilation, spends its time (share_of_step, by PyTorch's profiler).
"""
from __future__ import annotations

import copy
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
from pathlib import Path
from tempfile import TemporaryDirectory

import common  # before torch, which reads what it sets

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import parallel

TRAIN, TEST = 50_000, 10_000  # images of a CIFAR-10 epoch
WINDOW = 10  # seconds of training that processes at once are measured for, since they do not start together
EAGER = ("data on the device", "channels_last", "bf16", "frozen weights cast once", "memory kept")
PARTS = (*EAGER, "CUDA graph", "compiled blocks")
IGNORED = "dataset data subset val_fraction augment epochs schedule warmup_epochs seed tensorboard checkpoints force no_resume time_limit dry_run quiet".split()  # of the shared flags
COLUMNS = ("device threads torch commit arch depth width train image_size batch_size variant processes threads_each workers train_images_per_s test_images_per_s epoch_s speedup "
           "peak_mb limit_s limited_by share_of_limit start_s share_of_step turns").split()


# ------------------------------------------------------------------------------------------------------------ the loops

class Pictures(torch.utils.data.Dataset):
    """Images as torchvision's CIFAR10 gives them: each becomes a PIL image, whose transform makes a tensor of it."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, train: bool):
        from torchvision import transforms as T
        self.images, self.labels = images, labels
        self.transform = T.Compose([*[T.RandomCrop(images.shape[1], padding=4), T.RandomHorizontalFlip()] * train, T.ToTensor(), T.Normalize((0.5,) * 3, (0.25,) * 3)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i: int):
        from PIL import Image
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


class PlainLoop:
    """What public implementations do, `workers` processes making the batches."""

    def __init__(self, model: nn.Module, data: common.Data, args, workers: int):
        self.model, self.data, self.device = model, data, args.device
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, args.lr, args.momentum, weight_decay=args.weight_decay)
        options = {"batch_size": args.batch_size, "num_workers": workers, "persistent_workers": workers > 0, "pin_memory": args.device.type == "cuda"}
        self.loaders = {split: torch.utils.data.DataLoader(Pictures(data.images[split].cpu().numpy(), data.labels[split].cpu().numpy(), split == "train"),
                                                           shuffle=split == "train", **options) for split in ("train", "test")}

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

    @torch.no_grad()
    def test(self):
        self.model.eval()
        for x, y in self.loaders["test"]:
            logits, y = self.model(x.to(self.device)), y.to(self.device)
            F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).sum().item()


class OurLoop:
    """common.py's epochs, with those of their `parts` that are chosen."""

    def __init__(self, model: nn.Module, data: common.Data, args, parts: tuple[str, ...]):
        self.model, self.data, self.args, self.epoch = model, data if "channels_last" in parts else Contiguous(**vars(data)), copy.copy(args), 0
        self.args.precision = "bf16" if "bf16" in parts else "fp32"
        self.args.compile, self.args.graph = "compiled blocks" in parts, "CUDA graph" in parts
        if "memory kept" in parts or args.device.type != "cpu":
            common.prepare(args.device)
        self.held = ExitStack()
        if "frozen weights cast once" in parts:
            self.held.enter_context(common.frozen_in(torch.bfloat16, model))
        self.optimizer, _ = common.recipe(model, self.args)
        self.step = self.held.enter_context(common.training_step(model, self.args))
        self.sizes = [len(batch) for batch in common.split_batches(data.labels["train"], args.batch_size)]

    def train(self, batches: int | None = None):
        self.epoch += 1
        with common.progress_bar(disable=True) as progress:
            common.train_epoch(self.model, self.data, self.optimizer, self.args, self.epoch, self.sizes[:batches], progress, self.step)

    def test(self):
        common.evaluate(self.model, self.data, "test", self.args)


class Contiguous(common.Data):
    """Batches in NCHW."""

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        return super().normalise(images).contiguous()


def random_images(args, n: int) -> common.Data:
    """`n` training and a fifth as many test images, uint8, of ten classes, on the device."""
    draw, shape = torch.Generator().manual_seed(0), (args.image_size, args.image_size, 3)
    counts = {"train": n, "test": max(1, n // 5)}
    images = {split: torch.randint(256, (k, *shape), dtype=torch.uint8, generator=draw).to(args.device) for split, k in counts.items()}
    labels = {split: torch.randint(10, (k,), generator=draw).to(args.device) for split, k in counts.items()}
    return common.Data("random", list("0123456789"), images, labels)


def build(args, parts: tuple[str, ...] | None, workers: int = 0):
    """The loop with these parts on a network and data of its own, at the random start of seed 0; without any, `None`, the plain one."""
    data = random_images(args, args.images)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    if not parts or "channels_last" not in parts:
        model.to(memory_format=torch.contiguous_format)
    return PlainLoop(model, data, args, workers) if parts is None else OurLoop(model, data, args, parts)


# ------------------------------------------------------------------------------------- measurements, each in a process of its own

def speed(args, parts, workers: int, seconds: float = 0) -> dict:
    """Images per second in training and in testing, over at least one pass and `seconds`, and the process's peak memory in MB."""
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
    rates = {"train_images_per_s": passes * args.images / (trained - began), "test_images_per_s": len(loop.data.labels["test"]) / (tested - trained)}
    return rates | {"epoch_s": epoch_seconds(rates), "peak_mb": peak_memory(args)}


def epoch_seconds(rates: dict) -> float:
    return TRAIN / rates["train_images_per_s"] + TEST / rates["test_images_per_s"]


def median(measured: list[dict], key: str) -> float:
    return statistics.median(one[key] for one in measured)


def peak_memory(args) -> float:
    """In MB: what PyTorch has had on the GPU; on a CPU the memory of the process, whose libraries alone take some 300."""
    if args.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def start(args, parts, began: float) -> dict:
    """Seconds from `began`, when the process was started, to the end of its first step."""
    build(args, parts).train(batches=1)
    return {"start_s": time.time() - began}


def shares(args, parts) -> dict:
    """Of the time that a training step spends in PyTorch's operators, what each kind takes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # which is read at the import
    from torch.profiler import ProfilerActivity, profile
    cuda, loop, spent = args.device.type == "cuda", build(args, parts), dict.fromkeys(KINDS, 0)
    loop.train(batches=5)
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as profiler:
        loop.train(batches=10)
    for event in (e for e in profiler.key_averages() if e.device_type == torch.autograd.DeviceType.CPU):  # kernels again, by themselves, on CUDA
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "else")
        spent[kind] += event.self_device_time_total if cuda else event.self_cpu_time_total
    return {kind: time / sum(spent.values()) for kind, time in spent.items()}


KINDS = {"convolution": ("conv",), "BatchNorm": ("batch_norm", "NativeBatchNorm"), "ReLU": ("clamp_min", "threshold", "relu"), "addition": ("aten::add",), "optimizer": ("SGD", "sgd"),
         "data": ("aten::index", "flip", "randperm", "aten::div", "aten::sub", "uniform", "randint", "sort"), "else": ()}


def limits(args) -> dict:
    """FLOP/s of a large matrix product in either precision, and bytes/s of a large copy, reading and writing."""
    cuda, found = args.device.type == "cuda", {}
    common.prepare(args.device)

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
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "fp32" or common.has_bf16(args.device):
            a, b = (torch.randn(n, n, device=args.device, dtype=dtype) for _ in range(2))
            found[name] = 2 * n**3 / best(lambda: a @ b)
    source = torch.ones((2**32 if cuda else 2**29) // 4, device=args.device)
    target = torch.empty_like(source)
    return found | {"copy": 2 * 4 * source.numel() / best(lambda: target.copy_(source))}


def work(args) -> dict[str, tuple[float, float]]:
    """FLOPs and crossings of memory by BatchNorms' inputs, of one training image and one test image, as above."""
    data = random_images(args, 10)
    args = copy.copy(args)
    args.device, totals = torch.device("cpu"), {"train": [0, 0], "test": [0, 0]}
    model = common.build_model(args, data)
    common.freeze(model, args.train)

    def count(layer, inputs, output):
        here, before = output[0].numel(), inputs[0].requires_grad
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            totals["train"][1] += here * (5 + 4 * output.requires_grad + 5 * before)
            totals["test"][1] += here * 4
        else:
            weight = layer.weight
            flops = 2 * weight[0].numel() * here
            totals["train"][0] += flops * (1 + before + weight.requires_grad)
            totals["test"][0] += flops

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)):
            layer.register_forward_hook(count)
    model.train()(torch.randn(2, 3, args.image_size, args.image_size))
    return {split: tuple(found) for split, found in totals.items()}


def threads_of(threads: int, measure, *arguments) -> dict:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # build_model keeps to it
    torch.set_num_threads(threads)
    return measure(*arguments)


def in_processes(n: int, threads: int, measure, *arguments) -> list[dict]:
    """What `measure` returns in each of `n` new processes at once."""
    with ProcessPoolExecutor(n, multiprocessing.get_context("spawn")) as pool:
        try:
            return [found.result() for found in [pool.submit(threads_of, threads, measure, *arguments) for _ in range(n)]]
        except BaseException:  # Ctrl-C and SIGTERM do not wait for them
            for process in multiprocessing.active_children():
                process.kill()
            raise


# ----------------------------------------------------------------------------------------------------------------- tables

def eager_parts(args) -> tuple[str, ...]:
    """The parts of our loop here, without those of --graph and --compile."""
    there = {"bf16": args.precision == "bf16", "frozen weights cast once": args.precision == "bf16", "memory kept": args.device.type == "cpu"}
    return tuple(part for part in EAGER if there.get(part, True))


def compare(args, threads: int) -> list[dict]:
    """A row per variant for one network."""
    parts = (*eager_parts(args), *["CUDA graph"] * args.graph, *["compiled blocks"] * args.compile)
    variants = {"plain": None} | {part: parts[:i + 1] for i, part in enumerate(parts)}

    few = copy.copy(args)
    few.images = min(args.images, 20 * args.batch_size)
    rates = {workers: in_processes(1, threads, speed, few, None, workers)[0]["train_images_per_s"] for workers in sorted({0, 1, 2, 4, 8, os.cpu_count()}) if workers <= os.cpu_count()}
    workers = max(rates, key=rates.get)

    starts = {"all but compilation": eager_parts(args)} | ({"compilation included": parts} if args.compile else {})
    found, floors, kinds, started = {variant: [] for variant in variants}, [], [], {variant: [] for variant in starts}
    for _ in range(args.turns):
        floors += in_processes(1, threads, limits, args)
        for variant, chosen in variants.items():
            found[variant] += in_processes(1, threads, speed, args, chosen, workers if chosen is None else 0)
        for variant, chosen in starts.items():
            started[variant] += in_processes(1, threads, start, args, chosen, time.time())
        kinds += in_processes(1, threads, shares, few, eager_parts(args))

    flops_bytes, rows = work(args), []
    for variant, measured in found.items():
        precision = "bf16" if "bf16" in (variants[variant] or ()) else "fp32"
        calculating, moving = (sum(images * flops_bytes[split][k] for split, images in (("train", TRAIN), ("test", TEST))) for k in (0, 1))
        least = {"arithmetic": calculating / median(floors, precision), "memory": moving * (2 if precision == "bf16" else 4) / median(floors, "copy")}
        by = max(least, key=least.get)
        epoch = median(measured, "epoch_s")
        rows.append({key: median(measured, key) for key in measured[0]}
                    | {"variant": variant, "processes": 1, "threads_each": threads, "workers": workers if variant == "plain" else 0, "limit_s": least[by], "limited_by": by,
                       "speedup": statistics.median(plain["epoch_s"] / one["epoch_s"] for plain, one in zip(found["plain"], measured)), "share_of_limit": least[by] / epoch})
    rows += [{"variant": f"start-up, {variant}", "processes": 1, "start_s": median(times, "start_s")} for variant, times in started.items()]
    rows += [{"variant": f"of a step: {kind}", "processes": 1, "share_of_step": median(kinds, kind)} for kind in KINDS]
    return rows


def share_out(args, threads: int) -> list[dict]:
    """A row per number of processes that share the machine, each with a network and data of its own."""
    counts, found = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= (threads if args.device.type == "cpu" else 8)], {}
    for _, n in itertools.product(range(args.turns), counts):
        measured = in_processes(n, max(1, threads // n), speed, args, eager_parts(args), 0, WINDOW)
        together = {key: sum(one[key] for one in measured) for key in measured[0]}
        found.setdefault(n, []).append(together | {"epoch_s": epoch_seconds(together)})
    return [{key: median(measured, key) for key in measured[0]}
            | {"variant": "grid", "processes": n, "threads_each": max(1, threads // n), "workers": 0,
               "speedup": statistics.median(one["train_images_per_s"] / alone["train_images_per_s"] for one, alone in zip(measured, found[1]))} for n, measured in found.items()]


def beside(args, threads: int) -> list[dict]:
    """A row per neighbours: all parts of the loop, with the threads that a run takes by itself. Where these are several, once with the number of
    rounds that they spin before they sleep as startup.py sets it, and once with libgomp's own."""
    threads, found = parallel.threads_for((args.image_size, args.image_size, 3)), {}
    loop = [sys.executable, "-c", "while True: pass"]
    training = [sys.executable, str(Path(__file__).with_name("exp_bn_only.py")), *"--dataset digits --depth 56 --epochs 100000 --quiet".split()]
    neighbours = {"nothing": [], "two loops": [loop] * 2, "two trainings of two threads": [training] * 2}
    ours = os.environ["GOMP_SPINCOUNT"]
    spins = [ours, "300000"] if threads > 1 else [ours]
    for _, (name, commands), spin in itertools.product(range(args.turns), neighbours.items(), spins):
        with TemporaryDirectory() as folder, ExitStack() as running:
            for i, command in enumerate(commands):
                where = ["--results", f"{folder}/{i}", "--checkpoints", f"{folder}/{i}"] if command is training else []
                process = subprocess.Popen([*command, *where], env=os.environ | {"OMP_NUM_THREADS": "2"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                running.callback(process.wait)
                running.callback(process.kill)
            time.sleep(10 if commands and commands[0] is training else 1)  # until they train
            os.environ["GOMP_SPINCOUNT"] = spin
            measured = in_processes(1, threads, speed, args, eager_parts(args), 0, WINDOW)[0]
            os.environ["GOMP_SPINCOUNT"] = ours
        found.setdefault((name, spin), []).append(measured)
    quiet = median(found["nothing", spins[-1]], "epoch_s")
    return [{key: median(measured, key) for key in measured[0]}
            | {"variant": f"beside {name}" + f", spinning {int(spin):,} rounds" * (threads > 1), "processes": 1, "threads_each": threads, "workers": 0, "speedup": quiet / median(measured, "epoch_s")}
            for (name, spin), measured in found.items()]


def bench(args) -> int:
    import pandas as pd
    usual = common.parser("").parse_args([])
    for flag in IGNORED:
        if getattr(args, flag) != getattr(usual, flag):
            raise common.UserError(f"--{flag.replace('_', '-')} has no part in a measurement: leave it out; the images are random, and the recipe is the paper's")
    threads = torch.get_num_threads()
    for one in common.grid(args, depth=args.depth, train=args.train):
        if one.train == "none":
            raise common.UserError("--train none trains nothing: bench.py measures training; give bn, all or other parts")
        name = common.device_name(one.device)
        same = {"device": name, "threads": threads, "torch": torch.__version__, "commit": common.commit(), "arch": one.arch, "depth": one.depth, "width": one.width, "train": one.train,
                "image_size": one.image_size, "batch_size": one.batch_size, "turns": one.turns}
        path = Path(args.results, "bench", f"{name.replace(' ', '-')}-{threads}-{one.arch}{one.depth}-w{one.width}-{one.train.replace(':', '')}-{one.image_size}px-b{one.batch_size}{'-grid' * one.grid}{'-busy' * one.busy}.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [same | row for row in (share_out if one.grid else beside if one.busy else compare)(one, threads)]
        common.write_table(path, COLUMNS, [[row.get(column, "") for column in COLUMNS] for row in rows])
        print(f"\n{one.arch}-{one.depth}, {one.train}, batches of {one.batch_size} images of {one.image_size}x{one.image_size} on {name}, {threads} threads: medians of {one.turns} turns")
        table = pd.DataFrame(rows, columns=COLUMNS[COLUMNS.index("variant"):-1]).dropna(axis="columns", how="all")
        print(table.to_string(index=False, na_rep="", float_format="{:.4g}".format))
        print(f"records: {path}")
    return 0


def main(argv=None):
    parser = common.parser(__doc__, lists=("depth", "train"))
    parser.add_argument("--images", type=common.number(int, 100), default=10_000, help="of one pass in training; in testing a fifth of them (default 10000)")
    parser.add_argument("--turns", type=common.number(int, 1), default=3, help="that the variants take (default 3)")
    parser.add_argument("--grid", action="store_true", help="1, 2, 4, … processes at once instead, each with its share of the threads")
    parser.add_argument("--busy", action="store_true", help="all parts of the loop instead, beside two other programs that keep the cores busy")
    parser.set_defaults(image_size=32, depth=[14])
    parser.go_on = "the same command begins again"
    return common.main(bench, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
