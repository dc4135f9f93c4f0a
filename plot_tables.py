"""The tables that plots.py makes of runs and measurements; among these a verdict on each claim.

Averages are over seeds and nothing else; a difference is that of runs with the same seed, with the 95 % interval of Student's t."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from scipy import stats

from plot_runs import OWN

MEASURED = (
    "run seed params_total params_trained epoch train_loss train_acc val_loss val_acc test_loss test_acc test_top5 seconds device threads torch commit status record hours"
).split()
USUAL = {
    "subset": "all",
    "val_fraction": 0,
    "gamma_init": "uniform",
    "beta_init": "zeros",
    "weight_init": "he_normal",
    "batch_size": 128,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "step",
    "warmup_epochs": 0,
    "experiment": "",
}  # what a title need not say
OURS = (
    "bn_only",
    "random_params",
    "depth_width",
    "bn_init",
)  # where equal settings are equal runs, whichever of the scripts made them
APART = ("bn_init", "mlp_lenet", "mlp_lenet_tune")  # experiments that have tables of their own
TRAIN = (
    "all",
    "all-bn",
    "bn+output",
    "bn+shortcut",
    "bn",
    "gamma",
    "beta",
    "shortcut",
    "output",
    "none",
)
PAPERS = Path(__file__).with_name("published.csv")


# ------------------------------------------------------------------------------------------------------------------ runs


def distinct(runs: pd.DataFrame) -> pd.DataFrame:
    """Each run once, whichever of this collection's scripts made it."""
    if runs.empty:
        return runs
    ours = runs.experiment.isin(OURS) & runs.bn_weight.isna()
    return runs.assign(experiment=runs.experiment.mask(ours, "")).drop_duplicates(
        [column for column in runs.columns if column not in MEASURED or column == "seed"]
    )


def recipes(runs: pd.DataFrame, *varied: str):
    """A title and the runs of each group that differ in the seed and in nothing but the settings `varied`. Where --train varies, `none`,
    which has no recipe, stands beside every group of its data set and network."""
    if runs.empty:
        return
    keys = [column for column in runs.columns if column not in (*MEASURED, *varied)]
    trained, none = (
        (runs[runs.train != "none"], runs[runs.train == "none"])
        if "train" in varied
        else (runs, runs[:0])
    )
    same = [
        key
        for key in (
            "experiment",
            "dataset",
            "precision",
            "image_size",
            "arch",
            "depth",
            "width",
            *OWN,
            "subset",
            "gamma_init",
            "beta_init",
            "weight_init",
        )
        if key in keys
    ]
    for _, group in trained.groupby(keys, dropna=False, sort=True):
        first = group.iloc[0]
        frozen = none[
            (none[same].eq(first[same]) | none[same].isna() & first[same].isna()).all(axis=1)
        ]
        yield title(first, varied), pd.concat([group, frozen])


def title(run: pd.Series, varied: tuple[str, ...] = ()) -> str:
    """The settings that a group of runs shares, without those that are usual."""
    words = [
        f"{run.experiment}: {run.dataset}" if run.experiment not in ("", *APART) else run.dataset
    ]
    if "depth" not in varied:
        words.append(network_name(run, "width" not in varied))
    else:
        words += [run.arch] * (run.arch != "resnet") + [f"width {run.width}"] * (
            "width" not in varied and bool(run.width != 1)
        )
    words += [f"{run.epochs} epochs"] + [run.precision] * ("precision" not in varied)
    own = [
        column
        for column in run.index[list(run.index).index("classes") + 1 :]
        if column not in (*MEASURED, "hidden")
    ]
    unusual = [
        column
        for column in (*USUAL, *own)
        if column not in (*varied, "experiment")
        and pd.notna(run[column])
        and run[column] != USUAL.get(column)
    ]
    words += [
        f"{column} {run[column]:g}" if isinstance(run[column], float) else f"{column} {run[column]}"
        for column in unusual
    ]
    return ", ".join(words + [run.augment] * (run.augment != "none"))


def network_name(run, width: bool = True) -> str:
    """As a reader calls it: ResNet-14, ResNet-14 x2 (unless `width` varies), vgg-16, LeNet-5, MLP 512-512-512."""
    if run.arch in ("mlp", "lenet5"):
        return "LeNet-5" if run.arch == "lenet5" else f"MLP {run.hidden}"
    return f"{'ResNet' if run.arch == 'resnet' else run.arch}-{run.depth}" + (
        f" x{run.width}" if width and run.width != 1 else ""
    )


def rank(train: str) -> tuple:
    """The order of --train in tables and legends; random:K by K, after the others."""
    k = train.partition("random:")[2].partition("+")[0]
    return (
        TRAIN.index(train) if train in TRAIN else len(TRAIN),
        int(k or 0) if k.isdigit() or not k else math.inf,
        train,
    )


def published(dataset: str, measure: str = "test_acc") -> pd.DataFrame:
    """The published figures on `dataset`; on the data set of which it is a variant, as cifar10-jpeg is of cifar10."""
    table = pd.read_csv(PAPERS)
    return table[
        (table.measure == measure)
        & table.dataset.map(lambda name: dataset == name or dataset.startswith(f"{name}-"))
    ]


# ----------------------------------------------------------------------------------------------------- means, differences


class Mean(NamedTuple):
    """Over seeds: mean, sample standard deviation, number of seeds."""

    mean: float
    sd: float
    seeds: int

    @classmethod
    def of(cls, runs: pd.DataFrame) -> Mean:
        return cls(runs.test_acc.mean(), runs.test_acc.std(), len(runs))

    @classmethod
    def of_rows(cls, table: pd.DataFrame) -> list[Mean]:
        """Of each row of a table that has a column for each seed."""
        return [
            cls(mean, sd, table.shape[1]) for mean, sd in zip(table.mean(axis=1), table.std(axis=1))
        ]

    def __str__(self):
        return (
            f"{self.mean:.1f}"
            + (f" ± {self.sd:.1f}" if self.seeds > 1 else "")
            + f" ({self.seeds})"
        )


class Difference(NamedTuple):
    """Over pairs of equal seed: the mean difference, its 95 % t-interval, the number of pairs, and about how many would decide its sign."""

    mean: float
    low: float
    high: float
    pairs: int
    needed: float

    @classmethod
    def of(cls, differences: pd.Series) -> Difference:
        d, n, s = differences.mean(), len(differences), differences.std()
        if n < 2:
            return cls(d, -math.inf, math.inf, n, math.nan)
        t = stats.t.ppf(0.975, n - 1)
        half = t * s / math.sqrt(n)
        return cls(d, d - half, d + half, n, (t * s / d) ** 2 if d else math.inf)

    def __str__(self):
        digits = 1 if abs(self.mean) >= 1 else 2
        return signed(self.mean, digits) + (
            f" ({signed(self.low, digits)} to {signed(self.high, digits)})"
            if self.pairs > 1
            else ""
        )


def signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0:+.{digits}f}".replace("-", "−")  # + 0: no negative zero


def accuracy(run) -> float:
    return run.test_acc


def paired(a: pd.DataFrame, b: pd.DataFrame, value=accuracy) -> Difference | None:
    """`value` of the runs `a` minus that of the runs `b`, over the seeds that both have."""
    values = [
        here.set_index("seed").apply(value, axis=1) if len(here) else pd.Series(dtype=float)
        for here in (a, b)
    ]
    differences = (values[0].astype(float) - values[1].astype(float)).dropna()
    return Difference.of(differences) if len(differences) else None


# ---------------------------------------------------------------------------------------------------------------- tables


class Table(NamedTuple):
    """Rows, as dictionaries, under a title. Where `across` names a column, its values become columns, in the order of `columns`, and show `value`."""

    title: str
    rows: list[dict]
    across: str = ""
    value: str = "test accuracy (%)"
    columns: list = ()
    note: str = ""

    def shown(self) -> pd.DataFrame:
        """As a reader sees it: everything is text, what is missing is empty."""
        table = pd.DataFrame(self.rows)
        if self.across:
            index = [column for column in table if column not in (self.across, self.value)]
            order = table[index].drop_duplicates()
            table = table.pivot(index=index, columns=self.across, values=self.value)
            table = table.reindex(
                pd.MultiIndex.from_frame(order) if len(index) > 1 else order[index[0]]
            )
            table = (
                table[[column for column in self.columns if column in table]]
                .rename_axis(columns=None)
                .reset_index()
            )
        return table.map(cell)

    def flat(self) -> pd.DataFrame:
        """As a program reads it: a column for each part of a mean or a difference."""

        def parts(row):
            for key, value in row.items():
                yield from (
                    ((f"{key}: {part}", x) for part, x in value._asdict().items())
                    if isinstance(value, (Mean, Difference))
                    else [(key, value)]
                )

        return pd.DataFrame([{"recipe": self.title} | dict(parts(row)) for row in self.rows])


def cell(value) -> str:
    if isinstance(value, str | tuple):
        return str(value)
    return (
        ""
        if value is None or value != value
        else f"{value:,.0f}"
        if value >= 1000
        else f"{value:g}"
    )


def usual_start(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of this collection's own scripts that start as the main paper's do."""
    return runs[
        (runs.experiment == "")
        & (runs.gamma_init == "uniform")
        & (runs.beta_init == "zeros")
        & (runs.weight_init == "he_normal")
    ]


def random_sweep(runs: pd.DataFrame) -> pd.Series:
    """Whether a run trains random entries, and not as many as BatchNorm has parameters."""
    return runs.train.str.contains("random:") & (runs.train != "random:2")


def table_parameters(runs):
    """How many parameters each choice trains, and all there are."""
    for dataset, here in runs[(runs.experiment == "") & ~random_sweep(runs)].groupby("dataset"):
        rows, papers = [], published(dataset, "params")
        for (arch, width, depth), same in here.groupby(["arch", "width", "depth"]):
            counts = same.drop_duplicates("train").set_index("train").params_trained.to_dict() | {
                "all": same.params_total.iloc[0]
            }
            name = network_name(same.iloc[0])
            rows += [
                {"network": name, "source": "ours", "trained": train, "parameters": int(count)}
                for train, count in counts.items()
                if count
            ]
            theirs = papers[
                (papers.arch == arch)
                & (papers.width == width)
                & (papers.depth == depth)
                & papers.train.isin(list(counts))
            ]
            rows += [
                {
                    "network": name,
                    "source": f"{p.source}, {p.dataset}",
                    "trained": p.train,
                    "parameters": int(p.value),
                }
                for p in theirs.itertuples()
            ]
        yield Table(
            dataset,
            rows,
            across="trained",
            value="parameters",
            columns=sorted({row["trained"] for row in rows}, key=rank),
        )


def table_accuracy(runs):
    """Per --train and depth, a table for each width, beside the published figures and the difference to them."""
    shown = pd.concat(
        [usual_start(runs), runs[~runs.experiment.isin(["", *APART])]]
    )  # and the experiments of a user
    for name, group in recipes(shown[~random_sweep(shown)], "depth", "train"):
        papers = published(group.dataset.iloc[0])
        papers = papers[
            (papers.arch == group.arch.iloc[0])
            & (papers.width == group.width.iloc[0])
            & papers.train.isin(list(group.train))
        ]
        rows = []

        def add(train, source, values):
            rows.extend(
                {
                    "trained": train,
                    "source": source,
                    "depth": f"depth {depth}",
                    "test accuracy (%)": value,
                }
                for depth, value in values.items()
            )

        for train in sorted(set(group.train), key=rank):
            ours = {
                depth: Mean.of(same) for depth, same in group[group.train == train].groupby("depth")
            }
            add(train, "ours", ours)
            for source, points in papers[papers.train == train].groupby(
                papers.source + ", " + papers.dataset
            ):
                theirs = dict(zip(points.depth, points.value))
                add(train, source, theirs)
                add(
                    train,
                    f"ours − {source}",
                    {
                        depth: signed(ours[depth].mean - theirs[depth], 1)
                        for depth in ours
                        if depth in theirs
                    },
                )
        yield Table(
            name,
            rows,
            across="depth",
            columns=[f"depth {depth}" for depth in sorted({*group.depth, *papers.depth})],
        )


def table_against_bn(runs):
    """γ and β alone against every other choice of trained parameters: bn − it."""
    shown = usual_start(runs)
    for name, group in recipes(shown[~random_sweep(shown)], "depth", "width", "train"):
        rows = []
        for (width, depth, train), same in group.groupby(["width", "depth", "train"]):
            bn = group[(group.train == "bn") & (group.width == width) & (group.depth == depth)]
            if train != "bn" and (difference := paired(bn, same)):
                rows.append(
                    {"trained": train, "shape": shape_name(width, depth), "bn − it": difference}
                )
        if rows:
            yield Table(
                name,
                sorted(rows, key=lambda row: rank(row["trained"])),
                across="shape",
                value="bn − it",
                columns=list(dict.fromkeys(row["shape"] for row in rows)),
            )


def shape_name(width: int, depth: int) -> str:
    return f"depth {depth}" + f" x{width}" * (width != 1)


def table_random_params(runs):
    """BatchNorm's γ and β against K randomly chosen parameters of each channel; K = 2 is as many."""
    for name, group in recipes(usual_start(runs), "train"):
        bn, rows = group[group.train == "bn"], []
        for train in sorted(set(group.train), key=rank):
            if train == "bn" or "random:" in train:
                here = group[group.train == train]
                rows.append(
                    {
                        "trained": train,
                        "parameters": int(here.params_trained.iloc[0]),
                        "test accuracy (%)": Mean.of(here),
                        "bn − it": None if train == "bn" else paired(bn, here),
                    }
                )
        if any("random:" in row["trained"] for row in rows):
            better = [row["trained"] for row in rows if row["bn − it"] and row["bn − it"].mean < 0]
            note = (
                f"The smallest K whose mean overtakes bn: {better[0]}."
                if better
                else "None of these overtakes bn."
                if len(bn)
                else ""
            )
            yield Table(name, rows, note=note)


def table_depth_width(runs):
    """Every depth at width 1 and every width at depth 14; then networks with as many BatchNorm parameters, deep against wide."""
    for name, group in recipes(usual_start(runs).query("arch == 'resnet'"), "depth", "width"):
        if group.width.max() == 1:
            continue
        shapes = {shape: same for shape, same in group.groupby(["width", "depth"])}
        yield Table(
            f"{name}, {group.train.iloc[0]}",
            [
                {
                    "depth": depth,
                    "width": width,
                    "parameters": int(same.params_trained.iloc[0]),
                    "test accuracy (%)": Mean.of(same),
                }
                for (width, depth), same in shapes.items()
            ],
        )
        if rows := [
            {
                "deep": f"depth {deep.depth.iloc[0]}",
                "wide": f"width {wide.width.iloc[0]}, depth {wide.depth.iloc[0]}",
                "parameters, deep": int(deep.params_trained.iloc[0]),
                "parameters, wide": int(wide.params_trained.iloc[0]),
                "deep − wide": paired(deep, wide),
            }
            for deep, wide in matched(group)
        ]:
            yield Table(f"{name}, {group.train.iloc[0]}, matched", rows)


def matched(group: pd.DataFrame):
    """Pairs of BN-only runs, deep ones of width 1 and wide ones of depth 14: the deepest with no more BatchNorm parameters, whose steps are of 448."""
    bn = group[group.train == "bn"]
    for _, wide in bn[(bn.depth == 14) & (bn.width > 1)].groupby("width"):
        fewer = wide.params_trained.iloc[0] - bn.params_trained
        if len(deep := bn[(bn.width == 1) & (0 <= fewer) & (fewer < 448)]):
            yield deep, wide


def table_initialisation(runs):
    """How γ, β and the weights start (Frankle et al., appendix), against γ ~ U[0, 1], β = 0, He-normal weights."""
    settings = ["gamma_init", "beta_init", "weight_init"]
    for name, group in recipes(runs[runs.bn_weight.isna() & runs.bn.isna()], *settings):
        if len(group[settings].drop_duplicates()) > 1:
            usual = usual_start(group)
            rows = [
                {
                    "γ": gamma,
                    "β": beta,
                    "weights": weights,
                    "test accuracy (%)": Mean.of(same),
                    "it − usual": None
                    if same.index.isin(usual.index).all()
                    else paired(same, usual),
                }
                for (gamma, beta, weights), same in by_start(group)
            ]
            yield Table(f"{name}, {group.train.iloc[0]}", rows)


def by_start(group: pd.DataFrame):
    """Each start of γ, β and the weights with its runs: the usual one, then those with another γ, β, weights."""
    usual = ("uniform", "zeros", "he_normal")
    return sorted(
        group.groupby(["gamma_init", "beta_init", "weight_init"]),
        key=lambda cell: [
            (value != standard, value) for value, standard in zip(cell[0][::-1], usual[::-1])
        ],
    )


def table_made(runs):
    """What was run, by which script, on what, and in how long: the sum over runs, several of which may have been made at once."""
    keys = ["experiment", "dataset", "arch", "epochs", "device", "threads", "torch"]
    yield Table(
        "all runs",
        [
            dict(zip(keys, setting))
            | {
                "runs": len(same),
                "depths": ", ".join(map(str, sorted(same.depth.unique()))),
                "widths": ", ".join(map(str, sorted(same.width.unique()))),
                "trained": ", ".join(sorted(same.train.unique(), key=rank)),
                "hours": f"{same.hours.sum():.2f}",
            }
            for setting, same in runs.groupby(keys)
        ],
    )


def table_speed(bench):
    """The training loop's speed, by bench.py: a plain loop made ours part by part, where a step of ours spends its time, and several processes at once."""
    for (device, threads, *_, train, size, batch), here in bench.groupby(
        ["device", "threads", "arch", "depth", "width", "train", "image_size", "batch_size"]
    ):
        name = f"{device}, {network_name(here.iloc[0])}, {train}, {size}x{size} pixels, batches of {batch}"
        grid, busy = here[here.variant == "grid"], here[here.variant.str.startswith("beside ")]
        loops, steps, starts = (
            here[here[column].notna()] for column in ("limit_s", "share_of_step", "start_s")
        )
        if len(loops):
            yield Table(
                f"{name}, {threads} threads",
                [
                    {
                        "": row.variant,
                        "images/s, training": f"{row.train_images_per_s:,.0f}",
                        "images/s, test": f"{row.test_images_per_s:,.0f}",
                        "epoch (s)": f"{row.epoch_s:.1f}",
                        "× plain": f"{row.speedup:.2f}",
                        "of the limit": f"{100 * row.share_of_limit:.0f} % ({row.limited_by})",
                        "peak memory (MB)": f"{row.peak_mb:,.0f}",
                    }
                    for row in loops.itertuples()
                ],
                note="".join(
                    f"From the start of a process to its first step, {row.variant.removeprefix('start-up, ')}: {row.start_s:.1f} s. "
                    for row in starts.itertuples()
                ).strip(),
            )
            yield Table(
                f"{name}, {threads} threads: a training step",
                [
                    {
                        "": row.variant.removeprefix("of a step: "),
                        "share": f"{100 * row.share_of_step:.0f} %",
                    }
                    for row in steps.itertuples()
                ],
            )
        if len(grid):
            yield Table(
                f"{name}: processes at once",
                [
                    {
                        "processes": row.processes,
                        "threads each": int(row.threads_each),
                        "images/s, training, together": f"{row.train_images_per_s:,.0f}",
                        "× one process": f"{row.speedup:.2f}",
                    }
                    for row in grid.itertuples()
                ],
            )
        if len(busy):
            yield Table(
                f"{name}: on a busy machine, {int(busy.threads_each.iloc[0])} threads",
                [
                    {
                        "": row.variant,
                        "epoch (s)": f"{row.epoch_s:.1f}",
                        "× its quiet time": f"{1 / row.speedup:.2f}",
                    }
                    for row in busy.itertuples()
                ],
            )


def table_davis_frank(runs):
    """γ started at bn_weight and slowed by c, everything trained, against γ = 1 and c = 1: the test accuracy at the best validation epoch."""
    for name, group, baseline, others in davis_frank(runs):
        rows = [
            {
                "γ at the start": 1.0,
                "c": 1.0,
                "input": "dataset",
                "test accuracy (%)": Mean.of(baseline),
                "gain": None,
                "p": "",
            }
        ]
        for (start, c, norm), same in others:
            rows.append(
                {
                    "γ at the start": start,
                    "c": c,
                    "input": norm,
                    "test accuracy (%)": Mean.of(same),
                    "gain": paired(same, baseline),
                    "p": p_value(same, baseline),
                }
            )
        yield Table(
            name,
            rows,
            note=f"p: one-sided paired t-test against the first line. {comparisons(len(others))}: at p ≤ 0.05 about one in twenty is significant by chance.",
        )


def davis_frank(runs: pd.DataFrame):
    """For each recipe its title, runs, baseline, and the other settings with their runs."""
    settings = ["bn_weight", "c", "input_norm"]
    for name, group in recipes(runs[runs.bn_weight.notna()], *settings, "gamma_init"):
        cells = {setting: same for setting, same in group.groupby(settings, sort=False)}
        baseline = cells.pop((1.0, 1.0, "dataset"), None)
        if baseline is not None and cells:
            yield (
                name,
                group,
                baseline,
                sorted(cells.items(), key=lambda cell: (-cell[0][0], *cell[0][1:])),
            )


def comparisons(number: int) -> str:
    return f"{number} comparison{'s' * (number != 1)}"


def p_value(a: pd.DataFrame, b: pd.DataFrame) -> str:
    both = (
        a.set_index("seed")
        .test_acc.to_frame("a")
        .join(b.set_index("seed").test_acc.rename("b"), how="inner")
    )
    return (
        f"{stats.ttest_rel(both.a, both.b, alternative='greater').pvalue:.3g}"
        if len(both) > 2
        else "too few seeds"
    )


def table_mlp_lenet(runs):
    """MLPs and LeNet-5, with BatchNorm before and after the activation."""
    for name, group in recipes(
        runs[runs.bn.notna() & (runs.experiment != "mlp_lenet_tune")], "train", "bn"
    ):
        rows = [
            {
                "trained": train,
                "parameters": int(same.params_trained.iloc[0]),
                "BatchNorm": bn,
                "test accuracy (%)": Mean.of(same),
            }
            for (bn, train), same in group.groupby(["bn", "train"])
        ]
        yield Table(
            name,
            sorted(rows, key=lambda row: rank(row["trained"])),
            across="BatchNorm",
            columns=["before", "after", "none"],
        )


def table_tuned(runs):
    """The five best trials of `exp_mlp_lenet.py --tune`, by the accuracy on the validation images, which chose, and that on the test images, which did not."""
    trials = runs[runs.experiment == "mlp_lenet_tune"]
    for name, group in recipes(
        trials, "lr", "weight_decay", "batch_size", "hidden", "width", "depth"
    ):
        best = group.sort_values("val_acc", ascending=False, kind="stable")[:5]
        yield Table(
            f"{name}, {group.train.iloc[0]}: the best of {len(group)} trials",
            [
                {
                    "network": network_name(row),
                    "parameters": int(row.params_trained),
                    "learning rate": f"{row.lr:.3g}",
                    "weight decay": f"{row.weight_decay:.2g}",
                    "batch size": int(row.batch_size),
                    "validation accuracy (%)": f"{row.val_acc:.2f}",
                    "test accuracy (%)": f"{row.test_acc:.2f}",
                }
                for row in best.itertuples()
            ],
        )


def table_recipes(runs):
    """Optimizers, schedules and batch sizes."""
    settings = ["optimizer", "lr", "batch_size", "schedule", "warmup_epochs"]
    for name, group in recipes(usual_start(runs), *settings, "momentum"):
        if len(group[settings].drop_duplicates()) > 1:
            rows = [
                {
                    "optimizer": optimizer,
                    "learning rate": lr,
                    "batch size": size,
                    "warm-up epochs": warmup,
                    "schedule": schedule,
                    "test accuracy (%)": Mean.of(same),
                }
                for (optimizer, lr, size, schedule, warmup), same in group.groupby(settings)
            ]
            yield Table(
                f"{name}, {group.train.iloc[0]}",
                rows,
                across="schedule",
                columns=["step", "cosine", "linear-cosine", "restarts", "exponential", "constant"],
            )


def table_variants(runs):
    """What another version of the images changes: cifar10-jpeg-twice is cifar10-jpeg saved once more as JPEG, and a data set's variant by its name."""
    usual, names = usual_start(runs), sorted(runs.dataset.unique())
    for base, variant in (
        (base, name) for name in names for base in names if name.startswith(f"{base}-")
    ):
        rows = []
        for name, group in recipes(usual[usual.dataset.isin([base, variant])], "dataset"):
            theirs, ours = (group[group.dataset == dataset] for dataset in (variant, base))
            if len(theirs) and len(ours):
                rows.append(
                    {
                        "runs": f"{name.removeprefix(f'{group.dataset.iloc[0]}, ')}, {group.train.iloc[0]}",
                        f"{base}: test accuracy (%)": Mean.of(ours),
                        f"{variant}: test accuracy (%)": Mean.of(theirs),
                        f"{variant} − {base}": paired(theirs, ours),
                    }
                )
        if rows:
            yield Table(f"{variant} beside {base}", rows)


def table_precision(runs):
    """The same runs in bf16 and in fp32."""
    for name, group in recipes(usual_start(runs), "precision"):
        fp32, bf16 = (group[group.precision == precision] for precision in ("fp32", "bf16"))
        if len(fp32) and len(bf16):
            yield Table(
                f"{name}, {group.train.iloc[0]}",
                [
                    {
                        "bf16: test accuracy (%)": Mean.of(bf16),
                        "fp32: test accuracy (%)": Mean.of(fp32),
                        "fp32 − bf16": paired(fp32, bf16),
                    }
                ],
            )


# ---------------------------------------------------------------------------------------------------------------- claims

CLAIMS = {  # the reference's, in short; "bn" stands for a network of which only γ and β are trained
    1: "bn: accuracy rises with depth",
    2: "bn beats as many random parameters",
    3: "bn: depth beats width at equal numbers of parameters",
    4: "bn switches off more features, |γ| < 0.01, than all (points of share)",
    5: "bn: such γ can be set to zero, change within ±0.5",
    6: "γ and β matter in ordinary training",
    7: "BatchNorm does better before the activation",
    8: "a small γ, slowly trained, improves all",
    9: "all layers frozen is chance, the mean within ±5",
    10: "the shortcuts hold something back",
    11: "γ and β move further from their start under bn than under all (mean distance)",
}


def table_claims(runs):
    """A verdict on each claim and case, by data set. Where several recipes have the runs, the longest of three seeds or more speaks, else the longest."""
    for dataset, here in runs.groupby("dataset"):
        found = {}
        for claim, case, recipe, epochs, figure, verdict in claims(here):
            row = {
                "claim": f"{claim}. {CLAIMS[claim]}",
                "case": case,
                "ours": figure,
                "seeds": figure.pairs,
                "verdict": verdict,
                "recipe": recipe.removeprefix(f"{dataset}, "),
            }
            found.setdefault((claim, case), []).append(
                ((figure.pairs > 2, epochs, figure.pairs), row)
            )
        rows = [
            max(rows, key=lambda entry: entry[0])[1]
            for (claim, _), rows in sorted(found.items(), key=lambda item: item[0][0])
        ]
        missing = sorted(set(CLAIMS) - {claim for claim, _ in found})
        if rows:
            yield Table(
                dataset,
                rows,
                note=f"Not run on {dataset}: the claims {', '.join(map(str, missing))}."
                * bool(missing),
            )


def claims(runs: pd.DataFrame):
    """For each case of a claim and each recipe: claim, case, recipe, its epochs, our figure, and the verdict."""
    yield from claims_on_resnets(runs)
    yield from claims_on_mlps(runs)
    for recipe, group, baseline, others in davis_frank(runs):
        for (start, c, norm), same in others:
            if (start, c) == (0.1, 100) and (figure := paired(same, baseline)):
                case = (
                    f"γ from 0.1, rate / 100, input {norm} − usual, {network_name(group.iloc[0])}"
                )
                yield (
                    8,
                    case,
                    recipe,
                    group.epochs.max(),
                    figure,
                    significant(p_value(same, baseline), len(others)),
                )


def claims_on_resnets(runs: pd.DataFrame):
    for recipe, group in recipes(
        usual_start(runs).query("arch == 'resnet'"), "depth", "width", "train"
    ):
        at = {
            (train, depth): same
            for (train, depth), same in group[group.width == 1].groupby(["train", "depth"])
        }

        def against(a, b, depth, value=accuracy):
            return (
                paired(at[a, depth], at[b, depth], value)
                if (a, depth) in at and (b, depth) in at
                else None
            )

        depths = sorted(depth for train, depth in at if train == "bn")
        cases = (
            [
                (
                    1,
                    f"depth {depths[-1]} − depth {depths[0]}",
                    paired(at["bn", depths[-1]], at["bn", depths[0]]),
                    sign,
                )
            ]
            if len(depths) > 1
            else []
        )
        cases += [
            (
                3,
                f"depth {deep.depth.iloc[0]} − width {wide.width.iloc[0]}",
                paired(deep, wide),
                sign,
            )
            for deep, wide in matched(group)
        ]
        for d in sorted({depth for _, depth in at}):
            cases += [
                (2, f"bn − random:2, depth {d}", against("bn", "random:2", d), sign),
                (4, f"bn − all, depth {d}", against("bn", "all", d, share_of_small_gammas), sign),
                (
                    5,
                    f"pruned − as trained, depth {d}",
                    alone(at.get(("bn", d)), change_by_pruning),
                    within(0.5),
                ),
                (6, f"all − all-bn, depth {d}", against("all", "all-bn", d), sign),
                (
                    9,
                    f"none − chance, depth {d}",
                    alone(at.get(("none", d)), lambda run: run.test_acc - 100 / run.classes),
                    near(5),
                ),
                (10, f"bn+shortcut − bn, depth {d}", against("bn+shortcut", "bn", d), sign),
                (
                    11,
                    f"γ, bn − all, depth {d}",
                    against("bn", "all", d, lambda run: distance(run, "gamma")),
                    sign,
                ),
                (
                    11,
                    f"β, bn − all, depth {d}",
                    against("bn", "all", d, lambda run: distance(run, "beta")),
                    sign,
                ),
            ]
        yield from (
            (claim, case, recipe, group.epochs.max(), figure, verdict(figure))
            for claim, case, figure, verdict in cases
            if figure
        )


def claims_on_mlps(runs: pd.DataFrame):
    for recipe, group in recipes(runs[runs.bn.isin(["before", "after"])], "bn", "train"):
        network, at = (
            network_name(group.iloc[0]),
            {(place, train): same for (place, train), same in group.groupby(["bn", "train"])},
        )
        pairs = [
            (7, f"before − after, {train}, {network}", ("before", train), ("after", train))
            for train in ("bn", "all")
        ]
        pairs += [
            (2, f"bn − random:2, {network}, BatchNorm {place}", (place, "bn"), (place, "random:2"))
            for place in ("before", "after")
        ]
        for claim, case, a, b in pairs:
            if a in at and b in at and (figure := paired(at[a], at[b])):
                yield claim, case, recipe, group.epochs.max(), figure, sign(figure)


def alone(runs: pd.DataFrame | None, value) -> Difference | None:
    values = (
        pd.Series(dtype=float) if runs is None else runs.apply(value, axis=1).astype(float).dropna()
    )
    return Difference.of(values) if len(values) else None


def share_of_small_gammas(run) -> float:
    learned = run.record.table("channels")
    return math.nan if learned is None else 100 * (learned.gamma.abs() < 0.01).mean()


def distance(run, which: str) -> float:
    learned = run.record.table("channels")
    return math.nan if learned is None else (learned[which] - learned[f"{which}_init"]).abs().mean()


def change_by_pruning(run) -> float:
    pruned = run.record.table("pruning")
    return (
        math.nan
        if pruned is None
        else pruned.test_acc[pruned.threshold == 0.01].iloc[0] - pruned.test_acc.iloc[0]
    )


def sign(d: Difference) -> str:
    """By the side of 0 on which the 95 % interval lies."""
    if d.pairs < 2:
        return "open (1 seed)"
    return (
        "confirmed"
        if d.low > 0
        else "contradicted"
        if d.high < 0
        else f"open (about {math.ceil(d.needed):,} seeds would decide)"
        if d.needed < 1e4
        else "open"
    )


def within(points: float):
    """Whether the interval lies within `points` of 0, or wholly outside."""
    return lambda d: (
        "open (1 seed)"
        if d.pairs < 2
        else "confirmed"
        if -points <= d.low and d.high <= points
        else "contradicted"
        if d.low > points or d.high < -points
        else "open"
    )


def near(points: float):
    """Whether the mean does."""
    return lambda d: "confirmed" if abs(d.mean) <= points else "contradicted"


def significant(p: str, number: int) -> str:
    if p == "too few seeds":
        return f"open ({p})"
    return (
        "confirmed" if float(p) <= 0.05 else "contradicted" if float(p) >= 0.95 else "open"
    ) + f" (one-sided p = {p}, {comparisons(number)})"


TABLES = {
    name.removeprefix("table_"): make
    for name, make in list(globals().items())
    if name.startswith("table_")
}
