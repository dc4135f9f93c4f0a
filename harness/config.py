"""Settings: a typed dataclass that all experiments share and each may extend, and the command line
that is made of it. A flag, its default, its help, its check and whether the records show it stand
in one place.

    @dataclass
    class Settings(common.Settings):
        dropout: float = flag(0.0, "of the activations", check=number(float, 0, 1))
        epochs: int | None = changed("epochs", 40)       # another default
        width: int = 1                                   # no flag: it has no part here
        lists = {"depth": [14, 32], "seed": [0]}         # a grid: these flags take several values
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import re
import shlex
import sys
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from harness.errors import Parser, UserError
from harness.source import source_of

# -------------------------------------------------------------------------------------------- flags

ALWAYS = "always"  # in every record and in the hash of every name, as in the first version
CHANGED = "changed"  # where it is not at its default: so runs that knew no such setting keep theirs
NEVER = "never"  # it changes no number


@dataclass(frozen=True)
class Flag:
    """What a setting is on the command line and in the records."""

    help: str
    check: Callable[[str], Any] | None = None  # text to value, ArgumentTypeError where it is none
    choices: tuple | None = None
    metavar: str | None = None
    group: str = "experiment"


def flag(
    default, help, check=None, *, choices=None, metavar=None, record=CHANGED, group="experiment"
):
    """A setting that is a flag; one with a list as default takes several values, all part of one
    run.

    check: makes a value of a word; where there is none, a default that is a number asks for one.
    record: ALWAYS a column; CHANGED, as usual, where it is not at its default, so that runs that
    knew no such setting keep their names; NEVER where it changes no number."""
    several = isinstance(default, list)
    sample = default[0] if several and default else default
    if not check and type(sample) in (int, float):
        check = number(type(sample), -math.inf)
    elif not check and not choices and isinstance(sample, bool):
        check = truth
    described = Flag(help, check, choices, metavar, group)
    value = {"default_factory": lambda: list(default)} if several else {"default": default}
    return dataclasses.field(metadata={"flag": described, "record": record}, **value)


def changed(name: str, default, help: str | None = None, choices=None):
    """The shared setting `name` with another default, help or other choices."""
    field = SHARED[name]
    described = field.metadata["flag"]
    described = dataclasses.replace(
        described, help=help or described.help, choices=choices or described.choices
    )
    return dataclasses.field(default=default, metadata={**field.metadata, "flag": described})


# ------------------------------------------------------------------------------------------- checks


def truth(text: str) -> bool:
    """A check: True or False."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def number(kind, low: float, high: float = math.inf, *, above=False, below=False):
    """A check: a finite `kind` from `low` to `high`, without the end itself where `above` or
    `below` says so."""
    what = "a whole number" if kind is int else "a number"
    if math.isfinite(low):
        what += f" above {low:g}" if above else f" from {low:g}"
    if math.isfinite(high):
        what += " to below " if below else " to "
        what += f"{high:,}" if kind is int else f"{high:g}"
    elif math.isfinite(low) and not above:
        what += " on"

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        outside = not low <= value <= high or abs(value) > sys.float_info.max
        if outside or (above and value == low) or (below and value == high):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


def constant(text: str) -> float | None:
    """The value of `zeros`, `ones` or `constant:X`, a number of fp32; None of anything else."""
    if text in ("zeros", "ones"):
        return float(text == "ones")
    word, _, value = text.partition(":")
    try:
        value = float(value) if word == "constant" else math.nan
    except ValueError:
        return None
    return value if abs(value) < 3.4e38 else None


def start(*named: str):
    """A check: one of `named`, or constant:X."""

    def parse(text: str) -> str:
        if text in named:
            return text
        value = constant(text)
        if value is None:
            known = ", ".join(named)
            message = f"{text!r} is none of {known}, constant:X with a number X"
            raise argparse.ArgumentTypeError(message)
        short = f"{value:g}"
        return f"constant:{short if float(short) == value else value}"

    return parse


AUGMENTATIONS = ("crop", "flip", "brightness")
# the data sets that are cropped and flipped by default; a mirrored digit is no digit
AUGMENTED = ("cifar10", "cifar100", "imagefolder", "imagenet")


def augmentation(text: str) -> str:
    """A check: parts joined with +, in one order."""
    chosen = text.split("+")
    if text != "none" and not set(chosen) <= set(AUGMENTATIONS):
        known = ", ".join(AUGMENTATIONS)
        message = f"{text!r} is neither none nor of {known}, joined with +"
        raise argparse.ArgumentTypeError(message)
    return "+".join(part for part in AUGMENTATIONS if part in chosen) or "none"


# ---------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Process:
    """What a process knows of itself: the script that it runs, and when it began."""

    script: Path = Path("notebook")
    began: float = dataclasses.field(default_factory=time.monotonic)
    called: str = ""  # the experiment's name, where it is not the script's
    source: str = dataclasses.field(init=False, default="")  # of an edited script, as `source_of`

    def __post_init__(self):
        if self.script.is_file():  # now: it may be edited, or go, while it runs
            object.__setattr__(self, "source", source_of(self.script))

    @property
    def experiment(self) -> str:
        """The script's name without exp_: that of its folder in results/."""
        return self.called or self.script.stem.removeprefix("exp_")


# ----------------------------------------------------------------------------------------- settings

SCHEDULES = ("step", "cosine", "linear-cosine", "restarts", "exponential", "constant")
of_network = partial(flag, group="network", record=ALWAYS)
of_data = partial(flag, group="data")
of_recipe = partial(flag, group="recipe", record=ALWAYS)
of_machine = partial(flag, group="machine")
of_records = partial(flag, group="records", record=NEVER)


@dataclass
class Settings:
    """What every experiment can be asked for. None: it depends on others, and `resolve` fills it
    in."""

    # a grid's: the flags that take several values, and their defaults
    lists: ClassVar[dict[str, list]] = {}

    arch: str = of_network(
        "resnet",
        "resnet is He et al.'s for CIFAR, imagenet_resnet torchvision's",
        choices=("resnet", "vgg", "imagenet_resnet"),
    )
    depth: int | None = of_network(
        None,
        "resnet 6n + 2: 14 (default), 32, 56, 110, …, 866; vgg 11, 13, 16 (default), 19; "
        "imagenet_resnet 18 (default), 34, 50, 101, 152, 200",
        number(int, 1),
    )
    width: int | None = of_network(1, "factor on the channels", number(int, 1, 64))
    train: str = of_network(
        "bn",
        "all, none, all-WORD (all but it), or words joined with +: gamma and beta of every "
        "normalisation, norm (both), bn (both, of BatchNorm), bias (every additive vector), "
        "output, shortcut, conv, hidden, input and position (of a transformer), random:K (K "
        "entries of each channel)",
        metavar="WORDS",
    )
    gamma_init: str = of_network(
        "uniform",
        "uniform on [0, 1], symmetric on [-1, 1], ones, constant:X",
        start("uniform", "symmetric", "ones"),
        metavar="INIT",
    )
    beta_init: str = of_network(
        "zeros", "zeros, ones, constant:X", start("zeros", "ones"), metavar="INIT"
    )
    weight_init: str = of_network(
        "he_normal",
        "of convolutions and linear layers, with He's gain √2; orthogonal has gain 1 in open_lth",
        choices=("he_normal", "he_uniform", "orthogonal", "binary"),
    )

    dataset: str = of_data(
        "cifar10",
        "digits needs no download",
        choices=tuple("digits mnist fashion_mnist cifar10 cifar100 imagefolder imagenet".split()),
        record=NEVER,
    )
    data: str | None = of_data(
        None,
        "where the data set is or is downloaded to (default data), or the folder of images",
        metavar="FOLDER",
        record=NEVER,
    )
    image_size: int | None = of_data(
        None,
        "scale the images to this height and width",
        number(int, 8, 1024),
        metavar="PIXELS",
        record=NEVER,
    )
    subset: int | None = of_data(
        None,
        "train on N of the images, the same for every seed",
        number(int, 2),
        metavar="N",
        record=ALWAYS,
    )
    val_fraction: float = of_data(
        0.0,
        "of the training images, for validation",
        number(float, 0, 1, below=True),
        metavar="F",
        record=ALWAYS,
    )
    augment: str | None = of_data(
        None,
        "none, or of crop (after padding by 4), flip, brightness those to use, joined with + "
        "(default crop+flip; none for digits and MNIST)",
        augmentation,
        metavar="PARTS",
        record=ALWAYS,
    )

    epochs: int | None = of_recipe(
        None,
        "default 160, 90 for imagenet, 1 for --train none; the schedule scales with them",
        number(int, 1),
    )
    batch_size: int | None = of_recipe(
        None, "default 128, 1024 for imagenet", number(int, 1, 2**31)
    )
    optimizer: str = of_recipe("sgd", "of everything that is trained", choices=("sgd", "adam"))
    lr: float | None = of_recipe(
        None,
        "learning rate at the start (default 0.1, 0.001 for adam, 0.4 for imagenet)",
        number(float, 0, above=True),
    )
    momentum: float = of_recipe(0.9, "of sgd", number(float, 0, 1, below=True))
    schedule: str = of_recipe(
        "step",
        "of the rate, epoch by epoch; step: x 0.1 after 50 %% and 75 %% of the epochs, "
        "of imagenet's after 1/3, 2/3 and 8/9",
        choices=SCHEDULES,
    )
    warmup_epochs: int | None = of_recipe(
        None,
        "over which the learning rate rises, step by step from 0, to what the schedule says "
        "(default 0, 5 of 90 for imagenet)",
        number(int, 0),
    )
    weight_decay: float = of_recipe(1e-4, "on every trained parameter", number(float, 0))
    seed: int = of_recipe(
        0, "of the weights, γ and β, data order and augmentation", number(int, 0, 2**32 - 1)
    )

    device: str = of_machine(  # a torch.device, once it is resolved
        "auto", "cpu, cuda, cuda:1, mps, … (auto: cuda where there is one, else cpu)", record=NEVER
    )
    sync_bn: bool = of_machine(
        False,
        "under torchrun, BatchNorm statistics of the whole batch, not of each share (CUDA)",
    )
    precision: str | None = of_machine(
        None,
        "default bf16 where the hardware has it, else fp32",
        choices=("fp32", "bf16"),
        record=ALWAYS,
    )
    compile: bool = of_machine(
        False, "compile the repeated blocks: another rounding, so another run"
    )
    graph: bool = of_machine(
        False,
        "on one GPU, capture the training step as a CUDA graph: kernels are launched at once",
    )
    workers: int = of_machine(
        os.cpu_count(),
        "threads that decode images, for imagenet processes",
        number(int, 1, 256),
        record=NEVER,
    )

    results: str = of_records("results", "where the records go", metavar="FOLDER")
    checkpoints: str = of_records("checkpoints", "where the networks go", metavar="FOLDER")
    force: bool = of_records(False, "make a finished run again")
    no_resume: bool = of_records(False, "begin an unfinished run again")
    time_limit: float = of_records(
        math.inf,
        "stop after the epoch that reaches it; the same command goes on",
        number(float, 0, above=True),
        metavar="MINUTES",
    )
    tensorboard: bool = of_records(
        False, "write losses, accuracies and the histogram of γ for TensorBoard, too"
    )
    dry_run: bool = of_records(
        False, "print the run, its parameters, files and time, and train nothing"
    )
    quiet: bool = of_records(False, "no progress bar, no summary")

    split_seed: int = 0  # of the validation split
    processes: int = dataclasses.field(default=1, metadata={"record": CHANGED})  # that make a run
    process: Process = dataclasses.field(default_factory=Process)
    varied: dict[str, list] = dataclasses.field(default_factory=dict)  # what a grid's lists hold
    given: dict[str, Any] = dataclasses.field(default_factory=dict)  # what the command line said
    fitted: list | None = None  # outcomes of the runs that one call of run(args) has made

    def but(self, **settings) -> Settings:
        """A copy with other `settings`. NumPy's numbers become Python's, and whole ones a fraction
        where the setting is one: 1 and 1.0 would be two runs."""
        kinds = {field.name: str(field.type) for field in dataclasses.fields(self)}
        for name, value in settings.items():
            if isinstance(value, np.generic):
                settings[name] = value = value.item()
            kind = kinds.get(name, "")
            if type(value) is int and "float" in kind and "int" not in kind:
                settings[name] = float(value)
        return dataclasses.replace(self, **settings)


class Noting:
    """Settings that note which of them are `read`, and as what: what a network or a recipe of one's
    own makes of them."""

    def __init__(self, settings: Settings, read: dict[str, Any] | None = None):
        self.settings, self.read = settings, {} if read is None else read

    def __getattr__(self, name: str):
        if name.startswith("__"):  # what copying and pickling look for
            raise AttributeError(name)
        self.read[name] = getattr(self.settings, name)
        return self.read[name]

    def but(self, **settings) -> Noting:
        return Noting(self.settings.but(**settings), self.read)


def flags(settings) -> dict[str, Flag]:
    """Every flag of a class of settings, or of one of them, by name, in its order."""
    fields = dataclasses.fields(settings)
    return {field.name: field.metadata["flag"] for field in fields if "flag" in field.metadata}


SHARED = {field.name: field for field in dataclasses.fields(Settings)}


def recorded(settings: Settings) -> dict[str, Any]:
    """The settings that are columns of the records and part of the hash of a run's name."""
    found = {}
    for field in dataclasses.fields(settings):
        record, value = record_of(field), getattr(settings, field.name)
        if record == ALWAYS or (record == CHANGED and value != default_of(field)):
            found[field.name] = as_cell(value)
    return found


def unsaid(settings: Settings) -> dict[str, str]:
    """The defaults of the settings that records leave out where they are at these."""
    found = {}
    for field in dataclasses.fields(settings):
        if record_of(field) == CHANGED:
            cell = as_cell(default_of(field))
            found[field.name] = "" if cell is None else str(cell)
    return found


def record_of(field: dataclasses.Field) -> str:
    """When a setting is a column; a flag that an experiment has taken away is one all the same."""
    return (field.metadata or SHARED.get(field.name, field).metadata).get("record", NEVER)


def as_cell(value):
    """A setting's value as a column has it."""
    return joined(value) if isinstance(value, list) else plain(value)


def joined(values: list) -> str:
    """A list as one cell, from which no other list follows."""
    words = list(map(str, values))
    if all(isinstance(value, int | float) for value in values):
        return ("," if any("-" in word for word in words) else "-").join(words)
    is_clear = not any(re.search('[-,["]', word) for word in words)
    return "-".join(words) if is_clear else json.dumps(words, ensure_ascii=False)


def plain(value):
    """A value as records and checkpoints can hold it: one of NumPy's as Python's, what is neither a
    number nor a word as its text, and so in lists."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, str | int | float | None) else str(value)


def default_of(field: dataclasses.Field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


# ------------------------------------------------------------------------------------- command line


def parser_for(settings: type[Settings], description: str) -> Parser:
    """The command line of a class of settings. A flag of its `lists` takes several values, and
    answers to its plural, too: --seed 0 1 and --seeds 0 1."""
    parser, groups = Parser(description), {}
    for field in dataclasses.fields(settings):
        described = field.metadata.get("flag")
        if described is None:
            continue
        if described.group not in groups:
            groups[described.group] = parser.add_argument_group(described.group)
        names = ["--" + field.name.replace("_", "-")]
        default = default_of(field)
        # argparse formats a help with %: written once or twice, it is one
        words = {"default": argparse.SUPPRESS, "help": re.sub("%%?", "%%", described.help)}
        if field.name in settings.lists:
            if not field.name.endswith("s"):
                names.append(names[0] + "s")
            default = settings.lists[field.name]
        if default is False:
            groups[described.group].add_argument(*names, action="store_true", **words)
            continue
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        if default not in (None, math.inf, "", []) and "default" not in described.help:
            words["help"] += f" (default {shown})".replace("%", "%%")
        if isinstance(default, list):
            words["nargs"] = "+"
        check = described.check or (default is None and check_by_type(settings, field.name))
        if check:
            words["type"] = check
        if described.choices:
            words["choices"] = described.choices
        else:
            words["metavar"] = described.metavar or field.name.upper()
        groups[described.group].add_argument(*names, **words)
    return parser


def check_by_type(settings: type[Settings], name: str):
    """What makes a value of a word for a flag whose default is None, by its annotation; None where
    that says no more than text."""
    try:
        kind = typing.get_type_hints(settings)[name]
    except (NameError, TypeError):  # an annotation that only a type checker can read
        return None
    kinds = {kind, *typing.get_args(kind)}
    if bool in kinds:
        return truth
    numbers = [each for each in (float, int) if each in kinds]
    return number(numbers[0], -math.inf) if numbers and str not in kinds else None


def parse(
    settings: type[Settings], words: list[str] | None, description: str, process: Process
) -> Settings:
    """The settings that a command line asks for; those of a grid's lists in `varied`."""
    parser = parser_for(settings, description)
    words = sys.argv[1:] if words is None else words
    once = {f"--{name}".replace("_", "-") for name in flags(settings) if name not in settings.lists}
    for word in words:
        if word.startswith("--") and word not in once and word.removesuffix("s") in once:
            flag_name = word.removesuffix("s")
            raise UserError(
                f"{word}: this script makes one run and takes {flag_name}; lists are for grids"
            )
    given = vars(parser.parse_args(words))
    varied = {}
    for name, default in settings.lists.items():
        varied[name] = list(dict.fromkeys(given.get(name, default)))
    single = {name: value for name, value in given.items() if name not in settings.lists}
    return settings(**single, varied=varied, given=given, process=process)


def command(settings: Settings, **others) -> str:
    """The command line that asked for these settings, with `others` in their place; None takes a
    flag out."""
    wanted = settings.given | others
    prefix, words = ["python"], []
    if settings.processes > 1:
        prefix = ["torchrun", f"--nproc-per-node={settings.processes}"]
    for name, value in wanted.items():
        if name in ("force", "no_resume", "dry_run") or value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if isinstance(value, list):
            words += map(str, flattened(value))
        elif value is not True:
            words.append(str(value))
    return shlex.join([*prefix, settings.process.script.name, *words])


def flattened(values: list) -> list:
    """A check may make several values of a word."""
    parts = [value if isinstance(value, list) else [value] for value in values]
    return list(itertools.chain.from_iterable(parts))


def as_plain(args: Settings) -> dict[str, Any]:
    """The settings that a checkpoint keeps, from which `predict.py` builds the network again: all
    but those of this machine."""
    mine = {
        "data",
        "results",
        "checkpoints",
        "device",
        "workers",
        "process",
        "varied",
        "given",
        "fitted",
        "time_limit",
    }
    names = [field.name for field in dataclasses.fields(args) if field.name not in mine]
    return {name: plain(getattr(args, name)) for name in names}
