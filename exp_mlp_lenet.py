"""Do γ and β learn as much in networks that are no ResNets? MLPs and LeNet-5, on images and on tables, with BatchNorm before or after the activation.

Left open by Böe et al. (2022), who trained BatchNorm's parameters alone in MLPs and LeNet on MNIST, and compared random parameters and all.

    python exp_mlp_lenet.py --dataset digits --epochs 20 --train bn output all                     # an MLP, seconds
    python exp_mlp_lenet.py --arch lenet5 --bn before after --train bn random:2 all --epochs 20    # MNIST
    python exp_mlp_lenet.py --dataset csv --data measurements.csv --target species --hidden 64 64
    python exp_mlp_lenet.py --dataset digits --tune 30 --epochs 20                                 # learning rate, batch size, weight decay, widths
"""
import copy
import itertools
import math
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import common  # before torch, which reads what it sets

import numpy as np
import torch
from torch import nn

PRESETS = {"lenet-300-100": [300, 100]}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
TABLES = ("breast_cancer", "wine", "csv")


# ------------------------------------------------------------------------------------------------------------- networks

def mlp(args, size, classes):
    """Linear layers of the widths --hidden, each with BatchNorm and the activation, and the output layer."""
    widths, layers = [math.prod(size), *map(int, args.own["hidden"].split("-"))], [nn.Flatten()]
    for inputs, outputs in zip(widths, widths[1:]):
        layers += normalised(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), args)
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def lenet5(args, size, classes):
    """LeCun et al. 1998, with max-pooling: 6 and 16 convolutions of 5x5, then 120 and 84 units."""
    height, width, channels = size
    features = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    return nn.Sequential(*normalised(nn.Conv2d(channels, 6, 5, padding=2), nn.BatchNorm2d(6), args), nn.MaxPool2d(2),
                         *normalised(nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16), args), nn.MaxPool2d(2), nn.Flatten(),
                         *normalised(nn.Linear(features, 120), nn.BatchNorm1d(120), args), *normalised(nn.Linear(120, 84), nn.BatchNorm1d(84), args),
                         nn.Linear(84, classes))


def normalised(layer, bn, args):
    """The layer and its activation, with BatchNorm before it, after it, or not at all."""
    activation = ACTIVATIONS[args.own["activation"]]()
    return {"before": [layer, bn, activation], "after": [layer, activation, bn], "none": [layer, activation]}[args.own["bn"]]


def network(args, size, classes):
    if args.arch == "lenet5" and min(size[:2]) < 12:
        raise common.UserError(f"--arch lenet5 needs images of 12x12 pixels, and these have {size[1]}x{size[0]}: add --image-size 28")
    return {"mlp": mlp, "lenet5": lenet5}[args.arch](args, size, classes)


# --------------------------------------------------------------------------------------------------------------- tables

@dataclass
class Table(common.Data):
    """A table on the device: for each split, `images` are float32 features (N, F)."""

    @cached_property
    def mean_std(self):
        features = self.images["train"]
        return features.mean(0), features.std(0).clamp(min=1e-6)

    def normalise(self, features):
        mean, std = self.mean_std
        return (features - mean) / std

    def training_batches(self, seed, epoch, batch_size, augment):
        order = torch.randperm(len(self.labels["train"]), generator=common.generator(seed, "order", epoch)).to(self.labels["train"].device)
        for i in map(common.share, common.split_batches(order, batch_size)):
            yield self.normalise(self.images["train"][i]), self.labels["train"][i]


def load_table(args):
    if args.dataset == "csv":
        features, labels, classes = read_csv(args.data, args.target)
    else:
        import sklearn.datasets
        table = getattr(sklearn.datasets, f"load_{args.dataset}")()
        features, labels, classes = table.data, table.target, list(map(str, table.target_names))
    features, labels = {"train": features.astype(np.float32)}, {"train": labels.astype(np.int64)}
    common.make_splits(features, labels, args)
    return Table(common.dataset_name(args), classes, common.on_device(features, args), common.on_device(labels, args))


def read_csv(path, target):
    """The numbers of a CSV file, and its classes: the column `target`, or the last."""
    import pandas as pd
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError, TypeError) as error:
        raise common.UserError(f"--data {path} cannot be read as a CSV file ({error}): name one whose first line names the columns") from None
    target = target or table.columns[-1]
    if target not in table:
        raise common.UserError(f"--target {target}: {path} has the columns {', '.join(map(str, table.columns))}")
    if (missing := table.columns[table.isna().any()]).size:
        raise common.UserError(f"{path} has missing values in {', '.join(map(str, missing[:5]))}: fill them in, or leave out those rows or columns")
    features = table.drop(columns=target)
    if (text := features.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in features.dtypes]]).size:
        raise common.UserError(f"{path} has text in {', '.join(map(str, text[:5]))}: make numbers of it, as pandas.get_dummies does, or leave it out")
    classes, labels = np.unique(table[target].astype(str), return_inverse=True)
    return features.to_numpy(), labels, list(classes)


# ------------------------------------------------------------------------------------------------------------------ runs

def load_data(args):
    return load_table(args) if args.dataset in TABLES else common.load_data(args)


def run(args):
    data = load_data(args)
    model = common.build_model(args, data)      # He-normal weights, γ ~ U[0, 1], β = 0
    common.freeze(model, args.train)
    return common.fit(model, data, args)


def compare(args):
    common.refuse(args, ["depth", "width"], "--hidden says how many layers an mlp has, and how wide they are")
    args.hidden, args.width = [width for widths in args.hidden for width in widths], 1
    args.depth = 5 if args.arch == "lenet5" else len(args.hidden) + 1
    if args.tune:
        return tune(args)
    runs = []
    for bn, train in itertools.product(args.bn, args.train):
        try:
            runs += combinations(args, bn, [train])
        except common.UserError:
            if bn != "none" or len(args.bn) == 1:  # without BatchNorm there is no γ to train beside the other choices
                raise
    code = common.run_grid(runs, run)
    if not args.dry_run:
        print("\ntest accuracy in %, mean ± sample standard deviation (seeds)")
        for (bn, train), here in common.last_rows(runs).groupby(["bn", "train"], sort=False):
            print(f"  BatchNorm {bn:<8} {train:<16} {common.mean_and_deviation(here.test_acc):<20} {here.params_trained.iloc[0]:,} trained")
    return code


def combinations(args, bn, trains):
    """The runs of every seed with BatchNorm before, after or without."""
    args.own = {"bn": bn, "activation": args.activation, "hidden": "-".join(map(str, args.hidden)) if args.arch == "mlp" else "", "target": args.target or ""}
    return common.grid(args, bn=[bn], train=trains, seed=args.seed)


def tune(args):
    """Optuna's trials, judged by the last epoch's accuracy on a validation split, never on the test set; they go on where an earlier start stopped."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise common.UserError("--tune needs Optuna: pip install optuna") from None
    if max(len(args.bn), len(args.train), len(args.seed)) > 1 or args.dry_run:
        raise common.UserError("--tune takes one --bn, one --train and one --seed, and no --dry-run")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    args.val_fraction, args.experiment = args.val_fraction or 0.2, "mlp_lenet_tune"  # trials are no runs to average
    bn, train, widths = args.bn[0], args.train[0], len(args.hidden)

    def settings(trial):
        chosen = {"lr": trial.suggest_float("lr", 1e-3, 1, log=True), "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
                  "batch_size": trial.suggest_categorical("batch_size", [32, 64, 128, 256, 512])}
        return chosen | ({"hidden": [trial.suggest_int(f"hidden{i}", 32, 1024, log=True) for i in range(widths)]} if args.arch == "mlp" else {})

    def the_run(**chosen):
        one = copy.copy(args)
        vars(one).update(chosen)
        return combinations(one, bn, [train])[0]

    untuned = the_run(lr=1, weight_decay=0, batch_size=1, hidden=[1] * widths)  # its name tells one study from another
    load_data(untuned)  # what is wrong with the data shows before there is a study
    folder = Path(args.results, args.experiment)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(direction="maximize", storage=f"sqlite:///{folder / 'tune.db'}", load_if_exists=True, study_name=common.run_name(untuned))
    complete, pruned, failed = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL
    done = len(study.get_trials(states=(complete, pruned)))
    with common.progress_bar(total=args.tune, initial=done, unit=" trials", disable=args.quiet) as progress:
        for number in range(done, args.tune):
            # a seed for each trial: one for the study would begin again with every start, and repeat its trials
            study.sampler = optuna.samplers.TPESampler(seed=int(np.random.SeedSequence([args.seed[0], number]).generate_state(1)[0]))
            one = the_run(**settings(trial := study.ask()))
            if run(one):
                study.tell(trial, state=pruned)  # diverged
            elif len(row := common.last_rows([one])):
                study.tell(trial, float(row.val_acc.iloc[0]))
            else:
                study.tell(trial, state=failed)  # the time limit stopped it: the next start finds its seed, and goes on with its run
                break
            progress.update()
    finished = study.get_trials(states=(complete,))
    if not finished:
        raise common.RunError("no trial has finished yet: the same command makes more")
    best = study.best_trial
    words = {key: value for key, value in best.params.items() if not key.startswith("hidden")}
    hidden = " ".join(str(best.params[f"hidden{i}"]) for i in range(widths)) if args.arch == "mlp" else ""
    print(f"\nbest of {len(finished)} trials: {best.value:.2f} % on the validation split, by\n  python exp_mlp_lenet.py --arch {args.arch} --dataset {args.dataset}"
          + "".join(f" --{flag.replace('_', '-')} {value}" for flag in ("data", "target", "subset", "image_size", "optimizer", "schedule") if (value := getattr(args, flag)))
          + f" --seed {args.seed[0]} --train {train} --bn {bn} --activation {args.activation}" + f" --hidden {hidden}" * bool(hidden)
          + "".join(f" --{key.replace('_', '-')} {value:.6g}" for key, value in words.items()) + f" --epochs {args.epochs or 160}")
    return 0


def units(text):
    """A type for argparse: the widths of a preset, or one width."""
    return PRESETS.get(text) or [common.number(int, 1)(text)]


def main(argv=None):
    parser = common.parser(__doc__, lists=("train", "seed"), archs=("mlp", "lenet5"), build=network, datasets=("mnist", "fashion_mnist", "digits", *TABLES))
    parser.add_argument("--hidden", nargs="+", type=units, default=[[512]] * 3, metavar="UNITS", help="widths of an mlp's hidden layers, or lenet-300-100 (default 512 512 512)")
    parser.add_argument("--bn", nargs="+", choices=["before", "after", "none"], default=["before"], help="where BatchNorm stands to the activation (default before)")
    parser.add_argument("--activation", choices=list(ACTIVATIONS), default="relu", help="default relu")
    parser.add_argument("--target", metavar="COLUMN", help="of a CSV file, the column of the classes (default the last)")
    parser.add_argument("--tune", type=common.number(int, 1), metavar="N", help="Optuna trials, N finished ones in all")
    parser.set_defaults(depth=None, width=None)
    return common.main(compare, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
