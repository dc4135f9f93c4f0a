"""Numbers at the ends of their ranges, few images, and any command line."""

import argparse
import contextlib
import functools
import importlib
import io
import os
import re
import shutil
import sys
import urllib.request
from pathlib import Path

from tests.helpers import (
    FOLDER,
    image_folder,
    linux_only,
    no_network,
    one_line,
    rows,
    run,
    slow,
    the_checkpoint,
    the_csv,
)
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from harness import speed
import bench
import exp_bn_only
import exp_mlp_lenet
import plots
import predict

pytestmark = linux_only

# ------------------------------------------------------------------------------------------ numbers

HAS_BF16 = speed.has_bf16(torch.device("cpu"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"] if HAS_BF16 else ["fp32"])
def test_a_loss_that_explodes_is_a_diverged_run(precision, capsys):
    words = "--train all-bn --epochs 20 --precision".split()
    assert run("--lr", 1e6, *words, precision) == 1
    assert "try a --lr below" in capsys.readouterr().err
    assert {row["status"] for row in rows(the_csv())} == {"diverged"}


def test_gamma_and_beta_alone_may_stay_finite_at_any_rate():
    assert run("--lr", 1e6) in (0, 1)


@pytest.mark.skipif(not HAS_BF16, reason="this processor does not calculate in bf16")
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
    assert exp_bn_only.main([*FOLDER, "--epochs", "2", "--quiet", "--batch-size", "5"]) == 0
    last = rows(the_csv())[-1]
    assert float(last["test_acc"]) == 100 / len(classes)
    assert last["status"] == "ok"
    assert np.isfinite(float(last["train_loss"]))
    assert predict.main([str(the_checkpoint()), "pets/test/cat/0.png"]) == 0
    assert plots.main([]) == 0


def test_fewer_images_than_a_batch_has_and_a_single_one():
    one_colour(each=1)
    assert exp_bn_only.main([*FOLDER, "--epochs", "1", "--quiet"]) == 0
    one_colour("single", classes=("cat",), each=1)
    single = ["--dataset", "imagefolder", "--data", "single", "--epochs", "1", "--quiet"]
    assert exp_bn_only.main(single) == 0
    assert exp_bn_only.main([*single, "--batch-size", "1", "--train", "all"]) == 0


MLP = "--dataset digits --hidden 8 --epochs 1 --quiet".split()


@pytest.mark.parametrize("words", ["--batch-size 1", "--subset 10 --batch-size 1"])
def test_a_batch_of_one_has_no_variance_where_no_pixels_share_a_channel(words, capsys):
    assert exp_mlp_lenet.main([*MLP, *words.split()]) == 2
    assert "--batch-size 2" in one_line(capsys)


def test_a_last_batch_of_one_joins_the_one_before():
    assert exp_mlp_lenet.main([*MLP, "--subset", "101", "--batch-size", "10"]) == 0


# -------------------------------------------------------------------------------- any command line

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
    "--train": "bn all none output all-bn random:1 random:3+output random:all gamma "
    "beta+output".split(),
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
# always, since without them a run would be long
GIVEN = ("", "--epochs", "--dataset", "--subset", "--seed", "--network")
GIVEN_TO = {"bench": (), "plots": ("--format",), "exp_depth_width": (*GIVEN, "--depth", "--width")}
LEFT_OUT = ("--compile", "-h")  # half a minute of compiling; and help
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
    """What a script's command line knows, by flag; a positional argument's is empty."""
    caught = []

    def catch(parser, *_):
        caught.append(parser)
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        patch.setattr(argparse.ArgumentParser, "parse_intermixed_args", catch)
        importlib.import_module(script).main([study] if study else [])
    by_flag = {next(iter(action.option_strings), ""): action for action in caught[0]._actions}
    return {flag: action for flag, action in by_flag.items() if flag not in LEFT_OUT}


@st.composite
def command_lines(draw) -> tuple[str, list[str]]:
    """A script and its words: some of its flags, with values of which most are possible."""
    script = draw(st.sampled_from(sorted(SCRIPTS)))
    study = draw(st.sampled_from(SCRIPTS[script]))
    known = actions(script, study)
    chosen = draw(st.lists(st.sampled_from(sorted(known)), max_size=5, unique=True))
    given = GIVEN_TO.get(script, GIVEN)
    chosen += [flag for flag in given if flag in known and flag not in chosen]
    words = [study] if study else []
    for flag in chosen:
        words += [flag] if flag else []
        words += draw(values(flag, known[flag]))
    return script, words


@st.composite
def values(draw, flag: str, action: argparse.Action) -> list[str]:
    """As many as the flag takes: most likely right, sometimes doubtful or wild."""
    luck = draw(st.sampled_from(["right"] * 17 + ["doubtful"] * 2 + ["wild"]))
    pool = right = RIGHT.get(flag) or list(map(str, action.choices or ["1"]))
    if luck == "doubtful":
        pool = DOUBTFUL.get(flag, right)
    elif luck == "wild" and flag not in (*GIVEN, "--tune"):
        pool = WILD
    if action.nargs == 0:
        least = most = 0
    elif action.nargs == "+":
        least, most = (0 if luck == "wild" else 1), 2
    else:
        least = most = 2 if action.nargs == 2 else 1
    return draw(st.lists(st.sampled_from(pool), min_size=least, max_size=most))


WRITING = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
)


def watch(event, args):
    """An audit hook: notes what is written elsewhere than in the current folder."""
    if not watch.inside or event not in ("open", *WRITING):
        return
    if event == "open":
        flags = args[2] if isinstance(args[2], int) else 0
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    for name in args[:2] if event == "os.rename" else args[:1]:
        if isinstance(name, str | bytes | os.PathLike):
            path = os.fsdecode(name)
            if not os.path.realpath(path).startswith(watch.allowed):
                watch.outside.append((event, path))


watch.inside, watch.allowed, watch.outside = False, (), []
sys.addaudithook(watch)


@slow(60, 2000)
def test_any_command_line_ends_with_an_exit_code_and_writes_nowhere_else(n, monkeypatch, tmp_path):
    """`pytest -m slow` tries 2,000."""
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir("inside")  # ../x, too, may be the folder that a line names
    image_folder(sizes=((12, 12), (12, 12)))
    table = pd.DataFrame({"a": np.arange(60.0), "species": ["x", "y", "z"] * 20})
    table.to_csv("data.csv", index=False)
    assert run() == 0
    assert plots.main(["--results", "results"]) == 0  # makes matplotlib's cache
    checkpoint = str(shutil.copy(the_checkpoint(), "whole.pt"))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    for measured in ("compare", "share_out", "beside"):  # which have tests of their own
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
        script, words = line
        words = [checkpoint if word == "CHECKPOINT" else word for word in words]
        if len(list(Path("results").rglob("*.csv"))) > 20:  # plots.py would take ever longer
            shutil.rmtree("results")
        code, said = outcome(script, words)
        assert code in (0, 1, 2), said
        assert "Traceback" not in said, said
        if code == 2:
            assert re.fullmatch("((warning|left out): .*\n)*error: .*\n", said), said
        assert not watch.outside
        assert Path("data.csv").stat().st_size
        assert sorted(path.name for path in Path("pets").glob("[!.]*")) == ["test", "train"]

    ends()


def outcome(script: str, words: list[str]) -> tuple[int, str]:
    """The exit code of a script in this process, watched, and what it writes to stderr."""
    out, err, watch.inside = io.StringIO(), io.StringIO(), True
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = importlib.import_module(script).main(words)
    except SystemExit as stop:  # argparse in plots.py
        code = stop.code
    finally:
        watch.inside = False
    return code, err.getvalue()
