"""Grids, and the experiments."""

import importlib
import os
import re
import subprocess
from pathlib import Path

from tests.helpers import (
    GRID,
    HERE,
    SMALL,
    arguments,
    counts,
    image_folder,
    one_line,
    rows,
    run,
    the_csv,
)
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image

import common
from harness import parts, progress
from harness import runs as records
from harness.config import Process, parse
import exp_bn_init
import exp_depth_width
import exp_mlp_lenet
import exp_random_params
import plots


def test_a_grid_stops_at_the_time_limit_and_goes_on(capsys):
    words = [*SMALL, "--quiet", "--epochs", "2", "--width", "1", "--seeds", "0", "1"]
    assert exp_depth_width.main([*words, "--time-limit", "1e-9"]) == 0
    assert "stopped at the time limit" in capsys.readouterr().out
    assert len(rows(the_csv())) == 1
    assert exp_depth_width.main(words) == 0
    assert "(2)" in capsys.readouterr().out


def test_a_failed_run_does_not_stop_a_grid_and_is_named(capsys, monkeypatch):
    def fit(model, data, args, fit=common.fit, **options):
        if args.seed == 0 and not args.dry_run:
            raise OSError(28, "No space left on device")
        return fit(model, data, args, **options)

    monkeypatch.setattr(common, "fit", fit)
    assert exp_depth_width.main([*GRID, "--width", "1", "--seeds", "0", "1"]) == 1
    printed = capsys.readouterr()
    assert "failed: resnet8-w1-digits-bn-s0" in printed.err
    assert "No space left" in printed.err
    assert "(1)" in printed.out


@pytest.mark.parametrize(
    "script, words",
    [
        (exp_random_params, "--train output"),
        (exp_mlp_lenet, "--width 2"),
        (exp_depth_width, "--match-bn-params --widths 1"),
        (exp_depth_width, "--match-bn-params --widths 3 --depths 14 32"),
        (exp_mlp_lenet, "--hidden 32,32"),
        (exp_mlp_lenet, "--hidden 8 --tune 2 --bn before after"),
        (exp_bn_init, "davis_frank --val-fraction 0"),
    ],
)
def test_what_a_grid_would_ignore_is_an_error(script, words, capsys):
    assert script.main([*words.split(), "--dataset", "digits"]) == 2
    assert one_line(capsys).startswith("error: ")


def test_matched_depths_are_the_references():
    references = {2: 26, 3: 44, 4: 56, 5: 74, 7: 104, 8: 116}
    assert {width: exp_depth_width.matched_depth(width) for width in references} == references
    for width in (3, 5, 7):
        wide, deep = counts(14, width), counts(exp_depth_width.matched_depth(width))
        assert wide["gamma"] == deep["gamma"]
        assert wide["beta"] == deep["beta"]


def test_davis_frank_groups_and_start():
    args = arguments("--depth", 14, "--gamma-init", "constant:0.1")
    args = exp_bn_init.DavisFrank(**vars(args) | {"bn_weight": 0.1, "c": 100.0, "input_norm": "bn"})
    data = common.load_data(args)
    model = common.build_model(args, data)
    exp_bn_init.start_linear_layers(model, 1)
    model = exp_bn_init.normalise_input(model, data, 0.1)
    common.freeze(model, exp_bn_init.all_but_inputs_beta)
    common.origin(model).called = "all"
    assert parts.trained_as(model) == "all"
    optimizer, scheduler, _ = exp_bn_init.recipe(model, args)
    decay, plain, gamma = optimizer.param_groups
    assert (decay["weight_decay"], plain["weight_decay"], gamma["weight_decay"]) == (1e-4, 0, 0)
    assert gamma["lr"] == pytest.approx(0.001)
    assert decay["lr"] == plain["lr"] == 0.1
    assert model[0].weight.item() == pytest.approx(0.058)
    assert not model[0].bias.requires_grad
    assert len(gamma["params"]) == 16
    assert len(plain["params"]) == 16
    x, _ = next(data.training_batches(1, 1, 10, "none"))
    assert 0 <= x.min()
    assert x.max() == 1


def on_table(data: str, *words) -> int:
    """exp_mlp_lenet.py on a CSV file."""
    recipe = "--epochs 30 --hidden 16 --train all --batch-size 16 --precision fp32 --quiet"
    return exp_mlp_lenet.main(["--dataset", "csv", "--data", data, *recipe.split(), *words])


def flowers() -> pd.DataFrame:
    """Three species, told apart by b."""
    noise, b = np.random.default_rng(0).normal(size=90), np.repeat([0.0, 5.0, 10.0], 30)
    return pd.DataFrame({"a": noise, "b": b, "species": np.repeat(["x", "y", "z"], 30)})


def test_tables():
    table = flowers()
    table[["a", "species", "b"]].to_csv("flowers.csv", index=False)
    assert on_table("flowers.csv", "--target", "species") == 0
    last = rows(the_csv())[-1]
    assert float(last["test_acc"]) == 100
    assert last["dataset"] == "flowers"
    assert last["classes"] == "3"
    wine = "--dataset wine --epochs 30 --hidden 16 --train all --batch-size 16 --quiet"
    assert exp_mlp_lenet.main(wine.split()) == 0


def test_tables_that_cannot_be_used_are_one_line(capsys):
    table = flowers()
    for column, values, says in (
        ("b", "red", "text in b"),
        ("a", table.a.where(table.a > 0), "missing values in a"),
    ):
        table.assign(**{column: values}).to_csv("bad.csv", index=False)
        assert on_table("bad.csv") == 2
        assert says in one_line(capsys)
    table.to_csv("flowers.csv", index=False)
    assert on_table("flowers.csv", "--target", "nothing") == 2
    assert "columns a" in one_line(capsys)
    table[["b"]].to_csv("one.csv", index=False)
    assert on_table("one.csv") == 2
    assert "nothing beside b" in one_line(capsys)
    assert on_table("gone.csv") == 2
    assert "gone.csv" in one_line(capsys)
    assert exp_mlp_lenet.main(["--dataset", "csv"]) == 2
    assert "--data FILE" in one_line(capsys)


def test_tuning_goes_on_and_ends_with_a_command(capsys):
    pytest.importorskip("optuna")
    words = "--dataset digits --subset 200 --epochs 1 --hidden 16 --quiet --precision fp32".split()
    places = "--results at_once --checkpoints at_once"
    assert exp_mlp_lenet.main([*words, "--tune", "3", *places.split()]) == 0
    at_once = capsys.readouterr().out
    assert exp_mlp_lenet.main([*words, "--tune", "2"]) == 0
    assert "best of 2 trials" in capsys.readouterr().out
    assert exp_mlp_lenet.main([*words, "--tune", "3", "--time-limit", "1e-9", "--epochs", "2"]) == 1
    assert "no trial" in capsys.readouterr().err
    assert exp_mlp_lenet.main([*words, "--tune", "3", "--dry-run"]) == 2
    assert exp_mlp_lenet.main([*words, "--tune", "3"]) == 0
    out = capsys.readouterr().out
    assert out == at_once.replace(f" {places}", "")
    assert "best of 3 trials" in out
    assert "on the validation split" in out
    command = re.search(r"python exp_mlp_lenet.py (.*)", out)[1]
    assert exp_mlp_lenet.main([*command.split(), "--quiet", "--subset", "200"]) == 0
    assert plots.main(["--only", "tuned", "mlp_lenet", "--format", "csv"]) == 0
    assert len(pd.read_csv("tables/tuned.csv")) == 3
    assert len(pd.read_csv("tables/mlp_lenet.csv")) == 1  # a trial is no run to average


def test_tuning_on_data_that_are_not_there_leaves_no_study(capsys):
    pytest.importorskip("optuna")
    assert exp_mlp_lenet.main("--tune 2 --dataset csv --data nowhere.csv".split()) == 2
    assert "nowhere.csv" in one_line(capsys)
    assert not Path("results").exists()


def test_other_images_under_the_same_name_are_noticed(capsys):
    root, other = image_folder("a/pets"), image_folder("b/pets")
    Image.new("RGB", (12, 12), "red").save(other / "train/dog/1.png")
    words = ["--dataset", "imagefolder", "--subset", 10, "--epochs", 2]
    assert run(*words, "--data", root) == 0
    assert run(*words, "--data", other) == 2
    assert "other data under the same name" in capsys.readouterr().err
    assert run(*words, "--data", other, "--force", "--time-limit", 1e-9) == 0
    assert run(*words, "--data", root) == 2  # nor is what is not finished lost
    assert "other data" in capsys.readouterr().err
    assert len(rows(the_csv())) == 1


def test_the_study_asks_for_runs_that_there_are(monkeypatch):
    """Each of its commands, as a python that only notes them gets it, has flags that are known."""
    Path("python").write_text('#!/bin/sh\necho "$@" >> "$NOTES"\n')
    Path("python").chmod(0o755)
    noted = Path("notes").absolute()
    there = os.environ | {"PATH": f"{Path.cwd()}:{os.environ['PATH']}", "NOTES": str(noted)}
    study = ["bash", HERE / "evidence/study.sh", "--workers", "1"]
    subprocess.run(study, check=True, env=there | {"SIZE": "8", "EPOCHS": "2"})
    commands = [line.split() for line in noted.read_text().splitlines()]
    assert len(commands) > 15
    for script, *words in commands:
        module = importlib.import_module(script.removesuffix(".py"))
        studies = getattr(module, "STUDIES", {})
        settings = studies[words.pop(0)][1] if studies else module.Settings
        args = parse(settings, words, "", Process())
        assert args.workers == 1
        assert args.data == "data/cifar10-jpeg"
        assert args.image_size in (8, None)


def test_a_grid_says_what_each_run_reached_and_which_another_makes(capsys):
    words = [word for word in GRID if word != "--quiet"]
    args = arguments("--epochs", 1, "--seed", 1)
    args.process = Process(Path("exp_depth_width.py"))
    path, _ = records.run_files(args, records.name_run(args).run)
    path.parent.mkdir(parents=True)
    with FileLock(path.with_name(f".{path.stem}.lock")):
        shape = ["--grid", "--depths", "8", "--widths", "1"]
        exp_depth_width.main([*words, *shape, "--seeds", "0", "1"])
    out = capsys.readouterr().out
    assert f"{path.stem}: another process is making it" in out
    assert "1 of 2 runs are not in what follows" in out
    (made,) = Path("results").rglob("*[0-9a-f].csv")
    assert f"{made.stem}: {float(rows(made)[-1]['test_acc']):.2f} %" in out


WITH_VALIDATION = {
    "exp_bn_only.py": "--depth 8",
    "exp_depth_width.py": "--grid --depths 8 --widths 1",
    "exp_random_params.py": "--depths 8 --per-channel 2",
    "exp_bn_init.py": "frankle --depths 8",
    "exp_norms.py": "--norm none --depths 8",
    "exp_mlp_lenet.py": "--hidden 8 --bn before",
}


@pytest.mark.parametrize("script", WITH_VALIDATION)
def test_a_report_tells_the_accuracy_by_which_a_rate_is_chosen(script, capsys):
    module = importlib.import_module(script.removesuffix(".py"))
    words = "--dataset digits --subset 150 --epochs 1 --precision fp32 --device cpu".split()
    words = [*WITH_VALIDATION[script].split(), *words]
    assert module.main([*words, "--val-fraction", "0.2"]) == 0
    made = {f"{float(rows(path)[-1]['val_acc']):.1f}" for path in Path("results").rglob("*.csv")}
    told = re.findall(r"validation +(\d+\.\d+)", capsys.readouterr().out)
    assert {f"{float(number):.1f}" for number in told} == made and made
    assert module.main(words) == 0
    assert "validation" not in capsys.readouterr().out


def test_a_grid_tells_the_time_left_from_the_first_epoch_on(capsys, monkeypatch):
    """And goes by the epochs made here: of the second run six in ten were there."""
    monkeypatch.setattr(progress, "how_often", lambda: 0)
    with progress.grid_bar(total=2) as bar:
        progress.tell("epoch 1/10", share=0.1)
        drawn = capsys.readouterr().err
        for _ in range(9):
            progress.tell("epoch", share=0.1)
        bar.end_run()
        for _ in range(4):
            progress.tell("epoch", share=0.1)
        bar.end_run()
    assert re.search(r"0\.1/2 runs \[00:0\d<00:\d\d, epoch 1/10\]", drawn)
    assert "2.0/2 runs" in capsys.readouterr().err
    assert bar.n - bar.initial == pytest.approx(1.4)
