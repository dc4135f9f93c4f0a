"""Several processes: torchrun, shared grids."""

from pathlib import Path

from tests.helpers import (
    HERE,
    SMALL,
    run,
    the_csv,
    rows,
    files,
    GRID,
    forked,
    together,
    torchrun,
)
import pandas as pd
import pytest
import torch

import common
from harness import dataset, processes, speed
from harness.config import Process, parse


WITHOUT_BATCHNORM = """
import sys, dataclasses, common, exp_mlp_lenet as mlp
@dataclasses.dataclass
class Settings(mlp.Settings):
    lists = {}
    depth: int = 2
    bn: str = "none"
    activation: str = "tanh"
    hidden: list = dataclasses.field(default_factory=lambda: [32])
sys.exit(common.main(mlp.run, Settings, "", None))
"""


def test_two_processes_calculate_what_one_does():
    Path("exp_plain.py").write_text(WITHOUT_BATCHNORM)
    # ten steps, the last of each epoch of 70
    words = "--dataset digits --subset 450 --batch-size 95 --epochs 2 --train all".split()
    words += ["--precision", "fp32", "--quiet"]
    forked("exp_plain.py", *words, "--results", "one")
    together("exp_plain.py", *words, "--results", "two")
    one, two = (pd.read_csv(the_csv(folder)) for folder in ("one", "two"))
    for column in ("train_loss", "train_acc", "test_loss", "test_acc", "test_top5"):
        assert two[column].to_numpy() == pytest.approx(one[column].to_numpy(), rel=1e-5), column
    assert one.run[0] != two.run[0]
    assert two.processes[0] == 2


def test_two_processes_learn_with_batchnorm_and_go_on_to_the_same_digits():
    words = [*SMALL, "--epochs", 8, "--subset", 600, "--depth", 8, "--quiet"]
    together(HERE / "exp_bn_only.py", *words, "--results", "whole", "--checkpoints", "whole")
    together(HERE / "exp_bn_only.py", *words, "--time-limit", 1e-9)
    assert len(rows(the_csv())) == 1
    torchrun(HERE / "exp_bn_only.py", *words)
    assert rows(the_csv()) == rows(the_csv("whole"))
    assert len(rows(the_csv())) == 8
    alone = []
    for seed in range(3):
        assert run(*words[len(SMALL) :], "--seed", seed, "--results", f"alone{seed}") == 0
        alone.append(float(rows(the_csv(f"alone{seed}"))[-1]["test_acc"]))
    assert min(alone) - 10 < float(rows(the_csv())[-1]["test_acc"]) < max(alone) + 10


@pytest.mark.parametrize("script", ["exp_bn_only.py", "exp_depth_width.py"])
def test_a_dry_run_under_torchrun_prints_one_plan(script):
    printed = together(
        HERE / script, *SMALL, "--dry-run", *["--widths", "1"] * (script == "exp_depth_width.py")
    )
    assert printed.count("trains ") == {"exp_bn_only.py": 1, "exp_depth_width.py": 2}[script]
    assert not files()


def test_processes_wait_for_the_first_as_long_as_it_takes():
    """While it downloads, say: here three seconds, of collectives that give up after one unless
    they are told otherwise."""
    Path("exp_slow.py").write_text("""
import sys, time, datetime, common, exp_bn_only
from harness import processes
import torch.distributed.distributed_c10d as c10d
c10d.default_pg_timeout = datetime.timedelta(seconds=1)
load = common.load_digits

def slowly():
    if processes.first():
        time.sleep(3)
    return load()

common.load_digits = slowly
sys.exit(common.main(exp_bn_only.run, common.Settings, "", None))
""")
    together("exp_slow.py", *SMALL, "--epochs", 1, "--quiet")
    assert len(rows(the_csv())) == 1


def test_every_process_has_the_gpu_of_its_rank(monkeypatch):
    chosen, zeros = [], torch.zeros
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(
        torch, "zeros", lambda *size, device=None, **options: zeros(*size, **options)
    )
    monkeypatch.setattr(speed, "has_bf16", lambda device: True)
    args = common.resolved(parse(common.Settings, SMALL[:-2], "", Process()))
    assert args.device == torch.device("cuda", 1)
    assert chosen == [args.device]


def test_a_grid_under_torchrun_makes_every_run_once():
    together(
        HERE / "exp_depth_width.py", *GRID, "--widths", 1, "--depths", 8, 14, "--seeds", 0, 1, 2
    )
    found = [rows(path) for path in Path("results").rglob("*[0-9a-f].csv")]
    assert len(found) == 6
    assert all(len(table) == int(table[0]["epochs"]) for table in found)


def test_every_sample_is_in_one_share(monkeypatch):
    monkeypatch.setattr(processes, "processes", lambda: 3)
    monkeypatch.setattr(dataset, "processes", lambda: 3)
    batches, shares = dataset.split_batches(torch.arange(103), 50), []
    assert [len(batch) for batch in batches] == [50, 53]  # 3 of 103 would leave a process with one
    for rank in range(3):
        monkeypatch.setattr(processes.dist, "get_rank", lambda rank=rank: rank)
        shares += [processes.share(batch) for batch in batches]
    assert sorted(torch.cat(shares).tolist()) == list(range(103))
    assert min(map(len, shares)) >= 16
