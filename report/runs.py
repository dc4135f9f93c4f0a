"""The runs that plots.py reads: folders that the experiments wrote, and the tidy tables that --pack
makes of them.

A packed folder holds, for each data set, DATASET/epochs.csv.gz with every row of every run,
channels.csv.gz with γ, β and activity and pruning.csv.gz with the accuracy after small γ were set
to zero; and bench.csv with what bench.py measured. The three tables are told apart by data set so
that new runs on one leave the tables of the others as they are, byte for byte.

Runs of older and newer versions are read alike: of a run's columns only REQUIRED must be
there, any other that is missing or empty has its default, and one not known here is kept."""

from __future__ import annotations

import gzip
import re
import sys
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pandas as pd

from harness.errors import Damaged, printable
from harness.files import replacing
from harness.runs import ADDED, COLUMNS, MEASURES, NUMBERS, OWN, REQUIRED, file_name, read_rows

BESIDE = {"channels": "bn", "pruning": "prune"}  # a packed table, and a run's: RUN.bn.csv.gz
NUMERIC = {"epoch", *NUMBERS, *MEASURES, "bn_weight", "c"}
# A folder of images may be named 2024, and a class or a word None.
WORDS = [column for column in (*COLUMNS, *OWN) if column not in NUMERIC]
TYPED = {"dtype": dict.fromkeys(WORDS, str), "keep_default_na": False, "na_values": ["", "nan"]}
AS_TEXT = {"dtype": str, "keep_default_na": False}
KEY = COLUMNS[:2]  # experiment and run
UNREADABLE = (ValueError, EOFError, OSError, zlib.error)
USUAL = {  # the settings of the main paper, which a title need not say
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
    "norm": "bn",
}
# What a run has where its CSV does not say; a number without a default is NaN.
DEFAULTS = USUAL | {"augment": "none"}
DEFAULTS |= dict.fromkeys(("arch", "precision", "device", "torch", "commit"), "")
START = {key: USUAL[key] for key in ("gamma_init", "beta_init", "weight_init")}
FULL = 160  # epochs of the main paper's recipe
NATIVE = {"digits": "8x8", "mnist": "28x28", "fashion_mnist": "28x28", "cifar10": "32x32"}


def leave_out(path: Path | str, why: str | Exception) -> None:
    print(printable(f"left out: {path}: {why}"), file=sys.stderr)


# ---------------------------------------------------------------------------------- where runs are


class FolderRun:
    """One run as its experiment wrote it: RUN.csv, and tables beside it where they were kept."""

    def __init__(self, path: Path):
        self.path = self.place = path
        self.key = path.parent.name, path.stem

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """A row per epoch, typed. Raises Damaged where no run can have left it so."""
        read_rows(self.path)
        return typed(pd.read_csv(self.path, **TYPED))

    def text(self) -> pd.DataFrame:
        """The rows as they are written, every cell as text."""
        return pd.read_csv(self.path, **AS_TEXT)

    def table(self, kind: str, **options) -> pd.DataFrame | None:
        """`channels` or `pruning`; None where it was not kept or is damaged, which is said."""
        path = self.path.with_suffix(f".{BESIDE[kind]}.csv.gz")
        try:
            return pd.read_csv(path, **options)
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            leave_out(path, f"it cannot be read ({error})")
            return None


class Pack:
    """The packed tables of one data set, each read when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder, self.read = folder, {}

    def rows(self, kind: str, **options) -> dict[tuple, pd.DataFrame]:
        """The table `kind` of every run, by experiment and name; of none, which is said, where it
        is damaged."""
        asked = kind, *options
        if asked not in self.read:
            self.read[asked] = self.split(kind, options)
        return self.read[asked]

    def split(self, kind: str, options: dict) -> dict[tuple, pd.DataFrame]:
        path = self.folder / f"{kind}.csv.gz"
        required, usual = KEY, {"dtype": dict.fromkeys(KEY, str)}
        if kind == "epochs":
            required, usual = REQUIRED, TYPED
        try:
            table = pd.read_csv(path, low_memory=False, **(options or usual))
            missing = [column for column in required if column not in table]
            if missing:
                raise ValueError(f"it lacks the columns {', '.join(missing[:5])}")
            return dict(list(table.groupby(KEY, sort=False)))
        except FileNotFoundError:  # nothing of its kind was kept
            return {}
        except UNREADABLE as error:
            leave_out(path, f"it cannot be used: {error}")
            return {}


class PackedRun:
    """One run of a pack."""

    def __init__(self, pack: Pack, key: tuple[str, str]):
        self.pack, self.key = pack, key
        self.place = f"{pack.folder / 'epochs.csv.gz'}: {key[1]}"

    @cached_property
    def epochs(self) -> pd.DataFrame:
        return typed(self.pack.rows("epochs")[self.key])

    def text(self) -> pd.DataFrame:
        return self.pack.rows("epochs", **AS_TEXT)[self.key]

    def table(self, kind: str, **options) -> pd.DataFrame | None:
        found = self.pack.rows(kind, **options).get(self.key)
        return None if found is None else found.drop(columns=KEY).reset_index(drop=True)


Run = FolderRun | PackedRun


def typed(epochs: pd.DataFrame) -> pd.DataFrame:
    """`epochs` without columns that are empty, its numbers as numbers. Raises ValueError where one
    is none, or a column that must be there is empty."""
    if epochs.empty:
        return epochs
    epochs = epochs.dropna(axis=1, how="all")
    missing = [column for column in REQUIRED if column not in epochs]
    if missing:
        raise ValueError(f"it lacks the columns {', '.join(missing)}")
    texts = NUMERIC & set(epochs.select_dtypes(exclude="number"))
    return epochs.assign(**{column: pd.to_numeric(epochs[column]) for column in texts})


def is_run(path: Path) -> bool:
    """Whether a CSV is called as a run is, by a hash at the end."""
    return re.search(r"-[0-9a-f]{6}$", path.stem) is not None


def find_runs(folder: Path) -> list[Run]:
    """Every run below `folder`, by experiment and name, packed or not."""
    # bench.py's CSVs and plots.py's tables, too, are in folders like an experiment's
    others = ("bench", "tables")
    paths = [p for p in folder.glob("*/*.csv") if p.parent.name not in others or is_run(p)]
    found: list[Run] = [FolderRun(path) for path in paths]
    for path in sorted(folder.glob("**/epochs.csv.gz")):
        pack = Pack(path.parent)
        found += [PackedRun(pack, key) for key in pack.rows("epochs")]
    return sorted(found, key=lambda run: run.key)


# --------------------------------------------------------------------------- what is read of them


def finished(runs: list[Run]) -> Iterator[Run]:
    """Those of `runs` that are whole, and complete or diverged; the others are named on stderr."""
    for run in runs:
        try:
            why = why_not(run.epochs)
        except (Damaged, *UNREADABLE) as error:
            why = f"it cannot be used: {error}"
        if why:
            leave_out(run.place, why)
        else:
            yield run


def why_not(epochs: pd.DataFrame) -> str:
    """Why a run with these rows is left out; empty where it is not."""
    if epochs.empty:
        return "unfinished, no epoch"
    last = epochs.iloc[-1]
    if last.epoch < last.epochs and last.status != "diverged":
        return f"unfinished, {last.epoch} of {last.epochs} epochs"
    return ""


def reported(epochs: pd.DataFrame) -> pd.Series:
    """The row whose accuracy counts: the last; for Davis & Frank's method, which chooses the epoch,
    the first of the best validation accuracy."""
    if {"bn_weight", "val_acc"} <= set(epochs):
        return epochs.loc[epochs.val_acc.idxmax()]
    return epochs.iloc[-1]


def read_runs(*folders: Path) -> pd.DataFrame:
    """A row per finished run of `folders`, and per run whose `status` is diverged, which is named
    on stderr. A run that two folders have is the first's.

    Its columns: those that every run has and settings that only some have; then `record`, the run
    itself, `hours`, how long it took; and last those not known here that change from one epoch of
    a run to the next, which are therefore measured."""
    rows, seen, measured = [], set(), {}
    for folder in folders:
        again = 0
        for run in finished(find_runs(folder)):
            if run.key in seen:
                again += 1
                continue
            seen.add(run.key)
            row = reported(run.epochs).to_dict()
            if row["status"] == "diverged":
                leave_out(run.place, "diverged")
            unknown = run.epochs[[c for c in row if c not in (*COLUMNS, *OWN)]]
            own = {*unknown.columns[unknown.nunique(dropna=False) > 1], *measured_alone(list(row))}
            measured.setdefault(row["experiment"], set()).update(own)
            hours = run.epochs.seconds.sum() / 3600 if "seconds" in row else 0.0
            rows.append(row | {"record": run, "hours": hours})
        if again:
            leave_out(folder, f"{again} of its runs, which have the names of runs before")
    if not rows:
        return pd.DataFrame(columns=["dataset", "status"])
    runs, last = pd.DataFrame(apart(rows, measured)), list(ADDED)
    last += sorted(set().union(*measured.values()))
    own = [column for column in runs if column not in (*COLUMNS, *OWN, *last)]
    runs = runs.reindex(columns=[*COLUMNS, *OWN, *own, *last])
    texts = [column for column, default in DEFAULTS.items() if isinstance(default, str)]
    runs = runs.astype(dict.fromkeys(texts, object)).fillna(DEFAULTS)
    runs = runs.assign(image_size=runs.image_size.fillna(runs.dataset.map(native_size)))
    return runs.assign(dataset=told_apart(runs))


def told_apart(runs: pd.DataFrame) -> pd.Series:
    """The names of the data sets; of several folders of images with one name, each with its
    digest."""
    texts = runs.data.astype(object)
    digests = runs.groupby(["dataset", "image_size"]).data.transform("nunique")
    return runs.dataset.mask(digests > 1, runs.dataset + " (" + texts.fillna("?") + ")")


def native_size(dataset: str) -> str:
    """Of a data set's images, or of those of which it is a variant; empty where it is not known."""
    for name, size in NATIVE.items():
        if dataset == name or dataset.startswith(f"{name}-"):
            return size
    return ""


def apart(rows: list[dict], measured: dict[str, set[str]]) -> list[dict]:
    """The `rows` in which what one experiment has `measured`, and for another is a setting, has
    another name, as it then has in `measured`."""
    settings = set().union(*(set(row) - measured[row["experiment"]] for row in rows))
    called: dict[str, dict[str, str]] = {}
    for experiment, names in measured.items():
        called[experiment] = {name: f"{name} (measured)" for name in names & settings}
        measured[experiment] = names - settings | set(called[experiment].values())
    return [
        {called[row["experiment"]].get(name, name): value for name, value in row.items()}
        for row in rows
    ]


def measured_alone(columns: list[str]) -> list[str]:
    """What an experiment alone has measured stands behind the seconds of an epoch."""
    if not {"seconds", "device"} <= set(columns):
        return []
    between = columns[columns.index("seconds") + 1 : columns.index("device")]
    return [column for column in between if column not in COLUMNS]


MEASURED = (
    "device threads arch depth width train image_size batch_size variant limit_s start_s "
    "share_of_step"
).split()


def read_bench(*folders: Path, **options) -> pd.DataFrame:
    """What bench.py measured, all of it."""
    paths = []
    for folder in folders:
        paths += [*sorted(folder.glob("bench/*.csv")), folder / "bench.csv"]
    tables = [pd.DataFrame()]
    for path in paths:
        try:
            found = pd.read_csv(path, **options)
            missing = [column for column in MEASURED if column not in found]
            if missing:
                raise ValueError(f"it lacks the columns {', '.join(missing[:5])}")
            tables.append(found)
        except FileNotFoundError:
            continue
        except UNREADABLE as error:
            leave_out(path, error)
    return pd.concat(tables, ignore_index=True)


# ----------------------------------------------------------------------------------------- packing


def pack_runs(folders: list[Path], out: Path) -> list[Path]:
    """Writes the finished and the diverged runs of `folders` to `out` as packed tables, and returns
    these. A run that two folders have is the first's. The same runs give the same bytes."""
    runs: dict[tuple, Run] = {}
    for folder in folders:
        for run in finished(find_runs(folder)):
            runs.setdefault(run.key, run)
    datasets: dict[str, list[Run]] = {}
    for key in sorted(runs):
        dataset = file_name(runs[key].epochs.dataset.iloc[0])
        datasets.setdefault(dataset, []).append(runs[key])
    written = []
    for dataset, members in datasets.items():
        written.append(write(out / dataset / "epochs.csv.gz", packed_epochs(members)))
        for kind in BESIDE:
            kept = []
            for run in members:
                table = run.table(kind, **AS_TEXT)
                if table is not None:
                    kept.append(keyed(run, table))
            if kept:
                written.append(write(out / dataset / f"{kind}.csv.gz", pd.concat(kept)))
    measured = read_bench(*folders, **AS_TEXT)
    if len(measured):
        written.append(write(out / "bench.csv", measured.drop_duplicates()))
    return written


def packed_epochs(runs: list[Run]) -> pd.DataFrame:
    """The rows of all `runs` as text: the columns that every run has, what experiments alone have
    measured where a run has it, and then the others that any run says something in."""
    tables = [keyed(run, run.text()) for run in runs]
    measured = set().union(*(measured_alone(list(table)) for table in tables))
    rows = pd.concat(tables).fillna("")
    others = [c for c in rows if c not in (*COLUMNS, *measured) and (rows[c] != "").any()]
    known = [column for column in OWN if column in others]
    unknown = sorted(set(others) - set(known))
    place = COLUMNS.index("device")
    first, last = COLUMNS[:place], COLUMNS[place:]
    order = [*first, *sorted(measured), *last, *known, *unknown]
    return rows.reindex(columns=order, fill_value="")


def keyed(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the run's experiment and name as its first columns."""
    table = table.assign(**dict(zip(KEY, run.key, strict=True)))
    return table[[*KEY, *(column for column in table if column not in KEY)]]


def write(path: Path, table: pd.DataFrame) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = table.to_csv(index=False, lineterminator="\n").encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    with replacing(path) as stream:
        stream.write(content)
    return path
