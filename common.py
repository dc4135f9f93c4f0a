"""What every experiment shares: the training loop, what a run leaves, grids of runs, the command line.

An experiment reads top to bottom without this file: load_data, build_model, freeze, fit. Come here to see how. Seeds and data are in
data.py, networks and freezing in models.py, files on disk in records.py; experiments reach all of it from here.

Frankle et al.: "Training BatchNorm and Only BatchNorm", ICLR 2021, arXiv:2003.00152.
"""
from __future__ import annotations

import argparse
import copy
import ctypes
import importlib.util
import io
import itertools
import math
import os
import re
import shlex
import signal
import sys
import time
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path

import startup  # noqa: F401, before torch, which reads what it sets

import torch
import torch.nn.functional as F
from torch import nn

import parallel
from data import AUGMENTED, DATASETS, Data, progress_bar, split_batches
from data import generator, load_data, make_splits, on_device  # noqa: F401, for the experiments
from models import DEPTHS, WEIGHT_INITS, batchnorms, check_depth, compile_blocks, constant, count_parameters, frozen_in, is_shortcut, network, parse_train, parts
from models import build_model, freeze, initialise  # noqa: F401, for the experiments
from records import Damaged, Locked, Run, RunError, UserError, commit, printable, read_checkpoint, run_files, run_name, taken_apart, write_table
from records import dataset_name  # noqa: F401, for the experiments
from parallel import share  # noqa: F401, for the experiments

# -------------------------------------------------------------------------------------------------------- training loop

def recipe(model: nn.Module, args):
    """The optimizer over what is trainable, with the weight decay on all of it, and the schedule of its rate. Neither where nothing is trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        return None, None
    options = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": args.device.type in ("cpu", "cuda")}
    optimizer = torch.optim.Adam(trained, **options, capturable=args.graph) if args.optimizer == "adam" else torch.optim.SGD(trained, momentum=args.momentum, **options)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate(args))


def rate(args):
    """The learning rate after `epoch` epochs of `args.epochs`, as a factor of --lr."""
    n, done = args.epochs, lambda epoch: epoch / args.epochs
    milestones = [math.ceil(n * of / parts) for of, parts in (((1, 3), (2, 3), (8, 9)) if args.dataset == "imagenet" else ((1, 2), (3, 4)))]
    cycle = max(1, math.ceil(n / 7))  # restarts: three cosines, each twice as long as the one before
    restarts = (0, cycle, 3 * cycle)

    def since_restart(epoch):
        k = sum(epoch >= start for start in restarts) - 1
        return (epoch - restarts[k]) / (cycle << k)

    shape = {
        "step": lambda epoch: 0.1 ** sum(epoch >= milestone for milestone in milestones),
        "cosine": lambda epoch: (1 + math.cos(math.pi * done(epoch))) / 2,
        "linear-cosine": lambda epoch: (1 - done(epoch)) * (1 + math.cos(math.pi * done(epoch))) / 2 + 0.001,  # Bello et al., arXiv:1709.07417
        "restarts": lambda epoch: (1 + math.cos(math.pi * since_restart(epoch))) / 2,  # Loshchilov and Hutter, arXiv:1608.03983
        "exponential": lambda epoch: 0.01 ** done(epoch),
        "constant": lambda epoch: 1,
    }[args.schedule]
    return shape


def warm_up(optimizer, rates: list[float], args, epoch: int, step: int, steps: int) -> None:
    """Sets the learning rate of the next of an epoch's `steps`: over the first --warmup-epochs it rises from 0, step by step, to the
    `rates` of the schedule (as in open_lth)."""
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate * min(1, ((epoch - 1) * steps + step) / (args.warmup_epochs * steps))


def fit(model: nn.Module, data: Data, args, then: str = "", recipe=recipe) -> int:
    """Trains what `freeze` left trainable, by the recipe in `args`, and writes the run's records; goes on where an earlier start stopped.

    then: the --train of the command that the summary names next. recipe: the optimizer and schedule of (model, args), where they are an experiment's
    own. Returns the exit code: 0, or 1 where the loss was not finite."""
    prepare(args.device)
    parallel.set_threads(data.size)
    if args.dry_run:
        if parallel.first():
            with parallel.alone():
                plan(model, data, args, recipe)
        return parallel.from_first(0)
    trained, total = count_parameters(model)
    about = {"params_total": total, "params_trained": trained, "image_size": "x".join(map(str, data.size[:2])), "classes": len(data.classes)}
    where = {"device": device_name(args.device), "threads": torch.get_num_threads(), "torch": torch.__version__, "commit": commit()}
    with Run(args, about, where) if parallel.first() else nullcontext() as run:
        again = parallel.from_first(run and made_before(run, data))
        if not again:
            train(model, data, args, run, recipe)
        return parallel.from_first(run and summarise(run, then, again))


def made_before(run: Run, data: Data) -> bool:
    """Whether the run is finished, its checkpoint whole and its own; if not, `resume` says why. Raises UserError where it was made from other data."""
    if run.finished and not run.diverged:
        try:
            with taken_apart():
                content = read_checkpoint(run.checkpoint)
                if content["about"] != run.about:
                    return False
                other = other_data(content, data)
        except Damaged:
            return False
        if other:
            raise UserError(f"{run.csv} was made from other data under the same name: give these another name, or make the run again with --force")
    return run.finished


def train(model: nn.Module, data: Data, args, run: Run | None, recipe) -> None:
    """Epochs, each with its row in the records, until the last, a loss that is not finite, or the time limit. Of several processes the first has the `run`."""
    (optimizer, scheduler), frozen, used = recipe(model, args), fingerprint(model), []
    start = {name: (bn.weight.detach().clone(), bn.bias.detach().clone()) for name, bn in batchnorms(model).items()}

    def resume(content):
        if other_data(content, data):
            raise Damaged("it comes from other data under the same name")
        restore(model, content, optimizer, scheduler)
        used.append(content)

    def record(epoch, measured, seconds):
        if args.tensorboard:
            show(model, epoch, measured, run)
        if not finite(measured):
            run.append(epoch, measured, seconds)
        elif epoch < args.epochs:
            run.append(epoch, measured, seconds)  # before the checkpoint, which could not give back a row
            run.save(epoch, state(model, data, frozen, optimizer, scheduler))
        else:
            with parallel.alone():
                write_learned(model, data, args, run, start)
            run.save(epoch, state(model, data, frozen))
            run.append(epoch, measured, seconds)  # last: where the CSV has all its rows, all else is there
            run.previous.unlink(missing_ok=True)

    done = parallel.from_first(run and run.resume(resume))
    if (content := parallel.from_first(used[0] if used else None)) and not run:
        restore(model, content, optimizer, scheduler)
    network = parallel.data_parallel(model, args.sync_bn)
    sizes = [len(batch) for batch in split_batches(torch.arange(len(data.labels["train"])), args.batch_size)]
    with (progress_bar(total=args.epochs * len(sizes), initial=done * len(sizes), unit=" batches", disable=args.quiet) as progress,
          frozen_in(torch.bfloat16, model) if args.precision == "bf16" else nullcontext(), training_step(model, args) as step):
        for epoch in range(done + 1, args.epochs + 1):
            progress.set_description(f"epoch {epoch}/{args.epochs}", refresh=False)
            began = time.perf_counter()
            measured = {f"train_{key}": value for key, value in train_epoch(network, data, optimizer, args, epoch, sizes, progress, step).items()}
            parallel.like_first(statistics(model))
            for split in ("val", "test"):
                if split in data.labels:
                    measured |= {f"{split}_{key}": value for key, value in evaluate(model, data, split, args).items()}
            if scheduler:
                scheduler.step()
            progress.set_postfix_str(f"test {measured['test_acc']:.1f} %", refresh=False)
            if run:
                record(epoch, measured, time.perf_counter() - began)
            if not finite(measured) or parallel.from_first(out_of_time(args)):
                break


def finite(measured: dict[str, float]) -> bool:
    return all(map(math.isfinite, measured.values()))


def other_data(content: dict, data: Data) -> bool:
    """Whether a checkpoint comes from other training images, by their number, mean and deviation."""
    mean, std = data.mean_std
    return (content["images"], content["mean"], content["std"]) != (len(data.labels["train"]), mean.tolist(), std.tolist())


def out_of_time(args) -> bool:
    return time.monotonic() - args.started >= 60 * args.time_limit


def show(model: nn.Module, epoch: int, measured: dict[str, float], run: Run) -> None:
    """Losses, accuracies and γ's histogram for TensorBoard, in results/EXPERIMENT/tensorboard/RUN."""
    from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(run.csv.parent / "tensorboard" / run.name, purge_step=epoch) as board:
        for key, value in measured.items():
            board.add_scalar(key, value, epoch)
        gammas = flat(bn.weight for bn in batchnorms(model).values())
        if len(gammas) and gammas.abs().max() < 1e20:  # TensorBoard's histograms end there
            board.add_histogram("gamma", gammas, epoch)


def prepare(device: torch.device) -> None:
    """Settings of PyTorch and of the memory allocator that every run shares."""
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    elif sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        # glibc gives every freed activation back to the system, and faults its pages in again at the next step. To keep them
        # took a step of ResNet-14 from 134 to 104 ms on one core. M_TOP_PAD, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of mallopt(3):
        for option, size in ((-2, 64 << 20), (-3, 32 << 20), (-1, 2**31 - 1)):
            libc.mallopt(option, size)


def train_epoch(model: nn.Module, data: Data, optimizer, args, epoch: int, sizes: list[int], progress, step) -> dict[str, float]:
    """One pass over the training set in batches of `sizes`. The metrics are of the batches as they are trained on, and stay on the device until the end."""
    model.train()
    totals = torch.zeros(3, device=args.device)
    warming = optimizer and epoch <= args.warmup_epochs
    rates = [float(group["lr"]) for group in optimizer.param_groups] if warming else []
    for i, (size, (x, y)) in enumerate(zip(sizes, data.training_batches(args.seed, epoch, args.batch_size, args.augment))):
        if warming:
            warm_up(optimizer, rates, args, epoch, i, len(sizes))
        totals += step(model, x, y, optimizer, args, parallel.processes() * len(y) / size)
        progress.update()
    if warming:
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate  # as the scheduler left it
    return means(parallel.total(totals), len(data.labels["train"]))


def train_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, optimizer, args, weight: float = 1) -> torch.Tensor:
    """Forward, backward, step; without an optimizer the forward pass alone, which moves BatchNorm's statistics. Returns `tally`.

    weight: of this process's mean loss in the mean over processes, whose shares of a batch may differ by a sample."""
    with torch.set_grad_enabled(optimizer is not None):
        logits = forward(model, x, args)
        loss = F.cross_entropy(logits, y)
    if optimizer:
        (loss * weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    return tally(logits.detach(), loss.detach(), y)


@contextmanager
def training_step(model: nn.Module, args):
    """`train_step`; with --compile from compiled blocks, with --graph as a CUDA graph. What it takes of the process it gives back."""
    if args.compile:
        torch.compiler.reset()  # compiled code counts against a budget of the process: every run has the whole of it
        compile_blocks(model)
    if not args.graph:
        yield train_step
        return
    torch.cuda.synchronize(args.device)
    with torch.cuda.stream(torch.cuda.Stream(args.device)):  # the default stream cannot be captured
        yield GraphedStep(args.batch_size)
    torch.cuda.synchronize(args.device)


class GraphedStep:
    """`train_step` captured once as a CUDA graph, and replayed: Python launches a deep network's thousands of kernels more slowly than they run.

    A graph repeats what it has seen, in the memory where it has seen it. So batches are copied into fixed tensors, and the learning rates are tensors, too,
    which take whatever number the schedule has put in their place. The first steps run as they are, and start what a capture must not (memory, compilers,
    cuDNN), as do batches of another size. Capturing runs nothing, so every step is made exactly once."""
    STARTING = 3

    def __init__(self, batch_size: int):
        self.batch_size, self.steps, self.graph = batch_size, 0, None

    def __call__(self, model, x, y, optimizer, args, weight: float = 1) -> torch.Tensor:
        self.steps += 1
        if self.steps <= self.STARTING or len(y) != self.batch_size:
            return train_step(model, x, y, optimizer, args, weight)
        if self.graph is None:
            self.rates = [torch.tensor(float(group["lr"]), device=x.device) for group in optimizer.param_groups] if optimizer else []
            self.x, self.y, self.graph = x.clone(), y.clone(), torch.cuda.CUDAGraph()
            self.put_rates(optimizer)
            # thread_local: a data loader's thread that pins memory is no part of it
            with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                self.tally = train_step(model, self.x, self.y, optimizer, args, weight)
        self.put_rates(optimizer)
        self.x.copy_(x)
        self.y.copy_(y)
        self.graph.replay()
        return self.tally

    def put_rates(self, optimizer) -> None:
        """Whatever rate has been put in the place of a tensor goes into the tensor."""
        for group, rate in zip(optimizer.param_groups if self.rates else (), self.rates):
            if group["lr"] is not rate:
                rate.fill_(group["lr"])
                group["lr"] = rate


@torch.inference_mode()
def evaluate(model: nn.Module, data: Data, split: str, args) -> dict[str, float]:
    """Loss and accuracies on a split, with BatchNorm's running statistics."""
    model.eval()
    totals = torch.zeros(3, device=args.device)
    with torch.compiler.set_stance("force_eager"):  # compilation is for the many steps of training
        for x, y in data.batches(split):
            logits = forward(model, x, args)
            totals += tally(logits, F.cross_entropy(logits, y), y)
    return means(parallel.total(totals), len(data.labels[split]))


def forward(model: nn.Module, x: torch.Tensor, args) -> torch.Tensor:
    """Logits as fp32, (N, classes), the network's arithmetic in the run's precision."""
    try:
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            return model(x).float()
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise UserError("BatchNorm needs two values of each channel, and where an image has one pixel left that is two images: give --batch-size 2 or more, and two training images") from None
        raise


def tally(logits: torch.Tensor, loss: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sums over a batch, (3,): loss, right answers, right answers among the five likeliest."""
    hits = logits.topk(min(5, logits.shape[1])).indices == y[:, None]
    return torch.stack([loss * len(y), hits[:, 0].sum(), hits.sum()])


def means(totals: torch.Tensor, n: int) -> dict[str, float]:
    """The loss, and accuracies in percent, of a `tally` of `n` images."""
    loss, right, among_five = totals.tolist()
    return {"loss": loss / n, "acc": 100 * right / n, "top5": 100 * among_five / n}


# ---------------------------------------------------------------------------------------------------- what a run leaves

def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [tensor for bn in batchnorms(model).values() for tensor in (bn.running_mean, bn.running_var)]


def fingerprint(model: nn.Module) -> torch.Tensor:
    """Sum and sum of magnitudes of each frozen tensor, float64 (n, 2): tells random starts apart, and ignores their last bits."""
    frozen = [p.detach().cpu().double() for p in model.parameters() if not p.requires_grad]
    return torch.tensor([[p.sum(), p.abs().sum()] for p in frozen], dtype=torch.float64).reshape(-1, 2)


def flat(tensors) -> torch.Tensor:
    """One fp32 vector on the CPU."""
    vectors = [t.detach().float().reshape(-1) for t in tensors]
    return torch.cat(vectors).cpu() if vectors else torch.empty(0)


@torch.no_grad()
def like(vector: torch.Tensor, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The inverse of `flat`: its values in the shapes and the memory order of `tensors`, which the fused optimizer takes for granted.
    Raises Damaged where their numbers differ."""
    sizes = [t.numel() for t in tensors]
    if vector.numel() != sum(sizes):
        raise Damaged(f"it holds {vector.numel()} values where the network has {sum(sizes)}")
    return [torch.empty_like(t).copy_(values.view_as(t)) for values, t in zip(vector.split(sizes), tensors)]


def state(model: nn.Module, data: Data, frozen: torch.Tensor, optimizer=None, scheduler=None) -> dict:
    """What a checkpoint holds: the trained parameters, BatchNorm's statistics and, of an unfinished run, the optimizer's state and the schedule's.
    The frozen weights are a function of the seed; their fingerprint, `frozen`, will do."""
    found = {"fingerprint": frozen, "trained": flat(p for p in model.parameters() if p.requires_grad), "statistics": flat(statistics(model)),
             "batches": next((int(bn.num_batches_tracked) for bn in batchnorms(model).values()), 0),
             "classes": data.classes, "size": data.size, "images": len(data.labels["train"]), "mean": data.mean_std[0].tolist(), "std": data.mean_std[1].tolist()}
    if optimizer:
        moments = optimizer.state_dict()["state"].values()
        keys = [key for key, value in next(iter(moments), {}).items() if value is not None]  # plain SGD has none
        found["optimizer"] = {key: flat(moment[key] for moment in moments) for key in keys}
        found |= {"lr": [group["lr"] for group in optimizer.param_groups], "scheduler": scheduler.state_dict()}
    return found


@torch.no_grad()
def restore(model: nn.Module, content: dict, optimizer=None, scheduler=None) -> None:
    """Puts the `state` in a checkpoint into a network at its random start. Raises Damaged, and has changed nothing, where it does not fit."""
    trained, expected, found = [p for p in model.parameters() if p.requires_grad], content["fingerprint"], fingerprint(model)
    if expected.shape != found.shape or ((expected - found).abs() > 1e-5 * expected[:, 1:]).any():
        raise Damaged("its frozen weights are not those that the seed gives here")
    values = [*like(content["trained"], trained), *like(content["statistics"], statistics(model))]
    params = [p for group in optimizer.param_groups for p in group["params"]] if optimizer else []
    moments = {key: like(vector, [torch.empty(())] * len(params) if key == "step" else params) for key, vector in content.get("optimizer", {}).items()}
    batches = int(content["batches"])
    if optimizer:
        groups, schedule = [group | {"lr": float(lr)} for group, lr in zip(optimizer.state_dict()["param_groups"], content["lr"], strict=True)], dict(content["scheduler"])
        optimizer.load_state_dict({"state": {i: {key: moments[key][i] for key in moments} for i in range(len(params))}, "param_groups": groups})
        scheduler.load_state_dict(schedule)
    for tensor, value in zip([*trained, *statistics(model)], values):
        tensor.copy_(value)
    for bn in batchnorms(model).values():
        bn.num_batches_tracked.fill_(batches)


def write_learned(model: nn.Module, data: Data, args, run: Run, start: dict) -> None:
    """RUN.bn.csv.gz, a row per channel of every BatchNorm, and RUN.prune.csv.gz, a row per threshold below which γ is set to zero."""
    if not start:
        return
    active, rows = activity(model, data, args), []
    for name, bn in batchnorms(model).items():
        columns = [bn.weight, bn.bias, *start[name], bn.running_mean, bn.running_var, *([active[name]] if name in active else [])]
        values = torch.stack([column.detach().float().cpu() for column in columns], 1).tolist()
        rows += [[name, channel, *row, *[""] * (7 - len(row))] for channel, row in enumerate(values)]
    write_table(run.table("bn"), "layer channel gamma beta gamma_init beta_init running_mean running_var active".split(), rows)
    write_table(run.table("prune"), "threshold zeroed gammas test_loss test_acc".split(), pruned(model, data, args))


def activity(model: nn.Module, data: Data, args) -> dict[str, torch.Tensor]:
    """For each BatchNorm but the shortcuts', (channels,): the share of test activations above zero after the ReLU that follows it, for a block's second
    BatchNorm the one after the addition. Where a convolution or a linear layer comes first, as with BatchNorm after the activation, there is none."""
    above, waiting, hooks, bns = {}, [], [], batchnorms(model)

    def after_relu(module, inputs, output):
        if waiting:
            name, others = waiting.pop(), [d for d in range(output.dim()) if d != 1]
            above[name] = above.get(name, 0) + (output > 0).float().mean(others) * len(output)

    for name, layer in model.named_modules():
        if is_shortcut(name):
            continue
        if name in bns:
            hooks.append(layer.register_forward_hook(lambda module, inputs, output, name=name: waiting.append(name)))
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            hooks.append(layer.register_forward_hook(lambda *_: waiting.clear()))
        elif isinstance(layer, nn.ReLU):
            hooks.append(layer.register_forward_hook(after_relu))
    evaluate(model, data, "test", args)
    for hook in hooks:
        hook.remove()
    return {name: total / len(data.labels["test"]) for name, total in above.items()}


@torch.no_grad()
def pruned(model: nn.Module, data: Data, args, thresholds=(0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)):
    """For each threshold: how many of all γ are smaller, and the test loss and accuracy with these at zero and every β kept (Frankle et al.)."""
    gammas = [bn.weight for bn in batchnorms(model).values()]
    learned = [gamma.clone() for gamma in gammas]
    for threshold in thresholds:
        small = [gamma.abs() < threshold for gamma in learned]
        for gamma, value, mask in zip(gammas, learned, small):
            gamma.copy_(value.masked_fill(mask, 0))
        result = evaluate(model, data, "test", args)
        yield [threshold, sum(int(mask.sum()) for mask in small), sum(map(torch.numel, gammas)), result["loss"], result["acc"]]
    for gamma, value in zip(gammas, learned):
        gamma.copy_(value)


def summarise(run: Run, then: str, again: bool) -> int:
    """Prints what was trained, how well, where the records are, and what to do next. Returns the exit code."""
    args, last = run.args, run.rows[-1]
    if run.diverged:
        hint = "--force makes it again" if again else f"try a --lr below {args.lr:g}"
        print(f"diverged: the loss is not finite in epoch {len(run.rows)} of {args.epochs} of {run.csv}: {hint}", file=sys.stderr)
        return 1
    if args.quiet:
        return 0
    trained, total = int(last["params_trained"]), int(last["params_total"])
    print(f"\n{run.name}" + (" was finished before (--force makes it again)" if again else ""))
    print(f"  trained        {args.train}: {trained:,} of {total:,} parameters ({100 * trained / total:.2f} %)")
    print(f"  test accuracy  {float(last['test_acc']):.2f} % after epoch {len(run.rows)} (chance: {100 / int(last['classes']):.2f} %)")
    print(f"  records        {run.csv}")
    if not run.finished:
        without = " and ".join(flag for flag, given in (("--force", args.force), ("--no-resume", args.no_resume)) if given)
        print(f"  not finished   {len(run.rows)} of {args.epochs} epochs: the same command{f' without {without}' * bool(without)} goes on from here")
    elif then:
        same = re.sub(r"--(train[= ]\S+|force|no-resume) ?", "", shlex.join(args.command)).strip()
        print(f"  next           python {args.script} {same} --train {then}")
    else:
        print("  next           python plots.py")
    return 0


def plan(model: nn.Module, data: Data, args, recipe) -> int:
    """--dry-run: the run, its parameters, files and time."""
    trained, total = count_parameters(model)
    print(f"{run_name(args)}: trains {trained:,} of {total:,} parameters "
          f"({', '.join(f'{part} {sum(p.numel() for p in found):,}' for part, found in parts(model).items())})")
    print("writes {} and {}".format(*run_files(args)))
    epoch = epoch_seconds(model, data, args, recipe)
    args.seconds = args.epochs * epoch
    print(f"about {duration(args.seconds)} on {device_name(args.device)}: {args.epochs} epochs of {epoch:.2f} s")
    return 0


def duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def epoch_seconds(model: nn.Module, data: Data, args, recipe) -> float:
    """What an epoch will take, by a few steps and one pass over at most 1,000 test images. The network is spoilt afterwards."""
    optimizer, _ = recipe(model, args)
    steps, images, seconds = math.ceil(len(data.labels["train"]) / args.batch_size), len(data.labels["test"]), []
    for _, (x, y) in zip(range(3), data.training_batches(args.seed, 1, args.batch_size, args.augment)):
        began = time.perf_counter()
        train_step(model.train(), x, y, optimizer, args).tolist()
        seconds.append(time.perf_counter() - began)
    some = copy.copy(data)
    some.images, some.labels = ({"test": split["test"][:1000]} for split in (data.images, data.labels))
    began = time.perf_counter()
    evaluate(model, some, "test", args)
    return min(seconds) * steps + (time.perf_counter() - began) * images / min(1000, images)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


# ---------------------------------------------------------------------------------------------------------------- grids

def grid(args, **lists) -> list[argparse.Namespace]:
    """The arguments of every combination of `lists`, each as if it had been asked for alone, without bars and summaries of its own."""
    runs = []
    for values in itertools.product(*lists.values()):
        one = copy.copy(args)
        vars(one).update(zip(lists, values), quiet=True, bar=not args.quiet)
        resolve(one)
        runs.append(one)
    return runs


def run_grid(runs: list[argparse.Namespace], run) -> int:
    """Makes, by `run(args)`, each of `runs` that is neither finished nor locked: a second process that walks the same list, in another terminal,
    a Slurm array or after a crash, makes the others.

    A run that fails does not stop the rest, and is named at the end. Returns the exit code, 1 where a run failed or diverged."""
    if not runs:
        raise UserError("this grid is empty: give each of its flags a value that fits")
    if runs[0].dry_run and not parallel.rank_zero():
        return 0
    left = [args for args in runs if args.force or not Run(args, {}, {}).look().finished]
    print(f"{len(runs)} runs: {len(runs) - len(left)} finished, {len(left)} to make" + f", in about {duration(estimate(left, run))}" * bool(left))
    if left and left[0].dry_run:
        return max(run(args) for args in left)
    failed, locked = [], []
    with progress_bar(total=len(runs), initial=len(runs) - len(left), unit=" runs", disable=not runs[0].bar) as bar:
        for args in itertools.chain(left, locked):  # those that were locked get a second look
            bar.set_description_str(run_name(args))
            try:
                if run(args):
                    failed.append(f"{run_name(args)} (diverged)")
            except Locked as error:
                if not any(args is other for other in locked):
                    locked.append(args)
                    continue
                print(f"left to it: {error}", file=sys.stderr)
            except Exception as error:
                if in_one_line(error) is None:
                    raise
                failed.append(printable(f"{run_name(args)} ({in_one_line(error)})"))
            if out_of_time(args) and args is not left[-1]:
                print("stopped at the time limit: the same command goes on from here")
                break
            bar.update()
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def estimate(runs: list[argparse.Namespace], run) -> float:
    """Seconds that `runs` will take one after the other; a dry run tells for all seeds of a setting."""
    known = {}
    for args in runs:
        sample = copy.copy(args)
        sample.seed, sample.dry_run = 0, True
        if (key := run_name(sample)) not in known:
            with redirect_stdout(io.StringIO()):
                run(sample)
            known[key] = sample.seconds
        args.seconds = known[key]
    return sum(args.seconds for args in runs)


def last_rows(runs: list[argparse.Namespace], choose=lambda rows: rows[-1]):
    """The last row, or the one that `choose` takes, of each of `runs` that is finished and not diverged, as a pandas table."""
    import pandas as pd
    found = [Run(args, {}, {}).look() for args in runs]
    numbers = {"depth": int, "width": int, "seed": int, "params_trained": int, "test_acc": float}
    return pd.DataFrame([choose(run.rows) for run in found if run.finished and not run.diverged], columns=found[0].columns).astype(numbers)


def mean_and_deviation(accuracies) -> str:
    """A pandas series of accuracies as a table shows it: mean ± sample standard deviation (number of seeds)."""
    n = len(accuracies)
    return "not run" if n == 0 else f"{accuracies.mean():.1f}" + (f" ± {accuracies.std():.1f}" if n > 1 else "") + f" ({n})"


# --------------------------------------------------------------------------------------------------------- command line

def refuse(args, flags, instead: str) -> None:
    """Raises UserError for a flag of `flags`, all None by default, that an experiment would have to ignore."""
    for flag in flags:
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag.replace('_', '-')} has no part in this experiment: leave it out; {instead}")


GO_ON = "the same command goes on after the last complete epoch"


class Parser(argparse.ArgumentParser):
    """argparse, its errors in one line; and what a user who has stopped the script can count on."""
    go_on = GO_ON

    def error(self, message: str):
        if (plural := re.match(r"unrecognized arguments: (--\S+)s( |$)", message)) and plural[1] in self._option_string_actions:
            message = f"{plural[1]}s: this script makes one run and takes {plural[1]}; lists are for the experiments that make grids"
        raise UserError(f"{message} (--help explains)")


def number(kind, low: float, high: float = math.inf, above: bool = False, below: bool = False):
    """A type for argparse: a finite `kind` from `low` to `high`, without the end itself where `above` or `below` says so."""
    what = f"{'a whole number' if kind is int else 'a number'} {'above' if above else 'from'} {low:g}"
    what += " on" * (math.isinf(high) and not above) if math.isinf(high) else f" to {'below ' * below}{high:{',' if kind is int else 'g'}}"

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)) or above and value == low or below and value == high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value
    return parse


def initial(*named: str):
    """A type for argparse: one of `named`, or constant:X."""
    def parse(text: str) -> str:
        try:
            return text if text in named else f"constant:{constant(text):g}"
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(named)}, constant:X with a number X") from None
    return parse


def augmentation(text: str) -> str:
    """A type for argparse: parts joined with +, in one order."""
    chosen, parts = text.split("+"), ("crop", "flip", "brightness")
    if text != "none" and not set(chosen) <= set(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not none, or of {', '.join(parts)} those to use, joined with +")
    return "+".join(part for part in parts if part in chosen) or "none"


def parser(description: str, lists: tuple[str, ...] = (), archs=tuple(DEPTHS), datasets=DATASETS, build=network) -> Parser:
    """The command line that every experiment shares, to which it adds its own arguments. Of the flags in `lists` it takes several values,
    and answers to their plural too: --seed 0 1 and --seeds 0 1. `build` makes the network of one of `archs`, as `network` does."""
    p = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.lists = lists
    p.set_defaults(own={}, split_seed=0, build=build)

    def several(group, flag, default=None, **options):
        if flag in lists:
            group.add_argument(f"--{flag}", f"--{flag}s", nargs="+", default=[default], **options)
        else:
            group.add_argument(f"--{flag}", default=default, **options)

    g = p.add_argument_group("network")
    g.add_argument("--arch", choices=archs, default=archs[0],
                   help=f"default {archs[0]}" + "; resnet is the CIFAR ResNet of He et al., imagenet_resnet torchvision's" * ("resnet" in archs))
    several(g, "depth", type=number(int, 1), help="resnet 6n + 2: 14 (default), 32, 56, 110, …, 866; vgg 11, 13, 16 (default), 19; "
                   "imagenet_resnet 18 (default), 34, 50, 101, 152, 200")
    several(g, "width", type=number(int, 1, 64), default=1, help="factor on the channels (default 1)")
    several(g, "train", default="bn", metavar="PARTS",
                   help="all, none, all-bn, or parts joined with +: gamma, beta, bn (both; default), output, shortcut, conv, hidden, random:K (K entries of each channel)")
    several(g, "gamma-init", type=initial("uniform", "symmetric", "ones"), default="uniform", metavar="INIT",
                   help="uniform on [0, 1] (default), symmetric on [-1, 1], ones, constant:X")
    several(g, "beta-init", type=initial("zeros", "ones"), default="zeros", metavar="INIT", help="zeros (default), ones, constant:X")
    several(g, "weight-init", choices=list(WEIGHT_INITS), default="he_normal", help="of convolutions and linear layers (default he_normal); all have He's gain, √2, orthogonal too, whose gain is 1 in open_lth")
    g = p.add_argument_group("data")
    g.add_argument("--dataset", choices=datasets, default="cifar10" if "cifar10" in datasets else "mnist",
                   help="default %(default)s; digits needs no download")
    g.add_argument("--data", metavar="FOLDER", help="where the data set is or is downloaded to (default data); for imagefolder the folder of images")
    g.add_argument("--image-size", type=number(int, 8, 1024), metavar="PIXELS", help="scale the images to this height and width")
    g.add_argument("--subset", type=number(int, 2), metavar="N", help="train on N of the images, the same for every seed")
    g.add_argument("--val-fraction", type=number(float, 0, 1, below=True), default=0.0, metavar="F", help="of the training images, for validation (default 0)")
    g.add_argument("--augment", type=augmentation, metavar="PARTS",
                   help="none, or of crop (after padding by 4), flip, brightness those to use, joined with + (default crop+flip; none for digits and MNIST)")
    g = p.add_argument_group("recipe")
    g.add_argument("--epochs", type=number(int, 1), help="default 160, 90 for imagenet, 1 for --train none; the schedule scales with them")
    g.add_argument("--batch-size", type=number(int, 1), help="default 128, 1024 for imagenet")
    g.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd", help="default sgd")
    g.add_argument("--lr", type=number(float, 0, above=True), help="learning rate at the start (default 0.1, 0.001 for adam, 0.4 for imagenet)")
    g.add_argument("--momentum", type=number(float, 0, 1, below=True), default=0.9, help="of sgd (default 0.9)")
    g.add_argument("--schedule", choices=["step", "cosine", "linear-cosine", "restarts", "exponential", "constant"], default="step",
                   help="of the learning rate, epoch by epoch (default step: x 0.1 after 50 %% and 75 %% of the epochs)")
    g.add_argument("--warmup-epochs", type=number(int, 0), help="over which the learning rate rises, step by step from 0, to what the schedule says (default 0, 5 of 90 for imagenet)")
    g.add_argument("--weight-decay", type=number(float, 0), default=1e-4, help="on every trained parameter (default 0.0001)")
    several(g, "seed", type=number(int, 0, 2**32 - 1), default=0, help="of the weights, BatchNorm, data order and augmentation (default 0)")
    g = p.add_argument_group("machine")
    g.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, … (default: cuda where there is one, else cpu)")
    g.add_argument("--sync-bn", action="store_true", help="under torchrun, BatchNorm statistics of the whole batch and not of each process's share (CUDA)")
    g.add_argument("--precision", choices=["fp32", "bf16"], help="default bf16 where the hardware has it, else fp32")
    g.add_argument("--compile", action="store_true", help="compile the repeated blocks: another rounding, so another run")
    g.add_argument("--graph", action="store_true", help="on one GPU, capture the training step as a CUDA graph, which saves the launching of its kernels; another run")
    g.add_argument("--workers", type=number(int, 1, 256), default=os.cpu_count(), help="threads that decode images (default: one per core)")
    g = p.add_argument_group("records")
    g.add_argument("--results", default="results", metavar="FOLDER", help="default results")
    g.add_argument("--checkpoints", default="checkpoints", metavar="FOLDER", help="default checkpoints")
    g.add_argument("--force", action="store_true", help="make a finished run again")
    g.add_argument("--no-resume", action="store_true", help="begin an unfinished run again")
    g.add_argument("--time-limit", type=number(float, 0, above=True), default=math.inf, metavar="MINUTES",
                   help="stop after the epoch that reaches it; the same command goes on")
    g.add_argument("--tensorboard", action="store_true", help="write losses, accuracies and the histogram of γ for TensorBoard, too")
    g.add_argument("--dry-run", action="store_true", help="print the run, its parameters, files and time, and train nothing")
    g.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    return p


def resolve(args) -> None:
    """Fills in what depends on other arguments. Raises UserError for what cannot be, before anything is read or written."""
    if args.arch in DEPTHS:
        args.depth = args.depth or {"resnet": 14, "vgg": 16, "imagenet_resnet": 18}[args.arch]
        check_depth(args.arch, args.depth, args.width)
    with torch.device("meta"):  # shapes alone
        args.train, _ = parse_train(args.train, parts(args.build(args, (32, 32, 3), 10)))
    imagenet = args.dataset == "imagenet"
    args.epochs = args.epochs or (1 if args.train == "none" else 90 if imagenet else 160)
    args.batch_size = args.batch_size or (1024 if imagenet else 128)
    args.lr = args.lr or (0.001 if args.optimizer == "adam" else 0.4 if imagenet else 0.1)
    if args.warmup_epochs is None:
        args.warmup_epochs = math.ceil(args.epochs * 5 / 90) if imagenet else 0
    if args.warmup_epochs > args.epochs:
        raise UserError(f"--warmup-epochs {args.warmup_epochs}: the run has {args.epochs} epochs: give as many or fewer")
    args.augment = args.augment or ("crop+flip" if args.dataset in AUGMENTED else "none")
    if args.dataset == "imagefolder" and not args.data:
        raise UserError("--dataset imagefolder needs --data FOLDER, with images in FOLDER/train/CLASS/ and FOLDER/test/CLASS/")
    if args.dataset == "csv" and not args.data:
        raise UserError("--dataset csv needs --data FILE, a CSV file whose first line names its columns")
    try:
        args.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)
        if args.device == torch.device("cuda") and parallel.started():
            args.device = torch.device("cuda", parallel.local_rank())
        torch.zeros(1, device=args.device).tolist()
        if args.device.type == "cuda" and args.device.index is not None:
            torch.cuda.set_device(args.device)  # NCCL's broadcasts of objects, streams and graphs take the current one
    except Exception:  # PyTorch raises a different kind for each device that is not there
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *["mps"] * torch.backends.mps.is_available()]
        raise UserError(f"--device {args.device} cannot be used: this machine has {', '.join(there)}") from None
    if args.sync_bn and (args.device.type != "cuda" or not parallel.started()):
        raise UserError("--sync-bn is for one run on several GPUs: torchrun --nproc-per-node=8 exp_bn_only.py --sync-bn …")
    if args.graph and args.device.type != "cuda":
        raise UserError("--graph captures the step of one process on one GPU as a CUDA graph: leave it out here")
    for flag in ("compile", "graph"):
        if getattr(args, flag):
            args.own = args.own | {flag: True}
    if args.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise UserError("--tensorboard needs TensorBoard: pip install tensorboard")
    if args.precision == "bf16" and not has_bf16(args.device):
        raise UserError(f"--precision bf16: {device_name(args.device)} does not calculate in bf16: use --precision fp32")
    args.precision = args.precision or ("bf16" if has_bf16(args.device) else "fp32")


def spread(args) -> None:
    """Makes `args` those of a run on several processes: a run of its own, since every process has BatchNorm statistics of its share, or of all with --sync-bn."""
    processes = parallel.processes()
    if args.batch_size < 2 * processes:
        raise UserError(f"--batch-size {args.batch_size} for {processes} processes: each needs two samples: give {2 * processes} or more")
    if args.graph:
        raise UserError("--graph captures the step of one process on one GPU as a CUDA graph: leave it out here")
    args.own = args.own | {"processes": processes, "sync_bn": args.sync_bn}
    args.quiet = args.quiet or not parallel.first()


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16: elsewhere it can be slower than fp32 by orders of magnitude (pytorch #183815)."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def in_one_line(error: Exception) -> str | None:
    """What a user can do about `error`, None where it is a mistake of ours."""
    if isinstance(error, (UserError, RunError)):
        return str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or isinstance(error, RuntimeError) and "allocate memory" in str(error):
        return "out of memory: a smaller --batch-size, --width or --depth needs less"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile failed, leave it out ({str(error).splitlines()[0]})"
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}: once that is mended, {GO_ON}"
    return None


def main(run, parser: Parser, argv: list[str] | None) -> int:
    """Parses the command line and runs the experiment. Returns the exit code; whatever stops a run costs one line on stderr."""
    def terminate(*_):
        raise SystemExit(128 + signal.SIGTERM)

    def say(line: str, code: int) -> int:
        print(printable(line), file=sys.stderr)
        return code

    before = signal.signal(signal.SIGTERM, terminate)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # γ on a terminal without it, or a file name of any bytes
    try:
        args = parser.parse_args(argv)
        args.script = Path(run.__code__.co_filename).name
        args.experiment = Path(args.script).stem.removeprefix("exp_")
        args.command, args.started = sys.argv[1:] if argv is None else argv, time.monotonic()
        if parser.lists:  # a grid resolves each of its runs; under torchrun every process makes runs of its own
            return run(args)
        resolve(args)
        if not parallel.started():
            return run(args)
        with parallel.together(args.device):
            spread(args)
            return run(args)
    except KeyboardInterrupt:
        return say(f"stopped: {parser.go_on}", 128 + signal.SIGINT)
    except SystemExit as stop:  # --help ends so, too
        return say(f"stopped: {parser.go_on}", stop.code) if stop.code else 0
    except Exception as error:
        if (line := in_one_line(error)) is None:
            raise
        return say(f"error: {line}", getattr(error, "exit_code", 1))
    finally:
        signal.signal(signal.SIGTERM, before)
