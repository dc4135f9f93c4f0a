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
    HERE,
    run,
    the_csv,
    rows,
    files,
    image_folder,
    FOLDER,
    no_network,
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
    def commit():
        return subprocess.run(
            [sys.executable, "-c", "from harness import runs; print(runs.commit())"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": "project"},
        ).stdout.strip()

    def git(*words):
        subprocess.run(
            ["git", "-C", "project", "-c", "user.name=A", "-c", "user.email=a@b", *words],
            check=True,
            capture_output=True,
        )

    Path("project/venv").mkdir(parents=True)
    shutil.copytree(
        HERE / "harness", "project/harness", ignore=shutil.ignore_patterns("__pycache__")
    )
    Path("project/.gitignore").write_text("__pycache__/\n")
    assert commit() == ""
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    Path("project/venv/other.py").touch()
    assert re.fullmatch("[0-9a-f]{10}", commit())
    Path("project/exp_copy.py").touch()
    assert re.fullmatch(r"[0-9a-f]{10}\+", commit())


@pytest.mark.parametrize(
    "script",
    [
        "exp_bn_only",
        "exp_random_params",
        "exp_depth_width",
        "exp_bn_init",
        "exp_mlp_lenet",
        "predict",
        "bench",
        "plots",
    ],
)
def test_ctrl_c_during_imports_is_one_line(script):
    for slow in ("torch", "pandas"):
        Path(f"{slow}.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, HERE / f"{script}.py"],
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
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"here/{where}" in err
    assert "--dataset digits" in err
    assert not Path("results").exists()
    assert not Path("here").exists()


@pytest.mark.parametrize(
    "harm, says",
    {
        "no train": "no folder train/",
        "empty class": "pets/train/bird holds no image",
        "only a note": "pets/train/bird holds no image",
        "one above": "name that with --data",
        "broken image": "pets/train/cat/9.png",
        "other classes": "bird",
        "sizes": "--image-size 32, or 224",
        "no classes": "no class folder",
        "absent": "pets is no folder",
        "tiny": "--image-size 8",
    }.items(),
)
def test_image_folders_that_cannot_be_used(harm, says, capsys):
    if harm != "absent":
        root = image_folder(
            sizes=((12, 12), (12, 14))
            if harm == "sizes"
            else ((6, 6),)
            if harm == "tiny"
            else ((12, 12),)
        )
    if harm == "no train":
        (root / "train").rename(root / "training")
    elif harm == "empty class":
        (root / "train/bird").mkdir()
    elif harm == "only a note":
        (root / "train/bird").mkdir()
        (root / "train/bird/notes.txt").write_text("birds")
    elif harm == "one above":
        (root / "train").rename(root / "photos")
        (root / "photos").rename("photos")
        shutil.rmtree(root)
        (root / "mine").mkdir(parents=True)
        Path("photos").rename(root / "mine/train")
    elif harm == "broken image":
        (root / "train/cat/9.png").write_bytes((root / "train/cat/1.png").read_bytes()[:50])
    elif harm == "other classes":
        (root / "test/dog").rename(root / "test/bird")
    elif harm == "no classes":
        (root / "train").rename(root / "gone")
        (root / "train").mkdir()
    before = files()
    assert run(*FOLDER, "--subset", 10) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert {path: content for path, content in files().items() if ".decoded" not in path} == before


def test_a_full_disk_is_one_line_and_what_is_on_disk_is_whole(monkeypatch, capsys):
    assert run("--time-limit", 1e-9) == 0
    before = files()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(harness_files.os, "fsync", full)
        patch.setattr(
            records.Run,
            "__enter__",
            lambda self, enter=records.Run.__enter__: (
                patch.undo(),
                enter(self),
                patch.setattr(harness_files.os, "fsync", full),
            )[1],
        )
        assert run() == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "No space left on device" in err
    assert files() == before
    assert run() == 0
    assert run("--results", "whole", "--checkpoints", "whole") == 0
    assert rows(the_csv()) == rows(the_csv("whole"))


def test_dry_run_tells_and_writes_nothing(capsys):
    assert run("--dry-run", "--train", "bn+output") == 0
    out = capsys.readouterr().out
    assert "1,322 of" in out
    assert "gamma 336" in out
    assert f"seconds on {speed.device_name(torch.device('cpu'))}: 3 epochs of" in out
    assert ".csv" in out
    assert not files()
