"""One run on disk, and many: RUN.csv with a row per epoch, tables beside it, the checkpoint that it
goes on from; and grids, which make each of their runs once, whoever else walks the same list.

Nothing here knows a network, and reading records needs no torch."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from harness.config import SHARED, Settings, flags, recorded, unsaid
from harness.errors import Damaged, Locked, OtherData, UserError, cannot_write
from harness.errors import damaged_if_malformed, in_one_line, printable, warn
from harness.files import read_checkpoint, replacing, write_checkpoint, write_table
from harness.summaries import counted, duration

SETTINGS = (
    "dataset subset val_fraction arch depth width train gamma_init beta_init weight_init augment "
    "seed epochs batch_size optimizer lr momentum weight_decay schedule warmup_epochs precision"
).split()
MEASURES = "train_loss train_acc val_loss val_acc test_loss test_acc test_top5 seconds".split()
WHERE = "device threads torch commit".split()  # may change from one start of a run to the next
COUNTS = ["params_total", "params_trained"]
AFTER = ["status", "image_size", "classes"]
COLUMNS = ["experiment", "run", *SETTINGS, *COUNTS, "epoch", *MEASURES, *WHERE, *AFTER]
NUMBERS = (
    "val_fraction depth width seed epochs batch_size lr momentum weight_decay warmup_epochs "
    "params_total params_trained threads classes"
).split()
# of some runs alone
OWN = tuple("bn_weight c input_norm bn activation hidden target norm script data".split())
ADDED = ("record", "hours")  # report/runs.py puts them beside these
REQUIRED = "experiment run dataset train seed epochs epoch test_acc status".split()
CHANGING = ("epoch", *MEASURES, *WHERE)  # from one row of a run to the next


# -------------------------------------------------------------------------------------------- names


def dataset_name(args: Settings) -> str:
    """The data set's name in the records; that of an image folder or a CSV file is its own."""
    path = Path(args.data or "").resolve()
    own = {"imagefolder": path.name or "root", "csv": path.stem}
    if args.dataset not in own:
        return printable(args.dataset)
    name, kind = own[args.dataset], "csv" if args.dataset == "csv" else "folder"
    known = flags(Settings) | flags(args)  # a script may know data sets of its own
    taken = {*flags(Settings)["dataset"].choices, *(known["dataset"].choices or ())}
    return printable(f"{name}-{kind}" if name in taken else name)


def file_name(text: str, also: str = "") -> str:
    """`text` as a part of a file's name, on every system; `also`: characters that it may keep."""
    return re.sub(rf"[^A-Za-z0-9._{re.escape(also)}-]+", "_", text)[:60]


class Name(NamedTuple):
    """What tells a run from any other: its columns, and the name that follows from them."""

    run: str
    columns: dict


def name_run(args: Settings, dataset: str | None = None) -> Name:
    """The name of the run of these settings: readable, and unique by its tail, a hash of every
    setting that can change a number and of a script that is not one of this collection.

    dataset: its name, where it is not that of --dataset."""
    known = recorded(args)
    columns = {key: known.pop(key, None) for key in SETTINGS}
    columns |= {"dataset": dataset or dataset_name(args), "subset": args.subset or "all"} | known
    if args.process.source:
        columns["script"] = args.process.source
    hashed = columns | {"source": args.dataset}
    if args.image_size:
        hashed["image_size"] = args.image_size
    tail = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:6]
    network = args.arch + ("" if args.depth is None else str(args.depth))
    network += "" if args.width is None else f"-w{args.width}"
    trained = file_name(args.train.replace(":", ""), also="+")
    parts = [file_name(network), file_name(columns["dataset"]), trained, f"s{args.seed}", tail]
    return Name("-".join(parts), columns)


def run_files(args: Settings, name: str) -> tuple[Path, Path]:
    """The run's CSV and its checkpoint."""
    experiment = args.process.experiment
    csv = Path(args.results, experiment, f"{name}.csv")
    return csv, Path(args.checkpoints, experiment, f"{name}.pt")


@cache
def commit() -> str:
    """The commit of the code as this process has loaded it, with a + where a script was changed or
    added since; empty outside a checkout."""
    here = Path(__file__).parent.parent

    def git(*words):
        # without its lock, which would stay behind where this process is killed
        start = ["git", "--no-optional-locks", "-C", here]
        options = {"capture_output": True, "text": True, "check": True}
        return subprocess.run([*start, *words], **options).stdout.strip()

    try:
        edited = git("status", "--porcelain", "--", ":(glob)*.py", ":(glob)harness/*.py")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if edited else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


# --------------------------------------------------------------------------------------------- rows


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows of a run's CSV, from the first epoch on. Raises Damaged, with the
    reason, where no run can have left it so. A column may be missing, or be one that is not known
    here: another version, or a script of the user's, wrote it."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:  # as a spreadsheet saves it
            text = stream.read()
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows, columns = list(reader), list(reader.fieldnames or [])
    except (ValueError, csv.Error) as error:
        raise Damaged(f"it is no CSV file ({error})") from None
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        raise Damaged(f"it lacks the columns {', '.join(missing[:5])}" if text else "it is empty")
    if not text.endswith("\n"):
        raise Damaged("its last row is cut")
    known = [column for column in (*COLUMNS, *OWN) if column not in CHANGING]
    settled = [column for column in known if column in columns]
    for epoch, row in enumerate(rows, 1):
        check_row(epoch, row, [column for column in settled if row[column] != rows[0][column]])
    return columns, rows


def check_row(epoch: int, row: dict[str, str], other: list[str]) -> None:
    """Raises Damaged where `row` cannot be that of `epoch`; `other` than the first's are these of
    its settings."""
    if None in row or None in row.values():
        raise Damaged(f"row {epoch} is not whole")
    if row["epoch"] != str(epoch):
        raise Damaged(f"row {epoch} is of epoch {row['epoch']}")
    if other:
        raise Damaged(f"row {epoch} has another {other[0]} than the first")
    for column in ("status", *NUMBERS, *MEASURES):
        if column in row and not possible(column, row):
            raise Damaged(f"row {epoch} has {column} {row[column]}")


def is_finite(measured: dict[str, float]) -> bool:
    """Whether losses and accuracies are; a script's own measurement may be NaN."""
    return all(math.isfinite(value) for key, value in measured.items() if key in MEASURES)


def have_diverged(rows: list[dict[str, str]]) -> bool:
    return bool(rows) and rows[-1]["status"] == "diverged"


def possible(column: str, row: dict[str, str]) -> bool:
    """Whether a run can have written what `row` has in `column`, its status or a number: accuracies
    of 0 to 100 %, losses that are finite unless it diverged, other numbers none of which is below
    zero. An empty cell is a setting that the run has not, or a split."""
    text = row[column]
    if column == "status":
        return text in ("ok", "diverged")
    if column in ("depth", "width") and row.get("script"):
        return True  # of a network of one's own it may be a list or a word
    if not text:
        return column not in REQUIRED
    try:
        value = float(text)
    except ValueError:
        return False
    if column.endswith("_loss"):
        return math.isfinite(value) or row["status"] == "diverged"
    highest = 100 if column.endswith(("_acc", "_top5")) else sys.float_info.max
    return 0 <= value <= highest


# ---------------------------------------------------------------------------------------------- run


class Run:
    """One run's place on disk. As a context it holds the lock that keeps other processes out.

    about: columns that tell this run from any other, beside those of its name, which rows and
    checkpoints on disk must bear; where: those that may change from one start to the next."""

    def __init__(self, args: Settings, name: Name, about: dict, where: dict):
        self.args, self.name, self.where = args, name.run, where
        known = {"experiment": args.process.experiment, "run": name.run} | name.columns | about
        self.about = {key: "" if value is None else str(value) for key, value in known.items()}
        self.csv, self.checkpoint = run_files(args, name.run)
        self.previous = self.checkpoint.with_suffix(".previous.pt")
        self.rows: list[dict] = []

    def __enter__(self) -> Run:
        self.lock = FileLock(self.csv.with_name(f".{self.name}.lock"), timeout=0)
        folders = (self.csv.parent, self.checkpoint.parent)
        folder, new = self.csv.parent, []
        try:
            for leaf in folders:
                new += [path for path in (leaf, *leaf.parents) if not path.exists()]
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            folder = self.csv.parent
            self.lock.acquire()
            for folder in folders:
                probe = folder / f".{self.name}.probe"
                with replacing(probe):
                    pass
                probe.unlink()
        except Timeout:
            message = f"another process is making {self.name}: wait for it, or ask for another run"
            raise Locked(message) from None
        except OSError as error:
            if self.lock.is_locked:
                self.__exit__()
            for empty in new:  # the deepest first
                with suppress(OSError):  # not made, or in use by now
                    empty.rmdir()
            instead = "name folders that can be written with --results and --checkpoints"
            raise cannot_write(folder, error, instead) from None
        for folder in folders:
            for left_over in folder.glob(f".{self.name}.*.new"):
                left_over.unlink(missing_ok=True)
        if self.args.force and not self.made_since_the_start():
            return self
        try:
            self.rows = self.read_rows()
        except UserError:
            self.__exit__()
            raise
        kept = self.checkpoint.exists() or self.previous.exists()
        if self.rows and not self.diverged and not kept:
            note = f"note: {self.csv} is here without its checkpoint; this run takes its place"
            print(note, file=sys.stderr)
        return self

    def __exit__(self, *_) -> None:
        # while it is held: whoever opened it looks again
        Path(self.lock.lock_file).unlink(missing_ok=True)
        self.lock.release()

    def made_since_the_start(self) -> bool:
        """Whether another process has written the records since this one began: of several that
        share a grid one makes each run again."""
        running = time.monotonic() - self.args.process.began
        return self.csv.exists() and self.csv.stat().st_mtime > time.time() - running

    def outcome(self, again: bool) -> Outcome:
        """What `fit` returns; again: the run was finished before."""
        return Outcome(self.csv, self.rows, self.args.epochs, again, defaults=unsaid(self.args))

    def table(self, kind: str) -> Path:
        """Where a table of this run belongs."""
        return self.csv.with_name(f"{self.name}.{kind}.csv.gz")

    @property
    def diverged(self) -> bool:
        return have_diverged(self.rows)

    @property
    def is_over(self) -> bool:
        """Diverged, or every row is there, and the checkpoint, too: a CSV alone keeps no one from
        making the run."""
        return self.diverged or (len(self.rows) == self.args.epochs and self.checkpoint.exists())

    def read_rows(self) -> list[dict]:
        """The rows on disk; none, after a warning, where they are not this run's."""
        if not self.csv.exists():
            return []
        try:
            _, rows = read_rows(self.csv)
            self.compare(rows[0] if rows else {})
            return [self.about | row for row in rows]  # another version may have known less
        except Damaged as error:
            warn(f"{self.csv} is damaged ({error}): the run begins again")
            return []

    def compare(self, found: dict) -> None:
        """Raises Damaged where columns that were found are not this run's; one that was not there
        is at its default. Raises UserError where the name is this run's, and it was made of another
        network or other data: it is not to be lost."""
        other = [key for key, value in self.about.items() if key in found and found[key] != value]
        if other == ["data"]:
            raise of_other_data(self.csv)
        if other and other[0] in (*COUNTS, *AFTER):
            was = f"{other[0]} {found[other[0]]} instead of {self.about[other[0]]}"
            instead = (
                "give what differs a flag, or another name, or make the run again with --force"
            )
            raise UserError(f"{self.csv} was made with {was} under the same name: {instead}")
        if other:
            raise Damaged(f"it is not this run's by its {other[0]}")

    def append(self, epoch: int, measured: dict[str, float], seconds: float) -> None:
        """Adds an epoch's row. Where a loss is not finite the run is diverged, as a whole: every
        row says so. An experiment's own settings are columns behind all others, and what it alone
        measures behind `seconds`."""
        figures = dict.fromkeys(MEASURES, "")
        for key, value in measured.items():
            figures[key] = str(int(value)) if isinstance(value, int) else f"{value:.6g}"
        known = {"epoch": epoch, "seconds": f"{seconds:.3f}", "status": "ok"}
        self.rows.append(self.about | figures | known | self.where)
        if not is_finite(measured):
            self.rows = [row | {"status": "diverged"} for row in self.rows]
        place = COLUMNS.index(WHERE[0])
        own = [key for key in self.about if key not in COLUMNS]
        there = dict.fromkeys(itertools.chain(*self.rows))  # of all epochs, if not of this one
        measures = [key for key in there if key not in (*COLUMNS, *own)]
        columns = [*COLUMNS[:place], *measures, *COLUMNS[place:], *own]
        table = [[row.get(column, "") for column in columns] for row in self.rows]
        write_table(self.csv, columns, table)

    def save(self, epoch: int, state: dict) -> None:
        """Replaces the checkpoint; the one before stays beside it."""
        if self.checkpoint.exists():
            os.replace(self.checkpoint, self.previous)
        write_checkpoint(self.checkpoint, {"about": self.about, "epoch": epoch, **state})

    def resume(self, restore) -> int:
        """The epoch of the newest checkpoint that is whole and that `restore` takes, 0 where there
        is none. `restore(content)` raises Damaged before it changes anything."""
        begin = self.args.force or self.args.no_resume
        for path in (self.checkpoint, self.previous):
            if begin or not path.exists():
                continue
            try:
                with damaged_if_malformed():
                    content = read_checkpoint(path)
                    self.compare(content["about"])
                    epoch, rows = content["epoch"], len(self.rows)
                    if not 0 < epoch <= rows:
                        why = f"the CSV has {rows} rows that can be used"
                        raise Damaged(f"it is of epoch {epoch}, and {why}")
                    restore(content)
                # the one that was not used must not take its place when the next is saved
                os.replace(path, self.checkpoint)
                self.rows = self.rows[:epoch]
                return epoch
            except Damaged as error:
                warn(f"the checkpoint {path} is not used: {error}")
        self.rows = []
        return 0


def of_other_data(csv: Path) -> OtherData:
    instead = "give these another name, or make the run again with --force"
    return OtherData(f"{csv} was made from other data under the same name: {instead}")


class Plan(NamedTuple):
    """What a dry run finds out of a run: how long it would take, the settings that are true of it,
    and the name of its data."""

    seconds: float
    settings: Settings
    data: str


class Outcome(NamedTuple):
    """What `fit` returns: where the run's records are, its rows as they stand there, and whether it
    is complete; of a dry run, which has none, its plan."""

    csv: Path
    rows: list[dict]
    epochs: int
    again: bool = False  # it was finished before
    plan: Plan | None = None
    defaults: dict[str, str] = {}  # of its experiment's settings: rows leave out what is at these

    @property
    def finished(self) -> bool:
        return len(self.rows) == self.epochs and not self.diverged

    @property
    def diverged(self) -> bool:
        return have_diverged(self.rows)

    @property
    def is_over(self) -> bool:
        """Not stopped by the time limit."""
        return self.finished or self.diverged

    @property
    def code(self) -> int:
        """The process's exit code."""
        return int(self.diverged)


class Stopped(Exception):
    """A script's second fit, on what the first has left unfinished; `outcome`: the first's."""

    def __init__(self, outcome: Outcome):
        super().__init__(f"{outcome.csv.stem} is not finished")
        self.outcome = outcome


def check_before(args: Settings, name: str) -> None:
    """Looks at what the same call of a script's run(args) has made before the run `name`. Raises
    UserError where that is this run itself, which would be taken for finished; Stopped where it
    has diverged or the time was over, and nothing can stand on it."""
    for outcome in args.fitted or ():  # None: in a notebook, say
        if outcome.csv.stem == name:
            instead = "give what differs between them a flag, which is in the name"
            raise UserError(f"this script calls fit twice for {name}: {instead}")
        if not outcome.finished:
            raise Stopped(outcome)


def note(outcome: Outcome, args: Settings) -> Outcome:
    """The outcome, which `check_before` is to see."""
    if args.fitted is not None:
        args.fitted.append(outcome)
    return outcome


# -------------------------------------------------------------------------------------------- grids


@dataclasses.dataclass(eq=False)
class Member:
    """A run of a grid: its settings, what is there of it, and of one to be made the plan."""

    args: Settings
    there: Outcome | None = None
    plan: Plan | None = None

    def look(self) -> None:
        """Notes what is there of it, if it is over."""
        found = Run(self.args, self.name(), {}, {})
        found.rows = found.read_rows()
        self.there = found.outcome(again=True) if found.is_over else None

    def name(self) -> Name:
        """As its plan knows it, if it has one, of a network or data of one's own, too."""
        if not self.plan:
            return name_run(self.args)
        true = self.plan.settings.but(seed=self.args.seed)
        return name_run(true, self.plan.data)

    @property
    def is_left(self) -> bool:
        return self.args.force or not self.there


def make_grid(runs: list[Settings], run) -> tuple[int, list[Outcome]]:
    """Makes, by `run(args)`, each of `runs` that is neither finished nor locked: a second process
    that walks the same list, in another terminal, a Slurm array or after a crash, makes the others.

    A run that fails does not stop the rest, and is named at the end. Returns the exit code, 1 where
    a run failed or diverged, and the outcomes of the runs that are finished."""
    from harness.processes import rank_zero

    if not runs:
        raise UserError("this grid is empty: give each of its flags a value that fits")
    members = [Member(args) for args in each_once(runs)]
    dry_run = runs[0].dry_run
    if dry_run and not rank_zero():
        return 0, []
    for member in members:
        member.look()
    missing = [member for member in members if member.is_left]
    if not dry_run:
        check_data([member for member in members if not member.is_left], run)
    plan_each(missing, run)
    for member in missing:
        if member.plan:
            member.look()
    left = [member for member in missing if member.is_left]
    done, total = len(members) - len(left), counted(len(members), "run")
    seconds = sum(member.plan.seconds for member in left if member.plan)
    time_needed = f", in about {duration(seconds)}" if left else ""
    print(f"{total}: {done} finished, {len(left)} to make{time_needed}")
    if left and dry_run:
        for member in left:
            run(member.args)
        return 0, []
    failed = make(left, len(members), run)
    outcomes = [member.there for member in members if member.there]
    failed += [f"{outcome.csv.stem} (diverged)" for outcome in outcomes if outcome.diverged]
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    finished = [outcome for outcome in outcomes if outcome.finished]
    if finished and len(finished) < len(members):
        print(f"{len(members) - len(finished)} of {total} are not in what follows")
    # what two words of --train mean may be the same run
    return int(bool(failed)), list({outcome.csv: outcome for outcome in finished}.values())


def each_once(runs: list[Settings]) -> list[Settings]:
    """`runs`, of those of one name the first. Raises UserError where what a grid varies is in no
    name."""
    by_name: dict[str, Settings] = {}
    for args in runs:
        first = by_name.setdefault(name_run(args).run, args)
        for name, value in vars(args).items():
            if name not in SHARED and name not in flags(args) and value != getattr(first, name):
                instead = f"a flag, as in {name}: float = flag({value!r}, …), is recorded"
                raise UserError(f"this grid varies {name}, which is in no run's name: {instead}")
    return list(by_name.values())


SEVERAL = ("imagefolder", "csv", "imagenet")  # data sets of which one name can mean several


def check_data(finished: list[Member], run) -> None:
    """Raises OtherData where runs that are `finished` were made from other data than they would be
    now. Only `fit` sees the data: the first run of each data set is started again, which ends at
    once, and the records of the others must name the same."""
    made_from: dict[tuple, str | None] = {}
    for member in finished:
        args, outcome = member.args, member.there
        if outcome.diverged or (args.dataset not in SEVERAL and not args.process.source):
            continue
        asked = [name for name, flag in flags(args).items() if flag.group in ("data", "experiment")]
        data = tuple(str(getattr(args, name)) for name in asked)  # a script's own flags may say it
        source = outcome.rows[-1].get("data")
        if data not in made_from:
            made_from[data] = source
            try:
                run(args.but(quiet=True))
            except OtherData:
                raise
            except Exception:  # what keeps a run from starting is no reason not to show it
                continue
        if source != made_from[data]:
            raise of_other_data(outcome.csv)


def make(left: list[Member], total: int, run) -> list[str]:
    """Makes the runs that are `left`, and returns those of which nothing came."""
    from harness.progress import grid_bar

    failed, locked, quiet = [], [], not left or left[0].args.quiet
    with grid_bar(total=total, initial=total - len(left), disable=quiet) as bar:
        # those that were locked get a second look
        for number, member in enumerate(itertools.chain(left, locked)):
            args, told = member.args, told_in_a_grid(member)
            if number and out_of_time(args):
                print(f"stopped at the time limit: {goes_on(args)}")
                break
            bar.set_description_str(told)
            try:
                outcome = member.there = run(args.but(quiet=True))
                if outcome.finished and not quiet:
                    bar.write(f"{told}: {float(outcome.rows[-1]['test_acc']):.2f} %")
            except Locked as error:
                if member not in locked:
                    locked.append(member)
                    if not quiet:
                        bar.write(f"{told}: another process is making it")
                    continue
                print(f"left to it: {error}", file=sys.stderr)
            except Exception as error:
                line = in_one_line(error)
                if line is None:
                    raise
                failed.append(printable(f"{member.name().run} ({line})"))
            if member.there and not member.there.is_over:
                print(f"stopped at the time limit: {goes_on(args)}")
                break
            bar.end_run()
    return failed


def told_in_a_grid(member: Member) -> str:
    """A run's name, and those settings that its grid varies and the name does not show."""
    args, in_name = member.args, ("arch", "depth", "width", "train", "seed")
    varied = [key for key, values in args.varied.items() if len(values) > 1 and key not in in_name]
    told = ", ".join(f"{key} {getattr(args, key)}" for key in varied)
    name = member.name().run
    return f"{name} ({told})" if told else name


def goes_on(args: Settings) -> str:
    """What is to be said where a run is not finished."""
    flags = (("--force", args.force), ("--no-resume", args.no_resume))
    given = " and ".join(name for name, is_given in flags if is_given)
    return f"the same command{f' without {given}' if given else ''} goes on from here"


def out_of_time(args: Settings) -> bool:
    return time.monotonic() - args.process.began >= 60 * args.time_limit


def plan_each(members: list[Member], run) -> None:
    """Gives each of `members` the plan that a dry run makes of its setting, one for all seeds; one
    that fails has none: it is named when its turn comes."""
    plans: dict[str, Plan | None] = {}
    for member in members:
        sample = member.args.but(seed=0, dry_run=True)
        name = name_run(sample).run
        if name not in plans:
            try:
                with redirect_stdout(io.StringIO()):
                    plans[name] = run(sample).plan
            except UserError:
                raise
            except Exception as error:
                if in_one_line(error) is None:
                    raise
                plans[name] = None
        member.plan = plans[name]
