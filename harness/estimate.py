"""What --dry-run says of a run that it does not make."""

from __future__ import annotations

import copy
import itertools
import math
import time

from torch import nn

from harness.config import Settings
from harness.dataset import Data
from harness.parts import count_parameters, parts
from harness.runs import run_files
from harness.speed import device_name
from harness.summaries import counted, duration


def print_plan(model: nn.Module, data: Data, args: Settings, name: str, step, evaluate) -> float:
    """Prints the run, its parameters, files and time. Returns the seconds.

    step(model, x, y) trains on a batch, evaluate(model, data, split, args) tests."""
    trained, total = count_parameters(model)
    counts = {part: sum(p.numel() for p in found.values()) for part, found in parts(model).items()}
    listed = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    print(f"{name}: trains {trained:,} of {total:,} parameters ({listed})")
    print("writes {} and {}".format(*run_files(args, name)))
    epoch = epoch_seconds(model, data, args, step, evaluate)
    seconds, device = args.epochs * epoch, device_name(args.device)
    epochs = counted(args.epochs, "epoch")
    print(f"about {duration(seconds)} on {device}: {epochs} of {epoch:.2f} s")
    return seconds


def epoch_seconds(model: nn.Module, data: Data, args: Settings, step, evaluate) -> float:
    """What an epoch will take, by a few steps and one pass over at most 1,000 test images. The
    network is spoilt afterwards."""
    steps = math.ceil(len(data.labels["train"]) / args.batch_size)
    images = sum(len(data.labels[split]) for split in ("val", "test") if split in data.labels)
    seconds, batches = [], data.training_batches(args.seed, 1, args.batch_size, args.augment)
    model.train()
    for x, y in itertools.islice(batches, 3):
        began = time.perf_counter()
        step(model, x, y).tolist()
        seconds.append(time.perf_counter() - began)
    some = copy.copy(data)
    some.images = {"test": data.images["test"][:1000]}
    some.labels = {"test": data.labels["test"][:1000]}
    began = time.perf_counter()
    evaluate(model, some, "test", args)
    return min(seconds) * steps + (time.perf_counter() - began) * images / len(some.labels["test"])
