"""What the README promises of runs that nobody watches: killed at any moment they go on to the same
digits; ten processes on one grid make each run once; a thousand runs take no more memory than ten.

`pytest` makes a small version, `pytest -m slow` the full one: 50 kills instead of 5, a thousand
runs instead of 30."""

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import (
    GRID,
    HERE,
    SMALL,
    Forked,
    arguments,
    end_well,
    environment,
    linux_only,
    rows,
    run_name,
    slow,
    two,
)
import numpy as np

from harness import files as harness_files
from harness import runs as records
from harness.config import Process

pytestmark = linux_only

# -------------------------------------------------------------------------------------------- kills


def dies(left: int, share: float) -> None:
    """Lets this process kill itself just before the `left`-th time that it opens, renames or
    removes a file of its records; a file that was to be put in place it cuts to a `share` first, as
    if it had not been written to its end."""

    def hook(event, args):
        nonlocal left
        if event not in ("open", "os.rename", "os.remove", "os.mkdir"):
            return
        if str(args[0]).startswith(("results", "checkpoints")):
            left -= 1
            if left == 0:
                if event == "os.rename" and ".new" in str(args[0]):
                    os.truncate(args[0], int(share * (os.path.getsize(args[0]) + 1)))
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def one(*command, **options) -> list[Forked]:
    return [Forked(*command, **options)]


def killed(start, command: list, draw: random.Random, longest: float) -> bool:
    """Starts `command` and kills it at a random moment, by the clock or, where it is one process,
    by what it does to files. Whether it was killed before its end."""
    if start is one and draw.random() < 0.5:
        first = functools.partial(dies, draw.randint(1, 60), draw.random())
        processes = start(*command, first=first)
    else:
        processes = start(*command)
        time.sleep(draw.uniform(0, longest))
        for process in processes:
            process.kill()
    codes = {process.wait() for process in processes}
    errors = "".join(process.err for process in processes)
    assert codes <= {0, -signal.SIGKILL}, errors
    for line in errors.splitlines():  # no traceback, no CSV that is damaged
        assert line.startswith(("note: ", "warning: the checkpoint")), errors
    return codes != {0}


def records_of(results: str) -> dict:
    """Every run's rows and tables."""
    found = {path.name: rows(path) for path in Path(results).rglob("*[0-9a-f].csv")}
    return found | {path.name: path.read_bytes() for path in Path(results).rglob("*.csv.gz")}


def survives(start, command: list, kills: int) -> None:
    """`command`, killed `kills` times and started again each time, must leave what it leaves
    unkilled. The kills by the clock come at any moment of what it takes alone."""
    draw, began = random.Random(kills), time.perf_counter()
    end_well(start(*command, "--results", "whole", "--checkpoints", "whole"))
    longest = time.perf_counter() - began
    whole, done = records_of("whole"), 0
    assert whole
    while done < kills:
        if killed(start, command, draw, longest):
            done += 1
            for path in Path("results").rglob("*[0-9a-f].csv"):
                records.read_rows(path)  # raises where it is not whole
        else:
            assert records_of("results") == whole
            shutil.rmtree("results")
            shutil.rmtree("checkpoints")
    end_well(start(*command))
    assert records_of("results") == whole


@slow(5, 50)
def test_a_run_killed_anywhere_ends_with_the_same_digits(n):
    words = "--epochs 20 --val-fraction 0.2 --train bn+output --quiet".split()
    survives(one, [HERE / "exp_bn_only.py", *SMALL, *words], n)


@slow(2, 20)
def test_a_grid_killed_anywhere_ends_with_the_same_digits(n):
    words = "--epochs 6 --depths 8 14 --widths 1 --seeds 0 1 2 --quiet".split()
    survives(one, [HERE / "exp_depth_width.py", *SMALL, *words], n)


@slow(2, 10)
def test_two_processes_killed_anywhere_end_with_the_same_digits(n):
    survives(two, [HERE / "exp_bn_only.py", *SMALL, "--epochs", 12, "--quiet"], n)


# ----------------------------------------------------------------------------------- many processes

# A process notes what it trains.
NOTING = """
import sys, common, exp_depth_width
train = common.train

def noted(model, data, args, *rest):
    with open("made", "a") as notes:
        notes.write(common.name_run(args).run + "\\n")
    return train(model, data, args, *rest)

common.train = noted
sys.exit(exp_depth_width.main(sys.argv[1:]))
"""


def test_ten_processes_on_one_grid_make_every_run_once():
    words = [*GRID, "--grid", "--depths", "8", "--widths", "1", "--seeds", *map(str, range(8))]
    args = arguments("--epochs", 1)
    args.process = Process(Path("exp_depth_width.py"))
    dead, _ = records.run_files(args, run_name(args))
    dead.parent.mkdir(parents=True)
    # of a process that was killed: the kernel's lock went with it
    dead.with_name(f".{dead.stem}.lock").write_text("4711")
    Path("noting.py").write_text(NOTING)
    several = [Forked("noting.py", *words) for _ in range(10)]
    assert [process.wait() for process in several] == [0] * 10
    assert not any("Traceback" in process.err for process in several)
    made = Path("made").read_text().split()
    paths = list(Path("results").rglob("*[0-9a-f].csv"))
    assert sorted(made) == sorted(path.stem for path in paths)
    assert len(set(made)) == 8
    assert all(len(records.read_rows(path)[1]) == 1 for path in paths)
    checkpoints = list(Path("checkpoints").rglob("*.pt"))
    assert {harness_files.read_checkpoint(path)["epoch"] for path in checkpoints} == {1}
    assert not [path for path in Path().rglob(".*") if path.suffix in (".lock", ".new", ".probe")]


# ---------------------------------------------------------------------------------------- endurance

# A grid that notes, after every run, its process's memory (pages) and open files.
ENDURES = """
import os, sys, common, exp_depth_width
fit = common.fit

def noted(model, data, args, **rest):
    code = fit(model, data, args, **rest)
    if not args.dry_run:
        with open("/proc/self/statm") as memory, open("notes", "a") as notes:
            print(memory.read().split()[1], len(os.listdir("/proc/self/fd")), file=notes)
    return code

common.fit = noted
sys.exit(exp_depth_width.main(sys.argv[1:]))
"""


@slow(30, 1000)
def test_many_runs_in_one_process_take_no_more_memory_than_ten(n):
    words = [*GRID, "--grid", "--depths", "8", "--widths", "1", "--seeds", *map(str, range(n))]
    command = [sys.executable, "-c", ENDURES, *words]
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
    memory, open_files = np.loadtxt("notes").T
    assert len(memory) == n
    assert memory[-1] < 1.05 * memory[9]
    assert open_files[-1] == open_files[9]
