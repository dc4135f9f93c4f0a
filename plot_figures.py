"""The figures of plots.py: each draws one data set, at the width of a column.

Okabe and Ito's palette, which colour-blind readers tell apart; markers and dashes do so in gray."""

from __future__ import annotations

import pandas as pd

from plot_tables import TRAIN, Mean, by_start, published, random_sweep, rank, recipes, usual_start

STYLE = dict(
    zip(
        TRAIN,
        (
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
        ),
    )
)
RANDOM = ("#332288", "p", "-.")  # random:K


def style(train: str) -> dict:
    colour, marker, dashes = STYLE.get(
        train, RANDOM if train.startswith("random") else ("#666666", ".", "-")
    )
    return {"color": colour, "marker": marker, "linestyle": dashes}


def main_recipe(runs: pd.DataFrame, *varied: str, having=lambda group: True):
    """Title and runs of the recipe of the most epochs, then seeds, then settings, among those `having` what a figure needs; None, None where there is none."""
    found = [(name, group) for name, group in recipes(runs, *varied) if having(group)]
    return max(
        found,
        default=(None, None),
        key=lambda f: (
            f[1].epochs.max(),
            f[1].seed.nunique(),
            len(f[1].drop_duplicates(list(varied))),
        ),
    )


def deepest(runs: pd.DataFrame, *trains: str):
    """Title and runs of a ResNet of width 1 of which all of `trains` were run under one recipe: of the most epochs, then the deepest, then of the most seeds."""
    found = [
        (name, group)
        for name, group in recipes(
            usual_start(runs).query("arch == 'resnet' and width == 1"), "train"
        )
        if set(trains) <= set(group.train)
    ]
    return max(
        found,
        default=(None, None),
        key=lambda f: (f[1].epochs.max(), f[1].depth.iloc[0], f[1].seed.nunique()),
    )


def seeds(*cells: pd.DataFrame) -> str:
    """The number of seeds of each of `cells`, as a legend shows it."""
    fewest, most = (f(runs.seed.nunique() for runs in cells) for f in (min, max))
    return f"{fewest}{f'–{most}' * (most > fewest)} seed{'s' * (most > 1)}"


def panel(name: str, xlabel: str, ylabel: str, columns: int = 1):
    """A figure of `columns` panels side by side, 3.4 inches wide in all, as a column of a paper."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
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
    )
    figure, axes = plt.subplots(
        1, columns, figsize=(3.4, 2.6), squeeze=False, layout="constrained", sharey=columns > 1
    )
    figure.suptitle(name, fontsize=7)
    for axis in axes[0]:
        axis.set(xlabel=xlabel)
    axes[0, 0].set(ylabel=ylabel)
    return figure, axes[0]


def draw_line(axis, x, values: list[Mean], label: str, **look) -> None:
    """Means joined by a line, with the standard deviation as a shade."""
    mean, sd = pd.Series([v.mean for v in values]), pd.Series([v.sd for v in values]).fillna(0)
    axis.plot(x, mean, label=label, **look)
    axis.fill_between(x, mean - sd, mean + sd, color=look["color"], alpha=0.2, linewidth=0)


def legend_below(axis, columns: int = 2) -> None:
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def ticks(axis, values) -> None:
    axis.set_xticks(values, [str(value) for value in values])
    axis.minorticks_off()


def lines_of_train(axis, group: pd.DataFrame, by: str) -> None:
    """A line per --train over `by`; its label tells the number of seeds and, where lines differ in them, of epochs."""
    for train in sorted(set(group.train), key=rank):
        line = group[group.train == train]
        points = {x: same for x, same in line.groupby(by)}
        label = f"{train} ({seeds(*points.values())}"
        label += (
            f", {line.epochs.iloc[0]} epochs)"
            if train != "none" and group[group.train != "none"].epochs.nunique() > 1
            else ")"
        )
        draw_line(
            axis, list(points), [Mean.of(same) for same in points.values()], label, **style(train)
        )
    chance(axis, group)


def chance(axis, group: pd.DataFrame) -> None:
    axis.axhline(
        100 / group.classes.iloc[0],
        color="#888888",
        linewidth=0.6,
        linestyle=(0, (1, 3)),
        label="chance",
    )
    axis.set(ylim=(0, 100))


def figure_accuracy_depth(runs):
    """Accuracy against depth, at width 1, with the published points. Each --train by the longest recipe that it was run with at several depths, if any, else the longest."""
    narrow = usual_start(runs).query("arch == 'resnet' and width == 1")
    lines = [
        max(
            (group for _, group in recipes(here, "depth")),
            key=lambda group: (group.depth.nunique() > 1, group.epochs.max(), group.seed.nunique()),
        )
        for _, here in narrow[~random_sweep(narrow)].groupby("train")
    ]
    papers = published(runs.dataset.iloc[0]).query("width == 1")
    if not lines or (group := pd.concat(lines)).depth.nunique() < 2 and papers.empty:
        return None
    figure, (axis,) = panel(
        group.dataset.iloc[0]
        + f", {group.epochs.max()} epochs" * (group[group.train != "none"].epochs.nunique() == 1),
        "depth (layers)",
        "test accuracy (%)",
    )
    lines_of_train(axis, group, "depth")
    markers = dict(zip(papers.source.unique(), "os^vD<>"))
    for (train, source), points in papers[papers.train.isin(list(group.train))].groupby(
        ["train", "source"]
    ):
        axis.plot(
            points.depth,
            points.value,
            **style(train)
            | {"linestyle": "none", "marker": markers[source], "markerfacecolor": "none"},
            label=f"{train}, {source}, {points.dataset.iloc[0]}",
        )
    axis.set(xscale="log")
    ticks(axis, sorted({*group.depth, *papers.depth}))
    legend_below(axis)
    return figure


def figure_accuracy_width(runs):
    """Accuracy against width, at depth 14."""
    name, group = main_recipe(
        usual_start(runs).query("arch == 'resnet' and depth == 14"),
        "width",
        "train",
        having=lambda g: g.width.nunique() > 1,
    )
    if group is None:
        return None
    figure, (axis,) = panel(name, "width (factor on the channels)", "test accuracy (%)")
    lines_of_train(axis, group, "width")
    axis.set(xscale="log")
    ticks(axis, sorted(set(group.width)))
    legend_below(axis)
    return figure


def figure_accuracy_parameters(runs):
    """Accuracy against the number of trained parameters, for whatever is trained and whatever the shape."""
    name, group = main_recipe(
        usual_start(runs).query("arch == 'resnet' and train != 'none'"),
        "depth",
        "width",
        "train",
        having=lambda g: g.params_trained.nunique() > 2,
    )
    if group is None:
        return None
    figure, (axis,) = panel(name, "trained parameters", "test accuracy (%)")
    group = group.assign(kind=group.train.str.replace(r"random:\w+", "random:K", regex=True))
    for kind in sorted(set(group.kind), key=rank):
        points = [
            (same.params_trained.iloc[0], Mean.of(same))
            for _, same in group[group.kind == kind].groupby(["train", "depth", "width"])
        ]
        axis.errorbar(
            [count for count, _ in points],
            [m.mean for _, m in points],
            [0 if m.seeds == 1 else m.sd for _, m in points],
            **style(kind) | {"linestyle": "none"},
            elinewidth=0.6,
            label=f"{kind} ({seeds(group[group.kind == kind])})",
        )
    chance(axis, group)
    axis.set(xscale="log")
    legend_below(axis, 3)
    return figure


def figure_learning_curves(runs):
    """Test accuracy epoch by epoch, of the deepest network."""
    name, group = deepest(runs, "bn")
    if group is None:
        return None
    figure, (axis,) = panel(name, "epoch", "test accuracy (%)")
    for train in sorted(set(group.train) - {"none"}, key=rank):
        here = group[group.train == train]
        curves = pd.concat(
            [record.epochs.set_index("epoch").test_acc for record in here.record], axis=1
        )
        draw_line(
            axis,
            curves.index,
            Mean.of_rows(curves),
            f"{train} ({seeds(here)})",
            **style(train) | {"marker": ""},
        )
    axis.set(ylim=(0, 100))
    legend_below(axis)
    return figure


def learned(runs: pd.DataFrame):
    """Title and runs of the deepest network of which γ and β alone and everything were trained, and what they learned: tables by --train. Three None where there is none."""
    name, group = deepest(runs, "bn", "all")
    tables = (
        {}
        if group is None
        else {
            train: [t for record in same.record if (t := record.table("channels")) is not None]
            for train, same in group.groupby("train")
        }
    )
    return (name, group, tables) if tables.get("bn") and tables.get("all") else (None, None, None)


def draw_histogram(
    axis, values: pd.Series, bins: int, low: float, high: float, group: pd.DataFrame, train: str
) -> None:
    axis.hist(
        values.clip(low, high),
        bins=bins,
        range=(low, high),
        weights=[100 / len(values)] * len(values),
        histtype="step",
        linestyle={"bn": "-", "all": "--"}.get(train, ":"),
        color=style(train)["color"],
        label=f"{train} ({seeds(group[group.train == train])})",
    )


def figure_gamma_beta(runs):
    """Histograms of γ and β after training, BN-only against everything."""
    name, group, tables = learned(runs)
    if group is None:
        return None
    figure, axes = panel(name, "", "channels (%)", columns=2)
    for axis, which, letter in zip(axes, ("gamma", "beta"), "γβ"):
        values = {train: pd.concat(tables[train])[which] for train in ("bn", "all")}
        low, high = (pd.concat(values.values()).quantile(q) for q in (0.002, 0.998))
        for train, value in values.items():
            draw_histogram(axis, value, 50, low, high, group, train)
        axis.set(xlabel=letter)
    legend_below(axes[0])
    return figure


def figure_small_gammas(runs):
    """Share of |γ| < 0.01 in each BatchNorm, from the input to the output."""
    name, group, tables = learned(runs)
    if group is None:
        return None
    figure, (axis,) = panel(name, "BatchNorm layer, from the input on", "share of |γ| < 0.01 (%)")
    for train in ("bn", "all"):
        shares = pd.concat(
            [
                100 * (table.gamma.abs() < 0.01).groupby(table.layer, sort=False).mean()
                for table in tables[train]
            ],
            axis=1,
        )
        draw_line(
            axis,
            range(1, len(shares) + 1),
            Mean.of_rows(shares),
            f"{train} ({seeds(group[group.train == train])})",
            **style(train) | {"marker": "", "linestyle": "-" if train == "bn" else "--"},
        )
    axis.set(ylim=(0, None))
    legend_below(axis)
    return figure


def figure_pruning(runs):
    """Accuracy after every γ below a threshold is set to zero."""
    name, group = deepest(runs, "bn")
    if group is None:
        return None
    figure, (axis,) = panel(name, "threshold on |γ| (0: as trained)", "test accuracy (%)")
    for train in sorted(set(group.train) & {"bn", "all", "bn+output", "gamma"}, key=rank):
        tables = [
            table.set_index("threshold").test_acc
            for record in group[group.train == train].record
            if (table := record.table("pruning")) is not None
        ]
        if tables:
            accuracies = pd.concat(tables, axis=1)
            draw_line(
                axis,
                range(len(accuracies)),
                Mean.of_rows(accuracies),
                f"{train} ({seeds(group[group.train == train])})",
                **style(train),
            )
            axis.set_xticks(
                range(len(accuracies)), [f"{threshold:g}" for threshold in accuracies.index]
            )
    axis.set(ylim=(0, 100))
    legend_below(axis)
    return figure


def figure_relu_active(runs):
    """How often each ReLU is active on the test images: BN-only, everything, nothing trained."""
    name, group, tables = learned(runs)
    if group is None:
        return None
    figure, (axis,) = panel(name, "share of test activations above zero (%)", "channels (%)")
    for train in ("all", "bn", "none"):
        if tables.get(train):
            draw_histogram(
                axis, 100 * pd.concat(tables[train]).active.dropna(), 40, 0, 100, group, train
            )
    legend_below(axis, 3)
    return figure


def figure_random_params(runs):
    """Accuracy against the number of random entries of each channel, BatchNorm's own beside it."""
    name, group = main_recipe(
        usual_start(runs),
        "train",
        having=lambda g: g.train[g.train.str.fullmatch(r"random:\w+")].nunique() > 1,
    )
    if group is None:
        return None
    figure, (axis,) = panel(
        name, "random entries of each channel that are trained", "test accuracy (%)"
    )
    swept = sorted(
        {train for train in group.train if train.startswith("random:") and "+" not in train},
        key=rank,
    )
    draw_line(
        axis,
        range(len(swept)),
        [Mean.of(group[group.train == train]) for train in swept],
        f"random:K ({seeds(group[group.train == swept[0]])})",
        **style("random"),
    )
    if len(bn := group[group.train == "bn"]):
        at = Mean.of(bn)
        draw_line(
            axis,
            [0, len(swept) - 1],
            [at, at],
            f"bn, as many parameters as K = 2 ({seeds(bn)})",
            **style("bn") | {"marker": ""},
        )
    axis.set_xticks(range(len(swept)), [train.removeprefix("random:") for train in swept])
    legend_below(axis)
    return figure


def figure_initialisation(runs):
    """Accuracy by how γ, β and the weights start."""
    settings = ["gamma_init", "beta_init", "weight_init"]
    name, group = main_recipe(
        runs[runs.bn_weight.isna() & runs.bn.isna()],
        *settings,
        having=lambda g: len(g[settings].drop_duplicates()) > 1,
    )
    if group is None:
        return None
    figure, (axis,) = panel(f"{name}, {group.train.iloc[0]}", "test accuracy (%)", "")
    starts = by_start(group)[::-1]
    values = [Mean.of(same) for _, same in starts]
    axis.errorbar(
        [m.mean for m in values],
        range(len(starts)),
        xerr=[0 if m.seeds == 1 else m.sd for m in values],
        **style("bn") | {"linestyle": "none"},
        elinewidth=0.8,
        capsize=2,
        label=f"mean ± standard deviation ({seeds(*(same for _, same in starts))})",
    )
    axis.set_yticks(
        range(len(starts)), ["γ {}, β {}, {}".format(*setting) for setting, _ in starts]
    )
    legend_below(axis)
    return figure


FIGURES = {
    name.removeprefix("figure_"): make
    for name, make in list(globals().items())
    if name.startswith("figure_")
}
