"""What the tests share."""

import csv
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryFile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a second thread gains little here

import numpy as np
import pytest
import torch
from PIL import Image

import common
from harness import runs as records
from harness.config import Process, parse
from harness.parts import parts
import exp_bn_only


HERE = Path(__file__).parent.parent


SMALL = "--dataset digits --depth 8 --subset 150 --epochs 3 --batch-size 50".split()
SMALL += "--precision fp32 --device cpu".split()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test has a folder of its own as the current one, and as the place of the user's
    cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="signals, limits and /proc are Linux's here"
)


def slow(few: int, many: int):
    """The test's number `n`: `few` in every run of pytest, `many` with -m slow."""
    return pytest.mark.parametrize("n", [few, pytest.param(many, marks=pytest.mark.slow)])


def run(*words) -> int:
    return exp_bn_only.main([*SMALL, "--quiet", *map(str, words)])


def start(*words, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, HERE / "exp_bn_only.py", *SMALL, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def the_csv(results="results") -> Path:
    found = list(Path(results).glob("*/*.csv"))
    assert len(found) == 1, found
    return found[0]


def the_checkpoint() -> Path:
    """The newest of the only run, or of its first."""
    found = sorted(Path("checkpoints").rglob("*.pt"))
    return next(path for path in found if not path.name.endswith(".previous.pt"))


def unfinished() -> Path:
    """The newest checkpoint of a run that the time limit has stopped twice."""
    for _ in range(2):
        assert run("--time-limit", 1e-9) == 0
    return the_checkpoint()


def ends_as_a_whole_one(*words) -> None:
    """The run in results/ must have what one of the same words has that nothing disturbed."""
    assert run(*words, "--results", "whole", "--checkpoints", "whole") == 0
    assert rows(the_csv()) == rows(the_csv("whole"))


def epochs_trained(patch) -> list[int]:
    """A list to which every epoch that is trained from now on, until `patch` is undone, adds its
    number."""
    trained = []

    def noted(*given, train_epoch=common.train_epoch):
        trained.append(given[4])
        return train_epoch(*given)

    patch.setattr(common, "train_epoch", noted)
    return trained


def one_line(capsys) -> str:
    """What was written to stderr since the last look, which must be one line."""
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def rows(path: Path) -> list[dict]:
    """Without what may differ between two runs of one command."""
    with open(path, newline="") as stream:
        return [
            {key: value for key, value in row.items() if key not in ("seconds", "commit")}
            for row in csv.DictReader(stream)
        ]


def arguments(*words) -> common.Settings:
    words = [*SMALL, *map(str, words)]
    return common.resolved(parse(common.Settings, words, "", Process(Path("exp_test.py"))))


def run_name(args) -> str:
    return records.name_run(args).run


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def tiny_cifar10(root: Path) -> np.ndarray:
    """CIFAR-10 in its own file format, 20 images a file."""
    folder, draw = root / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)
    pixels = []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels.append(draw.integers(0, 256, (20, 3072), np.uint8))
        (folder / name).write_bytes(
            pickle.dumps({"data": pixels[-1], "labels": [i % 10 for i in range(20)]})
        )
    (folder / "batches.meta").write_bytes(
        pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    )
    return np.concatenate(pixels[:5]).reshape(-1, 3, 32, 32)


def image_folder(root="pets", sizes=((12, 12),), test="test") -> Path:
    draw = np.random.default_rng(0)
    for split, n in (("train", 6), (test, 2)) if test else (("train", 6),):
        for name in ("cat", "dog"):
            (Path(root) / split / name).mkdir(parents=True)
            for i in range(n):
                height, width = sizes[i % len(sizes)]
                Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)).save(
                    Path(root) / split / name / f"{i}.png"
                )
    return Path(root)


FOLDER = ["--dataset", "imagefolder", "--data", "pets"]


GRID = [*SMALL, "--epochs", "1", "--quiet"]


def no_network(*_, **__):
    raise OSError("no network")


BATCHNORM = {14: 1120, 32: 2464, 56: 4256, 110: 8288, 218: 16352, 434: 32480, 866: 64736}


def counts(depth: int, width: int = 1) -> dict[str, int]:
    with torch.device("meta"):
        return {
            part: sum(p.numel() for p in ps.values())
            for part, ps in parts(common.ResNet(depth, width, 3, 10)).items()
        }


def agrees(n: int, published: str) -> bool:
    """Whether `published` is n, rounded or (696,618: "696K") cut off."""
    unit = {"K": 1e3, "M": 1e6}[published[-1]]
    return abs(n / unit - float(published[:-1])) < 10.0 ** -len(published[:-1].partition(".")[2])


def environment() -> dict[str, str]:
    """A child process's: it finds the project from any folder, has one thread, and needs no network
    to join others."""
    own = {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        own["GLOO_SOCKET_IFNAME"] = "lo"
    return os.environ | own


class Forked:
    """A script as a process of its own, forked from this one: without the seconds of its imports.

    What it prints is in `out` and `err` after `wait`, which returns the exit code. `first()` is
    what it does before the script."""

    def __init__(self, script, *words, first=lambda: None, **variables: str):
        import sklearn.datasets, torch._dynamo  # noqa: E401, F401, which every run imports, late

        self.files = [TemporaryFile("w+"), TemporaryFile("w+")]
        self.pid = os.fork()
        if not self.pid:
            os._exit(self.inside(str(script), list(map(str, words)), first, variables))

    def inside(self, script: str, words: list[str], first, variables: dict) -> int:
        for number, file in enumerate(self.files, 1):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
        sys.argv = [script, *words]
        os.environ.update(environment() | variables)
        first()
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            return stop.code or 0
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # one that has ended, too, has its number until `wait`

    def wait(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        for file in self.files:
            file.seek(0)
        self.out, self.err = (file.read() for file in self.files)
        return code


def end_well(processes: list[Forked]) -> None:
    codes = [process.wait() for process in processes]
    assert set(codes) == {0}, "".join(process.err for process in processes)


def forked(script, *words) -> Forked:
    """A script that must end well."""
    process = Forked(script, *words)
    end_well([process])
    return process


def torchrun(script, *words) -> str:
    """What two processes that torchrun starts print; its exit code must be 0."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*start, str(script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def two(script, *words) -> list[Forked]:
    """Two processes, started as torchrun would, without its seconds."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [Forked(script, *words, RANK=rank, LOCAL_RANK=rank, **shared) for rank in "01"]


def together(script, *words) -> str:
    """What `two` processes print that must end well."""
    ranks = two(script, *words)
    end_well(ranks)
    return "".join(rank.out for rank in ranks)
