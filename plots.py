"""From the CSVs in results/ to tables and figures beside the published numbers. Reads CSVs and nothing else, trains nothing.

    python plots.py                        # tables/ and figures/ of everything in results/
    python plots.py --results elsewhere --out /some/folder
"""
import argparse
import sys
from pathlib import Path

import pandas as pd

MEASURED = ("run seed epoch train_loss train_acc val_loss val_acc test_loss test_acc test_top5 seconds device threads torch commit status").split()
USUAL = {"subset": "all", "val_fraction": 0, "gamma_init": "uniform", "beta_init": "zeros", "weight_init": "he_normal", "batch_size": 128, "optimizer": "sgd",
         "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "step", "warmup_epochs": 0}  # what a title need not say
TRAIN = ("all", "all-bn", "bn+output", "bn+shortcut", "bn", "gamma", "beta", "shortcut", "output", "none")
# Okabe and Ito's palette, which colour-blind readers tell apart; markers and dashes tell it apart in gray.
STYLE = dict(zip(TRAIN, (("#000000", "o", "-"), ("#56B4E9", "v", "-"), ("#E69F00", "s", "-"), ("#882255", "P", "-"), ("#D55E00", "D", "-"),
                         ("#CC79A7", "^", "--"), ("#009E73", "<", "--"), ("#999933", "h", ":"), ("#0072B2", "X", ":"), ("#888888", "*", ":"))))


def rank(train: str) -> int:
    return TRAIN.index(train) if train in TRAIN else len(TRAIN)


def read_runs(results: Path) -> pd.DataFrame:
    """The last row of every finished run. Runs that are broken, unfinished or diverged are named on stderr, and left out."""
    rows = []
    for path in sorted(results.glob("*/*.csv")):
        if path.parent.name == "bench":
            continue
        try:
            last = pd.read_csv(path, dtype={"subset": str, "image_size": str, "commit": str}).iloc[-1]
            missing = [c for c in [*USUAL, *MEASURED, "dataset", "arch", "depth", "width", "train", "epochs", "precision", "params_trained", "classes"] if c not in last]
            why = (f"it lacks the columns {', '.join(missing)}" if missing else "diverged" if last.status == "diverged"
                   else f"unfinished, {last.epoch} of {last.epochs} epochs" if last.epoch < last.epochs else "")
        except (ValueError, IndexError, OSError) as error:
            why = f"it cannot be read ({error})"
        if why:
            print(f"left out: {path}: {why}", file=sys.stderr)
        else:
            rows.append(last)
    return pd.DataFrame(rows)


def over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation over seeds, and nothing but seeds: every column that is not measured tells runs apart."""
    keys = [column for column in runs.columns if column not in MEASURED]
    return runs.groupby(keys, dropna=False).test_acc.agg(mean="mean", sd="std", seeds="count").reset_index()


def recipes(runs: pd.DataFrame):
    """A title and the averaged runs of each experiment, data set and recipe; `none`, which has no recipe, stands beside every one of its data set."""
    means = over_seeds(runs)
    varied = ("depth", "width", "train", "params_total", "params_trained", "mean", "sd", "seeds")
    recipe = [column for column in means.columns if column not in varied]
    trained, none = means[means.train != "none"], means[means.train == "none"]
    for _, group in trained.groupby(recipe, dropna=False, sort=True):
        first = group.iloc[0]
        beside = none[(none[["experiment", "dataset", "precision", "image_size"]] == first[["experiment", "dataset", "precision", "image_size"]]).all(axis=1)]
        own = [column for column in recipe[recipe.index("classes") + 1:] if pd.notna(first[column])]
        unusual = [f"{column} {first[column]}" for column in [*USUAL, *own] if first[column] != USUAL.get(column)]
        title = [f"{first.experiment}: {first.dataset}", *([first.arch] if first.arch != "resnet" else []), f"{first.epochs} epochs", first.precision, *unusual]
        yield ", ".join(title + ([first.augment] if first.augment != "none" else [])), pd.concat([group, beside])


def published(path: Path, dataset: str) -> pd.DataFrame:
    """The published accuracies on `dataset`; on the data set of which it is a variant, as cifar10-jpeg is of cifar10."""
    table = pd.read_csv(path)
    return table[[dataset == name or dataset.startswith(f"{name}-") for name in table.dataset]]


def accuracy_table(group: pd.DataFrame, papers: pd.DataFrame) -> pd.DataFrame:
    """A row per --train and, beside it, a row per source; a column per depth at width 1 (other widths: depth x width)."""
    def label(depth, width):
        return f"{depth}" if width == 1 else f"{depth} x{width}"

    ours = [{"train": r.train, "source": "ours", "at": label(r.depth, r.width),
             "test_acc": f"{r['mean']:.1f} ± {r.sd:.1f} ({r.seeds})" if r.seeds > 1 else f"{r['mean']:.1f} (1)"} for _, r in group.iterrows()]
    theirs = [{"train": r.train, "source": f"{r.source}, {r.dataset}", "at": label(r.depth, r.width), "test_acc": f"{r.test_acc:g}"}
              for _, r in papers.iterrows() if r.train in set(group.train)]
    order = [label(d, w) for w, d in sorted({(r.width, r.depth) for r in [*group.itertuples(), *papers.itertuples()]})]
    table = pd.DataFrame(ours + theirs)
    table["rank"] = [(rank(train), source != "ours") for train, source in zip(table.train, table.source)]
    table = table.pivot(index=["rank", "train", "source"], columns="at", values="test_acc")
    return table[[column for column in order if column in table]].droplevel("rank").fillna("")


def markdown(table: pd.DataFrame) -> str:
    rows = [["trained", "source", *(f"depth {c}" for c in table.columns)], ["---"] * (2 + len(table.columns)),
            *([train, source, *values] for (train, source), values in zip(table.index, table.values))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def write_tables(runs: pd.DataFrame, papers: Path, folder: Path) -> None:
    """tables/accuracy.md, printed too, and tables/accuracy.csv, a row per average in full precision."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(f"**{title}**: test accuracy in %, mean ± sample standard deviation (number of seeds)\n\n"
                       + markdown(accuracy_table(group, published(papers, group.dataset.iloc[0]))) for title, group in recipes(runs))
    (folder / "accuracy.md").write_text(text + "\n", encoding="utf-8")
    over_seeds(runs).to_csv(folder / "accuracy.csv", index=False, float_format="%.6g", lineterminator="\n")
    print(text)


def draw_accuracy_against_depth(runs: pd.DataFrame, papers: Path, folder: Path) -> None:
    """A panel per data set: a line per --train at width 1, shaded by the standard deviation, and the published points of `bn`."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = runs[runs.experiment.isin(["bn_only", "depth_width"])].drop(columns="experiment").drop_duplicates("run")
    means = over_seeds(runs).query("width == 1 and arch == 'resnet'")
    if means.empty:
        return
    recipe = [column for column in means.columns if column not in ("depth", "params_total", "params_trained", "mean", "sd", "seeds")]
    datasets = list(dict.fromkeys(means.dataset))
    figure, axes = plt.subplots(1, len(datasets), figsize=(0.6 + 3.6 * len(datasets), 3.4), squeeze=False, layout="constrained")
    for axis, dataset in zip(axes[0], datasets):
        here = means[means.dataset == dataset]
        for train in sorted(set(here.train), key=rank):
            line = here[here.train == train]  # of its recipes the one with the most runs, then the longest
            line = max((recipe for _, recipe in line.groupby(recipe, dropna=False)), key=lambda r: (r.seeds.sum(), r.epochs.iloc[0])).sort_values("depth")
            colour, marker, dashes = STYLE.get(train, ("#666666", ".", "-"))
            seeds = "–".join(map(str, sorted({line.seeds.min(), line.seeds.max()}))) + (" seeds" if line.seeds.max() > 1 else " seed")
            epochs = "" if train == "none" else f", {line.epochs.iloc[0]} epochs"
            axis.plot(line.depth, line["mean"], color=colour, marker=marker, linestyle=dashes, markersize=5,
                      label=f"{train} ({seeds}{epochs})")
            axis.fill_between(line.depth, line["mean"] - line.sd, line["mean"] + line.sd, color=colour, alpha=0.2, linewidth=0)
        for source, points in published(papers, dataset).query("train == 'bn'").groupby("source"):
            axis.plot(points.depth, points.test_acc, color=STYLE["bn"][0], marker={"F": "o", "V": "s", "M": "^"}.get(source[0], "x"), markerfacecolor="none",
                      linestyle="none", label=f"bn, {source} ({points.dataset.iloc[0]})")
        axis.axhline(100 / here.classes.iloc[0], color="#888888", linewidth=0.8, linestyle=(0, (1, 3)), label="chance")
        depths = sorted({*here.depth, *published(papers, dataset).depth})
        axis.set(title=dataset, xlabel="depth (layers)", ylabel="test accuracy (%)", xscale="log", ylim=(0, 100))
        axis.set_xticks(depths, [str(d) for d in depths])
        axis.minorticks_off()
        axis.legend(fontsize=6, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "pdf"):
        figure.savefig(folder / f"accuracy_depth.{suffix}", dpi=200, bbox_inches="tight")
    plt.close(figure)


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--results", type=Path, default=Path("results"), metavar="FOLDER", help="default results")
    p.add_argument("--out", type=Path, default=Path("."), metavar="FOLDER", help="where tables/ and figures/ go (default here)")
    args = p.parse_args(argv)
    runs = read_runs(args.results)
    if runs.empty:
        print(f"no finished run in {args.results} yet: python exp_bn_only.py --dataset digits makes one")
        return 0
    papers = Path(__file__).with_name("published.csv")
    write_tables(runs, papers, args.out / "tables")
    draw_accuracy_against_depth(runs, papers, args.out / "figures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
