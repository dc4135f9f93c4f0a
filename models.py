"""Networks, how they start, and what of them is trained.

The experiments use this through common.py. He et al.: "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.
Frankle et al.: "Training BatchNorm and Only BatchNorm", ICLR 2021, arXiv:2003.00152; open_lth is its first author's code."""
from __future__ import annotations

import math
import re
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

from data import Data, generator
from parallel import set_threads
from records import UserError

# --------------------------------------------------------------------------------------------------------------- models

class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: where the stage starts with a stride, a 1x1 convolution and BatchNorm, else the identity."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.extend([nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al., section 4.2: depth 6n + 2, three stages of n blocks, with 16, 32 and 64 channels times `width`."""

    def __init__(self, depth: int, width: int, channels: int, classes: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 16 * width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16 * width)
        self.relu = nn.ReLU(inplace=True)
        self.stage1, self.stage2, self.stage3 = (
            nn.Sequential(Block(c // stride, c, stride), *(Block(c, c, 1) for _ in range((depth - 2) // 6 - 1)))
            for c, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)))
        self.output = nn.Linear(64 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to logits (N, classes)."""
        x = self.stage3(self.stage2(self.stage1(self.relu(self.bn(self.conv(x))))))
        return self.output(x.mean((2, 3)))


def vgg(depth: int, width: int, channels: int, classes: int) -> nn.Sequential:
    """The CIFAR VGG of open_lth: convolutions with bias and BatchNorm in five stages of 64 to 512 channels times `width`, max-pooling between
    them, the global average, and one linear layer."""
    layers, c_in = [], channels
    for stage, convolutions in enumerate(VGG_STAGES[depth]):
        c = width * min(64 << stage, 512)
        layers += [nn.MaxPool2d(2)] * (stage > 0)
        for _ in range(convolutions):
            layers += [nn.Conv2d(c_in, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU(inplace=True)]
            c_in = c
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes))


def imagenet_resnet(depth: int, size: tuple[int, int, int], classes: int) -> nn.Module:
    """torchvision's ResNet; below 64 pixels its first convolution is 3x3 with stride 1, and its max-pooling is left out."""
    from torchvision.models import resnet  # two seconds that only these networks cost
    if depth == 200:  # He et al., "Identity Mappings in Deep Residual Networks"; not among torchvision's
        model = resnet.ResNet(resnet.Bottleneck, [3, 24, 36, 3], num_classes=classes)
    else:
        model = getattr(resnet, f"resnet{depth}")(num_classes=classes)
    if min(size[:2]) < 64:
        model.conv1, model.maxpool = nn.Conv2d(size[2], 64, 3, padding=1, bias=False), nn.Identity()
    elif size[2] != 3:
        model.conv1 = nn.Conv2d(size[2], 64, 7, 2, padding=3, bias=False)
    return model


VGG_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
DEPTHS = {"resnet": range(8, 1203, 6), "vgg": tuple(VGG_STAGES), "imagenet_resnet": (18, 34, 50, 101, 152, 200)}  # --arch: its depths, 6n + 2 and two tables


def check_depth(arch: str, depth: int, width: int) -> None:
    """Raises UserError for a network that does not exist, and names the nearest that do."""
    depths = DEPTHS[arch]
    if depth not in depths:
        near = sorted(sorted(depths, key=lambda d: abs(d - depth))[:2])
        have = "6n + 2, up to 1202" if arch == "resnet" else ", ".join(map(str, depths))
        raise UserError(f"--depth {depth}: {arch} has the depths {have}; the nearest are {near[0]} and {near[1]}")
    if arch == "imagenet_resnet" and width != 1:
        raise UserError(f"--width {width}: imagenet_resnet has width 1; resnet and vgg take others")


def network(args, size: tuple[int, int, int], classes: int) -> nn.Module:
    """The network of --arch, --depth and --width for images of `size`: height, width, channels."""
    if args.arch == "imagenet_resnet":
        return imagenet_resnet(args.depth, size, classes)
    return {"resnet": ResNet, "vgg": vgg}[args.arch](args.depth, args.width, size[2], classes)


def build_model(args, data: Data) -> nn.Module:
    """The network that `args` names, for `data`, at the random start of its seed, on the device."""
    if args.arch == "vgg" and min(data.size[:2]) < 16:  # it halves them four times
        raise UserError(f"--arch vgg needs 16x16 pixels, and the images have {data.size[1]}x{data.size[0]}: add --image-size 16 or more")
    set_threads(data.size)  # before the first number: factorisations round differently on several threads
    model = args.build(args, data.size, len(data.classes))
    initialise(model, args.seed, args.gamma_init, args.beta_init, args.weight_init)
    model.seed = args.seed  # which `freeze` draws random entries from
    return model.to(args.device, memory_format=torch.channels_last)


def batchnorms(model: nn.Module) -> dict[str, nn.Module]:
    """Every BatchNorm layer by name, in the order of the network."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}


def is_shortcut(name: str) -> bool:
    return "shortcut" in name or "downsample" in name


# ------------------------------------------------------------------------------------------------------- initialisation

def draw_binary(weight: torch.Tensor, generator: torch.Generator) -> None:
    """The sign of a He-normal weight times the layer's standard deviation (Frankle et al.)."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator).sign_().mul_(math.sqrt(2 / weight[0].numel()))


WEIGHT_INITS = {  # He: fan in, gain √2
    "he_normal": lambda weight, g: nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=g),
    "he_uniform": lambda weight, g: nn.init.kaiming_uniform_(weight, nonlinearity="relu", generator=g),
    "orthogonal": lambda weight, g: nn.init.orthogonal_(weight, gain=math.sqrt(2), generator=g),
    "binary": draw_binary,
}


@torch.no_grad()
def initialise(model: nn.Module, seed: int, gamma_init: str = "uniform", beta_init: str = "zeros", weight_init: str = "he_normal") -> None:
    """Draws every parameter from the seed; by default as Frankle et al.: He-normal weights, γ ~ U[0, 1], β = 0.

    gamma_init: uniform, symmetric (U[-1, 1]), or as `constant` takes. A linear layer's bias is PyTorch's default, U(±1/√fan_in)."""
    weights, bn = generator(seed, "weights"), generator(seed, "batchnorm")
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            WEIGHT_INITS[weight_init](layer.weight, weights)
            if layer.bias is not None:
                bound = 1 / math.sqrt(layer.weight[0].numel())
                layer.bias.uniform_(-bound, bound, generator=weights)
    for layer in batchnorms(model).values():
        if gamma_init in ("uniform", "symmetric"):
            layer.weight.uniform_(0 if gamma_init == "uniform" else -1, 1, generator=bn)
        else:
            layer.weight.fill_(constant(gamma_init))
        layer.bias.fill_(constant(beta_init))


def constant(text: str) -> float:
    """The value of `zeros`, `ones` or `constant:X`. Raises ValueError for anything else."""
    word, _, value = text.partition(":")
    number = float(value) if word == "constant" else {"zeros": 0.0, "ones": 1.0}.get(text, math.nan)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


# ------------------------------------------------------------------------------------------------------------- freezing
# --train is all, none, all-bn, or parts joined with +. The parts are disjoint and together are all.

PARTS = ("gamma", "beta", "output", "shortcut", "conv", "hidden")


def parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each part that the network has: γ and β of every BatchNorm, the last linear layer, the 1x1 shortcut
    convolutions, all other convolutions, and the linear layers before the last; under `random` what `RandomEntries` has taken out of these."""
    found, layers = {part: [] for part in (*PARTS, "random")}, dict(model.named_modules())
    bns, last = batchnorms(model), [name for name, layer in layers.items() if isinstance(layer, nn.Linear)][-1]
    for name, parameter in model.named_parameters():
        owner, _, kind = name.replace(".parametrizations.weight.original", ".weight").rpartition(".")
        if isinstance(layers[owner], RandomEntries):
            part = "random"
        elif owner in bns:
            part = {"weight": "gamma", "bias": "beta"}[kind]
        elif isinstance(layers[owner], nn.Linear):
            part = "output" if owner == last else "hidden"
        else:
            part = "shortcut" if is_shortcut(owner) else "conv"
        found[part].append(parameter)
    return {part: parameters for part, parameters in found.items() if parameters}


def parse_train(train: str, available) -> tuple[str, set[str]]:
    """The one spelling of `train` in the records, and its parts. Raises UserError for a part that is unknown or not among `available`."""
    everything, bn = set(available), {"gamma", "beta"} & set(available)
    weights = {"shortcut", "conv", "hidden"} & everything  # those of which `random` takes entries
    words = {"all": everything, "none": set(), "all-bn": everything - bn}
    chosen, taken = words.get(train, set()), set()
    for word in train.split("+") if train not in words else ():
        meant = bn if word == "bn" and bn else weights if re.fullmatch(r"random:([1-9]\d*|all)", word) else {word}
        if not meant or not meant <= everything:
            raise UserError(f"--train {train}: {repr(word)} is no part of this network: give all, none, all-bn, or of "
                            f"{', '.join([*['bn'] * bool(bn), *(p for p in PARTS if p in everything)])}, random:K (K = 1, 2, …, all) those to train, joined with +")
        if meant & taken:
            raise UserError(f"--train {train}: {word} is in it twice: name each part once")
        taken, chosen = taken | meant, chosen | ({word} if word.startswith("random:") else meant)
    spelling = ["bn"] if bn and bn <= chosen else []
    random = [part for part in chosen if part.startswith("random:")]
    spelling += [part for part in ("gamma", "beta", *random, *PARTS[2:]) if part in chosen and not (spelling and part in bn)]
    return next((word for word, meaning in words.items() if meaning == chosen), "+".join(spelling)), chosen


def freeze(model: nn.Module, train: str) -> None:
    """Leaves the parts that `train` names trainable, and nothing else. BatchNorm's running statistics, no parameters, go on."""
    found = parts(model)
    _, chosen = parse_train(train, found)
    for part, parameters in found.items():
        for parameter in parameters:
            parameter.requires_grad_(part in chosen)
    for part in chosen:
        if part.startswith("random:"):
            take_random_entries(model, part.removeprefix("random:"))


class PutEntries(torch.autograd.Function):
    """`weight` (channels, entries) with `values` (channels, k) at `index`, whatever stood there. Each entry has one source, so that both directions only
    gather: in deterministic mode a scatter on CUDA sorts."""

    @staticmethod
    def forward(weight, values, index, source):
        return torch.cat([weight, values], 1).gather(1, source)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient.gather(1, ctx.saved_tensors[0]), None, None


class RandomEntries(nn.Module):
    """Parametrises a frozen weight: `values` (channels, k) stand in it at `index` (channels, k), whatever stood there, and are all that the optimizer
    sees, so that weight decay and momentum concern exactly these."""

    def __init__(self, weight: torch.Tensor, index: torch.Tensor):
        super().__init__()
        weight = weight.detach().flatten(1)
        channels, entries = weight.shape
        source = torch.arange(entries, device=index.device).repeat(channels, 1)  # each entry from itself, or from behind the last: a value
        source.scatter_(1, index, torch.arange(entries, entries + index.shape[1], device=index.device).expand_as(index))
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("source", source, persistent=False)
        self.values = nn.Parameter(weight.gather(1, index))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return PutEntries.apply(weight.flatten(1), self.values, self.index, self.source).view_as(weight)


def take_random_entries(model: nn.Module, per_channel: str) -> None:
    """Makes `per_channel` entries of each output channel of every convolution and hidden linear layer trainable, all where a channel has fewer.
    They are the first of a random order that the seed gives, so that 2 of them are among 4 of them."""
    draw, linear = generator(model.seed, "random_params"), [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    for layer in [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m is not linear[-1]]:
        channels, entries = layer.weight.flatten(1).shape
        order = torch.rand(channels, entries, generator=draw).argsort(1)
        index = order[:, :entries if per_channel == "all" else int(per_channel)].sort(1).values.to(layer.weight.device)
        parametrize.register_parametrization(layer, "weight", RandomEntries(layer.weight, index))


@contextmanager
def frozen_in(dtype: torch.dtype, model: nn.Module):
    """Within it the frozen weights of convolutions and linear layers are of `dtype`, rounded once; autocast, whose cache holds trained weights alone, would
    round these again, to the same values, in every step."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and not parametrize.is_parametrized(m)]
    frozen = [(p, p.data) for layer in layers for p in layer.parameters() if not p.requires_grad]
    for parameter, exact in frozen:
        parameter.data = exact.to(dtype)
    try:
        yield
    finally:
        for parameter, exact in frozen:
            parameter.data = exact


COMPILED_KINDS = 64  # of a block, in one run: three stages, strides, dtypes, batch sizes


def compile_blocks(model: nn.Module) -> None:
    """Compiles the blocks that a ResNet repeats, each kind once: the whole of a ResNet-866 would take many minutes. Other networks are compiled as a whole.

    Where more kinds are needed than the budget has (with random:K every block is one of its own), PyTorch would go on without compiling:
    here it stops, so that a record that says `compile` is of compiled blocks."""
    torch._dynamo.config.recompile_limit = COMPILED_KINDS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in [m for m in model.modules() if isinstance(m, Block) or type(m).__name__ in ("BasicBlock", "Bottleneck")] or [model]:
        block.compile(dynamic=False)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many are trained, and how many there are: what `RandomEntries` has taken out counts where it was."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for part, ps in parts(model).items() if part != "random" for p in ps)
