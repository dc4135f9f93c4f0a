"""The runs that plots.py reads: folders that the experiments wrote, and the tidy tables that --pack makes of them.

A packed folder holds, for each data set, DATASET/epochs.csv.gz with every row of every run, channels.csv.gz with γ, β and activity
and pruning.csv.gz with the accuracy after small γ were set to zero; and bench.csv with what bench.py measured. The three tables
are told apart by data set so that new runs on one leave the tables of the others as they are, byte for byte."""

from __future__ import annotations

import gzip
import sys
import zlib
from functools import cached_property
from pathlib import Path

import pandas as pd

from records import COLUMNS, Damaged, file_name, printable, read_rows, replacing

BESIDE = {
    "channels": "bn",
    "pruning": "prune",
}  # a packed table, and what a run calls its own: RUN.bn.csv.gz
TEXT = {column: str for column in ("subset", "image_size", "commit", "hidden", "torch")}
AS_TEXT = {"dtype": str, "keep_default_na": False}
OWN = (
    "bn_weight",
    "c",
    "input_norm",
    "bn",
    "activation",
    "hidden",
    "target",
)  # settings that only one experiment's records have
UNREADABLE = (ValueError, EOFError, OSError, zlib.error)


def leave_out(path: Path, why) -> None:
    print(printable(f"left out: {path}: {why}"), file=sys.stderr)


# -------------------------------------------------------------------------------------------------------- where runs are


class FolderRun:
    """One run as its experiment wrote it: RUN.csv, and tables beside it where they were kept."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.parent.name, path.stem

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """A row per epoch, typed. Raises Damaged where no run can have left it so."""
        read_rows(self.path)
        return pd.read_csv(self.path, dtype=TEXT)

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


class Pack:
    """The packed tables of one data set, each read when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder, self.read = folder, {}

    def rows(self, kind: str, **options) -> dict[tuple, pd.DataFrame]:
        """The table `kind` of every run, by experiment and name; of none, which is said, where it is damaged."""
        key = kind, *options
        if key not in self.read:
            path = self.folder / f"{kind}.csv.gz"
            try:
                table = pd.read_csv(path, low_memory=False, **options or {"dtype": TEXT})
                if missing := [
                    c for c in (COLUMNS if kind == "epochs" else COLUMNS[:2]) if c not in table
                ]:
                    raise ValueError(f"it lacks the columns {', '.join(missing[:5])}")
                self.read[key] = dict(list(table.groupby(COLUMNS[:2], sort=False)))
            except FileNotFoundError:  # nothing of its kind was kept
                self.read[key] = {}
            except UNREADABLE as error:
                leave_out(path, f"it cannot be used: {error}")
                self.read[key] = {}
        return self.read[key]


class PackedRun:
    """One run of a pack."""

    def __init__(self, pack: Pack, name: tuple[str, str]):
        self.pack, self.name = pack, name
        self.path = pack.folder / "epochs.csv.gz"

    @cached_property
    def epochs(self) -> pd.DataFrame:
        return self.pack.rows("epochs")[self.name].dropna(axis=1, how="all")

    def text(self) -> pd.DataFrame:
        return self.pack.rows("epochs", **AS_TEXT)[self.name]

    def table(self, kind: str, **options) -> pd.DataFrame | None:
        found = self.pack.rows(kind, **options).get(self.name)
        return None if found is None else found.drop(columns=COLUMNS[:2]).reset_index(drop=True)


def find_runs(folder: Path) -> list[FolderRun | PackedRun]:
    """Every run below `folder`, by experiment and name, packed or not."""
    paths = [p for p in folder.glob("*/*.csv") if p.parent.name not in ("bench", "tables")]
    packs = [Pack(path.parent) for path in sorted(folder.glob("**/epochs.csv.gz"))]
    found = [FolderRun(path) for path in paths]
    found += [PackedRun(pack, name) for pack in packs for name in pack.rows("epochs")]
    return sorted(found, key=lambda run: run.name)


# ------------------------------------------------------------------------------------------------------ what is read of them


def finished(runs: list[FolderRun | PackedRun], diverged: bool = False):
    """Those of `runs` that are whole and complete, `diverged` ones included where asked; the others are named on stderr."""
    for run in runs:
        try:
            epochs = run.epochs
            last = epochs.iloc[-1] if len(epochs) else None
            if last is None:
                why = "unfinished, no epoch"
            elif last.status == "diverged":
                why = "" if diverged else "diverged"
            else:
                why = (
                    f"unfinished, {last.epoch} of {last.epochs} epochs"
                    if last.epoch < last.epochs
                    else ""
                )
        except (Damaged, *UNREADABLE) as error:
            why = f"it cannot be used: {error}"
        if why:
            leave_out(run.path if isinstance(run, FolderRun) else f"{run.path}: {run.name[1]}", why)
        else:
            yield run


def read_runs(*folders: Path) -> pd.DataFrame:
    """A row per finished run of `folders`: its settings, its last epoch (for Davis & Frank's method the first of the best
    validation accuracy), how long it took, and as `record` the run itself. A run that two folders have is the first's."""
    rows, seen = [], set()
    for folder in folders:
        for run in finished(find_runs(folder)):
            if run.name in seen:
                continue
            seen.add(run.name)
            epochs = run.epochs
            row = epochs.loc[epochs.val_acc.idxmax()] if "bn_weight" in epochs else epochs.iloc[-1]
            rows.append(row.to_dict() | {"record": run, "hours": epochs.seconds.sum() / 3600})
    if not rows:
        return pd.DataFrame(columns=["dataset"])
    runs = pd.DataFrame(rows)
    others = [column for column in runs if column not in (*COLUMNS, *OWN)]
    return runs.reindex(columns=[*COLUMNS, *OWN, *others])


def read_bench(*folders: Path, **options) -> pd.DataFrame:
    """What bench.py measured, all of it."""
    tables = [pd.DataFrame()]
    for path in [
        path
        for folder in folders
        for path in [*sorted(folder.glob("bench/*.csv")), folder / "bench.csv"]
    ]:
        try:
            tables.append(pd.read_csv(path, **options))
        except FileNotFoundError:
            continue
        except UNREADABLE as error:
            leave_out(path, error)
    return pd.concat(tables, ignore_index=True)


# ---------------------------------------------------------------------------------------------------------------- packing


def pack(folders: list[Path], out: Path) -> list[Path]:
    """Writes the finished and the diverged runs of `folders` to `out` as packed tables, and returns these. A run that two folders
    have is the first's. The same runs give the same bytes."""
    runs = {}
    for folder in folders:
        for run in finished(find_runs(folder), diverged=True):
            runs.setdefault(run.name, run)
    by_dataset, written = {}, []
    for name in sorted(runs):
        by_dataset.setdefault(file_name(runs[name].epochs.dataset.iloc[0]), []).append(runs[name])
    for dataset, here in by_dataset.items():
        rows = pd.concat([named(run, run.text()) for run in here]).fillna("")
        own = [column for column in rows if column not in COLUMNS and (rows[column] != "").any()]
        own.sort(key=lambda column: (OWN.index(column) if column in OWN else len(OWN), column))
        written.append(write(out / dataset / "epochs.csv.gz", rows[[*COLUMNS, *own]]))
        for kind in BESIDE:
            tables = [(run, run.table(kind, **AS_TEXT)) for run in here]
            kept = [named(run, table) for run, table in tables if table is not None]
            if kept:
                written.append(write(out / dataset / f"{kind}.csv.gz", pd.concat(kept)))
    if len(measured := read_bench(*folders, **AS_TEXT)):
        written.append(write(out / "bench.csv", measured.drop_duplicates()))
    return written


def named(run: FolderRun | PackedRun, table: pd.DataFrame) -> pd.DataFrame:
    experiment, name = run.name
    table = table.assign(experiment=experiment, run=name)
    return table[[*COLUMNS[:2], *(column for column in table if column not in COLUMNS[:2])]]


def write(path: Path, table: pd.DataFrame) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = table.to_csv(index=False, lineterminator="\n").encode()
    with replacing(path) as stream:
        stream.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path
