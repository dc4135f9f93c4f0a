"""How an experiment starts: what its command line asks for becomes settings, in one process or in
those that torchrun started, for one run or for a grid of them."""

from __future__ import annotations

import importlib.util
import itertools
import math
import random
import sys

import numpy as np
import torch

from harness import processes, runs, speed
from harness.config import AUGMENTED, SHARED, Process, Settings, flags, parse
from harness.errors import NothingToShow, Parser, UserError, guarded
from harness.parts import spelling
from harness.runs import ADDED, COLUMNS, Outcome, Stopped
from harness.source import script_of
from harness.summaries import counted
from harness.zoo import DEPTHS, check_depth


def grid(args: Settings, **lists) -> list[Settings]:
    """The settings of every combination of `lists` (of all of the grid's, where none are given)."""
    lists = lists or args.varied
    for name in lists:
        if name not in flags(args) | flags(Settings):
            raise UserError(f"a grid varies flags, which its runs' records show; {name} is none")
    combinations = itertools.product(*lists.values())
    return [resolved(args.but(**dict(zip(lists, values, strict=True)))) for values in combinations]


def resolved(args: Settings) -> Settings:
    """The settings with what depends on others filled in. Raises UserError for what cannot be,
    before anything is read or written."""
    depth = args.depth
    if args.arch in DEPTHS:
        depth = depth or DEPTHS[args.arch][1]
        check_depth(args.arch, depth, args.width)
    imagenet = args.dataset == "imagenet"
    epochs = args.epochs
    if not epochs:
        epochs = 90 if imagenet else 160
        if args.train == "none":
            epochs = 1
    warmup = args.warmup_epochs
    if warmup is None:
        warmup = math.ceil(epochs * 5 / 90) if imagenet else 0
    if warmup > epochs:
        have = counted(epochs, "epoch")
        raise UserError(f"--warmup-epochs {warmup}: the run has {have}: give as many or fewer")
    rate = args.lr
    if rate is None:
        rate = 0.4 if imagenet else 0.1
        if args.optimizer == "adam":
            rate = 0.001
    if args.dataset == "imagefolder" and not args.data:
        need = "with images in FOLDER/train/CLASS/ and FOLDER/test/CLASS/"
        raise UserError(f"--dataset imagefolder needs --data FOLDER, {need}")
    device = find_device(args.device)
    if args.sync_bn and (device.type != "cuda" or not processes.started()):
        example = "torchrun --nproc-per-node=8 exp_bn_only.py --sync-bn …"
        raise UserError(f"--sync-bn is for one run on several GPUs: {example}")
    if args.graph and device.type != "cuda":
        raise UserError("--graph captures the step of one process on one GPU: leave it out here")
    if args.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise UserError("--tensorboard needs TensorBoard: pip install tensorboard")
    if args.precision == "bf16" and not speed.has_bf16(device):
        instead = f"{speed.device_name(device)} does not calculate in bf16: use --precision fp32"
        raise UserError(f"--precision bf16: {instead}")
    return args.but(
        train=spelling(args.train),
        depth=depth,
        epochs=epochs,
        warmup_epochs=warmup,
        batch_size=args.batch_size or (1024 if imagenet else 128),
        lr=rate,
        augment=args.augment or ("crop+flip" if args.dataset in AUGMENTED else "none"),
        device=device,
        precision=args.precision or ("bf16" if speed.has_bf16(device) else "fp32"),
    )


def find_device(name) -> torch.device:
    """The device of --device. Raises UserError where this machine has none of the name."""
    try:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(name)
        if device == torch.device("cuda") and processes.started():
            device = torch.device("cuda", processes.local_rank())
        torch.zeros(1, device=device).tolist()
        if device.type == "cuda" and device.index is not None:
            # NCCL's broadcasts, streams and graphs take the current one
            torch.cuda.set_device(device)
        return device
    except Exception:  # PyTorch raises a different kind for each device that is not there
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            there.append("mps")
        message = f"--device {name} cannot be used: this machine has {', '.join(there)}"
        raise UserError(message) from None


def check_names(settings: type[Settings]) -> None:
    """Raises UserError for a flag that is called as something else in the records or the
    settings, and for a default that is none: without its type, or in a class that is no
    dataclass."""
    for kind in settings.__mro__[: settings.__mro__.index(Settings)]:
        typed = vars(kind).get("__annotations__", {})
        for name in {*vars(kind), *typed} & set(SHARED):
            if name not in typed:
                raise UserError(f"the settings' {name} needs its type, as in width: int = 2")
            if "__dataclass_fields__" not in vars(kind):
                raise UserError("a class of settings needs @dataclass above it")
    for name in flags(settings):
        known = SHARED.get(name)
        taken = name in (*COLUMNS, *ADDED, "script") or hasattr(Settings, name)
        if "flag" not in known.metadata if known else taken:
            raise UserError(f"no flag can be called {name}, which has another meaning")


def main(run, settings: type[Settings], description: str, argv: list[str] | None = None) -> int:
    """Runs an experiment as its command line asks: `run(args)`, of settings that are resolved or,
    for a grid, of those that `grid` resolves. Returns the exit code."""

    def work() -> int:
        check_names(settings)
        args = parse(settings, argv, description, Process(script_of(run)))
        if settings.lists:  # under torchrun every process makes runs of its own
            return run(args)
        args = resolved(args)
        if not processes.started():
            return seeded(run)(args).code
        with processes.together(args.device):
            return seeded(run)(shared(args)).code

    return guarded(work)


def main_of(studies: dict[str, tuple], description: str, argv: list[str] | None = None) -> int:
    """Runs the one of several studies of a script that the first word of its command line names:
    `studies` has for each a function and its settings, as `main` takes them."""
    words = sys.argv[1:] if argv is None else list(argv)
    study, settings = studies.get(words[0] if words else "", (None, None))
    if study:
        return main(study, settings, description, words[1:])

    def ask() -> int:
        asked = [word for word in words if word in ("-h", "--help")]
        Parser(description).parse_args(asked)
        raise UserError(f"name the study first: {' or '.join(studies)} (--help explains)")

    return guarded(ask)


def run_grid(wanted: list[Settings], run) -> tuple[int, list[Outcome]]:
    """Makes each of the `wanted` runs by `run(args)`, as harness.runs.make_grid says, under its
    seed. Raises UserError where these leave out values of a list that the command line gave, and
    NothingToShow after a dry run, and where no run is finished."""
    for name, values in wanted[0].varied.items() if wanted else ():
        made = {getattr(args, name) for args in wanted}
        asked = name == "seed" or name not in SHARED or name in wanted[0].given
        if name != "train" and asked and len(made) < len({*values}):
            lists = f"give the list to common.grid(…, {name}=args.varied[{name!r}])"
            raise UserError(f"this script makes no runs for all of --{name}s: {lists}")
    code, outcomes = runs.make_grid(wanted, seeded(run))
    if not outcomes:
        raise NothingToShow(code)
    return code, outcomes


def seed_everything(seed: int) -> None:
    """Of the streams that Python, NumPy and PyTorch have by themselves."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seeded(run):
    """`run`; what a script draws from the libraries' own streams is a function of the seed, too."""

    def work(args: Settings) -> Outcome:
        seed_everything(args.seed)
        try:
            outcome = run(args.but(fitted=[]))
        except Stopped as stopped:
            return stopped.outcome
        if not isinstance(outcome, Outcome):
            raise UserError("run(args) has to end with: return common.fit(…)")
        return outcome

    return work


def shared(args: Settings) -> Settings:
    """The settings of a run on several processes: a run of its own, since every process has
    BatchNorm statistics of its share, or of all with --sync-bn."""
    count = processes.processes()
    if args.batch_size < 2 * count:
        need = f"each needs two samples: give {2 * count} or more"
        raise UserError(f"--batch-size {args.batch_size} for {count} processes: {need}")
    if args.graph:
        raise UserError("--graph captures the step of one process on one GPU: leave it out here")
    return args.but(processes=count, quiet=args.quiet or not processes.first())
