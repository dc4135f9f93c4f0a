"""The method, top to bottom: seeds, data, the network and its random start, what of it is trained,
the training loop, and `fit`, which makes a run of all of it.

An experiment reads without this file: load_data, build_model, freeze, fit. Come here to see how.
What is not of the method (files, processes, the command line, other networks) is in harness/.

Frankle et al.: "Training BatchNorm and Only BatchNorm", ICLR 2021, arXiv:2003.00152; open_lth is
its first author's code. He et al.: "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from __future__ import annotations

import harness  # noqa: F401, before torch, which reads what it sets

import math
import time
from collections.abc import Callable
from contextlib import closing, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from harness import checkpoints, folders, onednn, processes, speed
from harness.checks import as_logits, check_recipe, cross_entropy, explained, materialise
from harness.config import Noting, Settings, constant
from harness.dataset import TORCHVISION, Data, checked, digest_of, load_torchvision, make_splits
from harness.dataset import on_device, resize, split_batches
from harness.entries import put_random_entries, put_weight
from harness.errors import UserError
from harness.estimate import print_plan
from harness.norms import crashes_without_input_gradient
from harness.parts import LAYERS, Origin, check_name, inner_layers, names_of, norms, note_start
from harness.parts import origin, owned, trainable
from harness.processes import first_goes_first, share
from harness.progress import progress_bar, tell
from harness.recording import Recorder, as_trained, finished_before, machine_columns
from harness.recording import network_columns, own_measures
from harness.runs import Outcome, Plan, Run, check_before, dataset_name, is_finite, name_run, note
from harness.runs import out_of_time
from harness.speed import exact_weights, frozen_in
from harness.telling import summarise, warn_of_unused
from harness.zoo import imagenet_resnet, vgg

# Not used here, but by experiments: their flags, their start, a grid's runs.
from harness.config import ALWAYS, AUGMENTED, NEVER, changed, command, flag, number  # noqa: F401
from harness.errors import RunError  # noqa: F401
from harness.parts import count_parameters  # noqa: F401
from harness.starting import grid, main, main_of, resolved, run_grid, seed_everything  # noqa: F401
from harness.summaries import accuracies, counted, mean_and_deviation  # noqa: F401
from harness.summaries import shape_label, table_of, tables_of  # noqa: F401

# -------------------------------------------------------------------------------------------- seeds
# Independent streams, new ones last, derive from one seed, all drawn on the CPU: seed 3 gives the
# same frozen features whatever is trained and on whatever device, so that comparisons are paired.

STREAMS = ("weights", "batchnorm", "order", "random_params", "noise", "images", "constructor")


def generator(seed: int, stream: str, epoch: int = 0) -> torch.Generator:
    """The generator of one stream of `seed`. The data order with its augmentation, and the noise
    of a network's own (dropout), have one for each epoch, which a resumed run finds again."""
    return torch.Generator().manual_seed(stream_seed(seed, stream, epoch))


def stream_seed(seed: int, stream: str, epoch: int = 0, *image: int) -> int:
    entropy = [seed, STREAMS.index(stream), epoch, *image]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


# --------------------------------------------------------------------------------------------- data

PAD = 4  # pixels of black around an image before the random crop (He et al., section 4.2)


class Images(Data):
    """Images in memory: for each split uint8 (N, H, W, C) on the device, with labels int64 (N,)."""

    @cached_property
    def padded(self) -> torch.Tensor:
        return F.pad(self.images["train"], (0, 0, PAD, PAD, PAD, PAD))

    def training_batches(self, seed: int, epoch: int, batch_size: int, augment: str):
        """Batches of images, float (B, C, H, W), and labels, int64 (B,): every training image once,
        in the order and with the augmentation of (seed, epoch). Of several processes each has its
        share of a batch."""
        labels = self.labels["train"]
        height, width, _ = self.size
        n, device = len(labels), labels.device
        draw = generator(seed, "order", epoch)
        order = torch.randperm(n, generator=draw).to(device)
        # where in its padded image each crop begins: at (PAD, PAD) it is the image itself
        top = left = torch.full((n,), PAD)
        if "crop" in augment:
            top, left = torch.randint(2 * PAD + 1, (2, n), generator=draw)
        mirrored = torch.rand(n, generator=draw) < (0.5 if "flip" in augment else 0)
        # the pixels that it takes: rows (n, height) and columns (n, width), mirrored ones backwards
        across = torch.arange(width)
        rows = top[:, None] + torch.arange(height)
        columns = left[:, None] + torch.where(mirrored[:, None], across.flip(0), across)
        rows, columns = rows.to(device), columns.to(device)
        if "brightness" in augment:
            brightness = torch.empty(n, 1, 1, 1).uniform_(0.8, 1.2, generator=draw).to(device)
        for i in map(share, split_batches(order, batch_size)):  # numbers of images, (B,)
            # (B, 1, 1), (B, height, 1) and (B, 1, width) index to (B, height, width, C)
            images = self.padded[i[:, None, None], rows[i][:, :, None], columns[i][:, None, :]]
            if "brightness" in augment:
                images = (images * brightness[i]).clamp_(max=255)
            yield self.normalise(images), labels[i]


class Streamed(folders.Streamed):
    """Images on disk, decoded as they are needed."""

    def training_batches(self, seed: int, epoch: int, batch_size: int, augment: str):
        """Every training image once, in the order of (seed, epoch), each cropped and mirrored by
        (seed, epoch, image), whatever the number of workers."""
        n = len(self.labels["train"])
        order = torch.randperm(n, generator=generator(seed, "order", epoch))
        batches = list(map(share, split_batches(order, batch_size)))
        transform = folders.augmented(self.pixels, augment)
        return self.stream("train", batches, transform, partial(stream_seed, seed, "images", epoch))


def load_data(args: Settings) -> Data:
    """The data set that `args` names, on its device. Raises UserError where it is absent or not as
    it must be."""
    source = ""
    with first_goes_first():
        if args.dataset == "imagenet":
            paths, labels, classes = folders.list_imagenet(Path(args.data or "data/imagenet"))
            return Streamed.of(args, paths, labels, classes)
        if args.dataset == "imagefolder":
            images, labels, classes = folders.load_folder(
                Path(args.data), args.image_size, args.workers, args.quiet
            )
            source = digest_of(images, labels)[:6]
        elif args.dataset == "digits":
            images, labels, classes = load_digits()
        elif args.dataset not in TORCHVISION:
            raise UserError(f"there is no data set {args.dataset}: make_data makes one of arrays")
        else:
            images, labels, classes = load_torchvision(args.dataset, Path(args.data or "data"))
        data = make_data(args, dataset_name(args), images, labels, classes)
        data.source = source
        return data


def make_data(args: Settings, name: str, images, labels, classes=None) -> Data:
    """A data set of your own. images: uint8 (N, H, W, C), labels: whole numbers (N,), as arrays, or
    as dictionaries of them: `train` and `test`. Without `test` a stratified fifth is held out.

    Augmented as --augment says: by default cropped and flipped, unless the experiment's settings
    have `dataset: str = NAME`, which is no flag then. Raises UserError for what is no data set."""
    images, labels = checked(name, images, labels)
    if args.image_size:
        images = {split: resize(x, args.image_size) for split, x in images.items()}
    height, width = images["train"].shape[1:3]
    if min(height, width) < 8:
        need = "the networks need 8x8: add --image-size 8"
        raise UserError(f"the images of {name} have {width}x{height} pixels, and {need}")
    count = int(labels["train"].max()) + 1
    made_with = make_splits(images, labels, args)
    classes = list(map(str, range(count) if classes is None else classes))
    if len(classes) < count:
        raise UserError(f"the data set {name} has {count} classes: give a name for each")
    images, labels = on_device(images, args.device), on_device(labels, args.device)
    return Images(name, classes, images, labels, made_with=made_with)


def load_digits():
    """The 1,797 handwritten digits inside scikit-learn: 8x8 pixels, brightness 0 to 16."""
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)[..., None]
    return {"train": images}, {"train": digits.target}, list("0123456789")


# ---------------------------------------------------------------------------------------- networks


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: where the stage starts with a stride, a 1x1 convolution
    and BatchNorm, else the identity."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            conv = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut.extend([conv, nn.BatchNorm2d(channels)])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al., section 4.2: depth 6n + 2, three stages of n blocks, with 16,
    32 and 64 channels times `width`."""

    def __init__(self, depth: int, width: int, channels: int, classes: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 16 * width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16 * width)
        self.relu = nn.ReLU(inplace=True)
        blocks = (depth - 2) // 6
        self.stage1 = self.stage(16 * width, 1, blocks)
        self.stage2 = self.stage(32 * width, 2, blocks)
        self.stage3 = self.stage(64 * width, 2, blocks)
        self.output = nn.Linear(64 * width, classes)

    @staticmethod
    def stage(channels: int, stride: int, blocks: int) -> nn.Sequential:
        others = [Block(channels, channels, 1) for _ in range(blocks - 1)]
        return nn.Sequential(Block(channels // stride, channels, stride), *others)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to logits (N, classes)."""
        return self.head(self.features(x))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to (N, 64 width, H / 4, W / 4)."""
        return self.stage3(self.stage2(self.stage1(self.relu(self.bn(self.conv(x))))))

    def head(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(x.mean((2, 3)))


def network(args: Settings, size: tuple[int, int, int], classes: int) -> nn.Module:
    """The network of --arch, --depth and --width for images of `size`: height, width, channels."""
    if args.arch == "imagenet_resnet":
        return imagenet_resnet(args.depth, size, classes)
    if args.arch == "vgg" and min(size[:2]) < 16:  # it halves them four times
        have = f"the images have {size[1]}x{size[0]}: add --image-size 16 or more"
        raise UserError(f"--arch vgg needs 16x16 pixels, and {have}")
    return {"resnet": ResNet, "vgg": vgg}[args.arch](args.depth, args.width, size[2], classes)


def build_model(args: Settings, data: Data, build=network) -> nn.Module:
    """`build(args, size, classes)`, any nn.Module, at the random start of its seed, on the device.

    Convolutions, linear layers and normalisations start as `initialise` says; whatever else the
    network has, transposed convolutions too, starts as its constructor draws it, under the seed."""
    speed.prepare(args.device, data.size)  # threads: factorisations round differently on several
    with torch.random.fork_rng(devices=[]):
        seed_everything(stream_seed(args.seed, "constructor"))
        noted = Noting(args)
        model = build(noted, data.size, len(data.classes))
        materialise(model, data.size)
    initialise(model, args.seed, noted.gamma_init, noted.beta_init, noted.weight_init)
    note_start(model)
    model._origin = Origin.of(model, args, noted.read, None if build is network else build)
    # channels_last is of four dimensions, and a 3D convolution's weight has five
    has_3d = any(parameter.dim() > 4 for parameter in model.parameters())
    layout = torch.preserve_format if has_3d else torch.channels_last
    return model.to(args.device, memory_format=layout)


# ---------------------------------------------------------------------------------- initialisation


def draw_binary(weight: torch.Tensor, draw: torch.Generator) -> None:
    """The sign of a He-normal weight times the layer's standard deviation (Frankle et al.)."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=draw).sign_()
    weight.mul_(math.sqrt(2 / weight[0].numel()))


def draw_orthogonal(weight: torch.Tensor, draw: torch.Generator) -> None:
    nn.init.orthogonal_(weight, gain=math.sqrt(2), generator=draw)


WEIGHT_INITS = {  # He: fan in, gain √2
    "he_normal": lambda w, draw: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=draw),
    "he_uniform": lambda w, draw: nn.init.kaiming_uniform_(w, nonlinearity="relu", generator=draw),
    "orthogonal": draw_orthogonal,
    "binary": draw_binary,
}


@torch.no_grad()
def initialise(model, seed: int, gamma_init: str, beta_init: str, weight_init: str) -> None:
    """Draws weights, γ and β from the seed: in Frankle et al. He-normal weights, γ ~ U[0, 1] and
    β = 0, as --weight-init, --gamma-init and --beta-init have by default.

    gamma_init: uniform, symmetric (U[-1, 1]), or as `constant` takes. A bias of a convolution or a
    linear layer has PyTorch's default, U(±1/√fan_in). Under another name, which only a script's own
    settings can have, γ, β or the weights stay as they are."""
    weights, affine = generator(seed, "weights"), generator(seed, "batchnorm")
    for layer in model.modules():
        if isinstance(layer, LAYERS) and weight_init in WEIGHT_INITS:
            weight = layer.weight  # of a parametrised layer what it is computed to be
            WEIGHT_INITS[weight_init](weight, weights)
            if parametrize.is_parametrized(layer, "weight"):
                put_weight(layer, weight)
            if layer.bias is not None:
                bound = 1 / math.sqrt(layer.weight[0].numel())
                layer.bias.uniform_(-bound, bound, generator=weights)
    gamma, beta = constant(gamma_init), constant(beta_init)
    for layer in norms(model).values():
        if gamma_init in ("uniform", "symmetric"):
            layer.weight.uniform_(0 if gamma_init == "uniform" else -1, 1, generator=affine)
        elif gamma is not None:
            layer.weight.fill_(gamma)
        if getattr(layer, "bias", None) is not None and beta is not None:
            layer.bias.fill_(beta)


# ---------------------------------------------------------------------------------------- freezing
# --train is made of words joined with +, each of which stands for some of a network's parameters:
# "bn" for γ and β of every BatchNorm (harness/parts.py). A script may give a predicate instead.


def freeze(model: nn.Module, train, called: str = "") -> None:
    """Leaves what `train` says trainable, and nothing else. Running statistics, no parameters, go
    on.

    train: words of --train joined with +, or a predicate over (name, module, parameter), of which
    `called` is the name in the records. A normalisation is one of PyTorch's, or inherits from one
    or from harness.norms.ScaleShift. Raises UserError for a word that the network has not."""
    if callable(train):
        check_name(called)
        chosen = {name for name, module, p in owned(model) if train(name, module, p)}
        if not chosen:
            raise UserError(f"the predicate {called!r} chooses none of the network's parameters")
        words = []
    else:
        chosen, called, words = names_of(model, train), called or train, train.split("+")
    for name, _, parameter in owned(model):
        parameter.requires_grad_(name in chosen)
    known = origin(model)
    for word in words:
        if word.startswith("random:"):  # two entries a channel are as many as BatchNorm has
            draw = generator(known.seed, "random_params")
            put_random_entries(inner_layers(model), word.removeprefix("random:"), draw)
    known.left_trainable, known.called = trainable(model), called  # for the records


# ----------------------------------------------------------------------------------- training loop


class Recipe(NamedTuple):
    """An optimizer, the schedule of its rate, stepped once an epoch, and what the records call the
    schedule. None of it where nothing is trained."""

    optimizer: torch.optim.Optimizer | None = None
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    schedule: str = ""


def recipe(model: nn.Module, args: Settings) -> Recipe:
    """The optimizer over what is trainable, weight decay on all of it, and its schedule."""
    trained = [p for p in model.parameters() if p.requires_grad]
    fused = args.device.type in ("cpu", "cuda")
    options = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": fused}
    if args.optimizer == "adam":
        optimizer = torch.optim.Adam(trained, **options, capturable=args.graph)
    else:
        optimizer = torch.optim.SGD(trained, momentum=args.momentum, **options)
    return scheduled(optimizer, args)


def scheduled(optimizer: torch.optim.Optimizer, args: Settings) -> Recipe:
    """Any optimizer with the schedule of --schedule."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate(args))
    return Recipe(optimizer, scheduler, args.schedule)


def rate(args: Settings) -> Callable[[int], float]:
    """The schedule: from the number of epochs that are over to a factor of --lr."""
    n = args.epochs
    imagenet = ((1, 3), (2, 3), (8, 9))  # of the epochs
    steps = imagenet if args.dataset == "imagenet" else ((1, 2), (3, 4))
    milestones = [math.ceil(n * numerator / denominator) for numerator, denominator in steps]
    # restarts: three cosines, each twice as long as the one before
    cycle = max(1, math.ceil(n / 7))
    restarts = (0, cycle, 3 * cycle)

    def cosine(fraction):
        return (1 + math.cos(math.pi * fraction)) / 2

    def since_restart(epoch):
        k = sum(epoch >= start for start in restarts) - 1
        return (epoch - restarts[k]) / (cycle << k)

    return {
        "step": lambda epoch: 0.1 ** sum(epoch >= milestone for milestone in milestones),
        "cosine": lambda epoch: cosine(epoch / n),
        # Bello et al., arXiv:1709.07417; Loshchilov and Hutter, arXiv:1608.03983
        "linear-cosine": lambda epoch: (1 - epoch / n) * cosine(epoch / n) + 0.001,
        "restarts": lambda epoch: cosine(since_restart(epoch)),
        "exponential": lambda epoch: 0.01 ** (epoch / n),
        "constant": lambda epoch: 1,
    }[args.schedule]


@contextmanager
def warm_up(optimizer, args: Settings, epoch: int, steps: int):
    """Gives a function that sets the learning rate of step 0, 1, … of an epoch of `steps`: over the
    first --warmup-epochs it rises from 0, step by step, to the schedule's (as in open_lth), which
    stands there again afterwards."""
    if optimizer is None or epoch > args.warmup_epochs:
        yield lambda step: None
        return
    full = [float(group["lr"]) for group in optimizer.param_groups]

    def set_rates(fraction: float) -> None:
        # of the groups as they are now: capturing a CUDA graph replaces what they hold
        for group, full_rate in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = fraction * full_rate

    before, all_steps = (epoch - 1) * steps, args.warmup_epochs * steps
    yield lambda step: set_rates(min(1, (before + step) / all_steps))
    set_rates(1)


def train_epoch(model, data, optimizer, args, epoch: int, sizes: list[int], progress, step):
    """One pass over the training set. Returns the loss, and accuracies in percent, of the batches
    as they were trained on; they stay on the device until the end.

    sizes: of each whole batch, of which a process has its share; fewer of them cut the epoch short,
    for bench.py. step: `train_step`, or what speed.training_step makes of it."""
    model.train()
    if optimizer:
        optimizer.zero_grad()  # of what a script has measured between two epochs
    totals = torch.zeros(3, device=args.device)
    batches = data.training_batches(args.seed, epoch, args.batch_size, args.augment)
    with warm_up(optimizer, args, epoch, len(sizes)) as set_rates:
        for i, (size, (x, y)) in enumerate(zip(sizes, batches)):  # noqa: B905, sizes may be fewer
            set_rates(i)
            # of several processes, whose shares of a batch may differ by an image: else 1
            loss_scale = processes.processes() * len(y) / size
            totals += step(model, x, y, optimizer, args, loss_scale)
            progress.update()
    return means(processes.total(totals), len(data.labels["train"]))


def train_step(model, x, y, optimizer, args, loss_scale: float = 1) -> torch.Tensor:
    """Forward, backward, step, on images x, float (B, C, H, W), and labels y, int64 (B,); without
    an optimizer the forward pass alone, which moves BatchNorm's statistics. Returns `tally`.

    loss_scale: of this process's mean loss, so that its mean over processes is the batch's."""
    x.requires_grad_(crashes_without_input_gradient(model))
    with torch.set_grad_enabled(optimizer is not None):
        logits = forward(model, x, args)
        loss = cross_entropy(logits, y)
    if optimizer:
        (loss * loss_scale).backward()
        optimizer.step()
        optimizer.zero_grad()
    return tally(logits.detach(), loss.detach(), y)


def forward(model: nn.Module, x: torch.Tensor, args: Settings) -> torch.Tensor:
    """Logits as fp32, (N, classes), the network's arithmetic in the run's precision."""
    bf16 = args.precision == "bf16"
    with explained(model, x), torch.autocast(args.device.type, torch.bfloat16, enabled=bf16):
        return as_logits(model(x))


def arithmetic(model: nn.Module, args: Settings, size: tuple[int, ...], step=None):
    """A context in which `forward`, of images of this `size`, is faster and the same to rounding:
    on one thread of a CPU in oneDNN's layout, which gains little where images are small; else with
    frozen weights cast once, but for a network of one's own, of which we do not know the types. A
    `step` of one's own may do with weights and gradients what neither knows: all stays exact."""
    if step:
        return nullcontext()
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    here = onednn.here(args, torch.get_num_threads())
    if here and not speed.are_small(size) and onednn.suits(model, ResNet, Block):
        return onednn.layout(model, dtype)
    return nullcontext() if origin(model).name else frozen_in(dtype, model)


@torch.inference_mode()
def evaluate(model: nn.Module, data: Data, split: str, args: Settings) -> dict[str, float]:
    """Loss and accuracies on a split, with BatchNorm's running statistics."""
    model.eval()
    totals = torch.zeros(3, device=args.device)
    with torch.compiler.set_stance("force_eager"):  # compilation is for the many steps of training
        for x, y in data.batches(split):
            if len(y):  # of few images not every process has one
                logits = forward(model, x, args)
                totals += tally(logits, cross_entropy(logits, y), y)
    return means(processes.total(totals), len(data.labels[split]))


def tally(logits: torch.Tensor, loss: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sums over a batch, (3,): loss, right answers, right answers among the five likeliest."""
    hits = logits.topk(min(5, logits.shape[1])).indices == y[:, None]
    return torch.stack([loss * len(y), hits[:, 0].sum(), hits.sum()])


def means(totals: torch.Tensor, n: int) -> dict[str, float]:
    """The loss, and accuracies in percent, of a `tally` of `n` images."""
    loss, right, among_five = totals.tolist()
    return {"loss": loss / n, "acc": 100 * right / n, "top5": 100 * among_five / n}


# --------------------------------------------------------------------------------------------- fit


def fit(model, data: Data, args: Settings, recipe=recipe, also=None, step=None) -> Outcome:
    """Trains what is trainable, by `recipe(model, args)`, and writes the run's records; goes on
    where an earlier start stopped.

    Afterwards the network is what the run has made of it, also where it was finished before.

    also: what to measure beside losses and accuracies; `also(model)` returns numbers by name after
    every epoch, each a column of the records. step: in the place of `train_step`, for another loss.
    Raises UserError for a name that is a column's, for what is no number, and for a recipe that
    leaves out what is trainable."""
    speed.prepare(args.device, data.size)
    speed.keep_memory(args.device)
    noted = Noting(args)
    made = recipe(model, noted) if trainable(model) else Recipe()
    check_recipe(model, made)
    asked, args = args, as_trained(model, data, args, made, noted.read)
    name = name_run(args, data.name)
    check_before(args, name.run)
    if args.dry_run:
        seconds = 0.0
        if processes.first():
            one = partial(step or train_step, optimizer=made.optimizer, args=args)
            with processes.alone(), arithmetic(model, args, data.size, step):
                seconds = print_plan(model, data, args, name.run, one, evaluate)
        planned = Plan(seconds, args, data.name)
        return processes.from_first(Outcome(Path(), [], args.epochs, plan=planned))
    about, where = network_columns(model, data), machine_columns(args)
    if processes.first():
        warn_of_unused(asked, model, args.train, noted.read if made.optimizer else None)
    with Run(args, name, about, where) if processes.first() else nullcontext() as run:
        again = finished_before(run, model, data)
        if not again:
            train(model, data, args, made, run, also, step)
        outcome = note(processes.from_first(run and run.outcome(again)), args)
    if processes.first():
        summarise(outcome, args)
    return outcome


def train(model, data, args, made: Recipe, run: Run | None, also=None, step=None) -> None:
    """Epochs, each with its row in the records, until the last, a loss that is not finite, or the
    time limit. Of several processes the first has the `run`."""
    optimizer, scheduler, _ = made
    recorder = Recorder(run, model, data, args, partial(evaluate, model, data, "test", args))
    done = recorder.resume(optimizer, scheduler)
    parallel = processes.data_parallel(model, args.sync_bn)
    statistics = [b for b in checkpoints.buffers(model).values() if b.is_floating_point()]
    order = torch.arange(len(data.labels["train"]))
    sizes = [len(batch) for batch in split_batches(order, args.batch_size)]
    n, unit = len(sizes), " batches"
    bar = progress_bar(total=args.epochs * n, initial=done * n, unit=unit, disable=args.quiet)
    made_fast = speed.training_step(step or train_step, model, args)
    fast = arithmetic(model, args, data.size, step)
    with bar, fast, closing(recorder), made_fast as step:
        for epoch in range(done + 1, args.epochs + 1):
            bar.set_description(f"epoch {epoch}/{args.epochs}", refresh=False)
            began = time.perf_counter()
            seed_everything(stream_seed(args.seed, "noise", epoch))  # of dropout and the like
            found = train_epoch(parallel, data, optimizer, args, epoch, sizes, bar, step)
            measured = {"train_loss": found["loss"], "train_acc": found["acc"]}
            processes.like_first(statistics)
            measured |= measure(model, data, args, also)
            if scheduler:
                scheduler.step()
            accuracy = f"test {measured['test_acc']:.1f} %"
            bar.set_postfix_str(accuracy, refresh=False)
            tell(f"epoch {epoch}/{args.epochs}, {accuracy}", share=1 / args.epochs)
            seconds = time.perf_counter() - began
            recorder.record(epoch, measured, seconds, optimizer, scheduler)
            if not is_finite(measured) or processes.from_first(out_of_time(args)):
                break


def measure(model: nn.Module, data: Data, args: Settings, also=None) -> dict[str, float]:
    """What the records have of a network after an epoch."""
    measured = {}
    if "val" in data.labels:
        found = evaluate(model, data, "val", args)
        measured |= {"val_loss": found["loss"], "val_acc": found["acc"]}
    found = evaluate(model, data, "test", args)
    measured |= {f"test_{key}": value for key, value in found.items()}
    if also:
        with processes.alone(), exact_weights(model):
            measured |= own_measures(also(model), args)
    return measured
