"""Where should γ, β and the weights start, and how fast should γ learn? Two studies.

davis_frank: J. Davis, L. Frank, "Revisiting Batch Norm Initialization", ECCV 2022, arXiv:2110.13989. Everything is trained; γ starts at a
constant below 1 (`--bn-weight`) and learns at the rate divided by `--c`. Ends with a paired t-test against γ = 1, c = 1.
frankle: Frankle, Schwab, Morcos, ICLR 2021, arXiv:2003.00152, appendix: γ and β alone are trained, from other starts of γ, β and the weights.

    python exp_bn_init.py davis_frank --dataset digits --network cifar_resnet14 --epochs 20 --seeds 1 2 3
    python exp_bn_init.py davis_frank --network resnet18 --bn-weight 1 0.1 --c 1 100 --input-norm dataset bn     # CIFAR-10, as in the paper
    python exp_bn_init.py frankle --dataset digits --gamma-init uniform ones symmetric --seeds 0 1 2 3 4
"""
import hashlib
import sys

import common  # before torch, which reads what it sets

import torch
from torch import nn

BASELINE = {"bn_weight": 1.0, "c": 1.0, "input_norm": "dataset"}
CIFAR10 = (0.4916, 0.4823, 0.4467), (0.2472, 0.2437, 0.2618)  # the authors' mean and standard deviation


# --------------------------------------------------------------------------------------------------------- Davis & Frank

def run_davis_frank(args):
    data = common.load_data(args)
    model = build_davis_frank(args, data)
    return common.fit(model, data, args, recipe=recipe)


def build_davis_frank(args, data):
    model = common.build_model(args, data)      # He-normal convolutions; γ = bn_weight, β = 0
    start_linear_layers(model, args.seed)
    if args.own["input_norm"] == "bn":
        return normalise_input(model, data, float(args.own["bn_weight"]))
    if args.dataset == "cifar10":
        data.mean_std = tuple(255 * torch.tensor(values, device=args.device) for values in CIFAR10)
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
    """A BatchNorm over the image's channels in front of the network: γ starts at 0.58 times the others', β stays 0; pixels come as 0 … 1."""
    channels, device = data.size[2], next(model.parameters()).device
    bn = nn.BatchNorm2d(channels).to(device)
    bn.weight.fill_(0.58 * bn_weight if bn_weight > 0 else 1)
    bn.bias.requires_grad_(False)
    data.mean_std = torch.zeros(channels, device=device), torch.full((channels,), 255.0, device=device)
    return nn.Sequential(bn, model)


def recipe(model, args):
    """SGD in three groups: weights with weight decay; biases and β without; γ without, at the rate divided by c. Cosine to 1e-8, epoch by epoch."""
    gammas = {id(bn.weight) for bn in common.batchnorms(model).values()}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.dim() > 1], "weight_decay": args.weight_decay},
              {"params": [p for p in trained if p.dim() == 1 and id(p) not in gammas]},
              {"params": [p for p in trained if id(p) in gammas], "lr": args.lr / args.own["c"]}]
    optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum, fused=args.device.type in ("cpu", "cuda"))
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs, eta_min=1e-8)


def complex_seed(seed):
    """The last 8 hexadecimal digits of the MD5 of the seed's decimal digits."""
    return int(hashlib.md5(str(seed).encode()).hexdigest()[-8:], 16)


OWN_RECIPE = {"arch": None, "depth": None, "gamma_init": None, "width": 1, "train": "all", "beta_init": "zeros", "weight_init": "he_normal",
              "optimizer": "sgd", "schedule": "cosine", "warmup_epochs": 0}


def davis_frank(args):
    common.refuse(args, OWN_RECIPE, "--network, --bn-weight, --c and --input-norm say what varies")
    if not args.val_fraction:
        raise common.UserError("--val-fraction 0: the epoch to report is chosen on a validation split: give it a share above 0")
    kind, depth = args.network.split("resnet")
    vars(args).update(OWN_RECIPE, arch="resnet" if kind == "cifar_" else "imagenet_resnet", split_seed=complex_seed(0))
    args.augment = args.augment or ("flip" if args.dataset in common.AUGMENTED else "none")
    settings = [{"bn_weight": b, "c": c, "input_norm": n} for b in args.bn_weight for c in args.c for n in args.input_norm]
    runs = []
    for own in [BASELINE, *(own for own in settings if own != BASELINE)]:
        args.own = own
        start = own["bn_weight"] if own["bn_weight"] > 0 else 1
        runs += common.grid(args, depth=[int(depth)], gamma_init=[f"constant:{start:g}"], seed=[complex_seed(seed) for seed in args.seed])
    code = common.run_grid(runs, run_davis_frank)
    if not args.dry_run:
        report_davis_frank(common.last_rows(runs, lambda rows: max(rows, key=lambda row: float(row["val_acc"]))))  # the first of the best
    return code


def report_davis_frank(rows):
    """Test accuracy at the first epoch of the best validation accuracy; the gain over the baseline, and its p-value over paired seeds."""
    from scipy.stats import ttest_rel
    print("\ntest accuracy in % at the best validation epoch, mean ± sample standard deviation (seeds); one-sided paired t-test against the first line")
    table = rows.astype({"bn_weight": float, "c": float}).pivot_table(index="seed", columns=list(BASELINE), values="test_acc", sort=False)
    baseline = table[tuple(BASELINE.values())] if tuple(BASELINE.values()) in table else None
    for setting in table:
        accuracies, gain = table[setting].dropna(), ""
        if baseline is not None and setting != tuple(BASELINE.values()):
            both = table[setting].notna() & baseline.notna()
            p = f"p = {ttest_rel(table[setting][both], baseline[both], alternative='greater').pvalue:.3g}" if both.sum() > 2 else "too few seeds"
            gain = f"{(table[setting] - baseline).mean():+.2f}   {p}"
        print("  {:<38} {:<20} {}".format("bn_weight {:g}, c {:g}, input_norm {}".format(*setting), common.mean_and_deviation(accuracies), gain))
    others = max(0, len(table.columns) - 1)
    print(f"  {others} comparison{'s' * (others != 1)}: at p ≤ 0.05 about one in twenty is significant by chance")


# --------------------------------------------------------------------------------------------------------------- Frankle

def run_frankle(args):
    data = common.load_data(args)
    model = common.build_model(args, data)      # γ, β and weights as --gamma-init, --beta-init and --weight-init say
    common.freeze(model, args.train)
    return common.fit(model, data, args)


def frankle(args):
    runs = common.grid(args, depth=args.depth, train=args.train, gamma_init=args.gamma_init, beta_init=args.beta_init, weight_init=args.weight_init, seed=args.seed)
    code = common.run_grid(runs, run_frankle)
    if not args.dry_run:
        print("\ntest accuracy in %, mean ± sample standard deviation (seeds)")
        for setting, here in common.last_rows(runs).groupby(["depth", "train", "gamma_init", "beta_init", "weight_init"], sort=False):
            print("  depth {}, {}: γ {}, β {}, weights {}".format(*setting).ljust(66), common.mean_and_deviation(here.test_acc))
    return code


def main(argv=None):
    parser = common.Parser(description=__doc__, formatter_class=common.argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.lists = True  # both studies are grids
    studies = parser.add_subparsers(dest="study", required=True, metavar="davis_frank | frankle")
    p = studies.add_parser("davis_frank", description="Defaults of its own: 180 epochs, --val-fraction 0.1, flips alone, weight decay on weights alone, "
                           "--seeds 1 … 15, of which the records show the MD5-derived seed that the authors use.", parents=[common.parser("", lists=("seed",))], add_help=False, allow_abbrev=False)
    p.add_argument("--network", default="resnet18", choices=["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "cifar_resnet14", "cifar_resnet32"],
                   help="default resnet18")
    p.add_argument("--bn-weight", type=common.number(float, -1, 10), nargs="+", default=[0.1], help="γ at the start, 1 where it is 0 or less (default 0.1)")
    p.add_argument("--c", type=common.number(float, 1), nargs="+", default=[100.0], help="divides the learning rate of γ (default 100)")
    p.add_argument("--input-norm", choices=["bn", "dataset"], nargs="+", default=["bn"], help="a BatchNorm in front, or the data set's mean and deviation")
    p.set_defaults(seed=list(range(1, 16)), val_fraction=0.1, epochs=180, function=davis_frank, **dict.fromkeys(OWN_RECIPE))
    for action in p._actions:
        if action.dest in OWN_RECIPE:
            action.help = common.argparse.SUPPRESS
    p = studies.add_parser("frankle", parents=[common.parser("", lists=("depth", "train", "gamma-init", "beta-init", "weight-init", "seed"))], add_help=False, allow_abbrev=False)
    p.set_defaults(function=frankle)
    return common.main(lambda args: args.function(args), parser, argv)


if __name__ == "__main__":
    sys.exit(main())
