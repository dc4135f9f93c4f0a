"""What a run leaves on disk, whole whatever kills it: RUN.csv with a row per epoch, tables beside it, and the checkpoint it goes on from.

Nothing here knows a network. The experiments use this through common.py."""
from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import io
import json
import math
import os
import re
import subprocess
import sys
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

SETTINGS = ("dataset subset val_fraction arch depth width train gamma_init beta_init weight_init augment seed epochs batch_size "
            "optimizer lr momentum weight_decay schedule warmup_epochs precision").split()
MEASURES = "train_loss train_acc val_loss val_acc test_loss test_acc test_top5 seconds".split()
COLUMNS = ["experiment", "run", *SETTINGS, "params_total", "params_trained", "epoch", *MEASURES,
           "device", "threads", "torch", "commit", "status", "image_size", "classes"]
NUMBERS = "val_fraction depth width seed epochs batch_size lr momentum weight_decay warmup_epochs params_total params_trained threads classes".split()
CHANGING = ("epoch", *MEASURES, "device", "threads", "torch", "commit")  # from one row of a run to the next
MAGIC = b"train-bn-only checkpoint 1\n"


class UserError(Exception):
    """The request cannot be met as asked: one line says what is wrong and what would be right."""
    exit_code = 2


class RunError(Exception):
    """The request was right, but the run cannot go on: one line says why."""
    exit_code = 1


class Locked(RunError):
    """Another process is making the run."""


class Damaged(RunError):
    """A record that cannot be used, and why."""


@contextmanager
def taken_apart():
    """Raises Damaged where what a checkpoint holds, though its checksum fits, is not what a run wrote."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"it does not hold what a run writes ({error!r})") from None


def cannot_write(folder: Path, error: OSError, instead: str) -> UserError | RunError:
    """What to raise: the name may be one that no folder can have, or the folder may not let itself be written, for now."""
    kind = UserError if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP) else RunError
    return kind(f"cannot write in {folder} ({error.strerror}): {instead}")


def warn(message: str) -> None:
    print(f"warning: {printable(message)}", file=sys.stderr)


def printable(text: str) -> str:
    """`text` in one line that commands no terminal and fits every encoding: what is not to be printed stands as its escape. Names of files and classes may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# ---------------------------------------------------------------------------------------------------------------- files

@contextmanager
def replacing(path: Path):
    """A binary stream whose content takes the place of `path` once it is complete, and not before."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(new, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_table(path: Path, columns: list[str], rows) -> None:
    """A CSV, gzipped where its name ends so, floats with six significant digits. The same content gives the same bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)
    content = text.getvalue().encode()
    with replacing(path) as stream:
        stream.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def write_checkpoint(path: Path, content: dict) -> None:
    """What torch.save makes of `content`, behind its SHA-256."""
    import torch
    payload = io.BytesIO()
    torch.save(content, payload)
    with replacing(path) as stream:
        stream.write(MAGIC + hashlib.sha256(payload.getbuffer()).hexdigest().encode() + b"\n" + payload.getvalue())


def read_checkpoint(path: Path) -> dict:
    """The content of a checkpoint. Raises Damaged where one bit is not as it was written; runs no code that the file may hold."""
    stored = path.read_bytes()
    if not stored.startswith(MAGIC):
        raise Damaged("it is no checkpoint of this version")
    digest, _, payload = stored.removeprefix(MAGIC).partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise Damaged("its checksum does not fit its content")
    import torch
    try:
        return torch.load(io.BytesIO(payload), weights_only=True)
    except Exception as error:  # the unpickler's kinds are many
        raise Damaged(f"PyTorch refuses it ({str(error).splitlines()[0]})") from None


# ---------------------------------------------------------------------------------------------------------------- names

def dataset_name(args) -> str:
    """The data set's name in the records; that of an image folder or a CSV file is its own."""
    path = Path(args.data or "").resolve()
    return printable({"imagefolder": path.name or "root", "csv": path.stem}.get(args.dataset, args.dataset))


def file_name(text: str) -> str:
    """`text` as a part of a file's name, on every system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:60]


def settings(args) -> dict:
    """The settings as the columns show them; those of one experiment alone are in `args.own`."""
    return {key: getattr(args, key) for key in SETTINGS} | {"dataset": dataset_name(args), "subset": args.subset or "all"} | args.own


def run_name(args) -> str:
    """Readable and unique: the tail is a hash of every setting that can change a number."""
    hashed = settings(args) | {"source": args.dataset} | ({"image_size": args.image_size} if args.image_size else {})
    tail = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:6]
    dataset = file_name(dataset_name(args))
    return f"{args.arch}{args.depth}-w{args.width}-{dataset}-{args.train.replace(':', '')}-s{args.seed}-{tail}"


def run_files(args) -> tuple[Path, Path]:
    """The run's CSV and its checkpoint."""
    return Path(args.results, args.experiment, f"{run_name(args)}.csv"), Path(args.checkpoints, args.experiment, f"{run_name(args)}.pt")


@cache
def commit() -> str:
    """The commit of the code as this process has loaded it, with a + where a script was changed or added since; empty outside a checkout."""
    def git(*words):
        return subprocess.run(["git", "-C", Path(__file__).parent, *words], capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--", ":(glob)*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


# ----------------------------------------------------------------------------------------------------------------- rows

def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows of a run's CSV, from the first epoch on. Raises Damaged, with the reason, where a run cannot have left it so."""
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            text = stream.read()
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows, columns = list(reader), list(reader.fieldnames or [])
    except (ValueError, csv.Error) as error:
        raise Damaged(f"it is no CSV file ({error})") from None
    if missing := [column for column in COLUMNS if column not in columns]:
        raise Damaged(f"it lacks the columns {', '.join(missing[:5])}" if text else "it is empty")
    if not text.endswith("\n"):
        raise Damaged("its last row is cut")
    for epoch, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise Damaged(f"row {epoch} is not whole")
        if row["epoch"] != str(epoch):
            raise Damaged(f"row {epoch} is of epoch {row['epoch']}")
        if other := [column for column in columns if column not in CHANGING and row[column] != rows[0][column]]:
            raise Damaged(f"row {epoch} has another {other[0]} than the first")
        if wrong := [f"{column} {row[column]}" for column in ("status", *NUMBERS, *MEASURES) if not possible(column, row)]:
            raise Damaged(f"row {epoch} has {wrong[0]}")
    return columns, rows


def possible(column: str, row: dict[str, str]) -> bool:
    """Whether a run can have written what `row` has in `column`, the status or a number: accuracies of 0 to 100 %, losses that are finite unless it diverged, other numbers that are none below zero."""
    text = row[column]
    if column == "status":
        return text in ("ok", "diverged")
    if not text and column in ("val_loss", "val_acc"):  # no validation split
        return True
    try:
        number = float(text)
    except ValueError:
        return False
    if column.endswith("_loss"):
        return math.isfinite(number) or row["status"] == "diverged"
    return 0 <= number <= (100 if column.endswith(("_acc", "_top5")) else sys.float_info.max)


# ------------------------------------------------------------------------------------------------------------------ run

class Run:
    """One run's place on disk. As a context it holds the lock that keeps other processes out.

    about: columns that tell this run from any other, which rows and checkpoints on disk must bear; where: columns that may change from one
    start to the next."""

    def __init__(self, args, about: dict, where: dict):
        self.args, self.name = args, run_name(args)
        self.about = {"experiment": args.experiment, "run": self.name} | {key: str(value) for key, value in (settings(args) | about).items()}
        self.where = where
        self.columns = [*COLUMNS, *args.own]
        self.csv, self.checkpoint = run_files(args)
        self.previous = self.checkpoint.with_suffix(".previous.pt")
        self.rows: list[dict] = []

    def __enter__(self) -> Run:
        self.lock = FileLock(self.csv.with_name(f".{self.name}.lock"), timeout=0)
        folders = (self.csv.parent, self.checkpoint.parent)
        folder, new = self.csv.parent, []
        try:
            new = [folder for leaf in folders for folder in (leaf, *leaf.parents) if not folder.exists()]
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            folder = self.csv.parent
            self.lock.acquire()
            for folder in folders:
                with replacing(probe := folder / f".{self.name}.probe"):
                    pass
                probe.unlink()
        except Timeout:
            raise Locked(f"another process is making {self.name}: wait for it, or ask for another run") from None
        except OSError as error:
            if self.lock.is_locked:
                self.__exit__()
            for empty in new:  # the deepest first
                with suppress(OSError):  # not made, or in use by now
                    empty.rmdir()
            raise cannot_write(folder, error, "name folders that can be written with --results and --checkpoints") from None
        for folder in folders:
            for left_over in folder.glob(f".{self.name}.*.new"):
                left_over.unlink(missing_ok=True)
        if not self.args.force and self.look().rows and not self.diverged and not self.checkpoint.exists():
            print(f"note: {self.csv} is here without its checkpoint; this run takes its place", file=sys.stderr)
        return self

    def look(self) -> Run:
        """Reads what is on disk."""
        self.rows = self.read_rows()
        return self

    def __exit__(self, *_) -> None:
        Path(self.lock.lock_file).unlink(missing_ok=True)  # while it is held: whoever opened it looks again
        self.lock.release()

    def table(self, kind: str) -> Path:
        """Where a table of this run belongs."""
        return self.csv.with_name(f"{self.name}.{kind}.csv.gz")

    @property
    def diverged(self) -> bool:
        return bool(self.rows) and self.rows[-1]["status"] == "diverged"

    @property
    def finished(self) -> bool:
        """Every row is there and the checkpoint too: a CSV that came with a clone of the project does not keep anyone from making the run."""
        return self.diverged or len(self.rows) == self.args.epochs and self.checkpoint.exists()

    def read_rows(self) -> list[dict]:
        """The rows on disk; none, after a warning, where they are not this run's from the first epoch on."""
        if not self.csv.exists():
            return []
        try:
            columns, rows = read_rows(self.csv)
            if columns != self.columns:
                raise Damaged("its columns are not those of this version")
            if other := [key for key, value in self.about.items() if rows and rows[0][key] != value]:
                raise Damaged(f"it is not this run's by its {other[0]}")
            return rows
        except Damaged as error:
            warn(f"{self.csv} is damaged ({error}): the run begins again")
            return []

    def append(self, epoch: int, measured: dict[str, float], seconds: float) -> None:
        """Adds an epoch's row. Where a loss is not finite the run is diverged, as a whole: every row says so."""
        figures = {key: f"{measured[key]:.6g}" if key in measured else "" for key in MEASURES}
        self.rows.append(self.about | {"epoch": epoch} | figures | {"seconds": f"{seconds:.3f}", "status": "ok"} | self.where)
        if not all(map(math.isfinite, measured.values())):
            self.rows = [row | {"status": "diverged"} for row in self.rows]
        write_table(self.csv, self.columns, ([row[column] for column in self.columns] for row in self.rows))

    def save(self, epoch: int, state: dict) -> None:
        """Replaces the checkpoint; the one before stays beside it."""
        if self.checkpoint.exists():
            os.replace(self.checkpoint, self.previous)
        write_checkpoint(self.checkpoint, {"about": self.about, "epoch": epoch, **state})

    def resume(self, restore) -> int:
        """The epoch of the newest checkpoint that is whole and that `restore` takes, 0 where there is none. `restore(content)` raises Damaged before
        it changes anything."""
        begin = self.args.force or self.args.no_resume
        for path in (self.checkpoint, self.previous):
            if begin or not path.exists():
                continue
            try:
                with taken_apart():
                    content = read_checkpoint(path)
                    if content["about"] != self.about:
                        raise Damaged("it is another run's")
                    if not 0 < content["epoch"] <= len(self.rows):
                        raise Damaged(f"it is of epoch {content['epoch']}, and the CSV has {len(self.rows)} rows that can be used")
                    restore(content)
                self.rows = self.rows[:content["epoch"]]
                return content["epoch"]
            except Damaged as error:
                warn(f"the checkpoint {path} is not used: {error}")
        self.rows = []
        return 0
