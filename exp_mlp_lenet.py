"""Do γ and β learn as much in networks that are no ResNets? MLPs and LeNet-5, on images and on
tables, with BatchNorm before or after the activation.

Left open by Böe et al. (2022), who trained BatchNorm's parameters alone in MLPs and LeNet on MNIST,
and compared random parameters and all.

    python exp_mlp_lenet.py --dataset digits --epochs 20 --train bn output all    # an MLP, seconds
    python exp_mlp_lenet.py --arch lenet5 --bn before after --train bn random:2 all --epochs 20
    python exp_mlp_lenet.py --dataset csv --data measurements.csv --target species --hidden 64 64
    python exp_mlp_lenet.py --dataset digits --tune 30 --epochs 20    # rate, batch, decay, widths
"""

import importlib.util
import itertools
import math
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import common  # before torch, which reads what it sets
from common import ALWAYS, NEVER, UserError, changed, flag, number

import numpy as np
import torch
from torch import nn

from harness.dataset import TABLES

PRESETS = {"lenet-300-100": [300, 100]}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def units(text):
    """The widths of a preset, or one width."""
    return PRESETS.get(text) or [number(int, 1)(text)]


@dataclass
class Settings(common.Settings):
    lists = {"bn": ["before"], "train": ["bn"], "seed": [0]}

    arch: str = changed(
        "arch", "mlp", "an MLP, or LeNet-5 of LeCun et al.", choices=("mlp", "lenet5")
    )
    hidden: list = flag(
        [[512], [512], [512]],
        "widths of an mlp's hidden layers, or lenet-300-100 (default 512 512 512); of --tune it "
        "counts how many they are",
        units,
        metavar="UNITS",
        record=ALWAYS,
    )
    bn: str = flag(
        "before",
        "where BatchNorm stands to the activation",
        choices=("before", "after", "none"),
        record=ALWAYS,
    )
    activation: str = flag(
        "relu", "of every hidden layer", choices=tuple(ACTIVATIONS), record=ALWAYS
    )
    target: str = flag(
        "",
        "of a CSV file, the column of the classes (default the last)",
        metavar="COLUMN",
        record=ALWAYS,
    )
    tune: int | None = flag(
        None, "Optuna trials, N finished ones in all", number(int, 1), metavar="N", record=NEVER
    )
    dataset: str = changed(
        "dataset",
        "mnist",
        "digits and the first two tables need no download",
        choices=("mnist", "fashion_mnist", "digits", *TABLES),
    )

    depth: int | None = None  # --hidden says it
    width: int = 1


# ---------------------------------------------------------------------------------------- networks


def mlp(args, size, classes):
    """Linear layers of the widths --hidden, each with BatchNorm and the activation, and the output
    layer."""
    widths, layers = [math.prod(size), *args.hidden], [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += normalised(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), args)
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def lenet5(args, size, classes):
    """LeCun et al. 1998, with max-pooling: 6 and 16 convolutions of 5x5, then 120 and 84 units."""
    height, width, channels = size
    features = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    return nn.Sequential(
        *normalised(nn.Conv2d(channels, 6, 5, padding=2), nn.BatchNorm2d(6), args),
        nn.MaxPool2d(2),
        *normalised(nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16), args),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *normalised(nn.Linear(features, 120), nn.BatchNorm1d(120), args),
        *normalised(nn.Linear(120, 84), nn.BatchNorm1d(84), args),
        nn.Linear(84, classes),
    )


def normalised(layer, bn, args):
    """The layer and its activation, with BatchNorm before it, after it, or not at all."""
    activation = ACTIVATIONS[args.activation]()
    places = {"before": [layer, bn, activation], "after": [layer, activation, bn]}
    return places.get(args.bn, [layer, activation])


def network(args, size, classes):
    if args.arch == "lenet5" and len(size) < 3:
        raise UserError(f"--arch lenet5 needs images: {args.dataset} is a table, for --arch mlp")
    if args.arch == "lenet5" and min(size[:2]) < 12:
        have = f"these have {'x'.join(map(str, size[:2]))}: add --image-size 28"
        raise UserError(f"--arch lenet5 needs images of 12x12 pixels, and {have}")
    return {"mlp": mlp, "lenet5": lenet5}[args.arch](args, size, classes)


def build(args, data):
    return common.build_model(args, data, network)  # He-normal weights, γ ~ U[0, 1], β = 0


# ------------------------------------------------------------------------------------------ tables


class Table(common.Data):
    """A table on the device: for each split, `images` are float32 features (N, F)."""

    @cached_property
    def mean_std(self):
        features = self.images["train"].double()  # whatever unit the columns have
        deviation = features.std(0)
        deviation[features.amax(0) == features.amin(0)] = 1
        return features.mean(0), deviation

    def normalise(self, features):
        mean, std = self.mean_std
        return ((features - mean) / std).float()

    def training_batches(self, seed, epoch, batch_size, augment):
        labels = self.labels["train"]
        draw = common.generator(seed, "order", epoch)
        order = torch.randperm(len(labels), generator=draw).to(labels.device)
        for i in map(common.share, common.split_batches(order, batch_size)):
            yield self.normalise(self.images["train"][i]), labels[i]


def load_table(args):
    if args.dataset == "csv":
        features, labels, classes = read_csv(args.data, args.target)
    else:
        import sklearn.datasets

        table = getattr(sklearn.datasets, f"load_{args.dataset}")()
        features, labels, classes = table.data, table.target, list(map(str, table.target_names))
    features, labels = {"train": features.astype(np.float32)}, {"train": labels.astype(np.int64)}
    source = common.digest_of(features, labels)[:6] if args.dataset == "csv" else ""
    made_with = common.make_splits(features, labels, args)
    features, labels = (common.on_device(rows, args.device) for rows in (features, labels))
    return Table(common.dataset_name(args), classes, features, labels, source, made_with)


def read_csv(path, target):
    """The numbers of a CSV file, and its classes: the column `target`, or the last."""
    import pandas as pd

    if not path:
        raise UserError(
            "--dataset csv needs --data FILE, a CSV file whose first line names its columns"
        )
    try:
        table = pd.read_csv(path)
    except Exception as error:  # each compression that pandas reads has errors of its own
        instead = "name one whose first line names the columns"
        raise UserError(
            f"--data {path} cannot be read as a CSV file ({error}): {instead}"
        ) from None
    target = target or table.columns[-1]
    if target not in table:
        raise UserError(f"--target {target}: {path} has the columns {listed(table.columns)}")
    missing = table.columns[table.isna().any()]
    if len(missing):
        instead = "fill them in, or leave out those rows or columns"
        raise UserError(f"{path} has missing values in {listed(missing[:5])}: {instead}")
    features = table.drop(columns=target)
    if features.empty:
        instead = "name one with columns to learn from, and rows"
        raise UserError(f"{path} has nothing beside {target}: {instead}")
    text = [name for name in features if not pd.api.types.is_numeric_dtype(features[name])]
    if text:
        instead = "make numbers of it, as pandas.get_dummies does, or leave it out"
        raise UserError(f"{path} has text in {listed(text[:5])}: {instead}")
    infinite = [name for name in features if not np.isfinite(np.float32(features[name])).all()]
    if infinite:
        instead = "leave out those rows or columns, or take logarithms"
        raise UserError(f"{path} has numbers beyond 3e38 in {listed(infinite[:5])}: {instead}")
    exact = features.to_numpy(np.float64)
    rounded = np.abs(exact - exact.astype(np.float32)).max(0) > exact.std(0) / 100
    lost = features.columns[rounded & (exact.max(0) > exact.min(0))]
    if len(lost):
        instead = "subtract its mean, or give it another unit"
        raise UserError(f"{path} differs in {listed(lost)} by less than fp32 tells: {instead}")
    classes, labels = np.unique(table[target].astype(str), return_inverse=True)
    return features.to_numpy(), labels, list(classes)


def listed(names):
    return ", ".join(map(str, names))


# -------------------------------------------------------------------------------------------- runs


def load_data(args):
    return load_table(args) if args.dataset in TABLES else common.load_data(args)


def run(args):
    data = load_data(args)
    model = build(args, data)
    common.freeze(model, args.train)
    return common.fit(model, data, args)


def compare(args):
    if args.dataset in TABLES and (args.image_size or args.augment not in (None, "none")):
        raise UserError(f"--image-size and --augment are for images: {args.dataset} is a table")
    if args.target and args.dataset != "csv":
        raise UserError(f"--target is for --dataset csv: {args.dataset} knows its classes")
    args = of_shape(args, list(itertools.chain.from_iterable(args.hidden)))
    if args.tune:
        return tune(args)
    runs, pairs = [], list(places_and_words(args))
    args = args.but(varied=args.varied | {"bn": list(dict(pairs))})
    for bn, train in pairs:
        runs += common.grid(args, bn=[bn], train=[train], seed=args.varied["seed"])
    code, outcomes = common.run_grid(runs, run)
    for rows in common.tables_of(outcomes, args, "bn", "train"):
        report(rows)
    return code


def places_and_words(args):
    """BatchNorm's places and what is trained, but for γ and β where other places than none have
    them."""
    places = args.varied["bn"]
    for bn, train in itertools.product(places, args.varied["train"]):
        words = {word.removeprefix("all-") for word in train.split("+")}
        if bn == "none" and len(places) > 1 and words & {"bn", "norm", "gamma", "beta"}:
            note = f"note: without BatchNorm there is no γ: no --bn none --train {train}"
            print(note, file=sys.stderr)
        else:
            yield bn, train


def report(rows):
    print("\ntest accuracy in %, mean ± sample standard deviation (seeds)")
    for (bn, train), cell in rows.groupby(["bn", "train"], sort=False):
        accuracy, trained = common.accuracies(cell), cell.params_trained.iloc[0]
        print(f"  BatchNorm {bn:<8} {train:<16} {accuracy} {trained:,} trained")


def of_shape(args, hidden):
    if args.arch == "lenet5":
        if "hidden" in args.given:
            raise UserError("--hidden is of --arch mlp: leave it out with lenet5")
        return args.but(hidden=[], depth=5)
    return args.but(hidden=hidden, depth=len(hidden) + 1)


def tune(args):
    """Optuna's trials, judged by the last epoch's accuracy on a validation split, never on the test
    set; they go on where an earlier start stopped."""
    check_tuning(args)
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    quiet, args = args.quiet, of_trials(args)
    study = study_of(args)
    done = len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))
    options = {"initial": done, "unit": " trials", "disable": quiet}
    with common.progress_bar(total=args.tune, **options) as progress:
        for trial_number in range(done, args.tune):
            # a seed for each trial: one for the study would begin again with every start
            drawn = np.random.SeedSequence([args.seed, trial_number]).generate_state(1)[0]
            study.sampler = TPESampler(seed=int(drawn))
            trial = study.ask()
            outcome = run(suggested(args, trial))
            if outcome.diverged:
                study.tell(trial, state=TrialState.PRUNED)
            elif outcome.finished:
                study.tell(trial, float(outcome.rows[-1]["val_acc"]))
            else:
                study.tell(trial, state=TrialState.FAIL)  # the next start goes on with it
                break
            progress.update()
    report_tuned(args, study)
    return 0


def check_tuning(args):
    """Raises UserError without Optuna, and for what trials have no part for."""
    if not importlib.util.find_spec("optuna"):
        raise UserError("--tune needs Optuna: pip install optuna")
    if max(map(len, args.varied.values())) > 1 or args.dry_run:
        raise UserError("--tune takes one --bn, one --train and one --seed, and no --dry-run")
    for name in ("lr", "weight_decay", "batch_size"):
        if name in args.given:
            raise UserError(f"--tune chooses --{name.replace('_', '-')} itself: leave it out")
    if "val_fraction" in args.given and not args.val_fraction:
        raise UserError("--tune judges by a validation split: give --val-fraction above 0")


def of_trials(args):
    """The settings that all trials share. They are an experiment of their own: no runs to average
    with others."""
    one = {key: values[0] for key, values in args.varied.items()}
    process = replace(args.process, called="mlp_lenet_tune")
    return args.but(**one, process=process, val_fraction=args.val_fraction or 0.2, quiet=True)


def suggested(args, trial):
    """The settings of a trial."""
    chosen = {
        "lr": trial.suggest_float("lr", 1e-3, 1, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [32, 64, 128, 256, 512]),
    }
    layers = range(len(args.hidden))
    hidden = [trial.suggest_int(f"hidden{i}", 32, 1024, log=True) for i in layers]
    return common.resolved(of_shape(args, hidden).but(**chosen))


def study_of(args):
    """Optuna's study of these settings, in results/mlp_lenet_tune/tune.db. Raises RunError where
    that is no file of Optuna's."""
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # its name is that of a run in which what trials choose is the same for all
    untuned = of_shape(args, [1] * len(args.hidden)).but(lr=1, weight_decay=0, batch_size=1)
    untuned = common.resolved(untuned)
    source = load_data(untuned).source  # of a file, which may change between two starts
    path = Path(args.results, args.process.experiment, "tune.db")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return optuna.create_study(
            direction="maximize",
            storage=f"sqlite:///{path}",
            load_if_exists=True,
            study_name=f"{common.name_run(untuned).run} {source}".strip(),
        )
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        why = str(getattr(error, "orig", None) or error).splitlines()[0]
        instead = "move it away, and the trials begin again"
        raise common.RunError(f"{path} cannot be used ({why}): {instead}") from None


def report_tuned(args, study):
    """The best trial, and the command that makes its run with several seeds."""
    finished = [trial for trial in study.trials if trial.value is not None]
    if not finished:
        raise common.RunError("no trial has finished yet: the same command makes more")
    best = study.best_trial
    print(f"\nbest of {len(finished)} trials: {best.value:.2f} % on the validation split")
    chosen = {key: best.params[key] for key in ("lr", "weight_decay", "batch_size")}
    hidden = [best.params[f"hidden{i}"] for i in range(len(args.hidden))]
    shape = {"hidden": hidden} if args.arch == "mlp" else {}
    others = {"seed": [0, 1, 2, 3, 4], "tune": None, "val_fraction": None, "quiet": None}
    following = common.command(args, **chosen, **shape, **others)
    for key, value in chosen.items():
        print(f"  {key:<14} {value:.6g}")
    if args.arch == "mlp":
        print(f"  hidden         {' '.join(map(str, hidden))}")
    print(f"  next           {following}")


def main(argv=None):
    return common.main(compare, Settings, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
