"""Which runs are compared with which.

Runs that differ in the seed alone are a *cell*; runs that differ in the seed and in a few settings
that a table or figure varies are a *sweep*. The *recipe* is how a network is trained: epochs,
optimizer, schedule and so on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pandas as pd

from harness.runs import COLUMNS, COUNTS, MEASURES, OWN, WHERE
from harness.summaries import counted
from report.runs import START, USUAL, native_size

# The columns that are no settings: names, measurements, where and by which version a run was made.
NO_SETTINGS = ["run", "seed", *COUNTS, "epoch", *MEASURES, *WHERE, "status", "classes"]
NO_SETTINGS += ["script", "data"]
RECIPE = (
    "val_fraction augment epochs batch_size optimizer lr momentum weight_decay schedule"
    " warmup_epochs"
).split()
OF_TRIALS = "lr", "epochs", "val_fraction", "depth"  # in which a choice of rates differs from runs
OURS = ("bn_only", "random_params", "depth_width", "bn_init", "norms")  # they share their runs
APART = ("bn_init", "mlp_lenet", "mlp_lenet_tune")  # experiments that have tables of their own
RATES = (0.03, 0.1, 0.3)  # among which those of kinds of normalisation are chosen
# In the order of tables and legends.
TRAIN = "all all-bn bn+output bn+shortcut bn gamma beta shortcut output none".split()
NORMS = "bn gn:4 ln in rms calibrated none".split()
PAPERS = Path(__file__).with_name("published.csv")


def settings_of(runs: pd.DataFrame) -> list[str]:
    """The columns in which runs that are no repetitions of each other differ; `read_runs` has put
    what it adds, and measurements that it does not know, behind them."""
    columns = list(runs.columns)
    return [column for column in columns[: columns.index("record")] if column not in NO_SETTINGS]


def texts(settings):
    """A table or row of settings as text, to be compared: what is missing is empty."""
    return settings.astype(object).where(settings.notna(), "").astype(str)


def distinct(runs: pd.DataFrame) -> pd.DataFrame:
    """Each run once: where settings are equal, those of the scripts that share their runs are equal
    too, and have an empty `experiment`. One of this collection's scripts that was edited, and each
    of several versions of a user's, is an experiment of its own."""
    if runs.empty:
        return runs
    # `script`: the digest of a source that is not this collection's
    versions = runs.groupby("experiment").script.transform("nunique")
    edited = runs.script.notna() & ((versions > 1) | runs.experiment.isin([*OURS, *APART]))
    version = runs.experiment + " " + runs.script.astype(object).fillna("")
    runs = runs.assign(experiment=runs.experiment.mask(edited, version))
    ours = runs.experiment.isin(OURS) & runs.bn_weight.isna()
    runs = runs.assign(experiment=runs.experiment.mask(ours, ""))
    # of equal runs that which says most: a script may have measured more than another
    fullest = runs.notna().sum(axis=1).sort_values(ascending=False, kind="stable").index
    kept = runs.loc[fullest].drop_duplicates([*settings_of(runs), "seed"]).index
    return runs[runs.index.isin(kept)]


def of_users(runs: pd.DataFrame) -> pd.Series:
    """Whether a run's experiment is none of this collection."""
    return ~runs.experiment.isin(["", *APART])


def usual_start(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of this collection's own scripts, with BatchNorm, that start as the main paper's do."""
    return start_of_any_kind(runs[(runs.norm == "bn") & (runs.bn != "after")])


def start_of_any_kind(runs: pd.DataFrame) -> pd.DataFrame:
    """Those that start so, whatever the normalisation."""
    return with_papers_start(runs[runs.experiment == ""])


def by_place(runs: pd.DataFrame) -> pd.DataFrame:
    """ResNets of width 1 with BatchNorm, of which `bn` says whether it stands before the activation
    or after."""
    narrow = resnets(start_of_any_kind(runs[runs.norm == "bn"])).query("width == 1")
    return narrow.assign(bn=narrow.bn.astype(object).fillna("before"))


def with_papers_start(runs: pd.DataFrame) -> pd.DataFrame:
    """Those whose γ, β and weights start as the main paper's do."""
    for column, value in START.items():
        runs = runs[runs[column] == value]
    return runs


def without_trials(runs: pd.DataFrame) -> pd.DataFrame:
    """Those that are no trials of `exp_mlp_lenet.py --tune`, which has them in a table of its
    own."""
    return runs[runs.experiment != "mlp_lenet_tune"]


def entries(train: str) -> str:
    """K, where random:K is among the words of what was trained; else empty."""
    found = [word for word in train.split("+") if word.startswith("random:")]
    return found[0].removeprefix("random:") if found else ""


def beside_entries(train: str) -> str:
    """The words of what was trained without random:K: of random entries alone none."""
    return "+".join(word for word in train.split("+") if not word.startswith("random:"))


def with_entries(runs: pd.DataFrame) -> pd.Series:
    """Whether a run trains random entries, alone or beside something else."""
    return runs.train.map(entries) != ""


def random_sweep(runs: pd.DataFrame) -> pd.Series:
    """Those of `with_entries` that have a table and a figure of their own: all but random:2, which
    has as many parameters as BatchNorm and stands beside it."""
    return with_entries(runs) & (runs.train != "random:2")


def resnets(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[(runs.arch == "resnet") & runs.depth.notna() & runs.width.notna()]


def alone_by_depth(runs: pd.DataFrame) -> pd.DataFrame:
    """γ and β alone in ResNets of width 1, which start as the main paper's do."""
    return resnets(usual_start(runs)).query("width == 1 and train == 'bn'")


# ------------------------------------------------------------------------------------------ sweeps


def sweeps(runs: pd.DataFrame, *varied: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The title and the runs of each sweep over the settings `varied`. Where these include `train`,
    untrained networks (`none`), which have no recipe, stand beside the largest sweep of their kind,
    or for themselves. Where two titles would be equal they say what their sweeps differ in, but for
    `train`, which a table adds by itself."""
    if runs.empty:
        return
    shared = [column for column in settings_of(runs) if column not in varied]
    of_train = "train" in varied
    trained = runs[runs.train != "none"] if of_train else runs
    found = [sweep for _, sweep in trained.groupby(shared, dropna=False)]
    if of_train:
        found = with_untrained(found, runs[runs.train == "none"], shared)
    titles = [title(sweep, varied) for sweep in found]
    twins: dict[str, list[pd.Series]] = {}
    for about, sweep in zip(titles, found, strict=True):
        twins.setdefault(about, []).append(sweep.iloc[0])
    for about, sweep in zip(titles, found, strict=True):
        values = {column: {str(twin[column]) for twin in twins[about]} for column in shared}
        differ = [column for column in shared if len(values[column]) > 1 and column != "train"]
        own = [f"{column} {sweep.iloc[0][column]}" for column in differ]
        yield ", ".join([about, *own]), sweep


def with_untrained(
    found: list[pd.DataFrame], untrained: pd.DataFrame, shared: list[str]
) -> list[pd.DataFrame]:
    """The sweeps `found`, beside the largest of each network those that were left `untrained`, or
    these for themselves; once for each seed, whatever the number of epochs."""
    settings = [column for column in settings_of(untrained) if column not in RECIPE]
    untrained = untrained.sort_values("epochs", kind="stable")
    untrained = untrained.drop_duplicates([*settings, "seed"], keep="last")
    start = [column for column in shared if column not in RECIPE]
    networks = [tuple(texts(sweep.iloc[0][start])) for sweep in found]
    joined = list(found)
    for _, cell in untrained.groupby(start, dropna=False):
        network = tuple(texts(cell.iloc[0][start]))
        alike = [i for i, other in enumerate(networks) if other == network]
        largest = max((len(found[i]) for i in alike), default=0)
        for i in alike:
            if len(found[i]) == largest:
                joined[i] = pd.concat([found[i], cell])
        if not alike:
            joined.append(cell)
    return joined


def shared_settings(sweep: pd.DataFrame, *varied: str) -> tuple[str, ...]:
    """The settings that the runs of a sweep share, to be compared with those of another."""
    shared = [column for column in settings_of(sweep) if column not in varied]
    return tuple(texts(sweep.iloc[0][shared]))


def title(sweep: pd.DataFrame, varied: tuple[str, ...] = ()) -> str:
    """The settings that the runs of a sweep share, without those that are usual."""
    run = sweep.iloc[0]
    words = [run.dataset]
    if sweep.experiment.nunique() == 1 and of_users(sweep).all():
        words = [f"{run.experiment}: {run.dataset}"]
    if "depth" not in varied:
        words.append(network_label(run, "width" not in varied))
    else:
        if run.arch != "resnet":
            words.append(run.arch)
        if "width" not in varied and times_width(run.width):
            words.append(f"width {run.width:g}")
    words += [scaled_to(run), told("epochs", run.epochs)]
    if "precision" not in varied:
        words.append(told("precision", run.precision))
    own = [column for column in settings_of(sweep) if column not in (*COLUMNS, *USUAL)]
    for column in (*USUAL, *own):
        value = run[column]
        if column in (*varied, "hidden") or pd.isna(value) or value == USUAL.get(column):
            continue
        words.append(told(column, value))
    if run.augment != "none":
        words.append(run.augment)
    return ", ".join(filter(None, words))


def told(setting: str, value) -> str:
    if setting == "epochs":
        return counted(value, "epoch")
    if setting == "precision":
        return value
    return f"{setting} {value:g}" if isinstance(value, float) else f"{setting} {value}"


def scaled_to(run) -> str:
    """The size of images that were scaled, as a title says it; empty where they have their own."""
    native = native_size(run.dataset)
    scaled = native and run.image_size not in (native, "")
    return f"{run.image_size} pixels" if scaled else ""


def by_data(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The runs of each data set and size of its images, under a name that has the size where it is
    not the data set's own, or the most usual: cifar10, cifar10-16x16."""
    for dataset, of_dataset in runs.groupby("dataset"):
        usual = native_size(dataset) or of_dataset.image_size.mode()[0]
        for size, cell in of_dataset.groupby("image_size"):
            yield dataset if size == usual else f"{dataset}-{size}", cell


def cells(sweep: pd.DataFrame, *varied: str) -> Iterator[tuple]:
    """The values of `varied`, one or a tuple, and the runs of each cell; a network without a depth
    or width has NaN there."""
    by = varied[0] if len(varied) == 1 else list(varied)
    yield from sweep.groupby(by, dropna=False)


def labelled(sweep: pd.DataFrame) -> pd.DataFrame:
    """`sweep` with a column `label`: what was trained, as tables and legends call it. A user's
    experiment has its own name before it where there are others."""
    named = of_users(sweep) & (sweep.experiment.nunique() > 1)
    return sweep.assign(label=sweep.train.mask(named, sweep.experiment + ": " + sweep.train))


def differing(sweep: pd.DataFrame, *varied: str) -> list[str]:
    """The settings beside `varied` in which trained runs differ that are drawn in one figure."""
    trained = texts(sweep[sweep.train != "none"])
    settings = [c for c in settings_of(sweep) if c not in ("experiment", "train", *varied)]
    return [column for column in settings if trained[column].nunique() > 1]


def beside(runs: pd.DataFrame, sweep: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The label and the runs, of all depths, of each cell of a user's experiment with a network of
    its own that shares data set and recipe with `sweep`, which is of this collection's."""
    of_network = ("experiment", "arch", "depth", "width", "train", "hidden")
    shared = [c for c in settings_of(sweep) if c in COLUMNS and c not in of_network]
    others = runs[of_users(runs) & (runs.arch != sweep.arch.iloc[0])]
    recipe = sweep[sweep.train != "none"].iloc[:1]
    if recipe.empty or others.empty:
        return
    equal = texts(others[shared]).eq(texts(recipe[shared]).iloc[0]).all(axis=1)
    own = [column for column in settings_of(runs) if column not in COLUMNS]
    by = ["experiment", "arch", "width", "train", *own]
    for (experiment, arch, width, train, *values), cell in cells(others[equal], *by):
        pairs = zip(own, values, strict=True)
        words = [told(name, value) for name, value in pairs if is_said(name, value)]
        yield f"{experiment}: {', '.join([arch + times_width(width), train, *words])}", cell


def is_said(name: str, value) -> bool:
    """Whether a setting is told where runs are called by theirs: it is there, and not as usual."""
    return pd.notna(value) and value != USUAL.get(name)


def by_own_flags(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, those of users' experiments called by what flags of their own said, too: so they
    are rows of one table, where their recipe is the same."""
    own = [c for c in settings_of(runs) if c not in (*COLUMNS, *OWN, *USUAL)]
    users = of_users(runs)
    if not own or not users.any():
        return runs

    def called(run) -> str:
        said = [told(column, run[column]) for column in own if is_said(column, run[column])]
        return f"{run.experiment} ({', '.join(said)})" if said else run.experiment

    names = runs[users].apply(called, axis=1)
    blank = {column: runs[column].mask(users) for column in own}
    return runs.assign(experiment=runs.experiment.mask(users, names), **blank)


def by_start(sweep: pd.DataFrame) -> list[tuple[tuple, pd.DataFrame]]:
    """Each start of γ, β and the weights with its cell: the usual one, then those with another γ,
    β, weights."""

    def order(item: tuple[tuple, pd.DataFrame]) -> list[tuple]:
        pairs = zip(item[0], START.values(), strict=True)
        return [(value != usual, value) for value, usual in reversed(list(pairs))]

    return sorted(cells(sweep, *START), key=order)


def matched(sweep: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Pairs of cells in which γ and β alone are trained, deep ones of width 1 and wide ones of
    depth 14: with as many of these parameters, whose number rises with depth in steps of 448, or
    else the nearest with fewer, and the nearest with more."""
    bn = sweep[sweep.train == "bn"]
    for _, wide in cells(bn[(bn.depth == 14) & (bn.width > 1)], "width"):
        more = bn.params_trained - wide.params_trained.iloc[0]
        near = bn[(bn.width == 1) & (more.abs() < 448)]
        for _, deep in cells(near, "params_trained"):
            yield deep, wide


def methods(runs: pd.DataFrame) -> pd.Series:
    """What has a learning rate of its own, as a key: every setting but OF_TRIALS."""
    settings = [column for column in settings_of(runs) if column not in OF_TRIALS]
    keys = map(tuple, texts(runs[settings]).to_numpy())
    return pd.Series(list(keys), runs.index, dtype=object)


def at_chance(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs`, those that have diverged with the accuracies of guessing: where kinds or rates are
    compared, to leave them out would flatter what diverges more."""
    lost, chance = runs.status == "diverged", 100 / runs.classes
    validated = lost & (runs.val_fraction > 0)
    return runs.assign(
        test_acc=runs.test_acc.mask(lost, chance), val_acc=runs.val_acc.mask(validated, chance)
    )


def best_rates(runs: pd.DataFrame) -> dict[tuple, dict[float, float]]:
    """The learning rate of each method whose accuracy on a validation split, the mean over seeds,
    is the best, by how many epochs it was tried for; where several were, of the shallowest
    network. Of equally good ones it is the smallest: the last bits of a mean decide nothing."""
    trials = runs[(runs.val_fraction > 0) & runs.val_acc.notna()]
    chosen: dict[tuple, dict[float, float]] = {}
    for (method, epochs), tried in trials.groupby([methods(trials), "epochs"]):
        shallowest = tried[tried.depth == tried.depth.min()]
        accuracies = shallowest.groupby("lr").val_acc.mean()
        if len(accuracies) > 1:
            chosen.setdefault(method, {})[epochs] = accuracies.round(9).idxmax()
    return chosen


def at_own_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, trained on all images, of each method at its best rate, by trials of as many epochs
    or else by the longest; of a method whose rates were not compared, none."""
    chosen = best_rates(runs)
    finals = runs[runs.val_fraction == 0]
    rates = []
    for method, epochs in zip(methods(finals), finals.epochs, strict=True):
        by_length = chosen.get(method, {})
        longest = by_length.get(max(by_length, default=0))
        rates.append(by_length.get(epochs, longest))
    return finals[finals.lr == pd.Series(rates, finals.index, dtype=float)]


def of_kinds(runs: pd.DataFrame) -> pd.DataFrame:
    """ResNets of width 1 of which γ and β alone are trained, of any normalisation, `train` in one
    word for all: `norm`. A user's experiment, as a copy of exp_norms.py with a kind of its own, has
    its sweep for itself."""
    runs = resnets(with_papers_start(runs)).query("width == 1 and train in ('bn', 'norm')")
    return runs[~runs.experiment.isin(APART)].assign(train="norm")


def beside_another(kinds: pd.DataFrame) -> pd.DataFrame:
    """The `kinds` at depths at which another than BatchNorm was run, too; those of BatchNorm alone
    are in other tables."""
    return kinds[kinds.depth.isin(kinds.depth[kinds.norm != "bn"])]


def kinds_at_own_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """`of_kinds`, each at its best rate, by `by_equal_choice`."""
    return at_own_rate(by_equal_choice(of_kinds(runs)))


def by_equal_choice(kinds: pd.DataFrame) -> pd.DataFrame:
    """`kinds` of normalisation without trials at other rates than RATES, so that none has a wider
    choice than the others; of a kind that was not tried at several of these, all."""
    trials, usual = kinds.val_fraction > 0, kinds.lr.isin(RATES)
    tried = kinds.lr.where(trials & usual).groupby(methods(kinds)).transform("nunique")
    return kinds[~trials | usual | (tried < 2)]


def davis_frank_sweeps(runs: pd.DataFrame) -> Iterator[tuple]:
    """Of each recipe that Davis & Frank's method was run with: its title, its runs, the baseline
    (γ = 1 and c = 1) of each normalisation of the input, and the other settings of γ's start, c and
    the input with their cells."""
    settings = ["bn_weight", "c", "input_norm"]
    for name, sweep in sweeps(runs[runs.bn_weight.notna()], *settings, "gamma_init"):
        found = dict(list(sweep.groupby(settings, sort=False)))
        norms = [norm for start, c, norm in found if (start, c) == (1.0, 1.0)]
        baselines = {norm: found.pop((1.0, 1.0, norm)) for norm in norms}
        others = {setting: cell for setting, cell in found.items() if setting[2] in baselines}
        if others:
            in_order = sorted(others.items(), key=lambda item: (-item[0][0], *item[0][1:]))
            yield name, sweep, baselines, in_order


# ------------------------------------------------------------------------------------------- names


def network_label(run, width: bool = True) -> str:
    """The network as a reader calls it: ResNet-14, ResNet-14 x2 (without the factor where not
    `width`), vgg-16, LeNet-5, MLP 512-512-512."""
    if run.arch == "lenet5":
        return "LeNet-5"
    if run.arch == "mlp":
        return "MLP" if pd.isna(run.hidden) else f"MLP {run.hidden}"
    label = "ResNet" if run.arch == "resnet" else run.arch
    if pd.notna(run.depth):
        label += f"-{run.depth:g}"
    if width:
        label += times_width(run.width)
    return label


def times_width(width: float) -> str:
    return "" if pd.isna(width) or width == 1 else f" x{width:g}"


def rank(train: str) -> tuple:
    """The order of what is trained in tables and legends: the usual words, a user's, random:K by
    K."""
    position = TRAIN.index(train) if train in TRAIN else len(TRAIN)
    k = entries(train)
    if not k:
        return position, 0, train
    return position, int(k) if k.isdecimal() else math.inf, train


def kind_rank(norm: str) -> tuple[int, str]:
    """The order of normalisations in tables and legends."""
    return NORMS.index(norm) if norm in NORMS else len(NORMS), norm


def published_beside(run) -> pd.DataFrame:
    """The papers' accuracies on the data set of `run`; none where its images were scaled, since the
    papers' have all their pixels."""
    papers = published(run.dataset)
    return papers[:0] if scaled_to(run) else papers


def published_alone(dataset: str) -> pd.DataFrame:
    """The papers' accuracies of γ and β alone in a ResNet of width 1, at each depth."""
    return published(dataset).query("arch == 'resnet' and width == 1 and train == 'bn'")


def published(dataset: str, measure: str = "test_acc") -> pd.DataFrame:
    """The papers' figures on `dataset`, or on the data set of which it is a variant, as
    cifar10-jpeg is of cifar10. `measure`: test_acc or small_gammas, in percent, or params, a
    number."""
    table = all_published()
    names = {name for name in table.dataset if dataset == name or dataset.startswith(f"{name}-")}
    return table[(table.measure == measure) & table.dataset.isin(names)]


@cache
def all_published() -> pd.DataFrame:
    return pd.read_csv(PAPERS)
