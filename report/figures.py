"""The figures that plots.py draws: each of one data set, at the width of a paper's column. A new
one is one function:

    @figure("exp_bn_only.py --dataset digits")
    def best_seed(runs):
        figure, (axis,) = panel("best seed", "depth", ACCURACY)
        axis.plot(...)
        return figure

Colours are Okabe and Ito's, which colour-blind readers tell apart; markers and dashes do so in
gray."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.summaries import counted
from report.features import DEAD, SMALL
from report.registry import figure
from report.runs import FULL, START
from report.stats import ACCURACY, Mean
from report.sweeps import (
    NORMS,
    TRAIN,
    alone_by_depth,
    at_chance,
    beside,
    beside_another,
    beside_entries,
    by_start,
    cells,
    differing,
    entries,
    kind_rank,
    kinds_at_own_rate,
    labelled,
    of_kinds,
    of_users,
    published_alone,
    published_beside,
    random_sweep,
    rank,
    resnets,
    scaled_to,
    settings_of,
    shared_settings,
    sweeps,
    texts,
    told,
    usual_start,
    with_entries,
)

LOOKS = (  # of the words in TRAIN, in that order
    ("#000000", "o", "-"),
    ("#56B4E9", "v", "-"),
    ("#E69F00", "s", "-"),
    ("#882255", "P", "-"),
    ("#D55E00", "D", "-"),
    ("#CC79A7", "^", "--"),
    ("#009E73", "<", "--"),
    ("#999933", "h", ":"),
    ("#0072B2", "X", ":"),
    ("#888888", "*", ":"),
)
PALETTE = [colour for colour, _, _ in LOOKS]
LOOK = dict(zip(TRAIN, LOOKS, strict=True))
RANDOM = ("#332288", "p", "-.")  # random:K; hollow where something is trained beside it
OTHER = ("#666666", ".", "-")  # a user's
OTHER_DASHES = ("-", "--", "-.", ":")  # of networks without a depth
OTHER_MARKERS = ".1x2+3|4"  # several users' in turn
PAPER_MARKERS = "os^vD<>"
WIDTH, HEIGHT = 3.4, 2.3  # inches: a column of a paper, without the legend
STYLE = {
    "font.size": 7,
    "axes.titlesize": 7,
    "legend.fontsize": 6,
    "lines.markersize": 3.5,
    "lines.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}


# ----------------------------------------------------------------------------------------- drawing


def look(train: str) -> dict:
    """matplotlib's colour, marker and dashes for what was trained."""
    other = RANDOM if entries(train) else OTHER
    colour, marker, dashes = LOOK.get(train, other)
    style = {"color": colour, "marker": marker, "linestyle": dashes}
    if entries(train) and beside_entries(train):
        style["markerfacecolor"] = "none"
    return style


def panel(title: str, xlabel: str, ylabel: str, columns: int = 1):
    """A figure of `columns` panels side by side, 3.4 inches wide in all, and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    size = {"figsize": (WIDTH, HEIGHT), "layout": "constrained"}
    figure, axes = plt.subplots(1, columns, squeeze=False, sharey=columns > 1, **size)
    figure.suptitle(title, fontsize=7)
    for axis in axes[0]:
        axis.set(xlabel=xlabel)
    axes[0, 0].set(ylabel=ylabel)
    return figure, axes[0]


def draw_line(axis, x, values: list[Mean], label: str, **style) -> None:
    """Means joined by a line, with the standard deviation as a shade."""
    mean = pd.Series([value.mean for value in values])
    sd = pd.Series([value.sd for value in values]).fillna(0)
    axis.plot(x, mean, label=label, **style)
    axis.fill_between(x, mean - sd, mean + sd, color=style["color"], alpha=0.2, linewidth=0)


def draw_lines(axis, sweep: pd.DataFrame, by: str) -> None:
    """A line over `by` for each label of `sweep`, which tells the number of seeds and the settings
    in which lines differ, as the number of epochs."""
    labels = sorted(set(sweep.label), key=rank)
    unknown = [label for label in labels if look(label)["color"] == OTHER[0]]
    differ = differing(sweep, by)
    for label in labels:
        line = sweep[sweep.label == label]
        points = dict(list(line.groupby(by)))
        about = ", ".join([seeds(*points.values()), *settings_told(line, differ)])
        style = look(label)
        if label in unknown:
            style["marker"] = OTHER_MARKERS[unknown.index(label) % len(OTHER_MARKERS)]
        means = [Mean.of(cell) for cell in points.values()]
        draw_line(axis, list(points), means, f"{label} ({about})", **style)
    draw_chance(axis, sweep)


def settings_told(line: pd.DataFrame, settings: list[str]) -> list[str]:
    """What a legend says of `settings`; nothing of untrained networks, which have no recipe."""
    trained = line[line.train != "none"]
    if trained.empty:
        return []
    said = [(column, trained[column].iloc[0]) for column in settings]
    return [told(column, value) for column, value in said if pd.notna(value)]


def draw_chance(axis, sweep: pd.DataFrame) -> None:
    classes = sweep.classes.dropna()
    if len(classes) and sweep.test_acc.min() < 50:
        style = {"color": "#888888", "linewidth": 0.6, "linestyle": (0, (1, 3))}
        axis.axhline(100 / classes.iloc[0], label="chance", **style)


def odds_scale(axis) -> None:
    """Accuracies on the scale of their log odds, on which 95 and 98 % are as far apart as they are
    in errors, and 10 % is there, too."""
    low, high = axis.get_ylim()
    low, high = max(low, 2), min(high, 99.7)
    axis.set_yscale("function", functions=(log_odds, percent))
    ticks = [tick for tick in (ODDS if high > 90 else NO_HIGH_ODDS) if low <= tick <= high]
    if len(ticks) < 3:
        ticks = range(math.ceil(low), math.floor(high) + 1)
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(low, high)


ODDS = (5, 10, 20, 30, 50, 70, 80, 90, 95, 98, 99)  # ticks
NO_HIGH_ODDS = (5, *range(10, 100, 10))  # where there is room for more of them


def log_odds(accuracy):
    share = np.clip(np.asarray(accuracy, float) / 100, 1e-3, 1 - 1e-3)
    return np.log(share / (1 - share))


def percent(odds):
    return 100 / (1 + np.exp(-np.asarray(odds, float)))


def draw_histogram(axis, values: pd.Series, bins: int, low: float, high: float, **style) -> None:
    """Percent of `values` in each of so many bins; the outer ones hold what lies beyond."""
    weights = [100 / len(values)] * len(values)
    kind = {"bins": bins, "range": (low, high), "weights": weights, "histtype": "step"}
    axis.hist(values.clip(low, high), **kind, **style)


CHARACTERS = 84  # of a legend's line, of which a column's handle and space take nine


def legend_below(axis, columns: int = 2) -> None:
    """A legend under the panels, for which the figure grows, of one column where labels are
    long."""
    handles, labels = axis.get_legend_handles_labels()
    rows = max(1, -(-len(labels) // columns))
    in_columns = [labels[i : i + rows] for i in range(0, len(labels), rows)]
    if sum(9 + max(map(len, column)) for column in in_columns) > CHARACTERS:
        columns, rows = 1, len(labels)
    axis.figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    axis.figure.set_figheight(HEIGHT + 0.13 * rows)


def log_ticks(axis, values) -> None:
    axis.set(xscale="log")
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.minorticks_off()


def seeds(*cells: pd.DataFrame) -> str:
    """The number of seeds of `cells`, as a legend shows it."""
    numbers = [cell.seed.nunique() for cell in cells]
    fewest, most = min(numbers), max(numbers)
    return f"{fewest}–{most} seeds" if most > fewest else counted(most, "seed")


# ----------------------------------------------------------------------------- what is drawn of it


class Chosen(NamedTuple):
    """The sweep that a figure is of."""

    title: str
    sweep: pd.DataFrame


def choose(found, key: Callable) -> Chosen | None:
    """Of titles and sweeps the first whose sweep has the greatest `key`; None of none."""
    chosen = max(found, default=None, key=lambda item: key(item[1]))
    return None if chosen is None else Chosen(*chosen)


def main_sweep(runs: pd.DataFrame, *varied: str, having: Callable) -> Chosen | None:
    """The sweep of the most epochs, then seeds, then settings, among those `having` what a figure
    needs."""

    def size(sweep: pd.DataFrame) -> tuple:
        settings = len(sweep[list(varied)].drop_duplicates())
        return sweep.epochs.max(), sweep.seed.nunique(), settings

    return choose([item for item in sweeps(runs, *varied) if having(item[1])], size)


def deepest(runs: pd.DataFrame, *trains: str) -> Chosen | None:
    """A ResNet of width 1 of which all of `trains` were run under one recipe: of the most epochs,
    then the deepest, then of the most seeds."""

    def size(sweep: pd.DataFrame) -> tuple:
        return sweep.epochs.max(), sweep.depth.iloc[0], sweep.seed.nunique()

    narrow = resnets(usual_start(runs)).query("width == 1")
    found = sweeps(narrow, "train")
    return choose([item for item in found if set(trains) <= set(item[1].train)], size)


def kept_tables(runs: pd.DataFrame, kind: str) -> list[pd.DataFrame]:
    """The tables that were kept beside `runs`: `channels` or `pruning`."""
    tables = [record.table(kind) for record in runs.record]
    return [table for table in tables if table is not None]


def by_epoch(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """What `column` of the records says: a row for each epoch, a column for each of `runs`."""
    return pd.concat([run.epochs.set_index("epoch")[column] for run in runs.record], axis=1)


def learned(runs: pd.DataFrame) -> tuple[str, dict[str, list[pd.DataFrame]]] | None:
    """Of the deepest network of which γ and β alone and everything were trained a title, and what
    it learned by what was trained: a table of its channels for each seed."""
    chosen = deepest(runs, "bn", "all")
    if chosen is None:
        return None
    of_train = cells(chosen.sweep, "train")
    channels = {train: kept_tables(cell, "channels") for train, cell in of_train}
    return (chosen.title, channels) if channels["bn"] and channels["all"] else None


def line_size(sweep: pd.DataFrame) -> tuple:
    """What makes a line over depths the one to draw."""
    return sweep.depth.nunique() > 1, sweep.epochs.max(), sweep.seed.nunique()


def lines_of_depth(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """For each --train the sweep over depths by the longest recipe that has several, if any, else
    the longest. Then those of users' experiments that share their recipe with one of these."""
    ours = []
    for _, of_word in cells(usual_start(runs), "train"):
        ours.append(choose(sweeps(of_word, "depth"), line_size).sweep)
    varied = "experiment", "depth", "train"
    known = {shared_settings(line, *varied) for line in ours}
    users = []
    for _, of_word in cells(runs[of_users(runs)], "experiment", "train"):
        lines = list(sweeps(of_word, "depth"))
        if known:
            lines = [item for item in lines if shared_settings(item[1], *varied) in known]
        chosen = choose(lines, line_size)
        if chosen:
            users.append(chosen.sweep)
    return ours + users


# ----------------------------------------------------------------------------------------- accuracy


@figure("exp_depth_width.py --dataset digits --widths 1 --image-size 16", sizes=True)
def depth(runs):
    """γ and β alone against depth, a line for each size of the images, by the longest recipe that
    has several depths, and what else ran as long as the papers' 160 epochs; open, published."""
    narrow, papers = alone_by_depth(runs), published_alone(runs.dataset.iloc[0])
    if narrow.depth.nunique() < 2 or (papers.empty and narrow.image_size.nunique() < 2):
        return None
    figure, (axis,) = panel(f"{runs.dataset.iloc[0]}, γ and β alone", "depth (layers)", ACCURACY)
    for (size, of_size), (colour, marker, _) in zip(
        cells(narrow, "image_size"), LOOKS, strict=False
    ):
        (line,) = lines_of_depth(of_size)
        points = dict(list(cells(line, "depth")))
        length = counted(line.epochs.iloc[0], "epoch")
        label = f"{size} pixels, {length} ({seeds(*points.values())})"
        style = {"color": colour, "marker": marker}
        draw_line(axis, list(points), list(map(Mean.of, points.values())), label, **style)
        for label, cell in longer_runs(of_size, line):
            label = label.replace("bn", f"{size} pixels")
            star = {"marker": "*", "markersize": 6, "linestyle": "none", "zorder": 3}
            axis.plot(cell.depth, cell.test_acc, color=LOOK["bn"][0], **star, label=label)
    for (source, points), marker in zip(cells(papers, "source"), PAPER_MARKERS, strict=False):
        style = {"color": OTHER[0], "marker": marker, "markerfacecolor": "none"}
        label = f"{source}, {points.dataset.iloc[0]}"
        axis.plot(points.depth, points.value, **style, linestyle=":", label=label)
    log_ticks(axis, sorted({*narrow.depth, *papers.depth}))
    legend_below(axis)
    return figure


@figure("exp_depth_width.py --dataset digits --widths 1")
def accuracy_depth(runs):
    """Accuracy against depth, at width 1, with the published points, and users' networks by the
    same recipe. Each --train by the longest recipe that it was run with at several depths, if any,
    else the longest."""
    narrow = resnets(runs).query("width == 1")
    lines = lines_of_depth(narrow[~random_sweep(narrow)])
    if not lines:
        return None
    sweep = labelled(pd.concat(lines))
    first = sweep.iloc[0]
    papers = published_beside(first).query("arch == 'resnet' and width == 1")
    ours = [line for line in lines if not of_users(line).all()]
    others = {}
    for line in ours:
        for label, of_label in beside(runs, line):
            for depth, cell in cells(of_label, "depth"):
                named = label if math.isnan(depth) else f"{label}, depth {depth:g}"
                others[named] = cell
    if sweep.depth.nunique() < 2 and papers.empty and not others:
        return None
    about, differ = [first.dataset, scaled_to(first)], differing(sweep, "depth")
    lengths = sweep[sweep.train != "none"].epochs.unique()
    if len(lengths) == 1:
        about.append(told("epochs", lengths[0]))
    figure, (axis,) = panel(", ".join(filter(None, about)), "depth (layers)", ACCURACY)
    draw_lines(axis, sweep, "depth")
    for (label, cell), dashes in zip(others.items(), itertools.cycle(OTHER_DASHES), strict=False):
        style = {"color": OTHER[0], "linestyle": dashes}
        made = ", ".join([seeds(cell), *settings_told(cell, differ)])
        axis.axhline(cell.test_acc.mean(), label=f"{label} ({made})", **style)
    markers = dict(zip(papers.source.unique(), PAPER_MARKERS, strict=False))
    shown = papers[papers.train.isin(list(sweep.label))]
    for (train, source), points in shown.groupby(["train", "source"]):
        style = look(train) | {"linestyle": "none", "marker": markers[source]}
        label = f"{train}, {source}, {points.dataset.iloc[0]}"
        axis.plot(points.depth, points.value, **style, markerfacecolor="none", label=label)
    for label, cell in longer_runs(narrow, sweep):
        style = look(cell.train.iloc[0]) | {"linestyle": "none", "markersize": 6}
        axis.plot(cell.depth, cell.test_acc, **style, markerfacecolor="none", label=label)
    odds_scale(axis)
    log_ticks(axis, sorted({*sweep.depth, *papers.depth}))
    legend_below(axis)
    return figure


def longer_runs(runs: pd.DataFrame, drawn: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Runs of the main paper's length of what is drawn by a recipe that is else the same."""
    full = usual_start(runs)
    for train, cell in cells(full[full.epochs == FULL], "train"):
        lines = drawn[(drawn.train == train) & ~of_users(drawn)]
        if len(lines) and train != "none" and lines.epochs.max() < FULL:
            shared = [c for c in settings_of(runs) if c not in ("epochs", "depth", "experiment")]
            same = texts(cell[shared]).eq(texts(lines[shared]).iloc[0]).all(axis=1)
            if same.any():
                yield f"{train}, {FULL} epochs ({seeds(cell[same])})", cell[same]


@figure(
    "exp_norms.py --dataset digits --lr 0.03 0.1 0.3 --val-fraction 0.2 --seeds 0 1 2",
    source="diverged",
)
def norms(runs):
    """Accuracy against depth of γ and β alone, behind each normalisation and behind none, each at
    the learning rate that was best on a validation split; open, at another that was tried in deeper
    networks alone. Small points are single seeds, at chance where training diverged; kinds stand a
    little apart sideways."""

    def several(sweep: pd.DataFrame) -> bool:
        return sweep.norm.nunique() > 1 and beside_another(sweep).depth.nunique() > 1

    runs = at_chance(runs)
    chosen = main_sweep(kinds_at_own_rate(runs), "norm", "lr", "depth", having=several)
    if chosen is None:
        return None
    figure, (axis,) = panel(chosen.title, "depth (layers)", ACCURACY)
    own_rate = beside_another(chosen.sweep)
    kinds = sorted(set(own_rate.norm), key=kind_rank)
    own = [kind for kind in kinds if kind not in NORMS]
    looks = dict(zip([*NORMS, *own], itertools.cycle(LOOKS), strict=False))
    another = beside_another(tried_deeper(of_kinds(runs), own_rate))
    for sweep, filled in ((own_rate, {}), (another, {"markerfacecolor": "none", "ls": "none"})):
        for i, kind in enumerate(kinds):
            apart, (colour, marker, dashes) = 1.03 ** (i - len(kinds) / 2), looks[kind]
            style = {"color": colour, "marker": marker, "ls": dashes} | filled
            for rate, line in cells(sweep[sweep.norm == kind], "lr"):
                points = dict(list(cells(line, "depth")))
                label = f"{kind}, rate {rate:g} ({seeds(*points.values())})"
                means = [cell.test_acc.mean() for cell in points.values()]
                axis.plot([apart * depth for depth in points], means, label=label, **style)
                axis.scatter(apart * line.depth, line.test_acc, 5, colour, alpha=0.5, linewidths=0)
    draw_chance(axis, own_rate)
    odds_scale(axis)
    log_ticks(axis, sorted(set(own_rate.depth)))
    legend_below(axis)
    return figure


def tried_deeper(runs: pd.DataFrame, drawn: pd.DataFrame) -> pd.DataFrame:
    """Runs of the kinds and the recipe of `drawn`, at rates that a kind was not tried at in the
    shallowest network: its own fails in deeper ones."""
    varied = "norm", "lr", "depth"
    recipe = shared_settings(drawn, *varied)
    found = [
        sweep for _, sweep in sweeps(runs, *varied) if shared_settings(sweep, *varied) == recipe
    ]
    same = pd.concat(found)
    first = same.groupby(["norm", "lr"]).depth.transform("min")
    return same[same.norm.isin(set(drawn.norm)) & (first > drawn.depth.min())]


@figure("exp_depth_width.py --dataset digits --depths 14")
def accuracy_width(runs):
    """Accuracy against width, at depth 14."""

    def several(sweep: pd.DataFrame) -> bool:
        return sweep.width.nunique() > 1

    shallow = resnets(usual_start(runs)).query("depth == 14")
    chosen = main_sweep(shallow, "width", "train", having=several)
    if chosen is None:
        return None
    figure, (axis,) = panel(chosen.title, "width (factor on the channels)", ACCURACY)
    widths = chosen.sweep.groupby("train").width.transform("nunique")
    draw_lines(axis, labelled(chosen.sweep[widths > 1]), "width")
    odds_scale(axis)
    log_ticks(axis, sorted(set(chosen.sweep.width)))
    legend_below(axis)
    return figure


@figure("exp_depth_width.py --dataset digits")
def accuracy_parameters(runs):
    """Accuracy against the number of trained parameters, for whatever is trained and whatever the
    shape."""

    def several(sweep: pd.DataFrame) -> bool:  # by depth alone accuracy_depth shows them
        more = sweep.train.nunique() > 1 or sweep.width.nunique() > 1
        return sweep.params_trained.nunique() > 2 and more

    trained = resnets(usual_start(runs)).query("train != 'none'")
    trained = trained[trained.params_trained > 0]
    chosen = main_sweep(trained, "depth", "width", "train", having=several)
    if chosen is None:
        return None
    figure, (axis,) = panel(chosen.title, "trained parameters", ACCURACY)
    sweep = chosen.sweep
    sweep = sweep.assign(kind=sweep.train.str.replace(r"random:\w+", "random:K", regex=True))
    for kind in sorted(set(sweep.kind), key=rank):
        of_kind = sweep[sweep.kind == kind]
        points = [cell for _, cell in cells(of_kind, "train", "depth", "width")]
        counts = [cell.params_trained.iloc[0] for cell in points]
        label = f"{kind} ({seeds(*points)})"
        style = look(kind) | {"linestyle": "none", "elinewidth": 0.6}
        means, sds = error_bars(points)
        axis.errorbar(counts, means, sds, label=label, **style)
    draw_chance(axis, sweep)
    odds_scale(axis)
    axis.set(xscale="log")
    legend_below(axis)
    return figure


def error_bars(cells: list[pd.DataFrame]) -> tuple[list[float], list[float]]:
    """Means and standard deviations of the accuracy of each cell; of one seed the latter is 0."""
    values = [Mean.of(cell) for cell in cells]
    return [v.mean for v in values], [v.sd if v.seeds > 1 else 0 for v in values]


@figure("exp_bn_only.py --dataset digits --train all")
def learning_curves(runs):
    """Test accuracy epoch by epoch, of the network of which the most choices of parameters were
    trained by the longest recipe."""

    def size(sweep: pd.DataFrame) -> tuple:
        return sweep.epochs.max(), sweep.train.nunique(), sweep.depth.iloc[0], sweep.seed.nunique()

    narrow = resnets(usual_start(runs)).query("width == 1")
    found = sweeps(narrow[~with_entries(narrow)], "train")
    chosen = choose([item for item in found if len({*item[1].train} - {"none"}) > 1], size)
    if chosen is None:
        return None
    figure, (axis,) = panel(chosen.title, "epoch", ACCURACY)
    for train in sorted(set(chosen.sweep.train) - {"none"}, key=rank):
        cell = chosen.sweep[chosen.sweep.train == train]
        curves = by_epoch(cell, "test_acc")
        style = look(train) | {"marker": "", "label": f"{train} ({seeds(cell)})"}
        draw_line(axis, curves.index, Mean.of_rows(curves), **style)
    odds_scale(axis)
    legend_below(axis)
    return figure


# ------------------------------------------------------------------------------ what was learned


@figure("exp_bn_only.py --dataset digits --train all")
def gamma_beta(runs):
    """Histograms of γ and β after training, BN-only against everything."""
    found = learned(runs)
    if found is None:
        return None
    title, channels = found
    figure, axes = panel(title, "", "channels (%)", columns=2)
    for axis, which, letter in zip(axes, ("gamma", "beta"), "γβ", strict=True):
        values = {train: pd.concat(channels[train])[which] for train in ("bn", "all")}
        both = pd.concat(values.values())
        low, high = both.quantile(0.002), both.quantile(0.998)
        for train, value in values.items():
            style = histogram_look(train, len(channels[train]))
            draw_histogram(axis, value, 50, low, high, **style)
        axis.set(xlabel=letter)
    legend_below(axes[0])
    return figure


def histogram_look(train: str, number: int) -> dict:
    dashes = {"bn": "-", "all": "--"}.get(train, ":")
    label = f"{train} ({counted(number, 'seed')})"
    return {"color": look(train)["color"], "linestyle": dashes, "label": label}


@figure("exp_bn_only.py --dataset digits --train all")
def small_gammas(runs):
    """Share of |γ| < 0.01 from the input to the output, over tenths of the BatchNorm layers."""
    found = learned(runs)
    if found is None:
        return None
    title, channels = found
    xlabel = "place among the BatchNorm layers, from the input on (%)"
    figure, (axis,) = panel(title, xlabel, "share of |γ| < 0.01 (%)")
    for train, dashes in (("bn", "-"), ("all", "--")):
        shares = []
        for table in channels[train]:
            small = table.gamma.abs() < SMALL
            place = pd.factorize(table.layer)[0]  # of the layer, from the input on
            tenth = 10 * place // (place.max() + 1)
            shares.append(100 * small.groupby(tenth).mean())
        shares = pd.concat(shares, axis=1)
        label = f"{train} ({counted(len(channels[train]), 'seed')})"
        style = look(train) | {"linestyle": dashes}
        draw_line(axis, 10 * shares.index + 5, Mean.of_rows(shares), label, **style)
    axis.set(ylim=(0, None))
    legend_below(axis)
    return figure


@figure("exp_bn_only.py --dataset digits")
def living_gammas(runs):
    """|γ| of the features that live and of those that are dead, active on less than 1 % of the test
    activations, beside their start: of γ and β trained alone, by the longest recipe, in the deepest
    network. The outer bars hold what lies beyond."""
    chosen = deepest(runs, "bn")
    if chosen is None:
        return None
    channels = kept_tables(chosen.sweep[chosen.sweep.train == "bn"], "channels")
    if not channels:
        return None
    features = pd.concat(channels).dropna(subset="active")
    dead = features.active < DEAD
    figure, (axis,) = panel(chosen.title, "|γ|", "features (%)")
    made = counted(len(channels), "seed")
    parts = (
        (f"at the start, bn ({made})", features.gamma_init, "#888888", ":"),
        (f"living, {100 * (1 - dead.mean()):.0f} %", features.gamma[~dead], PALETTE[8], "-"),
        (f"dead, {100 * dead.mean():.0f} %", features.gamma[dead], PALETTE[4], "--"),
    )
    for label, gammas, colour, dashes in parts:
        # of all features, so that the living and the dead add up
        weights = [100 / len(features)] * len(gammas)
        values = gammas.abs().clip(1e-4, 10)
        style = {"color": colour, "linestyle": dashes, "label": label}
        axis.hist(values, np.geomspace(1e-4, 10, 41), weights=weights, histtype="step", **style)
    axis.axvline(SMALL, color="#888888", linewidth=0.6, linestyle=(0, (1, 3)), label="|γ| = 0.01")
    axis.set(xscale="log")
    legend_below(axis)
    return figure


@figure("exp_norms.py --dataset digits --norm bn --weight-decay 0 --watch --seeds 0 1 2")
def dead_features(runs):
    """Epoch by epoch, the share of dead features, active on less than 1 % of the test activations,
    among the channels that a ReLU follows, and of |γ| < 0.01 among all, with and without weight
    decay."""
    if not {"dead", "small_gammas"} <= set(runs):
        return None
    watched = resnets(usual_start(runs[runs.dead.notna()])).query("train == 'bn'")

    def size(sweep: pd.DataFrame) -> tuple:
        return sweep.weight_decay.nunique(), sweep.epochs.max(), sweep.seed.nunique()

    chosen = choose(sweeps(watched, "weight_decay"), size)
    if chosen is None:
        return None
    figure, (axis,) = panel(chosen.title, "epoch", "share of channels (%)")
    for (decay, cell), colour in zip(cells(chosen.sweep, "weight_decay"), PALETTE, strict=False):
        shares = (("dead", "dead", "-"), ("small_gammas", "of all γ, |γ| < 0.01", "--"))
        for column, what, dashes in shares:
            curves = by_epoch(cell, column)
            label = f"{what}, decay {decay:g} ({seeds(cell)})"
            style = {"color": colour, "linestyle": dashes}
            draw_line(axis, curves.index, Mean.of_rows(curves), label, **style)
    axis.set(ylim=(0, None))
    legend_below(axis)
    return figure


@figure("exp_bn_only.py --dataset digits")
def pruning(runs):
    """What is lost by setting every γ below a threshold to zero."""
    chosen = deepest(runs, "bn")
    if chosen is None:
        return None
    figure, (axis,) = panel(chosen.title, "threshold on |γ|", "change of test accuracy (points)")
    shown = {"bn", "all", "bn+output", "gamma"} & set(chosen.sweep.train)
    for train in sorted(shown, key=rank):
        cell = chosen.sweep[chosen.sweep.train == train]
        tables = [table.set_index("threshold").test_acc for table in kept_tables(cell, "pruning")]
        if tables:
            label = f"{train} ({counted(len(tables), 'seed')})"
            accuracies = pd.concat(tables, axis=1)
            changes = (accuracies - accuracies.iloc[0]).iloc[1:]
            x = range(len(changes))
            draw_line(axis, x, Mean.of_rows(changes), label, **look(train))
            axis.set_xticks(x, [f"{threshold:g}" for threshold in changes.index])
    axis.axhline(0, color="#888888", linewidth=0.6)
    legend_below(axis)
    return figure


@figure("exp_bn_only.py --dataset digits --train all")
def relu_active(runs):
    """How often each ReLU is active on the test images: BN-only, everything, nothing trained."""
    found = learned(runs)
    if found is None:
        return None
    title, channels = found
    figure, (axis,) = panel(title, "share of test activations above zero (%)", "channels (%)")
    for train in ("all", "bn", "none"):
        if channels.get(train):
            active = 100 * pd.concat(channels[train]).active.dropna()
            style = histogram_look(train, len(channels[train]))
            draw_histogram(axis, active, 40, 0, 100, **style)
    legend_below(axis, 3)
    return figure


# ------------------------------------------------------------------------ random parameters, starts


@figure("exp_random_params.py --dataset digits --seeds 0 1 2 3 4")
def random_params(runs):
    """Accuracy against the number of random entries of each channel, BatchNorm's own beside it."""

    def alone(sweep: pd.DataFrame) -> pd.Series:
        return sweep.train[with_entries(sweep) & (sweep.train.map(beside_entries) == "")]

    def several(sweep: pd.DataFrame) -> bool:
        return alone(sweep).nunique() > 1

    chosen = main_sweep(usual_start(runs), "train", having=several)
    if chosen is None:
        return None
    xlabel = "random entries of each channel that are trained"
    figure, (axis,) = panel(chosen.title, xlabel, ACCURACY)
    sweep = chosen.sweep
    swept = sorted(set(alone(sweep)), key=rank)
    in_order = [sweep[sweep.train == train] for train in swept]
    means = [Mean.of(cell) for cell in in_order]
    label = f"random:K ({seeds(*in_order)})"
    draw_line(axis, range(len(swept)), means, label, **look("random:K"))
    bn = sweep[sweep.train == "bn"]
    if len(bn):
        label = f"bn, as many parameters as K = 2 ({seeds(bn)})"
        style = look("bn") | {"marker": ""}
        draw_line(axis, [0, len(swept) - 1], [Mean.of(bn)] * 2, label, **style)
    odds_scale(axis)
    axis.set_xticks(range(len(swept)), list(map(entries, swept)))
    legend_below(axis, 1)
    return figure


@figure("exp_bn_init.py frankle --dataset digits --gamma-init uniform ones --seeds 0 1 2 3 4")
def initialisation(runs):
    """Accuracy by how γ, β and the weights start."""

    def several(sweep: pd.DataFrame) -> bool:
        return len(sweep[list(START)].drop_duplicates()) > 1

    chosen = main_sweep(runs[runs.bn_weight.isna() & runs.bn.isna()], *START, having=several)
    if chosen is None:
        return None
    title = f"{chosen.title}, {chosen.sweep.train.iloc[0]}"
    figure, (axis,) = panel(title, "test accuracy (%)", "")
    starts = by_start(chosen.sweep)[::-1]
    of_starts = [cell for _, cell in starts]
    means, sds = error_bars(of_starts)
    style = look("bn") | {"linestyle": "none", "elinewidth": 0.8, "capsize": 2}
    label = f"mean ± standard deviation ({seeds(*of_starts)})"
    axis.errorbar(means, range(len(starts)), xerr=sds, label=label, **style)
    ticks = ["γ {}, β {}, {}".format(*setting) for setting, _ in starts]
    axis.set_yticks(range(len(starts)), ticks)
    legend_below(axis)
    return figure
