"""Where should γ, β and the weights start, and how fast should γ learn? Two studies.

davis_frank: J. Davis, L. Frank, "Revisiting Batch Norm Initialization", ECCV 2022,
arXiv:2110.13989. Everything is trained; γ starts at a constant below 1 (`--bn-weight`) and learns
at the rate divided by `--c`. Ends with a paired t-test against γ = 1, c = 1.
frankle: Frankle, Schwab, Morcos, ICLR 2021, arXiv:2003.00152, appendix: γ and β alone are trained,
from other starts of γ, β and the weights. Its `orthogonal` has He's gain √2, open_lth's has 1.

    python exp_bn_init.py davis_frank --dataset digits --network cifar_resnet14 --seeds 1 2 3
    python exp_bn_init.py davis_frank --bn-weight 1 0.1 --c 1 100 --input-norm dataset bn
    python exp_bn_init.py frankle --dataset digits --gamma-init uniform ones symmetric
"""

import hashlib
import itertools
import sys
from dataclasses import dataclass

import common  # before torch, which reads what it sets
from common import ALWAYS, NEVER, changed, flag

import torch
from torch import nn

from harness.config import start

BASELINE = {"bn_weight": 1.0, "c": 1.0, "input_norm": "dataset"}
CIFAR10 = (0.4916, 0.4823, 0.4467), (0.2472, 0.2437, 0.2618)  # the authors' mean and deviation
NETWORKS = "resnet18 resnet34 resnet50 resnet101 resnet152 cifar_resnet14 cifar_resnet32".split()


# ----------------------------------------------------------------------------------- Davis & Frank


@dataclass
class DavisFrank(common.Settings):
    lists = {"bn_weight": [0.1], "c": [100.0], "input_norm": ["bn"], "seed": list(range(1, 16))}

    network: str = flag(
        "resnet18", "torchvision's, or He et al.'s for CIFAR", choices=NETWORKS, record=NEVER
    )
    bn_weight: float = flag(
        0.1, "γ at the start, 1 where it is 0 or less", common.number(float, -1, 10), record=ALWAYS
    )
    c: float = flag(100.0, "divides the learning rate of γ", common.number(float, 1), record=ALWAYS)
    input_norm: str = flag(
        "bn",
        "a BatchNorm in front, or the data set's mean and deviation",
        choices=("bn", "dataset"),
        record=ALWAYS,
    )
    seed: int = changed("seed", 1, "the records show the MD5-derived one that the authors use")
    epochs: int | None = changed("epochs", 180, "the schedule scales with it")
    val_fraction: float = changed("val_fraction", 0.1)
    weight_decay: float = changed("weight_decay", 1e-4, "on weights, not on biases, γ and β")
    augment: str | None = changed(
        "augment", None, "as ever (default flip; none for digits and MNIST)"
    )

    arch: str = "resnet"  # --network says it, with the depth
    depth: int | None = None
    width: int = 1
    train: str = "all"
    gamma_init: str = "uniform"  # --bn-weight says it
    beta_init: str = "zeros"
    weight_init: str = "he_normal"
    optimizer: str = "sgd"
    schedule: str = "cosine"
    warmup_epochs: int = 0


def run_davis_frank(args):
    data = common.load_data(args)
    model = build_davis_frank(args, data)
    # The authors train everything; the BatchNorm of their input has no β, ours keeps it at 0.
    common.freeze(model, all_but_inputs_beta)
    common.origin(model).called = "all"  # as the authors call it; freeze takes no word for a name
    return common.fit(model, data, args, recipe)


def build_davis_frank(args, data):
    model = common.build_model(args, data)  # He-normal convolutions; γ = bn_weight, β = 0
    start_linear_layers(model, args.seed)
    if args.input_norm == "bn":
        return normalise_input(model, data, float(args.bn_weight))
    if args.dataset == "cifar10":
        mean, std = CIFAR10
        data.mean_std = tuple(
            255 * torch.tensor(values, device=args.device) for values in (mean, std)
        )
    return model


@torch.no_grad()
def start_linear_layers(model, seed):
    """Weights U(±√(6 / fan in)), biases 0."""
    draw = common.generator(seed, "weights", epoch=1)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=draw)
            layer.bias.zero_()


@torch.no_grad()
def normalise_input(model, data, bn_weight):
    """A BatchNorm over the image's channels in front of the network: γ starts at 0.58 times the
    others', β stays 0; pixels come as 0 … 1."""
    channels, device = data.size[2], next(model.parameters()).device
    bn = nn.BatchNorm2d(channels).to(device)
    bn.weight.fill_(0.58 * bn_weight if bn_weight > 0 else 1)
    data.mean_std = (
        torch.zeros(channels, device=device),
        torch.full((channels,), 255.0, device=device),
    )
    return nn.Sequential(bn, model)


def all_but_inputs_beta(name, module, parameter):
    return name != "0.bias"


def recipe(model, args):
    """SGD in three groups: weights with weight decay; biases and β without; γ without, at the rate
    divided by c. Cosine to 1e-8, epoch by epoch."""
    gammas = {id(norm.weight) for norm in common.norms(model).values()}
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = [p for p in trained if p.dim() > 1]
    biases = [p for p in trained if p.dim() == 1 and id(p) not in gammas]
    slow = [p for p in trained if id(p) in gammas]
    groups = [
        {"params": weights, "weight_decay": args.weight_decay},
        {"params": biases},
        {"params": slow, "lr": args.lr / args.c},
    ]
    fused = args.device.type in ("cpu", "cuda")
    optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum, fused=fused)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs, eta_min=1e-8)
    return common.Recipe(optimizer, cosine, "cosine")


def complex_seed(seed):
    """The last 8 hexadecimal digits of the MD5 of the seed's decimal digits."""
    return int(hashlib.md5(str(seed).encode()).hexdigest()[-8:], 16)


def davis_frank(args):
    if not args.val_fraction:
        need = "the epoch to report is chosen on a validation split: give it a share above 0"
        raise common.UserError(f"--val-fraction 0: {need}")
    kind, depth = args.network.split("resnet")
    args = args.but(
        arch="resnet" if kind == "cifar_" else "imagenet_resnet",
        depth=int(depth),
        split_seed=complex_seed(0),
        augment=args.augment or ("flip" if args.dataset in common.AUGMENTED else "none"),
    )
    seeds, runs = [complex_seed(seed) for seed in args.varied["seed"]], []
    lists = [args.varied[key] for key in BASELINE]
    asked = [dict(zip(BASELINE, values, strict=True)) for values in itertools.product(*lists)]
    for setting in [BASELINE, *(setting for setting in asked if setting != BASELINE)]:
        gamma = setting["bn_weight"] if setting["bn_weight"] > 0 else 1
        runs += common.grid(
            args.but(**setting, gamma_init=start()(f"constant:{gamma}")), seed=seeds
        )
    code, outcomes = common.run_grid(runs, run_davis_frank)
    report_davis_frank(common.table_of(outcomes, best_by_validation))
    return code


def best_by_validation(rows):
    """The first epoch of the best validation accuracy."""
    return max(rows, key=lambda row: float(row["val_acc"]))


def report_davis_frank(rows):
    """Test accuracy at the first epoch of the best validation accuracy; the gain over the baseline,
    and its p-value over paired seeds."""
    from scipy.stats import ttest_rel

    print("\ntest accuracy in % at the best validation epoch, mean ± sample standard deviation")
    print("(seeds); one-sided paired t-test against the first line")
    keys = list(BASELINE)
    table = rows.pivot_table(index="seed", columns=keys, values="test_acc", sort=False)
    baseline = tuple(BASELINE.values())
    for setting in table:
        accuracies, gain = table[setting].dropna(), ""
        if baseline in table and setting != baseline:
            both = table[[setting, baseline]].dropna()
            significance = "too few seeds, or all differences are equal"
            if len(both) > 2 and (both[setting] - both[baseline]).nunique() > 1:
                test = ttest_rel(both[setting], both[baseline], alternative="greater")
                significance = f"p = {test.pvalue:.3g}"
            gain = f"{(both[setting] - both[baseline]).mean():+.2f}   {significance}"
        named = "bn_weight {:g}, c {:g}, input_norm {}".format(*setting)
        print(f"  {named:<38} {common.mean_and_deviation(accuracies):<20} {gain}")
    made = common.counted(len(table.columns) - 1, "comparison")
    print(f"  {made}: at p ≤ 0.05 about one in twenty is significant by chance")


# ----------------------------------------------------------------------------------------- Frankle


@dataclass
class Frankle(common.Settings):
    lists = {
        "depth": [None],
        "train": ["bn"],
        "gamma_init": ["uniform"],
        "beta_init": ["zeros"],
        "weight_init": ["he_normal"],
        "seed": [0],
    }


def run_frankle(args):
    data = common.load_data(args)
    model = common.build_model(args, data)  # starts as --gamma-init, --beta-init, --weight-init say
    common.freeze(model, args.train)
    return common.fit(model, data, args)


def frankle(args):
    code, outcomes = common.run_grid(common.grid(args), run_frankle)
    settings = ["depth", "train", "gamma_init", "beta_init", "weight_init"]
    for rows in common.tables_of(outcomes, args, *settings):
        print("\ntest accuracy in %, mean ± sample standard deviation (seeds)")
        for (depth, *starts), cell in rows.groupby(settings, sort=False, dropna=False):
            named = "{}, {}: γ {}, β {}, weights {}".format(common.shape_label(depth), *starts)
            print(f"  {named:<64} {common.accuracies(cell)}")
    return code


STUDIES = {"davis_frank": (davis_frank, DavisFrank), "frankle": (frankle, Frankle)}


def build(args, data):
    """The network of either study, for predict.py."""
    davis = hasattr(args, "bn_weight")
    return build_davis_frank(args, data) if davis else common.build_model(args, data)


def main(argv=None):
    return common.main_of(STUDIES, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
