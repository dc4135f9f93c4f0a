"""Bad input is one line and exit code 2, and damages nothing."""

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.helpers import (
    FOLDER,
    HERE,
    ends_as_a_whole_one,
    files,
    image_folder,
    no_network,
    one_line,
    run,
)
import pytest
import torch

from harness import speed
from harness import files as harness_files
from harness import runs as records


def test_bf16_without_hardware_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(speed, "has_bf16", lambda device: False)
    assert run("--precision", "bf16") == 2
    assert "--precision fp32" in capsys.readouterr().err


def test_the_commit_says_whether_a_script_was_changed_or_added():
    def told(*command) -> str:
        options = {"capture_output": True, "text": True, "check": True}
        here = os.environ | {"PYTHONPATH": "project"}
        return subprocess.run(command, **options, env=here).stdout.strip()

    def commit() -> str:
        return told(sys.executable, "-c", "from harness import runs; print(runs.commit())")

    def git(*words) -> None:
        told("git", "-C", "project", "-c", "user.name=A", "-c", "user.email=a@b", *words)

    Path("project/venv").mkdir(parents=True)
    sources = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HERE / "harness", "project/harness", ignore=sources)
    Path("project/.gitignore").write_text("__pycache__/\n")
    assert commit() == ""
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    Path("project/venv/other.py").touch()
    assert re.fullmatch("[0-9a-f]{10}", commit())
    Path("project/exp_copy.py").touch()
    assert re.fullmatch(r"[0-9a-f]{10}\+", commit())


SCRIPTS = [path.name for path in HERE.glob("exp_*.py")] + ["predict.py", "bench.py", "plots.py"]


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_ctrl_c_during_imports_is_one_line(script):
    for slow in ("torch", "pandas"):
        Path(f"{slow}.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, HERE / script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "stopped: the same command begins again\n"


@pytest.mark.parametrize(
    "dataset, where",
    [
        ("cifar10", "cifar-10-batches-py"),
        ("mnist", "MNIST"),
        ("cifar100", "cifar-100-python"),
        ("fashion_mnist", "FashionMNIST"),
    ],
)
def test_a_data_set_that_cannot_be_had(dataset, where, capsys, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    assert run("--dataset", dataset, "--data", "here") == 2
    said = one_line(capsys)
    assert f"here/{where}" in said
    assert "--dataset digits" in said
    assert not Path("results").exists()
    assert not Path("here").exists()


@pytest.mark.parametrize(
    "left", [b"", bytes([0, 0, 8, 3, 0, 0, 234, 96, 0, 0, 0, 28, 0, 0, 0, 28, 7])]
)
def test_a_data_set_that_a_kill_has_cut_is_said_to_be_damaged(left, capsys, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    (raw := Path("here/MNIST/raw")).mkdir(parents=True)
    for kind in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{kind}-ubyte").write_bytes(left)
    assert run("--dataset", "mnist", "--data", "here") == 2
    assert "files are damaged" in (said := one_line(capsys)) and "remove them" in said


def without_train(root):
    (root / "train").rename(root / "training")


def with_an_empty_class(root):
    (root / "train/bird").mkdir()


def with_a_class_of_notes(root):
    (root / "train/bird").mkdir()
    (root / "train/bird/notes.txt").write_text("birds")


def one_level_deeper(root):
    for split in ("train", "test"):
        (root / "mine").mkdir(exist_ok=True)
        (root / split).rename(root / "mine" / split)


def with_a_broken_image(root):
    (root / "train/cat/9.png").write_bytes((root / "train/cat/1.png").read_bytes()[:50])


def with_another_class_in_the_test(root):
    (root / "test/dog").rename(root / "test/bird")


def without_classes(root):
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


HARMS = [
    (without_train, "no folder train/"),
    (with_an_empty_class, "pets/train/bird holds no image"),
    (with_a_class_of_notes, "pets/train/bird holds no image"),
    (one_level_deeper, "name that with --data"),
    (with_a_broken_image, "pets/train/cat/9.png"),
    (with_another_class_in_the_test, "bird"),
    (without_classes, "no class folder"),
    (shutil.rmtree, "pets is no folder"),
]


@pytest.mark.parametrize("harm, says", HARMS)
def test_image_folders_that_cannot_be_used(harm, says, capsys):
    harm(image_folder())
    cannot_be_used(says, capsys)


@pytest.mark.parametrize(
    "sizes, says",
    [(((12, 12), (12, 14)), "--image-size 32, or 224"), (((6, 6),), "--image-size 8")],
)
def test_images_of_several_sizes_or_too_small(sizes, says, capsys):
    image_folder(sizes=sizes)
    cannot_be_used(says, capsys)


def cannot_be_used(says: str, capsys) -> None:
    """The folder pets is refused in one line, and nothing in it or beside it changes."""
    before = files()
    assert run(*FOLDER, "--subset", 10) == 2
    assert says in one_line(capsys)
    assert {path: content for path, content in files().items() if ".decoded" not in path} == before


def test_a_full_disk_is_one_line_and_what_is_on_disk_is_whole(monkeypatch, capsys):
    assert run("--time-limit", 1e-9) == 0
    before = files()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    def enter(run, enter=records.Run.__enter__, fsync=os.fsync):
        patch.setattr(harness_files.os, "fsync", fsync)  # there is room for the lock
        entered = enter(run)
        patch.setattr(harness_files.os, "fsync", full)
        return entered

    with monkeypatch.context() as patch:
        patch.setattr(harness_files.os, "fsync", full)
        patch.setattr(records.Run, "__enter__", enter)
        assert run() == 1
    assert "No space left on device" in one_line(capsys)
    assert files() == before
    assert run() == 0
    ends_as_a_whole_one()


def test_dry_run_tells_and_writes_nothing(capsys):
    assert run("--dry-run", "--train", "bn+output") == 0
    out = capsys.readouterr().out
    assert "1,322 of" in out
    assert "gamma 336" in out
    assert f"seconds on {speed.device_name(torch.device('cpu'))}: 3 epochs of" in out
    assert ".csv" in out
    assert not files()
