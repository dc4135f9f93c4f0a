"""What the README promises of runs that nobody watches: kills, full disks, damaged and hostile
files, many processes, numbers out of range, any command line.

`pytest` makes a small version, `pytest -m slow` the full one: 50 kills instead of 5, 2,000 command
lines instead of 60, a thousand runs instead of 30.
"""

import argparse
import contextlib
import csv
import functools
import importlib
import io
import itertools
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there, as in test_smoke.py

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import common
from harness import errors, folders, speed
from harness import files as harness_files
from harness import runs as records
from harness.config import Process
import exp_bn_only
import exp_mlp_lenet
import plots
import predict
from tests.helpers import (  # noqa: F401
    Forked,
    run_name,
    FOLDER,
    GRID,
    HERE,
    SMALL,
    arguments,
    end_well,
    environment,
    folder,
    image_folder,
    no_network,
    rows,
    run,
    the_csv,
    two,
)  # noqa: F401, folder is every test's

resource = pytest.importorskip("resource")  # what Windows has not
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="signals, limits and /proc are Linux's here"
)


def slow(few: int, many: int):
    """The test's number: `few` in every run of pytest, `many` with -m slow."""
    return pytest.mark.parametrize("n", [few, pytest.param(many, marks=pytest.mark.slow)])


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
    assert all(
        line.startswith(("note: ", "warning: the checkpoint")) for line in errors.splitlines()
    ), errors  # no traceback, no CSV that is damaged
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


# --------------------------------------------------------------------------------------------- disk


def limited(size: int, *words) -> subprocess.CompletedProcess:
    """A run that can write no file of more than `size` bytes, as on a disk that is full."""
    return subprocess.run(
        [sys.executable, HERE / "exp_bn_only.py", *SMALL, "--quiet", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


@pytest.mark.parametrize(
    "size, epochs", [(100, 0), (1200, 1)]
)  # from the start, where the second row would be written
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(size, epochs):
    words = ["--train", "none", "--epochs", 3]
    found = limited(size, *words)
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (
        1,
        "",
        1,
    ) and "File too large" in found.stderr, found
    assert len(rows(the_csv()) if epochs else []) == epochs
    assert not [path for path in Path().rglob("*") if path.suffix == ".new"]
    assert run(*words) == run(*words, "--results", "whole", "--checkpoints", "whole") == 0
    assert rows(the_csv()) == rows(the_csv("whole"))


def test_a_folder_that_cannot_be_written_is_one_line(capsys):
    for flag in ("--results", "--checkpoints"):
        assert run(flag, "/sys/records") == 1  # not even by root
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "cannot write in /sys/records" in err
        assert flag in err


@pytest.mark.parametrize("which", ["results", "checkpoints"])
def test_a_folder_that_vanishes_is_one_line_and_the_next_start_begins_again(
    which, monkeypatch, capsys
):
    def vanish(*a, train_epoch=common.train_epoch):
        if a[4] == 2:
            shutil.rmtree(which)
        return train_epoch(*a)

    with monkeypatch.context() as patch:
        patch.setattr(common, "train_epoch", vanish)
        assert run() == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "No such file or directory" in err
    assert run() == run("--results", "whole", "--checkpoints", "whole") == 0
    assert rows(the_csv()) == rows(the_csv("whole"))


# ------------------------------------------------------------------------------------------- damage


def unfinished() -> Path:
    """The newest checkpoint of a run that the time limit has stopped twice."""
    for _ in range(2):
        assert run("--time-limit", 1e-9) == 0
    return next(path for path in Path("checkpoints").rglob("*.pt") if "previous" not in path.name)


def test_a_checkpoint_that_is_cut_or_has_a_flipped_bit_is_found():
    whole, draw = (path := unfinished()).read_bytes(), random.Random(0)
    assert harness_files.read_checkpoint(path)["epoch"] == 2

    def flipped(at: int) -> bytes:
        return whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]

    for content in itertools.chain(
        (whole[:cut] for cut in range(0, len(whole), 10)),
        (flipped(draw.randrange(len(whole))) for _ in range(200)),
        [whole + b"\n"],
    ):
        path.write_bytes(content)
        with pytest.raises(errors.Damaged):
            harness_files.read_checkpoint(path)


@pytest.mark.parametrize(
    "change, says",
    {
        "run": "not this run's by its seed",
        "version": "no checkpoint of this version",
        "cut": "checksum",
        "bit": "checksum",
        "empty": "no checkpoint of this version",
        "epoch": "of epoch 7",
        "key": "'trained'",
        "size": "holds 3 values",
        "fingerprint": "frozen weights",
        "kind": "what a run writes",
        "text": "what a run writes",
        "past": "of epoch -1",
        "number": "what a run writes",
        "schedule": "what a run writes",
    }.items(),
)
def test_a_checkpoint_that_does_not_fit_is_named_and_the_one_before_taken(
    change, says, capsys, monkeypatch
):
    whole, content = (path := unfinished()).read_bytes(), harness_files.read_checkpoint(path)
    changed = {
        "run": {"about": content["about"] | {"seed": "7"}},
        "epoch": {"epoch": 7},
        "size": {"trained": content["trained"] | {"values": {"float32": torch.zeros(3)}}},
        "fingerprint": {"fingerprint": content["fingerprint"] + 1},
        "text": {"epoch": "2"},
        "past": {"epoch": -1},
        "number": {"trained": 7},
        "schedule": {"scheduler": 7},
    }
    if change in changed:
        harness_files.write_checkpoint(path, content | changed[change])
    elif change == "key":
        harness_files.write_checkpoint(
            path, {key: value for key, value in content.items() if key != "trained"}
        )
    elif change == "kind":
        harness_files.write_checkpoint(path, [1, 2, 3])
    else:
        path.write_bytes(
            {
                "version": whole.replace(b"checkpoint 2", b"checkpoint 9", 1),
                "cut": whole[:-1],
                "bit": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
                "empty": b"",
            }[change]
        )
    trained = []
    with monkeypatch.context() as patch:
        patch.setattr(
            common,
            "train_epoch",
            lambda *a, train_epoch=common.train_epoch: trained.append(a[4]) or train_epoch(*a),
        )
        assert run() == 0
        assert trained == [2, 3]
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"warning: the checkpoint {path} is not used")
    assert says in err
    assert run("--results", "whole", "--checkpoints", "whole") == 0
    assert rows(the_csv()) == rows(the_csv("whole"))


def test_a_finished_runs_checkpoint_that_holds_something_else_is_named_and_the_run_made_again(
    capsys,
):
    assert run() == 0
    path, whole = next(Path("checkpoints").rglob("*.pt")), rows(the_csv())
    content = harness_files.read_checkpoint(path)
    for other, says in (
        ([1, 2, 3], "it does not hold what a run writes"),
        (
            content | {"about": content["about"] | {"run": "another", "seed": "7"}},
            "it is not this run's by its run",
        ),
    ):
        harness_files.write_checkpoint(path, other)
        assert run() == 0
        assert rows(the_csv()) == whole
        assert capsys.readouterr().err.startswith(
            f"warning: the checkpoint {path} is not used: {says}"
        )


def test_predict_says_which_run_a_checkpoint_is_of_whatever_its_file_is_called(capsys):
    assert run() == 0
    name = the_csv().stem
    shutil.move(next(Path("checkpoints").rglob("*.pt")), "resnet866.pt")
    capsys.readouterr()
    assert predict.main(["resnet866.pt", "--dataset", "digits"]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: ")


CSV_DAMAGE = {
    "empty": (lambda text: "", "it is empty"),
    "no rows of a header that is cut": (lambda text: text[:100], "lacks the columns"),
    "cut in a row": (lambda text: text[:-40], "row is cut"),
    "cut in the last cell": (lambda text: text[:-2], "row is cut"),
    "a column less": (
        lambda text: "\n".join(line.partition(",")[2] for line in text.splitlines()) + "\n",
        "lacks the columns experiment",
    ),
    "a cell less": (lambda text: text[: text.rindex(",")] + "\n", "row 3 is not whole"),
    "a row less": (
        lambda text: "".join(line for i, line in enumerate(text.splitlines(True)) if i != 2),
        "row 2 is of epoch 3",
    ),
    "an accuracy": (lambda text: change_cell(text, "test_acc", "101"), "test_acc 101"),
    "no number": (lambda text: change_cell(text, "train_acc", "x"), "train_acc x"),
    "a loss": (lambda text: change_cell(text, "test_loss", "nan"), "test_loss nan"),
    "a time": (lambda text: change_cell(text, "seconds", "-1"), "seconds -1"),
    "a status": (lambda text: change_cell(text, "status", "fine"), "another status"),
    "a setting": (lambda text: change_cell(text, "lr", "0.2"), "another lr"),
    "a depth": (lambda text: text.replace(",resnet,8,", ",resnet,x,"), "depth x"),
    "bytes": (lambda text: text[:50] + "\0\udcff" + text[50:], "no CSV file"),
}


def change_cell(text: str, column: str, value: str) -> str:
    """The text of a CSV with another value in the last row."""
    table = list(csv.reader(io.StringIO(text)))
    table[-1][table[0].index(column)] = value
    csv.writer(out := io.StringIO(), lineterminator="\n").writerows(table)
    return out.getvalue()


@pytest.mark.parametrize("change, says", CSV_DAMAGE.values(), ids=CSV_DAMAGE)
def test_a_csv_that_is_damaged_is_named_and_never_used(change, says, capsys):
    assert run() == 0
    path, whole = the_csv(), rows(the_csv())
    path.write_bytes(change(path.read_text()).encode(errors="surrogateescape"))
    capsys.readouterr()
    assert plots.main(["--only", "accuracy"]) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"left out: {path}")
    assert says in err
    assert not Path("tables").exists()
    assert run() == 0
    assert rows(path) == whole
    assert f"warning: {path} is damaged" in (err := capsys.readouterr().err)
    assert says in err


def test_a_csv_that_a_spreadsheet_has_saved_is_still_the_runs(capsys):
    assert run() == 0
    path = the_csv()
    path.write_text(path.read_text(), encoding="utf-8-sig")
    content = path.read_bytes()
    assert run() == 0
    assert path.read_bytes() == content
    capsys.readouterr()
    assert plots.main(["--only", "accuracy"]) == 0
    assert not capsys.readouterr().err


def test_a_table_beside_a_run_that_is_damaged_is_named(capsys):
    assert run("--epochs", 1) == run("--epochs", 1, "--train", "all") == 0
    for i, path in enumerate(sorted(Path("results").rglob("*.gz"))):
        content = path.read_bytes()
        path.write_bytes(
            (content[:-20], content[:30] + b"damage" + content[36:], b"", content[:1])[i]
        )
    Path("results/bench").mkdir()
    Path("results/bench/empty.csv").touch()
    capsys.readouterr()
    assert plots.main(["--format", "csv"]) == 0
    err = capsys.readouterr().err
    assert all(str(path) in err for path in Path("results").rglob("*.gz"))
    assert "bench/empty.csv" in err
    assert all(line.startswith("left out: ") for line in err.splitlines())


# ------------------------------------------------------------------------------------------ hostile


class Payload:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_checkpoint_with_a_payload_runs_no_code(capsys):
    path = unfinished()
    content = harness_files.read_checkpoint(path)
    previous = path.with_suffix(".previous.pt").read_bytes()
    for harm in (
        {"epoch": Payload()},
        content | {"trained": Payload()},
        content | {"about": content["about"] | {"seed": Payload()}},
    ):
        harness_files.write_checkpoint(path, harm)
        assert predict.main([str(path), "--dataset", "digits"]) == 2
        assert "PyTorch refuses it" in capsys.readouterr().err
        path.with_suffix(".previous.pt").write_bytes(previous)
        assert run("--time-limit", 1e-9) == 0
        assert "PyTorch refuses it" in capsys.readouterr().err
    path.write_bytes(harness_files.MAGIC + b"2\n" + b"\n" + b"cos\nmkdir\n(S'evil'\ntR.")
    assert predict.main([str(path), "--dataset", "digits"]) == 2
    for experiment in ("../../evil", "bn_only; import evil"):
        about = content["about"] | {"experiment": experiment}
        harness_files.write_checkpoint(path, content | {"about": about})
        assert predict.main([str(path), "--dataset", "digits"]) == 2, experiment
    for changed in (
        {"arch": "--help"},
        {"depth": 99999999999},
        {"train": 7},
        {"seed": -1},
        {"width": "$(touch evil)"},
    ):
        settings = content["settings"] | changed
        harness_files.write_checkpoint(path, content | {"settings": settings})
        assert predict.main([str(path), "--dataset", "digits"]) == 2, changed
    assert not [path for path in Path().rglob("*") if "evil" in path.name]


NAMES = [
    "a,b",
    "quo\"te's",
    "\x1b[31mred\x07",
    "line\nbreak\ttab",
    "..",
    "$x^2$ & 100%",
    "|~#{}\\",
    "=1+1",
    "-rf",
    "naïve γ 猫",
    b"\xff\xfe".decode(errors="surrogateescape"),
]


def test_names_of_any_kind_damage_nothing(capsys):
    pixels = np.random.default_rng(0)
    data, classes = (
        Path("out side", '$\\frac{\n\x1b[2J,|"&%$'),
        [name for name in NAMES if name != ".."],
    )
    for split, each in (("train", 4), ("test", 2)):
        for name in classes:
            (data / split / name).mkdir(parents=True)
            for i in range(each):
                Image.fromarray(pixels.integers(0, 256, (8, 8, 3), np.uint8)).save(
                    data / split / name / f"{i}\n\x1b;,.png"
                )
    words = [
        "--dataset",
        "imagefolder",
        "--data",
        data,
        "--subset",
        20,
        "--epochs",
        1,
        "--batch-size",
        10,
    ]
    assert run(*words) == 0
    assert exp_bn_only.main([*SMALL, *map(str, words), "--train", "all"]) == 0
    checkpoint = str(next(Path("checkpoints").rglob("*.pt")))
    assert (
        predict.main(
            [checkpoint, *map(str, sorted(data.rglob("*.png"))[:3]), "--filters", "filters.png"]
        )
        == 0
    )
    assert plots.main([]) == 0
    text = capsys.readouterr().out
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert "\\x1b[31mred" in text
    table = pd.read_csv(next(Path("results").rglob("*-bn-*[0-9a-f].csv")))
    assert len(table) == 1
    assert table.dataset[0] == '$\\frac{\\n\\x1b[2J,|"&%$'
    assert all(
        len(line.replace("\\|", "").split("|")) == len(lines[0].replace("\\|", "").split("|"))
        for path in Path("tables").glob("*.md")
        for lines in [
            [line for line in block.splitlines()]
            for block in path.read_text().split("\n\n")
            if block.startswith("| ")
        ]
        for line in lines
    )
    assert {path.parts[0] for path in Path().rglob("*")} - {"cache"} == {
        "out side",
        "results",
        "checkpoints",
        "tables",
        "figures",
        "filters.png",
    }  # matplotlib has a cache
    assert all(
        re.fullmatch(r"[\w.-]+", path.name)
        for top in ("results", "checkpoints", "tables", "figures")
        for path in Path(top).rglob("*")
    )


def test_classes_of_a_table_may_have_any_name(capsys):
    names = [name for name in [*NAMES, "/etc/passwd", "../../x"] if not name.startswith("\udcff")]
    pd.DataFrame(
        {"x": np.arange(10.0 * len(names)), 'what, "is" it\n?': np.repeat(names, 10)}
    ).to_csv("t,\x07\n.csv", index=False)
    words = [
        "--dataset",
        "csv",
        "--data",
        "t,\x07\n.csv",
        "--hidden",
        "8",
        "--epochs",
        "1",
        "--batch-size",
        "10",
    ]
    assert exp_mlp_lenet.main(words) == 0
    assert plots.main([]) == 0
    assert (
        predict.main(
            [
                str(next(Path("checkpoints").rglob("*.pt"))),
                "--dataset",
                "csv",
                "--data",
                "t,\x07\n.csv",
            ]
        )
        == 0
    )
    assert not [c for c in capsys.readouterr().out if not c.isprintable() and c != "\n"]
    assert {path.parts[0] for path in Path().rglob("*")} <= {
        "t,\x07\n.csv",
        "results",
        "checkpoints",
        "tables",
        "figures",
        "cache",
    }


def test_a_csv_that_names_a_path_writes_nowhere_else(capsys):
    assert run("--epochs", 1) == 0
    table = pd.read_csv(the_csv())
    table.assign(dataset="../../../evil", run="../../evil").to_csv(the_csv(), index=False)
    assert plots.main([]) == 0
    assert not [path for path in Path("..").rglob("*") if path.name.startswith("evil")]
    assert {path.name for path in Path().iterdir()} - {"cache"} == {
        "results",
        "checkpoints",
        "tables",
        "figures",
    }


def png_of(width: int, height: int) -> bytes:
    """A black PNG of this size, one bit a pixel; of more than 2^27 pixels one that only claims to
    have them."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    pixels = bytes(min(1 << 24, height * (1 + (width + 7) // 8)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "content",
    [
        png_of(60000, 60000),
        png_of(10000, 10000),
        png_of(2**31 - 1, 2**31 - 1),
        b"",
        b"no image",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"P6 99999999 99999999 255\n",
        b"\xff\xd8\xff\xe0" + bytes(50),
    ],
    ids=[
        "bomb",
        "smaller bomb",
        "largest bomb",
        "empty",
        "text",
        "PNG's first bytes",
        "GIF's",
        "PPM of terabytes",
        "JPEG's",
    ],
)
def test_an_image_file_that_is_none_is_one_line(content, capsys):
    root = image_folder()
    (root / "train/cat/0.png").write_bytes(content)
    assert run(*FOLDER, "--subset", 10, "--epochs", 1) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "pets/train/cat/0.png cannot be read as an image" in err


def test_an_image_file_that_is_none_is_one_line_where_images_are_streamed(capsys):
    root = image_folder()
    (root / "train/cat/0.png").write_bytes(png_of(10000, 10000))
    streamed = "--dataset imagenet --data pets --image-size 32 --workers 1"
    network = "--arch imagenet_resnet --depth 18 --epochs 1 --quiet"
    assert exp_bn_only.main([*streamed.split(), *network.split()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "pets/train/cat/0.png cannot be read as an image" in err


def test_a_table_for_a_network_of_images_is_one_line(capsys):
    assert run() == 0
    capsys.readouterr()
    for dataset in ("wine", "csv"):
        assert (
            predict.main(
                [
                    str(next(Path("checkpoints").rglob("*.pt"))),
                    "--dataset",
                    dataset,
                    "--data",
                    "x.csv",
                ]
            )
            == 2
        )
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "exp_mlp_lenet.py" in err


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: os.symlink("absent", path)], ids=["pipe", "dangling link"]
)
def test_what_is_no_file_is_one_line(make, capsys):
    root = image_folder()
    make(root / "train/cat/7.png")
    assert run(*FOLDER, "--epochs", 1) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "pets/train/cat/7.png is no file" in err
    make("photo.png")
    with pytest.raises(errors.UserError, match="no file|No such file"):
        decoded(["photo.png"])


def test_images_of_every_kind_become_rgb():
    gray = np.linspace(0, 1, 64).reshape(8, 8)
    eight = Image.fromarray((gray * 255).round().astype(np.uint8))
    kinds = {
        "16 bits.png": Image.fromarray((gray * 65535).round().astype(np.uint16)),
        "gray.png": eight,
        "palette.png": eight.convert("P"),
        "cmyk.jpg": eight.convert("CMYK"),
        "alpha.png": eight.convert("RGBA"),
        "bits.png": eight.convert("1"),
        "gray and alpha.png": eight.convert("LA"),
        "16 bits.tif": Image.fromarray((gray * 65535).round().astype(np.uint16)),
    }
    for name, image in kinds.items():
        image.save(name, **{"quality": 100} if name == "cmyk.jpg" else {})
    eight.save("animated.gif", save_all=True, append_images=[eight.rotate(90), eight.rotate(180)])
    names = [*kinds, "animated.gif"]
    for name, image in zip(names, decoded(names), strict=True):
        expected = np.asarray(
            (eight.convert("1") if name == "bits.png" else eight).convert("RGB")
        ).astype(int)
        assert image.shape == (8, 8, 3) and np.abs(image - expected).max() <= (
            8 if name.startswith(("cmyk", "animated", "palette")) else 1
        ), name
    Image.fromarray(gray.astype(np.float32)).save("float.tif")
    with pytest.raises(errors.UserError, match="floating-point"):
        decoded(["float.tif"])


def decoded(names: list[str]) -> np.ndarray:
    return folders.decode(list(map(Path, names)), None, 2, quiet=True).astype(int)


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


# ------------------------------------------------------------------------------------------ numbers


def test_a_loss_that_explodes_is_a_diverged_run_in_either_precision(capsys):
    for precision in ("fp32", "bf16"):
        words = [
            "--lr",
            1e6,
            "--train",
            "all-bn",
            "--epochs",
            20,
            "--precision",
            precision,
            "--results",
            precision,
            "--checkpoints",
            precision,
        ]
        if precision == "bf16" and not speed.has_bf16(torch.device("cpu")):
            continue
        assert run(*words) == 1
        assert "try a --lr below" in capsys.readouterr().err
        assert {row["status"] for row in rows(the_csv(precision))} == {"diverged"}
    assert run("--lr", 1e6) in (0, 1)  # γ and β alone may stay finite


@pytest.mark.skipif(
    not speed.has_bf16(torch.device("cpu")), reason="this processor does not calculate in bf16"
)
def test_what_overflows_bf16_is_a_diverged_run():
    words = "--gamma-init constant:1e30 --beta-init constant:1e30 --train output --epochs 2".split()
    for precision in ("bf16", "fp32"):
        assert run(*words, "--precision", precision, "--results", precision) == 1
        assert rows(the_csv(precision))[-1]["status"] == "diverged"


def test_tensorboard_takes_any_gamma():
    pytest.importorskip("tensorboard")
    assert run("--tensorboard", "--gamma-init", "constant:1e38", "--epochs", 1) in (0, 1)
    assert list(Path("results").rglob("events.*"))


def one_colour(root="pets", classes=("cat", "dog"), each=6) -> None:
    for split, n in (("train", each), ("test", 2)):
        for name in classes:
            (Path(root) / split / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), "gray").save(Path(root) / split / name / f"{i}.png")


@pytest.mark.parametrize("classes", [("cat", "dog"), ("cat",)])
def test_constant_images_and_a_single_class_learn_nothing_and_break_nothing(classes):
    one_colour(classes=classes)
    words = [*FOLDER[:4], "--epochs", "2", "--quiet", "--batch-size", "5"]
    assert exp_bn_only.main(words) == 0
    last = rows(the_csv())[-1]
    assert float(last["test_acc"]) == 100 / len(classes)
    assert last["status"] == "ok"
    assert np.isfinite(float(last["train_loss"]))
    assert (
        predict.main([str(next(Path("checkpoints").rglob("*.pt"))), "pets/test/cat/0.png"])
        == plots.main([])
        == 0
    )


def test_few_images_and_small_batches(capsys):
    one_colour(each=1)
    assert (
        exp_bn_only.main([*FOLDER, "--epochs", "1", "--quiet"]) == 0
    )  # two images, batches of 128
    one_colour("single", classes=("cat",), each=1)
    single = ["--dataset", "imagefolder", "--data", "single", "--epochs", "1", "--quiet"]
    assert exp_bn_only.main(single) == 0
    assert exp_bn_only.main([*single, "--batch-size", "1", "--train", "all"]) == 0
    capsys.readouterr()
    for words in (
        ["--batch-size", "1"],
        ["--subset", "10", "--batch-size", "1"],
    ):  # one sample has no variance of its own where no pixels share a channel
        assert (
            exp_mlp_lenet.main(
                ["--dataset", "digits", "--hidden", "8", "--epochs", "1", "--quiet", *words]
            )
            == 2
        )
        assert "--batch-size 2" in (err := capsys.readouterr().err)
        assert err.count("\n") == 1
    assert (
        exp_mlp_lenet.main(
            "--dataset digits --hidden 8 --epochs 1 --quiet --subset 101 --batch-size 10".split()
        )
        == 0
    )  # the last of one joins the one before


# --------------------------------------------------------------------------------------------- fuzz

WILD = [
    "",
    " ",
    "0",
    "-1",
    "1",
    "2.5",
    "1e309",
    "-1e-9",
    "nan",
    "inf",
    "99999999999999999999",
    "x",
    "ä😀",
    "\x1b[31m",
    "a" * 300,
    "../x",
    "/dev/null",
    "--",
    "-",
    "'",
    "a,b",
    "$(touch evil)",
    "constant:",
    "constant:nan",
    "random:",
    "random:0",
    "random:2+",
    "+",
    "\udcff",
]
RIGHT = {  # values that are possible, and keep a run short
    "": ["CHECKPOINT"] * 6 + ["pets/test/cat/0.png"],
    "--epochs": ["1", "2"],
    "--subset": ["10", "64", "256"],
    "--depth": ["8", "14", "32"],
    "--width": ["1", "2"],
    "--batch-size": ["2", "37", "1000000"],
    "--image-size": ["8", "12"],
    "--workers": ["1", "2"],
    "--seed": ["0", "3", "4294967295"],
    "--val-fraction": ["0", "0.2"],
    "--lr": ["0.1", "1e6", "1e300", "1e-300"],
    "--hidden": ["8", "16"],
    "--tune": ["1", "2"],
    "--data": ["pets", "data.csv"],
    "--dataset": ["digits"],
    "--device": ["cpu", "auto"],
    "--train": [
        "bn",
        "all",
        "none",
        "output",
        "all-bn",
        "random:1",
        "random:3+output",
        "random:all",
        "gamma",
        "beta+output",
    ],
    "--per-channel": ["1", "2", "all"],
    "--gamma-init": ["uniform", "ones", "constant:1e38", "constant:0"],
    "--beta-init": ["zeros", "constant:-1e38"],
    "--results": ["results", "results/deeper"],
    "--checkpoints": ["checkpoints"],
    "--norm": ["bn", "none", "calibrated", "ln", "gn:4"],
    "--momentum": ["0", "0.999"],
    "--weight-decay": ["0", "1e-4", "1e300"],
    "--warmup-epochs": ["0", "3"],
    "--time-limit": ["1e-9", "1"],
    "--augment": ["none", "crop", "flip+crop", "brightness"],
    "--c": ["1", "100", "1e300"],
    "--bn-weight": ["1", "0.1", "0"],
    "--target": ["species"],
    "--network": ["cifar_resnet14"],
    "--images": ["100"],
    "--turns": ["1"],
    "--out": ["out"],
    "--format": ["md", "csv", "tex"],
    "--filters": ["f.png"],
    "--feature-maps": ["m.png"],
}
DOUBTFUL = {  # values that are possible with other flags, or not at all
    "": ["data.csv", "absent.pt", "pets"],
    "--subset": ["2", "9", "99999"],
    "--depth": ["11", "18", "7", "0"],
    "--width": ["0"],
    "--batch-size": ["1"],
    "--image-size": ["0", "32", "9999"],
    "--seed": [str(2**64), "-1"],
    "--val-fraction": ["0.99", "1e-9", "1"],
    "--hidden": ["lenet-300-100", "0"],
    "--data": ["nowhere", "/dev/null", "."],
    "--dataset": ["wine", "csv", "imagefolder", "imagenet", "mnist", "cifar10"],
    "--device": ["cuda", "cuda:7", "mps", "meta", "cpu:3", "xla"],
    "--norm": ["gn:3", "in", "gn:0"],
    "--train": ["hidden", "shortcut+conv", "bn+all", "random:99999999"],
    "--results": ["data.csv", "/dev/null/x"],
    "--checkpoints": ["data.csv"],
    "--warmup-epochs": ["99"],
    "--target": ["a", "nothing"],
    "--out": ["data.csv"],
    "--format": ["png", "pdf"],
    "--filters": ["f.xyz", "nowhere/f.png"],
}
GIVEN = (
    "",
    "--epochs",
    "--dataset",
    "--subset",
    "--seed",
    "--network",
)  # always, since without them a run would be long
LEFT_OUT = ["--compile", "-h"]  # half a minute of compiling; and help
SCRIPTS = {
    "exp_bn_only": [""],
    "exp_random_params": [""],
    "exp_depth_width": [""],
    "exp_bn_init": ["davis_frank", "frankle"],
    "exp_mlp_lenet": [""],
    "exp_norms": [""],
    "bench": [""],
    "plots": [""],
    "predict": [""],
}


@functools.cache
def actions(script: str, study: str) -> dict[str, argparse.Action]:
    """What a script's command line knows, by flag."""
    caught = []

    def catch(parser, *_):
        caught.append(parser)
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        patch.setattr(argparse.ArgumentParser, "parse_intermixed_args", catch)
        importlib.import_module(script).main([study] if study else [])
    found = caught[0]._actions
    return {
        action.option_strings[0] if action.option_strings else "": action
        for action in found
        if action.option_strings[:1] not in [[flag] for flag in LEFT_OUT]
    }


@st.composite
def command_lines(draw) -> tuple[str, list[str]]:
    """A script and its words: some of its flags, with values of which most are possible."""
    script = draw(st.sampled_from(sorted(SCRIPTS)))
    study = draw(st.sampled_from(SCRIPTS[script]))
    words, known = [study] * bool(study), actions(script, study)
    chosen = draw(st.lists(st.sampled_from(sorted(known)), max_size=5, unique=True))
    given = {
        "bench": (),
        "plots": ("--format",),
        "exp_depth_width": (*GIVEN, "--depth", "--width"),
    }.get(script, GIVEN)
    chosen += [flag for flag in given if flag in known and flag not in chosen]
    for flag in chosen:
        action, luck = (
            known[flag],
            draw(st.sampled_from(["right"] * 17 + ["doubtful"] * 2 + ["wild"])),
        )
        right = RIGHT.get(flag) or list(map(str, action.choices or ["1"]))
        pool = {
            "right": right,
            "doubtful": DOUBTFUL.get(flag, right),
            "wild": right if flag in (*GIVEN, "--tune") else WILD,
        }[luck]
        most = 0 if action.nargs == 0 else 2 if action.nargs in ("+", 2) else 1
        words += [flag] * bool(flag) + draw(
            st.lists(
                st.sampled_from(pool),
                min_size=min(most, luck != "wild") if action.nargs == "+" else most,
                max_size=most,
            )
        )
    return script, words


def watch(event, args):
    """An audit hook: notes what is written elsewhere than in the current folder."""
    if watch.inside and event in (
        "open",
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.symlink",
        "os.link",
        "os.truncate",
    ):
        if event == "open" and not (
            isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            return
        for name in args[:2] if event == "os.rename" else args[:1]:
            if isinstance(name, str | bytes | os.PathLike) and not os.path.realpath(
                os.fsdecode(name)
            ).startswith(watch.allowed):
                watch.outside.append((event, os.fsdecode(name)))


watch.inside, watch.allowed, watch.outside = False, (), []
sys.addaudithook(watch)


@slow(60, 2000)
def test_any_command_line_ends_with_an_exit_code_and_writes_nowhere_else(n, monkeypatch, tmp_path):
    import bench

    (tmp_path / "inside").mkdir()
    monkeypatch.chdir("inside")  # ../x, too, may be the folder that a line names
    image_folder(sizes=((12, 12), (12, 12)))
    pd.DataFrame({"a": np.arange(60.0), "species": ["x", "y", "z"] * 20}).to_csv(
        "data.csv", index=False
    )
    assert (
        run() == plots.main(["--results", "results"]) == 0
    )  # what is imported late, and matplotlib's cache
    checkpoint = str(shutil.copy(next(Path("checkpoints").rglob("*.pt")), "whole.pt"))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    for measured in (
        "compare",
        "share_out",
        "beside",
    ):  # bench.py's measurements have tests of their own
        monkeypatch.setattr(bench, measured, lambda args, threads: [{"variant": "none"}])
    watch.allowed = (str(tmp_path), "/dev/null", "/dev/shm")

    @hypothesis.settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=n == 60,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(command_lines())
    def ends(line):
        script, words = line[0], [checkpoint if word == "CHECKPOINT" else word for word in line[1]]
        if len(list(Path("results").rglob("*.csv"))) > 20:  # plots.py would take ever longer
            shutil.rmtree("results")
        out, err, watch.inside = io.StringIO(), io.StringIO(), True
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = importlib.import_module(script).main(words)
        except SystemExit as stop:  # argparse in plots.py
            code = stop.code
        finally:
            watch.inside = False
        assert code in (0, 1, 2) and "Traceback" not in err.getvalue(), err.getvalue()
        assert code != 2 or re.fullmatch(
            "((warning|left out): .*\n)*error: .*\n", err.getvalue()
        ), err.getvalue()
        assert (
            not watch.outside
            and Path("data.csv").stat().st_size
            and sorted(path.name for path in Path("pets").glob("[!.]*")) == ["test", "train"]
        ), watch.outside

    ends()


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
    subprocess.run(
        [
            sys.executable,
            "-c",
            ENDURES,
            *GRID,
            "--grid",
            "--depths",
            "8",
            "--widths",
            "1",
            "--seeds",
            *map(str, range(n)),
        ],
        check=True,
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    memory, open_files = np.loadtxt("notes").T
    assert len(memory) == n and memory[-1] < 1.05 * memory[9] and open_files[-1] == open_files[9], (
        memory[9],
        memory[-1],
        open_files,
    )
