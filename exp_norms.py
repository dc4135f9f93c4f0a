"""Is it the normalisation? γ and β of other normalisations than BatchNorm, and of none at all, are
trained alone, the random network around them the same.

In a ResNet or an MLP every BatchNorm gives way to another kind (`--norm`), with the very same γ and
β, so that all comparisons are paired:

    bn           over the batch and the image, by running statistics in testing
    gn:G         over G groups of channels and the image
    ln           over all channels and the image
    in           over the image
    rms          x / root mean square over all channels and the image
    calibrated   by each channel's mean and deviation in the first batch, constants from then on
    none         no normalisation: γx + β

A vision transformer (`--arch vit`) has LayerNorm over the channels of each patch. Lu et al.,
"Pretrained transformers as universal computation engines", 2021, arXiv:2103.05247, train it, the
output, the input and the positions in a frozen transformer. Giannou et al., "The expressive power
of tuning only the normalization layers", COLT 2023, arXiv:2302.07937, speak of any normalisation.
Williams et al., "Expressivity of neural networks with random weights and learned biases", ICLR
2025, train biases alone (`--train bias`).

    python exp_norms.py --dataset digits --norm bn none --epochs 20               # a minute
    python exp_norms.py --dataset digits --lr 0.03 0.1 0.3 --val-fraction 0.2     # each kind's rate
    python exp_norms.py --dataset digits --arch vit --train output output+norm output+norm+input
    python exp_norms.py --dataset digits --arch mlp --norm none --train bias norm random:2
    python exp_norms.py --dataset digits --norm bn --bn after --train norm all    # behind the ReLU
"""

import argparse
import itertools
import math
import sys
from dataclasses import dataclass
from functools import partial

import common  # before torch, which reads what it sets
from common import NEVER, UserError, changed, flag, number

import torch
from torch import nn

from harness.inside import activity
from harness.norms import Calibrated, GroupNorm, RMSNorm, ScaleShift, calibrate
from harness.parts import is_shortcut
from harness.zoo import VisionTransformer

KINDS = {
    "ln": lambda channels: GroupNorm(1, channels),  # one group is all channels and the image
    # a group for each channel is InstanceNorm, of which PyTorch's takes up to five times as long
    "in": lambda channels: GroupNorm(channels, channels),
    "rms": RMSNorm,
    "calibrated": Calibrated,
    "none": ScaleShift,
}


def kind(text):
    """A check: one of KINDS, bn, or gn:G with a number of groups G."""
    word, _, groups = text.partition(":")
    if word == "gn":
        return f"gn:{number(int, 1)(groups)}"
    if text != "bn" and text not in KINDS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of bn, gn:G, {', '.join(KINDS)}")
    return text


@dataclass
class Settings(common.Settings):
    lists = {
        "depth": [None],
        "norm": ["bn", "gn:4", "ln", "in", "rms", "calibrated", "none"],
        "train": ["norm"],
        "lr": [None],
        "seed": [0],
    }

    arch: str = changed(
        "arch",
        "resnet",
        "the CIFAR ResNet, an MLP, or a vision transformer, whose --norm is ln",
        choices=("resnet", "mlp", "vit"),
    )
    depth: int | None = changed(
        "depth", None, "of a resnet 6n + 2 (default 14), of a vit its layers (default 6)"
    )
    width: int = changed("width", 1, "factor on the channels of a resnet or vit")
    hidden: list = flag(
        [],
        "widths of an mlp's hidden layers (default 512 512 512)",
        number(int, 1),
        metavar="UNITS",
    )
    norm: str = flag("bn", f"bn, gn:G, {', '.join(KINDS)}", kind, metavar="KIND")
    bn: str = flag(
        "before",
        "where the normalisation stands to the activation, in a resnet",
        choices=("before", "after"),
    )
    watch: bool = flag(
        False,
        "measure after every epoch, too, the shares of |γ| < 0.01 and of dead features, whose ReLU "
        "is active on less than 1 %% of the test activations",
        record=NEVER,
    )


# ---------------------------------------------------------------------------------------- networks


def mlp(args, size, classes):
    """Hidden layers, each with BatchNorm and ReLU; unlike those of exp_mlp_lenet.py they have no
    bias, for which β serves."""
    widths, layers = [math.prod(size), *args.hidden], [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def vit(args, size, classes):
    return VisionTransformer(args.depth, args.width, size, classes)


NETWORKS = {"resnet": common.network, "mlp": mlp, "vit": vit}


def build(args, data):
    """He-normal weights, γ ~ U[0, 1], β = 0, as everywhere; then --norm in BatchNorm's place."""
    model = common.build_model(args, data, NETWORKS[args.arch])
    if args.arch != "vit":
        with_norm(model, args.norm)
    return after_activation(model) if args.bn == "after" else model


def with_norm(model, norm):
    """The network with the normalisation `norm` in the place of every BatchNorm, and its γ and β.
    Raises UserError for groups that do not fit, and for a γ or a β that is not of each channel."""
    if norm == "bn":
        return model
    for name, bn in common.norms(model).items():
        channels = bn.num_features
        if norm.startswith("gn:"):
            groups = int(norm.removeprefix("gn:"))
            if channels % groups:
                divisor = f"give a divisor of {channels}"
                raise UserError(f"--norm {norm}: {name} has {channels} channels: {divisor}")
            other = GroupNorm(groups, channels)
        else:
            other = KINDS[norm](channels)
        own = getattr(other, "weight", None), getattr(other, "bias", None)
        if any(getattr(parameter, "shape", ()) != (channels,) for parameter in own):
            instead = "let it have a weight and a bias of each, as ScaleShift(channels) has"
            raise UserError(f"--norm {norm}: its γ and β are not of {channels} channels: {instead}")
        other = other.to(bn.weight.device)
        other.weight, other.bias = bn.weight, bn.bias
        model.set_submodule(name, other)
    return model


def after_activation(model):
    """The ResNet with every normalisation, but those of the shortcuts, behind its ReLU."""
    relus = [name for name, layer in model.named_modules() if isinstance(layer, nn.ReLU)]
    for name in relus:
        model.set_submodule(name, nn.Identity())
    for name, norm in common.norms(model).items():
        if not is_shortcut(name):
            model.set_submodule(name, nn.Sequential(nn.ReLU(), norm))
    return model


# -------------------------------------------------------------------------------------------- runs


def run(args):
    data = common.load_data(args)
    model = build(args, data)
    if args.norm == "calibrated":
        images, _ = next(data.training_batches(args.seed, 1, args.batch_size, args.augment))
        calibrate(model, lambda: common.forward(model, images, args))
    common.freeze(model, args.train)  # "norm": all but γ and β keep their random start
    also = partial(shares, data=data, args=args) if args.watch else None
    return common.fit(model, data, args, also=also)


def shares(model, data, args):
    """Percent of the γ that are small, and of the features that are dead."""
    norms = common.norms(model)
    gammas = torch.cat([norm.weight.detach().flatten().abs() for norm in norms.values()])
    test = partial(common.evaluate, model, data, "test", args)
    active = activity(model, norms, test)
    active = torch.cat([*active.values(), torch.empty(0, device=gammas.device)])
    small, dead = (gammas < 0.01).float().mean(), (active < 0.01).float().mean()
    return {"small_gammas": 100 * small.item(), "dead": 100 * dead.item()}


def compare(args):
    args, runs = of_arch(args), []
    for norm in args.varied["norm"]:
        # BatchNorm's γ and β have a word of their own, by which the other scripts' runs are called
        trains = [in_words_of(norm, train) for train in args.varied["train"]]
        lists = {name: args.varied[name] for name in ("depth", "lr", "seed")}
        runs += common.grid(args, norm=[norm], train=trains, **lists)
    code, outcomes = common.run_grid(runs, run)
    for outcome in outcomes:
        if args.watch and "dead" not in outcome.rows[-1]:
            again = "--force makes it again"
            print(f"note: {outcome.csv} was made without --watch: {again}", file=sys.stderr)
    for rows in common.tables_of(outcomes, args, "depth", "train", "norm", "lr"):
        report(rows)
    return code


def of_arch(args):
    """What the architecture decides filled in. Raises UserError for what has no part in it."""
    varied, asked = dict(args.varied), args.given
    if args.arch != "resnet" and args.bn == "after":
        raise UserError(f"--bn after is of a resnet, not of --arch {args.arch}")
    if args.arch != "mlp" and args.hidden:
        raise UserError(f"--hidden is of an mlp, not of --arch {args.arch}")
    if args.arch == "vit":
        if "norm" in asked and set(varied["norm"]) != {"ln"}:
            raise UserError("a vit has LayerNorm: give --norm ln, or leave it out")
        varied |= {"norm": ["ln"], "depth": [depth or 6 for depth in varied["depth"]]}
    if args.arch == "mlp":
        if "depth" in asked or args.width != 1:
            raise UserError("an mlp has no --depth and no --width: --hidden says both")
        if "in" in varied["norm"]:
            if "norm" in asked:
                raise UserError("--norm in: over the image, and a hidden layer of an mlp has none")
            varied["norm"] = [norm for norm in varied["norm"] if norm != "in"]
        args = args.but(hidden=args.hidden or [512, 512, 512])
        varied["depth"] = [len(args.hidden) + 1]
    return args.but(varied=varied)


def in_words_of(norm, train):
    words = train.split("+")
    return "+".join("bn" if word == "norm" and norm == "bn" else word for word in words)


def report(rows):
    """Accuracies over seeds by depth, what is trained, kind and rate."""
    print("\ntest accuracy in %, mean ± sample standard deviation (seeds)")
    settings = ["depth", "train", "norm", "lr"]
    for (depth, train, norm, rate), cell in rows.groupby(settings, sort=False, dropna=False):
        named = f"{common.shape_label(depth)}, {train}, {norm}, rate {rate:g}"
        print(f"  {named:<48} {common.accuracies(cell)}")


def main(argv=None):
    return common.main(compare, Settings, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
