"""From the CSVs in results/ to the papers' tables and figures, beside the published numbers, and a
verdict on each claim. Reads CSVs and nothing else, trains nothing.

    python plots.py                                     # tables/ and figures/ of results/
    python plots.py --only claims accuracy_depth        # these alone
    python plots.py --dataset digits --results elsewhere --out /some/folder --format md png
    python plots.py --with evidence                     # your runs beside those of the project
    python plots.py --results evidence --out evidence   # makes what is committed

A table is written as Markdown, LaTeX (booktabs) and, in full precision, CSV; a figure, one for each
data set, as PNG and PDF. Averages are over seeds and nothing else; a difference is that of runs
with the same seed, with the 95 % interval of Student's t. A new table or figure is one function in
report/tables.py or report/figures.py.
"""

from __future__ import annotations

import harness  # noqa: F401, Ctrl-C during imports is one line

# isort: split
import sys
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from harness.errors import Parser, UserError, cannot_write, guarded, printable
from harness.runs import file_name
from report import claims, figures, tables  # noqa: F401, they fill the registry
from report.registry import FIGURES, TABLES
from report.runs import pack_runs, read_bench, read_runs
from report.stats import Difference, Mean
from report.sweeps import by_data, distinct
from report.tables import Table

RESULTS = Path("results")
IN_FULL = ("accuracy", "claims")  # the tables that are printed without being asked for
FORMATS = ["md", "tex", "csv", "png", "pdf"]
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
ESCAPED = {character: rf"\{character}" for character in "&%$#_{}"}
ESCAPED |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL = str.maketrans(ESCAPED)


# ------------------------------------------------------------------------------------------ tables


def markdown(table: pd.DataFrame) -> str:
    lines = []
    for row in (table.columns, ["---"] * len(table.columns), *table.values):
        cells = [printable(str(cell)).replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def latex(table: pd.DataFrame, caption: str, label: str) -> str:
    """With \\usepackage{booktabs}."""
    about = {"caption": printable(caption).translate(SPECIAL), "label": f"tab:{label}"}
    text = table.rename(columns=str).to_latex(index=False, escape=True, **about)
    return text.translate(LATEX)


def holds(parts: list[Table], kind: type) -> bool:
    """Whether any cell is of this kind."""
    for part in parts:
        for row in part.rows:
            if any(isinstance(value, kind) for value in row.values()):
                return True
    return False


def caption(name: str, entries: dict) -> str:
    """What a table or figure shows, in one line: the docstring of the function that makes it."""
    return " ".join((entries[name].make.__doc__ or name).split())


def write_table(
    name: str, parts: list[Table], folder: Path, formats: set[str], in_full: bool
) -> None:
    """Writes a table, which may have several parts, to NAME.md, .tex and .csv, and prints it, or
    where it is."""
    means, differences = "", ""
    if holds(parts, Mean):
        means = ", mean ± sample standard deviation (number of seeds)"
    if holds(parts, Difference):
        differences = (
            "; in brackets 95 % intervals over seeds, of differences over pairs of equal seed"
        )
    about = caption(name, TABLES).rstrip(".")
    paragraphs = [f"{about}{means}{differences}."]
    for part in parts:
        paragraphs += [f"**{printable(part.title)}**", markdown(part.shown())]
        paragraphs += [part.note] if part.note else []
    text = "\n\n".join(paragraphs) + "\n"
    in_files = formats & {"md", "tex", "csv"}
    if in_full:
        print(f"# {name}\n\n{text}")
    elif in_files:
        print(f"table {name}: {folder / name}.*")
    if in_files:
        folder.mkdir(parents=True, exist_ok=True)
    if "md" in formats:
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    if "tex" in formats:
        captions = [f"{part.title}{means}. {part.note}".strip() for part in parts]
        tables = []
        for i, (part, above) in enumerate(zip(parts, captions, strict=True), 1):
            tables.append(latex(part.shown(), above, f"{name}-{i}"))
        text = "\n".join(tables)
        (folder / f"{name}.tex").write_text(text, encoding="utf-8")
    if "csv" in formats:
        rows = pd.concat([part.flat() for part in parts])
        options = {"index": False, "float_format": "%.6g", "lineterminator": "\n"}
        rows.to_csv(folder / f"{name}.csv", **options)


# ----------------------------------------------------------------------------------------- figures


def without_formulas(value):
    """A setting as matplotlib is to show it: it would set what stands between dollars."""
    return value.replace("$", r"\$") if isinstance(value, str) else value


def draw_figures(name: str, runs: pd.DataFrame, folder: Path, formats: set[str]) -> bool:
    """Draws a figure for each data set, and size of its images, whose runs suffice, and returns
    whether there was one."""
    drawn = []
    entry = FIGURES[name]
    groups = runs.groupby("dataset") if entry.sizes else by_data(runs)
    for data, of_data in groups:
        figure = entry.make(of_data)
        if figure is not None:
            drawn.append(data)
            save(figure, folder / f"{name}-{file_name(data)}", formats)
    if drawn and formats & {"png", "pdf"}:
        print(f"figure {name}: {folder / name}-*, of {printable(', '.join(drawn))}")
    return bool(drawn)


def save(figure, path: Path, formats: set[str]) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, unchanging in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        if suffix in formats:
            figure.savefig(path.with_name(f"{path.name}.{suffix}"), dpi=200, metadata=unchanging)
    plt.close(figure)


# ------------------------------------------------------------------------------------ command line


def parser() -> Parser:
    p = Parser(__doc__)
    p.add_argument(
        "--only",
        nargs="+",
        choices=list(dict.fromkeys([*TABLES, *FIGURES])),
        metavar="NAME",
        help=f"of the tables ({', '.join(TABLES)}) and figures ({', '.join(FIGURES)})",
    )
    p.add_argument("--dataset", help="of this data set alone")
    p.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="the runs that are read (default results)",
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
        help="write the runs as a few tidy tables to this folder, all of them and nothing else",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("."),
        metavar="FOLDER",
        help="where tables/ and figures/ go (default here)",
    )
    p.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS, help="default all")
    return p


def main(argv=None) -> int:
    def work() -> int:
        args = parser().parse_args(argv)
        of_tables = args.dataset or args.only or args.format != FORMATS or args.out != Path(".")
        if args.pack and of_tables:
            leave_out = "leave out --dataset, --only, --format and --out"
            raise UserError(f"--pack writes all runs to its folder: {leave_out}")
        folders = [args.results, *args.others]
        if not (args.others and args.results == RESULTS):  # where nothing need have been run yet
            check("--results", args.results)
        for folder in args.others:
            check("--with", folder)
        with writing(args.pack or args.out, "--pack" if args.pack else "--out"):
            if args.pack:
                for path in pack_runs(folders, args.pack):
                    print(printable(str(path)))
            else:
                runs = of_dataset(args, read_runs(*folders))
                tell_of_precision(args, runs)
                make(args, runs, read_bench(*folders))
        return 0

    return guarded(work, "the same command begins again")


def check(flag: str, folder: Path) -> None:
    try:
        found = folder.is_dir()
    except OSError as error:  # no folder can have this name
        raise UserError(f"{flag} {folder}: {error.strerror}") from None
    if not found:
        raise UserError(
            f"{folder} is no folder: {flag} names one that holds runs, such as evidence"
        )


@contextmanager
def writing(folder: Path, flag: str):
    """Names the flag to mend where the folder cannot be written."""
    try:
        yield
    except OSError as error:
        instead = f"name a folder that can be written with {flag}"
        raise cannot_write(folder, error, instead) from None


def of_dataset(args, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of --dataset, or all."""
    if not args.dataset:
        return runs
    names = sorted(runs.dataset.unique())
    if args.dataset not in names:
        there = ", ".join(names) or "none at all"
        folders = " ".join(map(str, [args.results, *args.others]))
        missing = f"no finished run in {folders} is of the data set {args.dataset}"
        raise UserError(f"{missing}: there are {there}")
    return runs[runs.dataset == args.dataset]


def tell_of_precision(args, runs: pd.DataFrame) -> None:
    """Says why a user's runs and those of --with, in another precision, are never averaged."""
    own = [Path(run.place).is_relative_to(args.results) for run in runs.get("record", [])]
    mine, others = runs[own], runs[[not is_own for is_own in own]]
    if mine.empty or others.empty:
        return
    (here, there), folders = (part.precision.mode()[0] for part in (mine, others)), args.others
    if here != there:
        most = f"the runs of {args.results} are in {here}, most of {' '.join(map(str, folders))}"
        apart = "tables have them apart, and a figure shows what has the most epochs and seeds"
        print(printable(f"{most} in {there}: {apart}\n"))


def make(args, runs: pd.DataFrame, measured: pd.DataFrame) -> None:
    """Makes the tables, then the figures, that were asked for, and names those without runs."""
    averaged = runs[runs.status != "diverged"]
    sources = {"distinct": distinct(averaged), "all": runs, "bench": measured}
    sources["diverged"] = distinct(runs)
    asked = {name: entry for name, entry in FIGURES.items() if name in (args.only or FIGURES)}
    read = {entry.source for entry in asked.values()}
    drawn = {source: sources[source].map(without_formulas) for source in read}
    formats, made, missing = set(args.format), [], []
    for name, entry in TABLES.items():
        if name not in (args.only or TABLES):
            continue
        source = sources[entry.source]
        parts = list(entry.make(source)) if len(source) else []
        if parts:
            in_full = name in (args.only or IN_FULL)
            write_table(name, parts, args.out / "tables", formats, in_full)
            made.append((f"[{name}]({name}.md)", caption(name, TABLES)))
        else:
            missing.append(f"table {name}: not run yet: python {entry.command}")
    for name, entry in asked.items():
        if draw_figures(name, drawn[entry.source], args.out / "figures", formats):
            made.append((f"figure {name}", caption(name, FIGURES)))
        else:
            missing.append(f"figure {name}: not run yet: python {entry.command}")
    if missing:
        print("\n".join(missing))
    if made and "md" in formats and not args.only:
        index = pd.DataFrame(made, columns=["table or figure", "what it shows"])
        path = args.out / "tables" / "index.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(markdown(index) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
