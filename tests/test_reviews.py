"""What a review of the whole code has found, and each of it was so once."""

import argparse

import pandas as pd
import pytest
import torch
from torch import nn

import common
import exp_bn_init
import exp_mlp_lenet
import exp_norms
from harness.config import number
from harness.files import read_checkpoint, write_checkpoint
from harness.inside import activity
from report.sweeps import best_rates
from tests.helpers import SMALL, arguments, run_name

GRID = [*SMALL, "--quiet", "--norm", "bn"]


def test_a_checkpoint_of_another_device_is_read_on_the_cpu(tmp_path, monkeypatch):
    asked, load = [], torch.load

    def noted(file, map_location=None, **options):
        asked.append(map_location)
        return load(file, map_location=map_location, **options)

    write_checkpoint(tmp_path / "a.pt", {"epoch": 1, "moment": torch.ones(2)})
    monkeypatch.setattr(torch, "load", noted)
    assert read_checkpoint(tmp_path / "a.pt")["moment"].device.type == "cpu"
    assert asked == ["cpu"]


def test_places_without_a_gamma_are_left_out_of_a_grid(capsys):
    words = "--dataset digits --subset 150 --epochs 1 --hidden 8 --quiet --device cpu".split()
    assert exp_mlp_lenet.main([*words, "--bn", "before", "none", "--train", "bn", "gamma"]) == 0
    told = capsys.readouterr()
    assert told.err.count("note: without BatchNorm there is no γ") == 2
    assert "BatchNorm before   gamma" in told.out


@pytest.mark.parametrize("seeds", [["0"], ["0", "1"]])
def test_a_grid_that_the_time_limit_stops_says_so(seeds, capsys):
    assert exp_norms.main([*GRID, "--time-limit", "1e-9", "--seeds", *seeds]) == 0
    assert (
        "stopped at the time limit: the same command goes on from here" in capsys.readouterr().out
    )
    assert exp_norms.main([*GRID, "--force", "--time-limit", "1e-9", "--seeds", *seeds]) == 0
    assert "the same command without --force goes on" in capsys.readouterr().out
    for _ in range(2):
        exp_norms.main([*GRID, "--time-limit", "1e-9", "--seeds", "0"])
    assert "time limit" not in capsys.readouterr().out.rpartition("finished, 1 to make")[2]


def test_features_behind_a_convolution_of_any_dimension_have_no_norm_before_it():
    """BatchNorm after the ReLU: the next ReLU is behind another convolution."""

    def stage(channels):
        return nn.Conv1d(channels, 4, 3), nn.ReLU(), nn.BatchNorm1d(4)

    model = nn.Sequential(*stage(1), *stage(4)).eval()
    norms = {name: layer for name, layer in model.named_modules() if "Norm" in str(layer)[:10]}
    assert activity(model, norms, lambda: model(torch.randn(2, 1, 9))) == {}


def test_a_whole_number_names_the_run_that_its_fraction_names():
    args = arguments()
    assert run_name(args.but(lr=1)) == run_name(args.but(lr=1.0))
    assert run_name(args.but(momentum=0)) == run_name(args.but(momentum=0.0))
    assert type(args.but(epochs=2).epochs) is int


@pytest.mark.parametrize("kind", [int, float])
def test_a_number_of_four_hundred_digits_is_told(kind):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
        number(kind, 1)("9" * 400)


def test_gamma_starts_where_the_record_says(monkeypatch):
    words = "davis_frank --dataset digits --subset 150 --network cifar_resnet14 --seeds 1".split()
    words += "--input-norm dataset --c 1 --bn-weight 0.1234567 --dry-run --device cpu".split()
    seen, grid = [], common.grid

    def noted(args, **lists):
        seen.append((args.bn_weight, args.gamma_init))
        return grid(args, **lists)

    monkeypatch.setattr(common, "grid", noted)
    assert exp_bn_init.main(words) == 0
    assert seen == [(1.0, "constant:1"), (0.1234567, "constant:0.1234567")]


def test_of_equally_good_rates_the_smallest_is_chosen():
    """Whatever the last bits of a mean say."""
    trials = pd.DataFrame(
        {
            "val_fraction": 0.1,
            "val_acc": [90.3, 90.3 + 2e-14],
            "lr": [0.1, 0.3],
            "epochs": 160,
            "depth": 14,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("report.sweeps.methods", lambda rows: pd.Series("bn", rows.index))
        assert best_rates(trials) == {"bn": {160: 0.1}}
