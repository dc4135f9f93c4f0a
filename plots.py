"""From the CSVs in results/ to the papers' tables and figures, beside the published numbers, and a verdict on each claim. Reads CSVs and nothing else, trains nothing.

    python plots.py                                       # tables/ and figures/ of everything in results/
    python plots.py --only claims accuracy_depth          # these alone
    python plots.py --dataset digits --results elsewhere --out /some/folder --format md png
    python plots.py --with evidence                       # your runs beside those that came with the project
    python plots.py --results evidence --out evidence     # makes what is committed

A table is written as Markdown, LaTeX (booktabs) and, in full precision, CSV; a figure, one for each data set, as PNG and PDF.
Averages are over seeds and nothing else; a difference is that of runs with the same seed, with the 95 % interval of Student's t.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import startup  # noqa: F401, Ctrl-C during imports is one line

import pandas as pd

from plot_figures import FIGURES
from plot_runs import pack, read_bench, read_runs
from plot_tables import TABLES, Difference, Mean, Table, distinct
from records import cannot_write, file_name, printable

# ---------------------------------------------------------------------------------------------------------- command line

LATEX = str.maketrans(
    {
        "±": r"$\pm$",
        "−": "$-$",
        "γ": r"$\gamma$",
        "β": r"$\beta$",
        "ö": r"\"{o}",
        "é": r"\'e",
        "≤": r"$\le$",
        "×": r"$\times$",
        "|": r"\textbar{}",
        "<": r"\textless{}",
    }
)
SPECIAL = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
COMMANDS = {  # what makes the runs of each table and figure
    "parameters": "exp_bn_only.py --dataset digits",
    "accuracy": "exp_bn_only.py --dataset digits",
    "against_bn": "exp_bn_only.py --dataset digits --train all",
    "random_params": "exp_random_params.py --dataset digits --seeds 0 1 2 3 4",
    "depth_width": "exp_depth_width.py --dataset digits --seeds 0 1 2 3 4",
    "initialisation": "exp_bn_init.py frankle --dataset digits --gamma-init uniform ones --seeds 0 1 2 3 4",
    "davis_frank": "exp_bn_init.py davis_frank --dataset digits --network cifar_resnet14 --seeds 1 2 3 4 5",
    "mlp_lenet": "exp_mlp_lenet.py --bn before after --train bn all --seeds 0 1 2 3 4",
    "tuned": "exp_mlp_lenet.py --dataset digits --tune 30 --epochs 20",
    "variants": "exp_bn_only.py --dataset imagefolder --data data/cifar10-jpeg-twice",
    "made": "exp_bn_only.py --dataset digits",
    "speed": "bench.py",
    "recipes": "exp_bn_only.py --dataset digits --schedule cosine",
    "precision": "exp_bn_only.py --dataset digits --precision fp32",
    "claims": "exp_bn_only.py --dataset digits",
    "accuracy_depth": "exp_depth_width.py --dataset digits --widths 1",
    "accuracy_width": "exp_depth_width.py --dataset digits --depths 14",
    "accuracy_parameters": "exp_depth_width.py --dataset digits",
    "learning_curves": "exp_bn_only.py --dataset digits",
    "gamma_beta": "exp_bn_only.py --dataset digits --train all",
    "small_gammas": "exp_bn_only.py --dataset digits --train all",
    "pruning": "exp_bn_only.py --dataset digits",
    "relu_active": "exp_bn_only.py --dataset digits --train all",
}


def markdown(table: pd.DataFrame) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.values]
    return "\n".join(
        "| " + " | ".join(printable(str(cell)).replace("|", "\\|") for cell in row) + " |"
        for row in rows
    )


def latex(table: pd.DataFrame, caption: str) -> str:
    """With \\usepackage{booktabs}."""
    return (
        table.rename(columns=str)
        .to_latex(index=False, escape=True, caption=printable(caption).translate(SPECIAL))
        .translate(LATEX)
    )


def write_table(name: str, tables: list[Table], folder: Path, formats: set[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = " ".join(TABLES[name].__doc__.split())
    means = ", mean ± sample standard deviation (number of seeds)" * any(
        isinstance(value, Mean) for table in tables for row in table.rows for value in row.values()
    )
    differences = "; differences over paired seeds with their 95 % interval" * any(
        isinstance(value, Difference)
        for table in tables
        for row in table.rows
        for value in row.values()
    )
    text = (
        "\n\n".join(
            [
                f"{about.rstrip('.')}{means}{differences}.",
                *(
                    f"**{printable(t.title)}**\n\n{markdown(t.shown())}"
                    + f"\n\n{t.note}" * bool(t.note)
                    for t in tables
                ),
            ]
        )
        + "\n"
    )
    print(f"# {name}\n\n{text}")
    if "md" in formats:
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    if "tex" in formats:
        (folder / f"{name}.tex").write_text(
            "\n".join(latex(t.shown(), f"{t.title}{means}. {t.note}".strip()) for t in tables),
            encoding="utf-8",
        )
    if "csv" in formats:
        pd.concat([t.flat() for t in tables]).to_csv(
            folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n"
        )


class Parser(argparse.ArgumentParser):
    """argparse, its errors in one line."""

    def error(self, message: str):
        self.exit(2, f"error: {printable(message)} (--help explains)\n")


def main(argv=None) -> int:
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--only",
        nargs="+",
        choices=list(COMMANDS),
        metavar="NAME",
        help=f"of the tables ({', '.join(TABLES)}) and figures ({', '.join(FIGURES)})",
    )
    p.add_argument("--dataset", help="of this data set alone")
    p.add_argument(
        "--results", type=Path, default=Path("results"), metavar="FOLDER", help="default results"
    )
    p.add_argument(
        "--with",
        type=Path,
        nargs="+",
        default=[],
        dest="others",
        metavar="FOLDER",
        help="read these, too, such as evidence; a run that several have is the first's",
    )
    p.add_argument(
        "--pack",
        type=Path,
        metavar="FOLDER",
        help="write the runs as a few tidy tables to this folder, and nothing else",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("."),
        metavar="FOLDER",
        help="where tables/ and figures/ go (default here)",
    )
    p.add_argument(
        "--format",
        nargs="+",
        choices=["md", "tex", "csv", "png", "pdf"],
        default=["md", "tex", "csv", "png", "pdf"],
        help="default all",
    )
    args = p.parse_args(argv)
    folders = [args.results, *args.others]
    try:
        for folder in folders:
            if not folder.is_dir():
                print(
                    printable(
                        f"warning: {folder} is no folder: --results names the one that holds the runs"
                    ),
                    file=sys.stderr,
                )
    except OSError as error:  # no folder can have this name
        p.error(f"--results {folder}: {error.strerror}")
    try:
        if args.pack:
            for path in pack(folders, args.pack):
                print(printable(str(path)))
            return 0
    except OSError as error:
        return stopped(
            cannot_write(args.pack, error, "name a folder that can be written with --pack")
        )
    everything = read_runs(*folders)
    if args.dataset:
        if args.dataset not in (names := sorted(everything.dataset.unique())):
            p.error(
                f"{args.results} has no finished run of the data set {args.dataset}: it has {', '.join(names) or 'none at all'}"
            )
        everything = everything[everything.dataset == args.dataset]
    runs, measured = distinct(everything), read_bench(*folders)
    formats, no_formulas = (
        set(args.format),
        runs.map(lambda value: value.replace("$", r"\$") if isinstance(value, str) else value),
    )  # matplotlib would set them
    try:
        for name in args.only or COMMANDS:
            source = {"speed": measured, "made": everything}.get(name, runs)
            tables = list(TABLES[name](source)) if name in TABLES and len(source) else []
            figures = (
                {
                    dataset: figure
                    for dataset, here in no_formulas.groupby("dataset")
                    if (figure := FIGURES[name](here))
                }
                if name in FIGURES
                else {}
            )
            if tables:
                write_table(name, tables, args.out / "tables", formats)
            for dataset, figure in figures.items():
                save(figure, args.out / "figures" / f"{name}-{file_name(dataset)}", formats)
            if figures and formats & {"png", "pdf"}:
                print(
                    f"# {name}\n\nin {args.out / 'figures'}, of {printable(', '.join(figures))}\n"
                )
            if not tables and not figures:
                print(f"{name}: not run yet: python {COMMANDS[name]}")
    except OSError as error:
        return stopped(
            cannot_write(args.out, error, "name a folder that can be written with --out")
        )
    return 0


def stopped(error) -> int:
    print(printable(f"error: {error}"), file=sys.stderr)
    return error.exit_code


def save(figure, path: Path, formats: set[str]) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        if suffix in formats:
            figure.savefig(path.with_name(f"{path.name}.{suffix}"), dpi=200, metadata=metadata)
    plt.close(figure)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped: the same command begins again", file=sys.stderr)
        sys.exit(130)
