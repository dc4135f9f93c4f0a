"""A run's files: names, rows, checkpoints, and going on from them."""

import functools
import os
import signal
import time
from pathlib import Path

from tests.helpers import (
    arguments,
    epochs_trained,
    rows,
    run,
    run_name,
    start,
    the_checkpoint,
    the_csv,
)
import pandas as pd
import pytest
import torch
from filelock import FileLock

import common
from harness import checkpoints, errors
from harness import files as harness_files
from harness import runs as records
from harness.config import Process
from harness import inside
import exp_bn_only
import exp_mlp_lenet


def test_activity_is_the_share_of_activations_above_zero():
    args = arguments("--depth", 14)
    data = common.load_data(args)
    model = common.build_model(args, data).eval()
    with torch.no_grad():
        x = torch.cat([x for x, _ in data.batches("test")])
        stem = torch.relu(model.bn(model.conv(x)))
        block = model.stage1[0]
        middle = torch.relu(block.bn1(block.conv1(stem)))
        out = torch.relu(block.bn2(block.conv2(middle)) + stem)
        test = functools.partial(common.evaluate, model, data, "test", args)
        active = inside.activity(model, common.norms(model), test)
    for name, activation in (("bn", stem), ("stage1.0.bn1", middle), ("stage1.0.bn2", out)):
        assert torch.allclose(active[name], (activation > 0).float().mean((0, 2, 3)), atol=1e-5)
    assert set(active) == {name for name in common.norms(model) if "shortcut" not in name}


@pytest.mark.parametrize("bn, active", [("before", 226), ("after", 0)])
def test_a_batchnorm_after_the_activation_has_no_relu_of_its_own(bn, active):
    network = ["--arch", "lenet5", "--image-size", "12", "--bn", bn]
    recipe = "--dataset digits --subset 150 --epochs 1 --batch-size 50 --precision fp32".split()
    assert exp_mlp_lenet.main([*network, *recipe, "--quiet"]) == 0
    learned = pd.read_csv(the_csv().with_suffix(".bn.csv.gz"))
    assert len(learned) == 6 + 16 + 120 + 84
    assert learned.active.notna().sum() == active


def test_every_setting_that_changes_a_number_changes_the_name():
    network = "--depth 14, --width 2, --train all, --weight-init binary"
    starts = "--gamma-init ones, --beta-init ones, --seed 1"
    data = "--dataset mnist, --image-size 16, --subset 100, --val-fraction 0.1, --augment flip"
    recipe = "--epochs 4, --batch-size 51, --lr 0.2, --momentum 0.8, --weight-decay 0"
    changes = ", ".join([network, starts, data, recipe]).split(", ")
    names = {run_name(arguments(*change.split())) for change in ["", *changes]}
    assert len(names) == len(changes) + 1
    same = ["--results x", "--checkpoints x", "--time-limit 3", "--quiet", "--workers 1", "--force"]
    assert {run_name(arguments(*change.split())) for change in same} == {run_name(arguments())}


def test_a_csv_that_came_without_its_checkpoint_is_made_again(capsys):
    assert run() == 0
    when, digits = the_csv().stat().st_mtime_ns, rows(the_csv())
    the_checkpoint().unlink()
    assert run() == 0
    assert "takes its place" in capsys.readouterr().err
    assert the_csv().stat().st_mtime_ns != when
    assert rows(the_csv()) == digits


def test_a_loss_that_is_not_finite_ends_the_run(capsys):
    assert run("--lr", 1e6, "--train", "all-bn", "--epochs", 20) == 1
    table = rows(the_csv())
    assert {row["status"] for row in table} == {"diverged"}
    assert len(table) < 20
    assert set(table[0]) | {"seconds", "commit"} == set(records.COLUMNS)
    assert "diverged" in capsys.readouterr().err
    assert run("--lr", 1e6, "--train", "all-bn", "--epochs", 20) == 1
    assert "--force" in capsys.readouterr().err


def test_a_second_process_says_so_and_stops(capsys):
    args = arguments()
    args.process = Process(Path("exp_bn_only.py"))
    path, _ = records.run_files(args, run_name(args))
    path.parent.mkdir(parents=True)
    with FileLock(path.with_name(f".{path.stem}.lock")):
        assert run() == 1
    assert "another process" in capsys.readouterr().err
    assert run() == 0


def test_force_makes_again_what_was_there_before_this_process_began(monkeypatch):
    """Of several processes with --force on one grid each run is then made by one."""
    assert run() == 0
    trained = epochs_trained(monkeypatch)
    other = Process(Path("exp_bn_only.py"), began=time.monotonic() - 60)
    assert exp_bn_only.run(arguments("--force").but(process=other)).again
    assert trained == []
    assert run("--force") == 0
    assert trained == [1, 2, 3]


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_at_once_and_say_how_to_go_on(sent, code):
    def as_in_the_foreground():
        # A shell starts what it puts in the background with SIGINT ignored: the test must not
        # depend on how it was started itself.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with start("--epochs", 500, "--quiet", preexec_fn=as_in_the_foreground) as process:
        while not list(Path("results").rglob("*.csv")):
            time.sleep(0.01)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.strip() == "stopped: the same command goes on after the last complete epoch"


@pytest.mark.parametrize("damage", ["newest", "both", "other run", "pickle", "csv"])
def test_damage_is_noticed_and_costs_no_digit(damage, capsys, monkeypatch):
    assert run("--results", "whole", "--checkpoints", "whole") == 0
    for _ in range(2):
        assert run("--time-limit", 1e-9) == 0
    newest, previous = sorted(Path("checkpoints").rglob("*.pt"), key=lambda p: "previous" in p.name)
    if damage == "other run":
        assert run("--seed", 1, "--results", "x", "--checkpoints", "x") == 0
        newest.write_bytes(next(Path("x").rglob("*.pt")).read_bytes())
    elif damage == "pickle":

        class Evil:
            def __reduce__(self):
                return (os.mkdir, ("evil",))

        harness_files.write_checkpoint(newest, {"epoch": Evil()})
    elif damage == "csv":
        the_csv().write_bytes(the_csv().read_bytes()[:-40])
    else:
        for path in (newest, previous) if damage == "both" else (newest,):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
    trained = epochs_trained(monkeypatch)
    assert run() == 0
    assert rows(the_csv()) == rows(the_csv("whole"))
    # the previous checkpoint is of epoch 1
    assert trained == ([1, 2, 3] if damage in ("both", "csv") else [2, 3])
    warnings = capsys.readouterr().err.strip().splitlines()
    assert all(line.startswith("warning:") for line in warnings)
    assert len(warnings) == 1 or damage in ("both", "csv")
    assert warnings
    assert not Path("evil").exists()


def test_a_checkpoint_that_is_not_used_takes_the_place_of_no_whole_one(monkeypatch):
    """Killed within the next save, too, the run goes on from the one before."""

    def killed(*_):
        raise KeyboardInterrupt

    for _ in range(2):
        assert run("--time-limit", 1e-9) == 0
    newest = the_checkpoint()
    newest.write_bytes(newest.read_bytes()[:-9])
    with monkeypatch.context() as patched:
        patched.setattr(records, "write_checkpoint", killed)
        assert run() == 130
    trained = epochs_trained(monkeypatch)
    assert run() == 0
    assert trained == [2, 3]


def test_a_finished_run_whose_checkpoint_is_damaged_is_made_again(capsys):
    assert run() == 0
    whole, checkpoint = rows(the_csv()), the_checkpoint()
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    assert run() == 0
    assert rows(the_csv()) == whole
    why = "its checksum does not fit its content"
    warning = f"warning: the checkpoint {checkpoint} is not used: {why}\n"
    assert capsys.readouterr().err == warning


def test_a_checkpoint_is_small_and_knows_its_random_start():
    args = arguments("--depth", 866)
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    content = checkpoints.state(model, checkpoints.fingerprint(model))
    harness_files.write_checkpoint(Path("x.pt"), content)
    assert Path("x.pt").stat().st_size < 900_000
    other = common.build_model(arguments("--depth", 866, "--seed", 1), data)
    common.freeze(other, args.train)
    content["version"] = 2
    before = torch.cat([p.detach().flatten() for p in other.parameters()])
    with pytest.raises(errors.Damaged, match="frozen weights"):
        checkpoints.restore(other, content)
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in other.parameters()]))
