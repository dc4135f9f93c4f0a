"""The tables that plots.py makes, all but the claims. A new one is one function:

@table("exp_bn_only.py --dataset digits")
def best_seed(runs):
    \"\"\"What stands above the table.\"\"\"
    for title, sweep in sweeps(runs, "train"):
        yield Table(title, [{"trained": ..., "test accuracy (%)": ...}, ...])"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.config import SCHEDULES
from harness.summaries import counted, depth_label, rounded
from report.features import (
    change_by_pruning,
    dead_among_small,
    distance,
    share_of_dead,
    share_of_small_gammas,
    shrinking_of_dead,
    shrinking_of_living,
    small_among_dead,
    small_among_living,
    small_before_relu,
)
from report.registry import table
from report.runs import START
from report.stats import (
    ACCURACY,
    Difference,
    Mean,
    SmallMean,
    last_accuracy,
    one_sample,
    p_text,
    p_values,
    paired,
    signed,
    validation_accuracy,
)
from report.sweeps import (
    alone_by_depth,
    at_chance,
    at_own_rate,
    beside,
    beside_another,
    beside_entries,
    by_own_flags,
    by_place,
    by_start,
    cells,
    davis_frank_sweeps,
    kind_rank,
    kinds_at_own_rate,
    labelled,
    matched,
    network_label,
    of_kinds,
    of_users,
    published,
    published_alone,
    published_beside,
    random_sweep,
    rank,
    resnets,
    sweeps,
    times_width,
    usual_start,
    with_entries,
    with_papers_start,
    without_trials,
)


class Table(NamedTuple):
    """Rows, as dictionaries, under a title, which says what `titled` names. Where `across` names a
    column, its values become columns, in the order of `columns`, and show `value`."""

    title: str
    rows: list[dict]
    across: str = ""
    value: str = ACCURACY
    columns: list | tuple = ()
    note: str = ""
    titled: str = "recipe"

    def shown(self) -> pd.DataFrame:
        """As a reader sees it: everything is text, what is missing is empty."""
        table = pd.DataFrame(self.rows)
        if self.across:
            index = [column for column in table if column not in (self.across, self.value)]
            order = table[index].drop_duplicates()
            table = table.pivot(index=index, columns=self.across, values=self.value)
            one = len(index) == 1
            table = table.reindex(order[index[0]] if one else pd.MultiIndex.from_frame(order))
            table = table[[column for column in self.columns if column in table]]
            table = table.rename_axis(columns=None).reset_index()
        return table.map(cell_text)

    def flat(self) -> pd.DataFrame:
        """As a program reads it: a column for each part of a mean or a difference."""
        rows = []
        for row in self.rows:
            parts = {self.titled: self.title}
            for key, value in row.items():
                if isinstance(value, Mean | Difference):
                    parts |= {f"{key}: {part}": x for part, x in value._asdict().items()}
                else:
                    parts[key] = value
            rows.append(parts)
        return pd.DataFrame(rows)


def cell_text(value) -> str:
    if isinstance(value, str | tuple):
        return str(value)
    if value is None or value != value:  # NaN
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def trained_parameters(cell: pd.DataFrame) -> int | None:
    return count(cell.params_trained.iloc[0])


def count(number: float) -> int | None:
    """None where a run's record does not say it."""
    return None if pd.isna(number) else int(number)


# ------------------------------------------------------------------------------ what can be trained


@table("exp_bn_only.py --dataset digits")
def parameters(runs):
    """How many parameters each choice trains, and all there are."""
    shown = runs[((runs.experiment == "") | of_users(runs)) & ~random_sweep(runs)]
    for dataset, of_dataset in shown.groupby("dataset"):
        rows, papers, of_dataset = [], published(dataset, "params"), labelled(of_dataset)
        shape = ("arch", "width", "depth", "hidden")
        totals = of_dataset.groupby(list(shape), dropna=False).params_total.transform("nunique")
        of_dataset = of_dataset.assign(several=totals > 1)
        for (arch, width, depth, *_), of_network in cells(of_dataset, *shape, "params_total"):
            network = network_label(of_network.iloc[0])
            if of_network.several.iloc[0]:  # as an MLP's of images of several sizes
                network += f", {of_network.params_total.iloc[0]:,} in all"
            counts = of_network.drop_duplicates("label").set_index("label").params_trained.to_dict()
            counts["all"] = of_network.params_total.iloc[0]
            for train, number in counts.items():
                if number > 0:
                    rows.append(parameter_row(network, "ours", train, number))
            theirs = papers[(papers.arch == arch) & (papers.width == width)]
            theirs = theirs[(theirs.depth == depth) & theirs.train.isin(list(counts))]
            for paper in theirs.itertuples():
                source = f"{paper.source}, {paper.dataset}"
                number = f"about {paper.value:,.0f}" if paper.note == "rounded" else paper.value
                rows.append(parameter_row(network, source, paper.train, number))
        if rows:
            columns = sorted({row["trained"] for row in rows}, key=rank)
            yield Table(dataset, rows, across="trained", value="parameters", columns=columns)


def parameter_row(network: str, source: str, train: str, number: float | str) -> dict:
    return {"network": network, "source": source, "trained": train, "parameters": number}


@table("exp_bn_only.py --dataset digits")
def accuracy(runs):
    """Per --train and depth, a table for each width, beside the published figures and the
    difference to them."""
    shown = by_own_flags(pd.concat([usual_start(runs), runs[of_users(runs)]]))
    shown = shown[~random_sweep(shown)]
    found = sweeps(shown, "experiment", "depth", "train")
    for title, sweep in sorted(found, key=lambda item: main_first(item[1])):
        sweep = labelled(sweep)
        first = sweep.iloc[0]
        papers = published_beside(first)
        papers = papers[(papers.arch == first.arch) & (papers.width == first.width)]
        papers = papers[papers.train.isin(list(sweep.label))]
        rows, depths = [], {*sweep.depth.dropna(), *papers.depth}
        for label in sorted(set(sweep.label), key=rank):
            trained = sweep[sweep.label == label]
            ours = by_depth(trained)
            rows += accuracy_rows(ours, trained=label, source="ours")
            of_label = papers[papers.train == label]
            for source, points in of_label.groupby(of_label.source + ", " + of_label.dataset):
                theirs = dict(zip(points.depth, points.value, strict=True))
                rows += accuracy_rows(as_published(points), trained=label, source=source)
                both = [depth for depth in ours if depth in theirs]
                gaps = {depth: signed(ours[depth].mean - theirs[depth], 1) for depth in both}
                rows += accuracy_rows(gaps, trained=label, source=f"ours − {source}")
        if not of_users(sweep).all():
            for label, cell in beside(runs, sweep):
                rows += accuracy_rows(by_depth(cell), trained=label, source="ours")
                depths |= set(cell.depth.dropna())
        columns = [*map(depth_label, sorted(depths)), depth_label(math.nan)]
        yield Table(title, rows, across="depth", columns=columns)


def main_first(sweep: pd.DataFrame) -> tuple:
    """The order of a data set's recipes: the longest, then that of the most runs."""
    return sweep.dataset.iloc[0], -sweep.epochs.max(), -len(sweep)


def by_depth(runs: pd.DataFrame) -> dict[float, Mean]:
    return {depth: Mean.of(cell) for depth, cell in cells(runs, "depth")}


def accuracy_rows(accuracies: dict, **row) -> list[dict]:
    """Of accuracies by depth, beside what else `row` says."""
    return [row | {"depth": depth_label(d), ACCURACY: value} for d, value in accuracies.items()]


def as_published(points: pd.DataFrame) -> dict:
    """Figures by depth, "about" where the paper has no more."""
    about = points.note.fillna("").str.startswith("about")
    values = [f"about {v:g}" if a else v for v, a in zip(points.value, about, strict=True)]
    return dict(zip(points.depth, values, strict=True))


@table("exp_depth_width.py --dataset digits --widths 1")
def depths(runs):
    """γ and β alone by depth: a row for each size of the images and recipe that several depths
    have, beside the published figures."""
    for dataset, of_dataset in alone_by_depth(runs).groupby("dataset"):
        rows, shown = [], set()
        for title, sweep in sorted(sweeps(of_dataset, "depth"), key=lambda item: -len(item[1])):
            if sweep.depth.nunique() > 1:
                means, recipe = by_depth(sweep), title.removeprefix(f"{dataset}, ")
                rows += accuracy_rows(means, source=f"ours, {recipe}")
                shown |= set(means)
        if rows:
            papers = published_alone(dataset)
            for source, points in papers.groupby(papers.source + ", " + papers.dataset):
                rows += accuracy_rows(as_published(points), source=source)
            columns = list(map(depth_label, sorted({*shown, *papers.depth})))
            yield Table(dataset, rows, across="depth", columns=columns, titled="data set")


@table("exp_bn_only.py --dataset digits --train all")
def against_bn(runs):
    """γ and β alone against every other choice of trained parameters: bn − it."""
    shown = usual_start(runs)
    for title, sweep in sweeps(shown[~random_sweep(shown)], "depth", "width", "train"):
        rows = []
        for (width, depth), of_shape in cells(sweep, "width", "depth"):
            bn = of_shape[of_shape.train == "bn"]
            shape = depth_label(depth) + times_width(width)
            for train, cell in cells(of_shape[of_shape.train != "bn"], "train"):
                difference = paired(bn, cell)
                if difference:
                    rows.append({"trained": train, "shape": shape, "bn − it": difference})
        if rows:
            columns = list(dict.fromkeys(row["shape"] for row in rows))
            rows.sort(key=lambda row: rank(row["trained"]))
            yield Table(title, rows, across="shape", value="bn − it", columns=columns)


@table("exp_random_params.py --dataset digits --seeds 0 1 2 3 4")
def random_params(runs):
    """BatchNorm's γ and β against K randomly chosen parameters of each channel; K = 2 is as
    many. Where something else is trained with these it is with γ and β, too."""
    for title, sweep in sweeps(usual_start(runs), "train"):
        swept = sweep[with_entries(sweep)]
        for also, cell in swept.groupby(swept.train.map(beside_entries)):
            name = also if "bn" in also.split("+") else f"bn+{also}".removesuffix("+")
            with_it = f"{title}, with {also}" if also else title
            yield against_random(with_it, name, sweep[sweep.train == name], cell)


def against_random(title: str, name: str, bn: pd.DataFrame, swept: pd.DataFrame) -> Table:
    """What is trained with γ and β, called `name`, against the same with random entries."""
    rows, better = [], []
    if len(bn):
        rows.append({"trained": name, "parameters": trained_parameters(bn), ACCURACY: Mean.of(bn)})
    for train, cell in sorted(swept.groupby("train"), key=lambda item: rank(item[0])):
        difference = paired(bn, cell)
        if difference and difference.mean < 0:
            better.append(train)
        row = {"trained": train, "parameters": trained_parameters(cell)}
        rows.append(row | {ACCURACY: Mean.of(cell), f"{name} − it": difference})
    note = ""
    if better:
        note = f"The smallest K whose mean overtakes {name}: {better[0]}."
    elif len(bn):
        note = f"None of these overtakes {name}."
    return Table(title, rows, note=note)


@table("exp_bn_only.py --dataset digits --train all")
def features(runs):
    """What becomes of the features: percent of all γ that are small, |γ| < 0.01; and, of the
    channels that a ReLU follows, which are all but the shortcuts', percent with a small γ; percent
    dead, active on less than 1 % of the test activations; dead of those with a small γ; with a
    small γ of the dead and of the living; by how many points the accuracy changes when small γ are
    set to zero."""
    columns = {
        "small at the start": partial(share_of_small_gammas, when="gamma_init"),
        "small": share_of_small_gammas,
        "small, ReLU": small_before_relu,
        "dead": share_of_dead,
        "dead, of the small": dead_among_small,
        "small, of the dead": small_among_dead,
        "small, of the living": small_among_living,
    }
    shown = {name: partial(Mean.of, value=value) for name, value in columns.items()}
    shown["change by pruning"] = partial(one_sample, value=change_by_pruning)
    yield from tables_of_channels(runs, shown)


def tables_of_channels(runs: pd.DataFrame, columns: dict[str, Callable]) -> Iterator[Table]:
    """Of each sweep of ResNets of which γ and β were kept, the most important first: what `columns`
    say of the runs of each network and of what was trained."""
    alike = resnets(usual_start(runs))
    kept = alike[[record.table("channels") is not None for record in alike.record]]
    found = sweeps(kept, "depth", "width", "train")
    for title, sweep in sorted(found, key=lambda item: main_first(item[1])):
        rows = []
        for (width, depth, train), cell in cells(sweep, "width", "depth", "train"):
            row = {"trained": train, "network": depth_label(depth) + times_width(width)}
            rows.append(row | {name: of(cell) for name, of in columns.items()})
        rows.sort(key=lambda row: rank(row["trained"]))
        yield Table(title, rows)


@table("exp_bn_only.py --dataset digits --train all")
def movement(runs):
    """How far γ and β move: the mean distance of their last values from their first, γ ~ U[0, 1]
    and β = 0, over all channels; and, over the channels that a ReLU follows, the median of |γ| as a
    share of its start, of those that are dead at the end (active on less than 1 % of the test
    activations) and of the living."""
    columns = {
        "γ": partial(distance, which="gamma"),
        "β": partial(distance, which="beta"),
        "|γ| / start, dead": shrinking_of_dead,
        "|γ| / start, living": shrinking_of_living,
    }
    shown = {name: partial(SmallMean.of, value=value) for name, value in columns.items()}
    moving = runs[runs.train.isin(["all", "bn", "gamma", "beta"])]
    yield from tables_of_channels(moving, shown)


@table("exp_depth_width.py --dataset digits --seeds 0 1 2 3 4")
def depth_width(runs):
    """Every depth at width 1 and every width at depth 14; then networks with as many BatchNorm
    parameters, deep against wide."""
    for title, sweep in sweeps(resnets(usual_start(runs)), "depth", "width"):
        if sweep.width.max() == 1:
            continue
        title = f"{title}, {sweep.train.iloc[0]}"
        rows = []
        for (width, depth), cell in cells(sweep, "width", "depth"):
            row = {"depth": depth, "width": width, "parameters": trained_parameters(cell)}
            rows.append(row | {ACCURACY: Mean.of(cell)})
        yield Table(title, rows)
        rows = []
        for deep, wide in matched(sweep):
            row = {
                "deep": f"depth {deep.depth.iloc[0]:g}",
                "wide": f"width {wide.width.iloc[0]:g}, depth {wide.depth.iloc[0]:g}",
                "parameters, deep": trained_parameters(deep),
                "parameters, wide": trained_parameters(wide),
                "deep − wide": paired(deep, wide),
            }
            rows.append(row)
        if rows:
            yield Table(f"{title}, matched", rows)


@table("exp_depth_width.py --dataset digits --seeds 0 1 2 3 4")
def power_law(runs):
    """The test error, 100 − accuracy, of γ and β alone as a power of their number, by depth and by
    width: the exponent, fitted for each seed to the same three sizes or more."""
    alone = resnets(usual_start(runs)).query("train == 'bn' and test_acc < 100")
    for title, sweep in sweeps(alone, "depth", "width"):
        rows = []
        shapes = {"depth, at width 1": sweep.width == 1, "width, at depth 14": sweep.depth == 14}
        for by, of_shape in shapes.items():
            errors = 100 - sweep[of_shape].pivot_table("test_acc", "seed", "params_trained")
            made = {tuple(of_seed.dropna().index) for _, of_seed in errors.iterrows()}
            for sizes in sorted(sizes for sizes in made if len(sizes) > 2):
                exponent = Difference.of(exponents(errors[list(sizes)].dropna()))
                row = {"by": by, "parameters": f"{sizes[0]:,.0f} to {sizes[-1]:,.0f}"}
                row |= {"sizes": len(sizes), "seeds": exponent.pairs, "exponent": exponent}
                rows.append(row)
        if rows:
            yield Table(title, rows)


def exponents(errors: pd.DataFrame) -> pd.Series:
    """Of the power law of each row, whose columns are numbers of parameters."""
    logs = np.log(errors.columns.to_numpy(float)), np.log(errors.T.to_numpy())
    return pd.Series(np.polyfit(*logs, 1)[0], errors.index)


@table("exp_norms.py --dataset digits --seeds 0 1 2 3 4", source="diverged")
def norms(runs):
    """γ and β of BatchNorm, of other normalisations and of none (γx + β), alone trained, by depth,
    where another kind than BatchNorm was run, and learning rate; of runs with a validation split
    the accuracy there; and what has diverged."""
    for title, sweep in sweeps(of_kinds(runs), "norm", "lr", "depth"):
        if sweep.norm.nunique() < 2:
            continue
        sweep, rows = beside_another(sweep), []
        for (kind, rate), of_kind in cells(sweep, "norm", "lr"):
            for depth, cell in cells(of_kind, "depth"):
                row = {"normalisation": kind, "learning rate": rate, "depth": depth_label(depth)}
                rows.append(row | {ACCURACY: reached(cell)})
        rows.sort(key=lambda row: (kind_rank(row["normalisation"]), row["learning rate"]))
        columns = [depth_label(depth) for depth in sorted(sweep.depth.unique())]
        yield Table(title, rows, across="depth", columns=columns)


@table(
    "exp_norms.py --dataset digits --lr 0.03 0.1 0.3 --val-fraction 0.2 --seeds 0 1 2",
    source="diverged",
)
def behind_bn(runs):
    """How far γ and β of other normalisations, and of none, are behind BatchNorm's, by depth, each
    at the learning rate that was best on a validation split, of 0.03, 0.1 and 0.3 where these were
    tried (claim 12); what diverged counts as chance."""
    found = sweeps(kinds_at_own_rate(at_chance(runs)), "norm", "lr", "depth")
    for title, sweep in sorted(found, key=lambda item: main_first(item[1])):
        of_bn, others = sweep[sweep.norm == "bn"], sweep[sweep.norm != "bn"]
        bn, rows = dict(list(cells(of_bn, "depth"))), []
        for (kind, rate, depth), cell in cells(others, "norm", "lr", "depth"):
            difference = paired(bn.get(depth), cell)
            if difference:
                row = {"normalisation": kind, "learning rate": rate, "depth": depth_label(depth)}
                rows.append(row | {"bn − it": difference})
        if rows:
            rows.sort(key=lambda row: kind_rank(row["normalisation"]))
            title = f"{title}, BatchNorm's learning rate {of_bn.lr.iloc[0]:g}"
            columns = [depth_label(depth) for depth in sorted(others.depth.unique())]
            yield Table(title, rows, across="depth", value="bn − it", columns=columns)


def reached(cell: pd.DataFrame) -> Mean | str:
    """The test accuracy; of runs with a validation split, which choose a rate, that one; and how
    many runs have diverged."""
    ended = cell[cell.status != "diverged"]
    lost = len(cell) - len(ended)
    if ended.empty:
        return f"diverged ({lost})"
    if ended.val_acc.isna().any():
        mean = Mean.of(ended)
    else:
        mean = f"validation {rounded(ended.val_acc.mean(), 1)} ({len(ended)})"
    return f"{mean}, diverged ({lost})" if lost else mean


@table(
    "exp_norms.py --dataset digits --norm bn --train norm random:2 --lr 0.1 1 --val-fraction 0.2",
    source="diverged",
)
def rates(runs):
    """The accuracy on a validation split at each learning rate that was tried, by which what is
    trained has a rate of its own (claims 15 and 16); what diverged counts as chance."""
    trials = without_trials(runs[(runs.val_fraction > 0) & runs.val_acc.notna()])
    trials = trials[trials.arch.isin(["resnet", "mlp"]) & (trials.norm == "bn")]
    for title, sweep in sweeps(at_chance(trials), "train", "lr"):
        if sweep.lr.nunique() < 2:
            continue
        rows = []
        for (train, rate), cell in cells(sweep, "train", "lr"):
            row = {"trained": train, "learning rate": rate}
            rows.append(row | {"validation accuracy (%)": Mean.of(cell, validation_accuracy)})
        rows.sort(key=lambda row: (rank(row["trained"]), row["learning rate"]))
        yield Table(title, rows)


@table(
    "exp_norms.py --dataset digits --batch-size 1 --epochs 20 --seeds 0 1 2",
    source="diverged",
)
def batch_sizes(runs):
    """γ and β alone, by kind of normalisation and size of batch, each at the learning rate that was
    best on a validation split, where what diverged counts as chance; and what has diverged."""
    kinds = at_own_rate(at_chance(of_kinds(runs)))
    for title, sweep in sweeps(kinds, "norm", "lr", "batch_size"):
        if sweep.batch_size.nunique() < 2:
            continue
        rows = []
        for (size, kind), cell in cells(sweep, "batch_size", "norm"):
            row = {"batch size": int(size), "normalisation": kind}
            rows.append(row | {"learning rate": cell.lr.iloc[0], ACCURACY: reached(cell)})
        rows.sort(key=lambda row: (row["batch size"], kind_rank(row["normalisation"])))
        yield Table(title, rows)


@table(
    "exp_norms.py --dataset digits --arch vit --train output output+norm --seeds 0 1 2 3 4",
    source="diverged",
)
def transformer(runs):
    """A vision transformer, of which more and more is trained, by learning rate, beside Lu et al.'s
    random GPT-2; of runs with a validation split the accuracy there."""
    for title, sweep in sweeps(runs[runs.arch == "vit"], "train", "lr"):
        papers = published(sweep.dataset.iloc[0]).query("arch == 'gpt2'")
        theirs = dict(zip(papers.train, papers.value, strict=True))
        rows = []
        for (train, rate), cell in cells(sweep, "train", "lr"):
            row = {"trained": train, "parameters": trained_parameters(cell)}
            row |= {"learning rate": rate, ACCURACY: reached(cell)}
            rows.append(row | ({"Lu et al. 2021": theirs.get(train)} if theirs else {}))
        rows.sort(key=lambda row: (row["parameters"], rank(row["trained"]), row["learning rate"]))
        yield Table(title, rows)


@table("exp_bn_init.py frankle --dataset digits --gamma-init uniform ones --seeds 0 1 2 3 4")
def initialisation(runs):
    """How γ, β and the weights start (Frankle et al., appendix), against γ ~ U[0, 1], β = 0,
    He-normal weights; and what becomes of the features: percent of all γ that are small, and of the
    channels that a ReLU follows percent dead, and dead of those with a small γ."""
    for title, sweep in sweeps(runs[runs.bn_weight.isna() & runs.bn.isna()], *START):
        starts = by_start(sweep)
        if len(starts) < 2:
            continue
        usual, rows = with_papers_start(sweep), []
        for (gamma, beta, weights), cell in starts:
            is_usual = cell.index.isin(usual.index).all()
            row = {"γ": gamma, "β": beta, "weights": weights, ACCURACY: Mean.of(cell)}
            row["it − usual"] = None if is_usual else paired(cell, usual)
            row["small"] = Mean.of(cell, share_of_small_gammas)
            row["dead"] = Mean.of(cell, share_of_dead)
            rows.append(row | {"dead, of the small": Mean.of(cell, dead_among_small)})
        yield Table(f"{title}, {sweep.train.iloc[0]}", rows)


@table(
    "exp_bn_init.py davis_frank --dataset digits --network cifar_resnet14 --bn-weight 1 0.1"
    " --c 1 100 --input-norm dataset bn --seeds 1 2 3 4 5",
)
def davis_frank(runs):
    """γ started at bn_weight and slowed by c, everything trained, against γ = 1 and c = 1 with the
    same normalisation of the input: the test accuracy at the best validation epoch, and at the
    last."""
    for title, _, baselines, others in davis_frank_sweeps(runs):
        rows = []
        for norm, cell in baselines.items():
            rows.append(davis_frank_row((1.0, 1.0, norm), cell) | {"p": "", "p, two-sided": ""})
        for setting, cell in others:
            baseline = baselines[setting[2]]
            one_sided, two_sided = p_values(cell, baseline)
            row = davis_frank_row(setting, cell) | {"gain": paired(cell, baseline)}
            rows.append(row | {"p": p_text(one_sided), "p, two-sided": p_text(two_sided)})
        note = (
            "p: one-sided paired t-test against the line with γ = 1, c = 1 and the same input."
            f" {counted(len(others), 'comparison')}: at p ≤ 0.05 about one in twenty is"
            " significant by chance."
        )
        yield Table(title, rows, note=note)


def davis_frank_row(setting: tuple, cell: pd.DataFrame) -> dict:
    start, c, norm = setting
    row = {"γ at the start": start, "c": c, "input": norm, ACCURACY: Mean.of(cell)}
    return row | {"last epoch (%)": Mean.of(cell, last_accuracy), "gain": None}


@table("exp_mlp_lenet.py --bn before after --train bn all --seeds 0 1 2 3 4")
def mlp_lenet(runs):
    """MLPs and LeNet-5, with BatchNorm before and after the activation, and ResNets of which both
    were run."""
    untuned = without_trials(runs[runs.bn.notna()])
    found = list(sweeps(untuned[untuned.arch != "resnet"], "train", "bn"))
    placed = by_place(runs)
    both = placed[placed.train.isin(set(placed.train[placed.bn == "after"]))]
    found += [item for item in sweeps(both, "train", "bn") if item[1].bn.nunique() > 1]
    for title, sweep in found:
        rows = []
        for (bn, train), cell in sweep.groupby(["bn", "train"]):
            row = {"trained": train, "parameters": trained_parameters(cell)}
            rows.append(row | {"BatchNorm": bn, ACCURACY: Mean.of(cell)})
        rows.sort(key=lambda row: rank(row["trained"]))
        yield Table(title, rows, across="BatchNorm", columns=["before", "after", "none"])


@table("exp_mlp_lenet.py --dataset digits --tune 30 --epochs 20")
def tuned(runs):
    """The five best trials of `exp_mlp_lenet.py --tune`, by the accuracy on the validation images,
    which chose, and that on the test images, which did not."""
    trials = runs[runs.experiment == "mlp_lenet_tune"]
    chosen = "lr", "weight_decay", "batch_size", "hidden", "width", "depth"
    for title, sweep in sweeps(trials, *chosen):
        best = sweep.sort_values("val_acc", ascending=False, kind="stable")[:5]
        rows = []
        for run in best.itertuples():
            row = {
                "network": network_label(run),
                "parameters": count(run.params_trained),
                "learning rate": f"{run.lr:.3g}",
                "weight decay": f"{run.weight_decay:.2g}",
                "batch size": int(run.batch_size),
                "validation accuracy (%)": f"{run.val_acc:.2f}",
                ACCURACY: f"{run.test_acc:.2f}",
            }
            rows.append(row)
        yield Table(f"{title}, {sweep.train.iloc[0]}: the best of {len(sweep)} trials", rows)


@table("exp_bn_only.py --dataset imagefolder --data data/cifar10-jpeg-twice")
def variants(runs):
    """What another version of the images changes: cifar10-jpeg-twice is cifar10-jpeg saved once
    more as JPEG, and a data set's variant by its name."""
    usual, names = usual_start(runs), sorted(runs.dataset.unique())
    for variant in names:
        for base in names:
            if variant.startswith(f"{base}-"):
                rows = variant_rows(usual, base, variant)
                if rows:
                    yield Table(f"{variant} beside {base}", rows)


def variant_rows(runs: pd.DataFrame, base: str, variant: str) -> list[dict]:
    rows = []
    for title, sweep in sweeps(runs[runs.dataset.isin([base, variant])], "dataset"):
        of_base, of_variant = (sweep[sweep.dataset == name] for name in (base, variant))
        if len(of_base) and len(of_variant):
            recipe = title.removeprefix(f"{sweep.dataset.iloc[0]}, ")
            row = {
                "runs": f"{recipe}, {sweep.train.iloc[0]}",
                f"{base}: {ACCURACY}": Mean.of(of_base),
                f"{variant}: {ACCURACY}": Mean.of(of_variant),
                f"{variant} − {base}": paired(of_variant, of_base),
            }
            rows.append(row)
    return rows


# ------------------------------------------------------------------------------- what was measured


@table("exp_bn_only.py --dataset digits", source="all")
def made(runs):
    """What was run, by which script, on what, and in how long: the sum over runs, several of which
    may have been made at once."""
    keys = ["experiment", "dataset", "arch", "epochs", "device", "threads", "torch"]
    rows = []
    for setting, cell in cells(runs, *keys):
        row = dict(zip(keys, setting, strict=True)) | {
            "runs": len(cell),
            "depths": listed(cell.depth),
            "widths": listed(cell.width),
            "trained": ", ".join(sorted(cell.train.unique(), key=rank)),
            "hours": f"{cell.hours.sum():.2f}",
        }
        rows.append(row)
    yield Table("all runs", rows)


def listed(numbers: pd.Series) -> str:
    return ", ".join(f"{number:g}" for number in sorted(numbers.dropna().unique()))


@table("bench.py", source="bench")
def speed(measured):
    """The training loop's speed, by bench.py: a plain loop made ours part by part, where a step of
    ours spends its time, and several processes at once."""
    keys = "device threads arch depth width train image_size batch_size precision".split()
    measured = measured.assign(precision=measured.get("precision"))  # which it did not always say
    for setting, case in measured.groupby(keys, dropna=False):
        of = dict(zip(keys, setting, strict=True))
        network, size = network_label(case.iloc[0]), of["image_size"]
        title = f"{of['device']}, {network}, {of['train']}, {size}x{size} pixels"
        title += f", batches of {of['batch_size']}"
        if isinstance(of["precision"], str):
            title += f", {of['precision']}"
        threads = f"{title}, {of['threads']} threads"
        loops = case[case.limit_s.notna()]
        if len(loops):
            yield Table(threads, loop_rows(loops), note=start_note(case[case.start_s.notna()]))
            steps = case[case.share_of_step.notna()]
            yield Table(f"{threads}: a training step", step_rows(steps))
        grid = case[case.variant == "grid"]
        if len(grid):
            yield Table(f"{title}: processes at once", grid_rows(grid))
        kinds = case[case.variant.str.startswith("norm ")]
        if len(kinds):
            yield Table(f"{threads}: kinds of normalisation", kind_rows(kinds))
        busy = case[case.variant.str.startswith("beside ")]
        if len(busy):
            each = int(busy.threads_each.iloc[0])
            yield Table(f"{title}: on a busy machine, {each} threads", busy_rows(busy))


def loop_rows(loops: pd.DataFrame) -> list[dict]:
    rows = []
    for loop in loops.itertuples():
        row = {
            "": loop.variant,
            "images/s, training": f"{loop.train_images_per_s:,.0f}",
            "images/s, test": f"{loop.test_images_per_s:,.0f}",
            "epoch (s)": f"{loop.epoch_s:.1f}",
            "× plain": f"{loop.speedup:.2f}",
            "of the limit": f"{100 * loop.share_of_limit:.0f} % ({loop.limited_by})",
            "peak memory (MB)": f"{loop.peak_mb:,.0f}",
        }
        rows.append(row)
    return rows


def start_note(starts: pd.DataFrame) -> str:
    sentences = []
    for start in starts.itertuples():
        variant = start.variant.removeprefix("start-up, ")
        seconds = f"{start.start_s:.1f} s"
        sentences.append(f"From the start of a process to its first step, {variant}: {seconds}.")
    return " ".join(sentences)


def step_rows(steps: pd.DataFrame) -> list[dict]:
    rows = []
    for step in steps.itertuples():
        part = step.variant.removeprefix("of a step: ")
        rows.append({"": part, "share": f"{100 * step.share_of_step:.0f} %"})
    return rows


def grid_rows(grid: pd.DataFrame) -> list[dict]:
    rows = []
    for one in grid.itertuples():
        row = {
            "processes": one.processes,
            "threads each": int(one.threads_each),
            "images/s, training, together": f"{one.train_images_per_s:,.0f}",
            "× one process": f"{one.speedup:.2f}",
        }
        rows.append(row)
    return rows


def kind_rows(kinds: pd.DataFrame) -> list[dict]:
    rows = []
    for one in kinds.itertuples():
        row = {"": one.variant.removeprefix("norm "), "epoch (s)": f"{one.epoch_s:.1f}"}
        row["images/s, training"] = f"{one.train_images_per_s:,.0f}"
        rows.append(row | {"× the first": f"{one.speedup:.2f}"})
    return rows


def busy_rows(busy: pd.DataFrame) -> list[dict]:
    rows = []
    for one in busy.itertuples():
        row = {"": one.variant, "epoch (s)": f"{one.epoch_s:.1f}"}
        rows.append(row | {"× its quiet time": f"{1 / one.speedup:.2f}"})
    return rows


# ------------------------------------------------------------------------------------------ recipes


@table("exp_bn_only.py --dataset digits --schedule cosine")
def recipes(runs):
    """Optimizers, schedules and batch sizes."""
    settings = ["optimizer", "lr", "batch_size", "schedule", "warmup_epochs"]
    for title, sweep in sweeps(usual_start(runs), *settings, "momentum"):
        if len(sweep[settings].drop_duplicates()) < 2:
            continue
        rows = []
        for (optimizer, lr, size, schedule, warmup), cell in cells(sweep, *settings):
            row = {
                "optimizer": optimizer,
                "learning rate": lr,
                "batch size": size,
                "warm-up epochs": warmup,
                "schedule": schedule,
                ACCURACY: Mean.of(cell),
            }
            rows.append(row)
        columns = [*SCHEDULES, *sorted(set(sweep.schedule) - {*SCHEDULES})]
        yield Table(f"{title}, {sweep.train.iloc[0]}", rows, across="schedule", columns=columns)


@table("exp_bn_only.py --dataset digits --precision fp32")
def precision(runs):
    """The same runs in bf16 and in fp32."""
    for title, sweep in sweeps(usual_start(runs), "precision"):
        fp32, bf16 = (sweep[sweep.precision == word] for word in ("fp32", "bf16"))
        if len(fp32) and len(bf16):
            row = {
                f"bf16: {ACCURACY}": Mean.of(bf16),
                f"fp32: {ACCURACY}": Mean.of(fp32),
                "fp32 − bf16": paired(fp32, bf16),
            }
            yield Table(f"{title}, {sweep.train.iloc[0]}", [row])
