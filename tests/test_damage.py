"""A disk that is full, folders that vanish, files that are damaged: one line, never used, and the
run goes on to the same digits."""

import csv
import io
import itertools
import random
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers import (
    HERE,
    SMALL,
    ends_as_a_whole_one,
    environment,
    epochs_trained,
    linux_only,
    one_line,
    rows,
    run,
    the_checkpoint,
    the_csv,
    unfinished,
)
import pytest
import torch

import common
from harness import errors
from harness import files as harness_files
import plots
import predict

resource = pytest.importorskip("resource")  # what Windows has not
pytestmark = linux_only


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


# from the start, and where the second row would be written
@pytest.mark.parametrize("size, epochs", [(100, 0), (1200, 1)])
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(size, epochs):
    words = ["--train", "none", "--epochs", 3]
    found = limited(size, *words)
    assert (found.returncode, found.stdout) == (1, ""), found
    assert found.stderr.count("\n") == 1, found
    assert "File too large" in found.stderr
    assert len(rows(the_csv()) if epochs else []) == epochs
    assert not [path for path in Path().rglob("*") if path.suffix == ".new"]
    assert run(*words) == 0
    ends_as_a_whole_one(*words)


def test_a_folder_that_cannot_be_written_is_one_line(capsys):
    for flag in ("--results", "--checkpoints"):
        assert run(flag, "/sys/records") == 1  # not even by root
        said = one_line(capsys)
        assert "cannot write in /sys/records" in said
        assert flag in said


@pytest.mark.parametrize("which", ["results", "checkpoints"])
def test_a_folder_that_vanishes_is_one_line_and_the_next_start_begins_again(
    which, monkeypatch, capsys
):
    def vanish(*given, train_epoch=common.train_epoch):
        if given[4] == 2:
            shutil.rmtree(which)
        return train_epoch(*given)

    with monkeypatch.context() as patch:
        patch.setattr(common, "train_epoch", vanish)
        assert run() == 1
    assert "No such file or directory" in one_line(capsys)
    assert run() == 0
    ends_as_a_whole_one()


# -------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_that_is_cut_or_has_a_flipped_bit_is_found():
    path = unfinished()
    whole, draw = path.read_bytes(), random.Random(0)
    assert harness_files.read_checkpoint(path)["epoch"] == 2

    def flipped(at: int) -> bytes:
        return whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]

    cut = (whole[:at] for at in range(0, len(whole), 10))
    changed = (flipped(draw.randrange(len(whole))) for _ in range(200))
    for content in itertools.chain(cut, changed, [whole + b"\n"]):
        path.write_bytes(content)
        with pytest.raises(errors.Damaged):
            harness_files.read_checkpoint(path)


BYTES_CHANGED = {  # what a checkpoint's file is changed to: what is said
    "version": (
        lambda whole: whole.replace(b"checkpoint 2", b"checkpoint 9", 1),
        "no checkpoint of this version",
    ),
    "cut": (lambda whole: whole[:-1], "checksum"),
    "bit": (lambda whole: whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], "checksum"),
    "empty": (lambda whole: b"", "no checkpoint of this version"),
}


def changed_by(**entries):
    return lambda content: content | entries


CONTENT_CHANGED = {  # and what it holds
    "run": (
        lambda content: content | {"about": content["about"] | {"seed": "7"}},
        "not this run's by its seed",
    ),
    "epoch": (changed_by(epoch=7), "of epoch 7"),
    "key": (
        lambda content: {key: content[key] for key in content if key != "trained"},
        "'trained'",
    ),
    "size": (
        lambda content: (
            content | {"trained": content["trained"] | {"values": {"float32": torch.zeros(3)}}}
        ),
        "holds 3 values",
    ),
    "fingerprint": (
        lambda content: content | {"fingerprint": content["fingerprint"] + 1},
        "frozen weights",
    ),
    "kind": (lambda content: [1, 2, 3], "what a run writes"),
    "text": (changed_by(epoch="2"), "what a run writes"),
    "past": (changed_by(epoch=-1), "of epoch -1"),
    "number": (changed_by(trained=7), "what a run writes"),
    "schedule": (changed_by(scheduler=7), "what a run writes"),
}


@pytest.mark.parametrize("change", [*BYTES_CHANGED, *CONTENT_CHANGED])
def test_a_checkpoint_that_does_not_fit_is_named_and_the_one_before_taken(
    change, capsys, monkeypatch
):
    path = unfinished()
    if change in BYTES_CHANGED:
        to, says = BYTES_CHANGED[change]
        path.write_bytes(to(path.read_bytes()))
    else:
        to, says = CONTENT_CHANGED[change]
        harness_files.write_checkpoint(path, to(harness_files.read_checkpoint(path)))
    with monkeypatch.context() as patch:
        trained = epochs_trained(patch)
        assert run() == 0
    assert trained == [2, 3]
    said = one_line(capsys)
    assert said.startswith(f"warning: the checkpoint {path} is not used")
    assert says in said
    ends_as_a_whole_one()


def test_a_finished_runs_checkpoint_that_holds_something_else_is_named_and_the_run_made_again(
    capsys,
):
    assert run() == 0
    path, whole = the_checkpoint(), rows(the_csv())
    content = harness_files.read_checkpoint(path)
    another = content | {"about": content["about"] | {"run": "another", "seed": "7"}}
    for other, says in (
        ([1, 2, 3], "it does not hold what a run writes"),
        (another, "it is not this run's by its run"),
    ):
        harness_files.write_checkpoint(path, other)
        assert run() == 0
        assert rows(the_csv()) == whole
        named = f"warning: the checkpoint {path} is not used: {says}"
        assert capsys.readouterr().err.startswith(named)


def test_predict_says_which_run_a_checkpoint_is_of_whatever_its_file_is_called(capsys):
    assert run() == 0
    name = the_csv().stem
    shutil.move(the_checkpoint(), "resnet866.pt")
    capsys.readouterr()
    assert predict.main(["resnet866.pt", "--dataset", "digits"]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: ")


# ---------------------------------------------------------------------------------------- CSV files


def without_first_column(text: str) -> str:
    return "\n".join(line.partition(",")[2] for line in text.splitlines()) + "\n"


def without_second_row(text: str) -> str:
    return "".join(line for i, line in enumerate(text.splitlines(True)) if i != 2)


def cell(column: str, value: str):
    """A change of a CSV's text: another value in the last row."""

    def change(text: str) -> str:
        table = list(csv.reader(io.StringIO(text)))
        table[-1][table[0].index(column)] = value
        csv.writer(out := io.StringIO(), lineterminator="\n").writerows(table)
        return out.getvalue()

    return change


CSV_DAMAGE = {
    "empty": (lambda text: "", "it is empty"),
    "no rows of a header that is cut": (lambda text: text[:100], "lacks the columns"),
    "cut in a row": (lambda text: text[:-40], "row is cut"),
    "cut in the last cell": (lambda text: text[:-2], "row is cut"),
    "a column less": (without_first_column, "lacks the columns experiment"),
    "a cell less": (lambda text: text[: text.rindex(",")] + "\n", "row 3 is not whole"),
    "a row less": (without_second_row, "row 2 is of epoch 3"),
    "an accuracy": (cell("test_acc", "101"), "test_acc 101"),
    "no number": (cell("train_acc", "x"), "train_acc x"),
    "a loss": (cell("test_loss", "nan"), "test_loss nan"),
    "a time": (cell("seconds", "-1"), "seconds -1"),
    "a status": (cell("status", "fine"), "another status"),
    "a setting": (cell("lr", "0.2"), "another lr"),
    "a depth": (lambda text: text.replace(",resnet,8,", ",resnet,x,"), "depth x"),
    "bytes": (lambda text: text[:50] + "\0\udcff" + text[50:], "no CSV file"),
}


@pytest.mark.parametrize("change, says", CSV_DAMAGE.values(), ids=CSV_DAMAGE)
def test_a_csv_that_is_damaged_is_named_and_never_used(change, says, capsys):
    assert run() == 0
    path, whole = the_csv(), rows(the_csv())
    path.write_bytes(change(path.read_text()).encode(errors="surrogateescape"))
    capsys.readouterr()
    assert plots.main(["--only", "accuracy"]) == 0
    said = one_line(capsys)
    assert said.startswith(f"left out: {path}")
    assert says in said
    assert not Path("tables").exists()
    assert run() == 0
    assert rows(path) == whole
    said = capsys.readouterr().err
    assert f"warning: {path} is damaged" in said
    assert says in said


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
    tables = sorted(Path("results").rglob("*.gz"))
    damages = (
        lambda content: content[:-20],
        lambda content: content[:30] + b"damage" + content[36:],
        lambda content: b"",
        lambda content: content[:1],
    )
    for path, damage in zip(tables, damages, strict=True):
        path.write_bytes(damage(path.read_bytes()))
    Path("results/bench").mkdir()
    Path("results/bench/empty.csv").touch()
    capsys.readouterr()
    assert plots.main(["--format", "csv"]) == 0
    said = capsys.readouterr().err
    assert all(str(path) in said for path in tables)
    assert "bench/empty.csv" in said
    assert all(line.startswith("left out: ") for line in said.splitlines())
