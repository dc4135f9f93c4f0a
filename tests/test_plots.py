"""Tables and figures: what is averaged and compared, what is packed, what is committed, and how a
user adds to it."""

import functools
import math
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import exp_mlp_lenet
import plots
from harness.summaries import mean_and_deviation
from report import features, figures, registry, runs, stats, sweeps, tables
from tests.helpers import GRID, HERE, environment, one_line, rows, run, the_csv


def test_plots_average_seeds_and_nothing_else(capsys):
    for words in ("--seed 0", "--seed 1", "--seed 2 --lr 0.01", "--train none", "--depth 14"):
        assert run("--epochs", 1, *words.split()) == 0
    assert run("--epochs", 5, "--lr", 1e6, "--train", "all-bn") == 1
    assert run("--time-limit", 1e-9, "--train", "all") == 0
    (broken := Path("results/bn_only/broken.csv")).write_text("no,run\n")
    Path("results/other").mkdir()
    for own in (1, 2):  # another experiment's, told apart by a column of its own
        one = next(Path("results/bn_only").glob("resnet8-w1-digits-bn-s0-*[0-9a-f].csv"))
        other = pd.read_csv(one).assign(experiment="other", own=own)
        other.to_csv(f"results/other/{own}.csv", index=False)
    capsys.readouterr()
    assert plots.main(["--out", "out"]) == 0
    printed = capsys.readouterr()
    table = pd.read_csv("out/tables/accuracy.csv")
    table.columns = [column.removeprefix("test accuracy (%): ") for column in table]
    assert sorted(table.seeds) == [1, 1, 1, 1, 1, 2]
    assert set(table.trained) == {"bn", "none", "other (own 1): bn", "other (own 2): bn"}
    paths = Path("results/bn_only").glob("resnet8-w1-digits-bn-s[01]-*[0-9a-f].csv")
    mine = [float(rows(path)[-1]["test_acc"]) for path in paths]
    pair = table[table.seeds == 2].iloc[0]
    assert pair["mean"] == pytest.approx(np.mean(mine), rel=1e-5)
    assert pair.sd == pytest.approx(np.std(mine, ddof=1), rel=1e-4)
    assert f"{np.mean(mine):.1f} ± {np.std(mine, ddof=1):.1f} (2)" in printed.out
    assert "lr 0.01" in printed.out
    for what in ("diverged", "unfinished, 1 of 3", str(broken)):
        assert what in printed.err
    for kind in ("png", "pdf"):
        assert Path(f"out/figures/accuracy_depth-digits.{kind}").stat().st_size > 5000


@functools.cache
def template() -> tuple[pd.DataFrame, dict[str, bytes]]:
    """A real run's rows and the tables beside it."""
    assert run("--epochs", 1, "--depth", 14, "--subset", 1438, "--results", "template") == 0
    csv = the_csv("template")
    beside = {kind: csv.with_suffix(f".{kind}.csv.gz").read_bytes() for kind in ("bn", "prune")}
    return pd.read_csv(csv).assign(subset="all", batch_size=128), beside


def pretend(seed, test_acc, folder="bn_only", measured=None, **settings) -> Path:
    """A run's records with these settings and this accuracy, made from those of a real one; columns
    that are None it does not have. What an experiment alone has `measured` stands behind the
    seconds."""
    epochs, beside = template()
    name = "-".join(map(str, [seed, *settings.values()]))
    table = epochs.assign(experiment=folder, run=name, seed=seed, test_acc=test_acc, **settings)
    table = table.drop(columns=[column for column, value in settings.items() if value is None])
    for column, value in (measured or {}).items():
        table.insert(table.columns.get_loc("seconds") + 1, column, value)
    path = Path("results", folder, f"{name}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    for kind, content in beside.items():
        path.with_suffix(f".{kind}.csv.gz").write_bytes(content)
    return path


def refusal(capsys, *words) -> str:
    """The one line with which plots.py refuses a command line, by exit code 2."""
    assert plots.main([*words]) == 2
    return one_line(capsys)


def test_plots_say_in_one_line_what_is_wrong(capsys):
    assert "invalid choice" in refusal(capsys, "--only", "nonsense")
    assert "--results xxx" in refusal(capsys, "--results", "x" * 300)
    assert "nowhere is no folder" in refusal(capsys, "--results", "nowhere", "--only", "claims")
    assert run("--epochs", 1) == 0
    assert Path("file").write_text("mine")
    assert plots.main(["--out", "file", "--only", "accuracy"]) == 2
    assert plots.main(["--out", "/sys/x", "--only", "accuracy"]) == 1
    assert capsys.readouterr().err.count("--out") == 2
    assert Path("file").read_text() == "mine"


def test_every_table_and_figure_is_made(capsys):
    for seed in range(2):
        of_bn = {"all": 175000, "bn": 1120, "none": 0}
        at_random = {"random:1": 560, "random:2": 1120, "random:all": 173200}
        for train, trained in (of_bn | at_random).items():
            pretend(seed, 40 + seed, train=train, params_trained=trained)
        pretend(seed, 50, train="bn", depth=44, params_trained=3360)
        pretend(seed, 50, train="bn", width=3, params_trained=3360)
        pretend(seed, 75, train="bn", width=12, params_trained=4 * 3360)
        pretend(seed, 50, train="bn", gamma_init="ones")
        pretend(seed, 50, train="bn", schedule="cosine")
        pretend(seed, 50, train="bn", precision="bf16")
        pretend(seed, 30, train="bn", dataset="digits-blurred")
        pretend(seed, 30, train="bn", image_size="16x16")
        watched = {"dead": 10.0 + seed, "small_gammas": 1.0}
        pretend(seed, 40, train="bn", weight_decay=0.0, measured=watched)
        pretend(seed, 40, "norms", train="norm", norm="none", params_trained=1120)
        pretend(seed, 45, "norms", train="norm", norm="none", depth=44, params_trained=3360)
        for kind in (None, "none"):
            for lr in (0.03, 0.1):
                tried = {"train": "norm" if kind else "bn", "lr": lr, "norm": kind}
                pretend(seed, 45, "norms", val_fraction=0.2, val_acc=400 * lr, **tried)
                tried["batch_size"] = 1
                pretend(seed, 45, "norms", val_fraction=0.2, val_acc=400 * lr, **tried)
                pretend(seed, 45, "norms", **tried)
        pretend(seed, 45, "norms", train="norm+output", norm="ln", arch="vit", depth=6)
        mlp = {"arch": "mlp", "depth": 4, "train": "bn", "bn": "before", "hidden": "512-512"}
        pretend(seed, 50, "mlp_lenet", activation="relu", **mlp)
        pretend(seed, 50, "mlp_lenet_tune", activation="relu", val_acc=50, **mlp)
        for weight in (0.1, 1.0):
            start = {"gamma_init": f"constant:{weight:g}", "bn_weight": weight}
            start |= {"c": 1.0, "input_norm": "dataset"}
            pretend(seed, 50 - weight, "bn_init", train="all", val_acc=50, **start)
    Path("results/bench").mkdir()
    shutil.copy(HERE / "evidence/bench.csv", "results/bench")
    assert plots.main(["--out", "out"]) == 0
    printed = capsys.readouterr()
    assert "not run yet" not in printed.out
    assert not printed.err
    names = {f"{name}.{kind}" for name in plots.TABLES for kind in ("md", "tex", "csv")}
    assert {path.name for path in Path("out/tables").iterdir()} == names | {"index.md"}
    index = Path("out/tables/index.md").read_text()
    assert all(f"({name}.md)" in index for name in plots.TABLES)
    assert all(f"figure {name} |" in index for name in plots.FIGURES)
    assert "| 1,120 to 13,440 | 3 | 2 | −0.36" in Path("out/tables/power_law.md").read_text()
    variants = Path("out/tables/variants.md").read_text()
    assert "| −10.5 (−16.9 to −4.1) |" in variants.partition("digits-blurred beside digits")[2]
    assert {path.name for path in Path("out/figures").glob("*-digits.*")} == {
        f"{name}-digits.{kind}" for name in plots.FIGURES for kind in ("png", "pdf")
    }


def verdicts() -> dict[str, str]:
    assert plots.main(["--only", "claims", "--out", "out", "--format", "csv"]) == 0
    return pd.read_csv("out/tables/claims.csv").set_index("case").verdict.to_dict()


def test_claims_are_judged_by_the_interval_over_paired_seeds():
    for seed, noise in enumerate((-1, 0, 1)):
        for train, accuracy in (
            ("bn", 70 + 10 * seed),
            ("random:2", 50 + 10 * seed + noise),
            ("all", 90),
            ("all-bn", 90 + 2 * noise),
            ("bn+shortcut", 60 + 10 * seed),
            ("none", 14),
        ):
            pretend(seed, accuracy, train=train)
        pretend(seed, 69 + 10 * seed + noise, train="bn", depth=44, params_trained=3360)
        pretend(seed, 70 + 10 * seed, train="bn", depth=14, width=3, params_trained=3360)
    found = verdicts()
    # The seeds differ by 20 points and the pairs by 2: the pairs count.
    # t(2 degrees, 97.5 %) = 4.303, s = 1: 20 ± 2.5.
    assert found["bn − random:2, depth 14"] == "confirmed (3 of 5 seeds)"
    assert found["bn+shortcut − bn, depth 14"] == "contradicted (3 of 5 seeds)"
    # s = |d| = 1: t(6 degrees) / √7 is the first below 1.
    assert found["depth 44 − width 3"] == "open (about 7 seeds would decide)"
    assert found["all − all-bn, depth 14"] == "open (more than 1,000 seeds would decide)"
    assert found["none − chance, depth 14"] == "confirmed (3 of 5 seeds)"
    table = pd.read_csv("out/tables/claims.csv").set_index("case")
    judged = table.loc["bn − random:2, depth 14", ["ours: low", "ours: high", "seeds"]]
    assert judged.tolist() == pytest.approx([20 - 2.484, 20 + 2.484, 3], abs=1e-3)
    for seed in range(3):
        pretend(seed, 16, train="none")
    assert verdicts()["none − chance, depth 14"] == "contradicted (3 of 5 seeds)"


def test_each_depth_is_compared_with_the_shallowest():
    """So that one seed of the deepest network says nothing about the others."""
    for seed in range(3):
        pretend(seed, 40 + 0.1 * seed, train="bn", depth=14)
        pretend(seed, 45, train="bn", depth=32)
    pretend(0, 50, train="bn", depth=56)
    found = verdicts()
    assert found["depth 32 − depth 14"] == "confirmed (3 of 5 seeds)"
    assert found["depth 56 − depth 14"] == "open (1 seed)"


def test_the_papers_table_has_each_size_beside_the_published_figures():
    for depth, accuracy in ((14, 37), (110, 46)):
        for size, gain in (("8x8", 0), ("32x32", 10)):
            known = {"dataset": "cifar10", "train": "bn", "image_size": size}
            pretend(0, accuracy + gain, depth=depth, **known)
    assert plots.main(["--only", "depths", "--out", "out", "--format", "md"]) == 0
    rows = Path("out/tables/depths.md").read_text().splitlines()
    ours = [row.split(" | ")[1:] for row in rows if row.startswith("| ours")]
    assert [row[0] for row in ours] == ["47.0 (1)", "37.0 (1)"]
    assert "| Mukherjee 2020, cifar10 |  |  |  | about 68 |  |  |  |" in rows
    assert "| Frankle et al. 2021, cifar10 | 48 |  |  | 69.5 |  |  | 82 |" in rows


def test_a_claims_case_on_two_data_sets_is_two_rows_told_apart():
    for dataset in ("digits", "mnist"):
        for seed in range(3):
            pretend(seed, 40 + 0.1 * seed, train="bn", depth=14, dataset=dataset)
            pretend(seed, 45, train="bn", depth=32, dataset=dataset)
    verdicts()
    table = pd.read_csv("out/tables/claims.csv").query("case == 'depth 32 − depth 14'")
    assert table["data set"].tolist() == ["digits", "mnist"]


def test_kinds_of_normalisation_are_compared_each_at_its_best_rate(capsys):
    """The best by the validation split: BatchNorm's rate is 0.1, that of `none` 0.3."""
    for seed in range(3):
        for kind, best, depths in ((None, 0.1, (90, 92)), ("none", 0.3, (89.5, 70))):
            train = "norm" if kind else "bn"
            for lr in (0.1, 0.3):
                known = {"train": train, "norm": kind, "lr": lr}
                pretend(seed, 0, "norms", val_fraction=0.2, val_acc=50 + (lr == best), **known)
                for depth, accuracy in zip((14, 56), depths, strict=True):
                    reached = accuracy + 0.1 * seed if lr == best else 10
                    pretend(seed, reached, "norms", depth=depth, **known)
        # without BatchNorm beside it
        pretend(seed, 50, "norms", train="norm", norm="none", lr=0.3, schedule="cosine")
    found = verdicts()
    assert found["bn − none, depth 14"] == "confirmed (3 of 5 seeds)"
    assert found["bn − none, depth 56"] == "contradicted (3 of 5 seeds)"
    gap_grows = found["bn − none: depth 56 − depth 14"]
    assert gap_grows == "confirmed (3 of 5 seeds)"
    assert plots.main(["--only", "behind_bn", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "| none | 0.3 | +0.50 (+0.50 to +0.50) | +22.0 (+22.0 to +22.0) |" in printed
    assert printed.count("| none |") == 1


def test_a_rate_that_was_tried_in_deeper_networks_alone_is_drawn_beside_its_kind():
    for kind, lr in ((None, 0.1), ("none", 0.3)):
        known = {"train": "norm" if kind else "bn", "norm": kind}
        pretend(0, 0, "norms", val_fraction=0.2, val_acc=50, lr=lr, **known)
        pretend(0, 0, "norms", val_fraction=0.2, val_acc=40, lr=1, **known)
        for depth in (14, 110):
            pretend(0, 50, "norms", depth=depth, lr=lr, **known)
    pretend(0, 90, "norms", depth=110, lr=0.03, train="norm", norm="none")
    pretend(0, 90, "norms", depth=110, lr=0.01, train="norm", norm="none", schedule="cosine")
    (axis,) = figures.norms(sweeps.distinct(runs.read_runs(Path("results")))).axes
    filled = {line.get_label(): line.get_markerfacecolor() != "none" for line in axis.lines}
    assert filled == {
        "bn, rate 0.1 (1 seed)": True,
        "none, rate 0.3 (1 seed)": True,
        "none, rate 0.03 (1 seed)": False,
    }


def test_depths_of_batchnorm_alone_are_no_comparison_of_kinds(capsys):
    for kind, depths in ((None, (14, 44, 56)), ("none", (14, 56))):
        known = {"train": "norm" if kind else "bn", "norm": kind}
        for lr in (0.1, 1):
            pretend(0, 0, "norms", val_fraction=0.2, val_acc=50 - lr, lr=lr, **known)
        for depth in depths:
            pretend(0, 50, "norms", depth=depth, **known)
    pretend(0, 50, "norms", depth=74, lr=3, train="bn")
    assert plots.main(["--only", "norms", "--out", "out"]) == 0
    assert "| normalisation | learning rate | depth 14 | depth 56 |" in capsys.readouterr().out
    (axis,) = figures.norms(sweeps.distinct(runs.read_runs(Path("results")))).axes
    assert [len(line.get_xdata()) for line in axis.lines] == [2, 2]


def test_a_kind_has_one_colour_whatever_stands_beside_it():
    colours = []
    for kinds in ((None, "none"), (None, "gn:4", "rms", "none")):
        for kind in kinds:
            known = {"train": "norm" if kind else "bn", "norm": kind}
            pretend(0, 0, "norms", val_fraction=0.2, val_acc=50, **known)
            pretend(0, 0, "norms", val_fraction=0.2, val_acc=40, lr=1, **known)
            for depth in (14, 56):
                pretend(0, 50, "norms", depth=depth, **known)
        (axis,) = figures.norms(sweeps.distinct(runs.read_runs(Path("results")))).axes
        lines = {line.get_label().partition(",")[0]: line.get_color() for line in axis.lines}
        assert len(set(lines.values())) == len(lines) == len(kinds)
        colours.append(lines["none"])
    assert colours[0] == colours[1]


def test_a_kind_of_a_copied_script_stands_beside_the_others_of_its_own(capsys):
    for seed in range(3):
        pretend(seed, 70, "norms", train="norm", norm="none")
        for kind, accuracy in (("l1", 80), ("none", 70), (None, 90)):
            train = "norm" if kind else "bn"
            for lr in (0.1, 0.3):
                known = {"train": train, "norm": kind, "lr": lr}
                pretend(seed, 0, "norms_l1", val_fraction=0.2, val_acc=50 * lr, **known)
            for depth in (14, 32):
                known = {"train": train, "norm": kind, "lr": 0.3}
                pretend(seed, accuracy, "norms_l1", depth=depth, **known)
    assert plots.main(["--only", "norms", "claims", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "**norms_l1: digits, " in printed
    assert "| l1 | 0.3 | 80.0 ± 0.0 (3) | 80.0 ± 0.0 (3) |" in printed
    assert Path("out/figures/norms-digits.png").exists()
    assert "bn − l1" not in printed  # the claims are of this collection's own runs


def test_what_one_script_measures_and_another_sets_is_told_apart(capsys):
    for share in (0.5, 0.9):
        pretend(0, 100 * share, "own", train="bn", share=share)
    pretend(0, 30, "other", measured={"share": 0.3}, train="bn")
    assert plots.main(["--only", "accuracy", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert all(f"bn | ours | {accuracy} (1) |" in printed for accuracy in (50.0, 90.0, 30.0))


def test_sweeps_with_one_title_say_what_they_differ_in(capsys):
    for size in ("17x23", "8x8"):
        pretend(0, 50, "mine", dataset="mine", train="bn", image_size=size)
    assert plots.main(["--only", "accuracy", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert all(f", image_size {size}**" in printed for size in ("17x23", "8x8"))


def test_an_untrained_network_counts_once_for_each_seed(capsys):
    for epochs, accuracy in ((1, 12.0), (2, 10.0)):
        path = pretend(0, accuracy, train="none", epochs=epochs)
        if epochs == 2:
            table = pd.read_csv(path)
            pd.concat([table, table.assign(epoch=2)]).to_csv(path, index=False)
    pretend(0, 90, train="bn")
    assert plots.main(["--only", "accuracy", "--out", "out"]) == 0
    assert "| none | ours | 10.0 (1) |" in capsys.readouterr().out


def test_two_seeds_that_are_equal_by_chance_decide_nothing():
    for seed in range(2):
        for train, accuracy in (("bn", 70), ("random:2", 50)):
            pretend(seed, accuracy, train=train)
    assert verdicts()["bn − random:2, depth 14"] == "open (2 seeds)"


def test_what_diverged_is_named_and_not_averaged(capsys):
    for seed in range(3):
        none = {"train": "norm", "norm": "none", "depth": 218}
        pretend(seed, 90 + seed, train="bn", depth=218)
        pretend(seed, 80 + seed, "norms", status="diverged" if seed else "ok", **none)
        pretend(seed, 10, "norms", status="diverged", lr=0.3, **none)
    assert plots.main(["--only", "norms", "accuracy", "--out", "out"]) == 0
    printed = capsys.readouterr()
    assert "| none | 0.1 | 80.0 (1), diverged (2) |" in printed.out
    assert "| none | 0.3 | diverged (3) |" in printed.out
    assert "| bn | ours | 91.0 ± 1.0 (3) |" in printed.out
    assert printed.err.count(": diverged") == 5


def test_transformers_biases_and_fair_rates_are_judged():
    steps = {"output": 20, "norm+output": 60, "norm+output+input": 70}
    steps |= {"norm+output+input+position": 71, "norm": 55, "random:2": 50}
    for seed, noise in enumerate((-0.2, 0, 0.2)):
        for train, accuracy in steps.items():
            known = {"arch": "vit", "norm": "ln", "depth": 6, "train": train}
            for lr in (0.1, 0.3):
                tried = {"val_fraction": 0.2, "val_acc": 50 + (lr == 0.3)}
                pretend(seed, 0, "norms", lr=lr, **tried, **known)
                pretend(seed, accuracy + noise if lr == 0.3 else 10, "norms", lr=lr, **known)
        for train, accuracy, best in (("all", 97, 0.1), ("bias", 94, 10)):
            known = {"arch": "mlp", "depth": 2, "hidden": "32000", "bn": "none", "train": train}
            for lr in (0.1, 10):
                tried = {"val_fraction": 0.2, "val_acc": 50 + (lr == best)}
                pretend(seed, 0, "mlp_lenet", lr=lr, **tried, **known)
                reached = accuracy + noise if lr == best else 10
                pretend(seed, reached, "mlp_lenet", lr=lr, **known)
                without_decay = known | {"weight_decay": 0.0}
                pretend(seed, 0, "mlp_lenet", lr=lr, **tried, **without_decay)
                as_good = 97 + noise if lr == best else 10
                pretend(seed, as_good, "mlp_lenet", lr=lr, **without_decay)
        mlp = {"arch": "mlp", "bn": "before", "hidden": "16000", "activation": "relu"}
        for train, best in (("bn", 0.1), ("random:2", 0.3)):
            for lr in (0.1, 0.3):
                known, reached = {"train": train, "lr": lr}, (lr == best) * (train == "bn") + noise
                tried = {"val_fraction": 0.2, "val_acc": 50 + (lr == best)}
                pretend(seed, 0, **tried, **known)
                pretend(seed, 80 + reached, **known)
                pretend(seed, 0, "mlp_lenet", **tried, **known, **mlp)
                pretend(seed, 80 - reached, "mlp_lenet", **known, **mlp)
    found = verdicts()
    assert found["what norm adds to output − what input adds then"] == "confirmed (3 of 5 seeds)"
    assert found["what norm adds to output − what position adds then"] == "confirmed (3 of 5 seeds)"
    assert found["all − bias, MLP 32000"] == "contradicted (3 of 5 seeds)"
    assert found["all − bias, MLP 32000, weight decay 0"] == "confirmed (3 of 5 seeds)"
    table = pd.read_csv("out/tables/claims.csv").set_index("claim")
    fair = table[table.index.str.startswith("16.")].set_index("case")
    assert fair.verdict.to_dict() == {
        "bn − random:2, depth 14": "confirmed (3 of 5 seeds)",
        "bn − random:2, MLP 16000": "contradicted (3 of 5 seeds)",
        "norm − random:2, vit-6": "confirmed (3 of 5 seeds)",
    }
    rates = fair.recipe.str.partition(", rates ")[2]
    assert rates.pop("norm − random:2, vit-6") == "0.3, 0.3"
    assert (rates == "0.1, 0.3").all()


def test_every_batch_size_has_a_best_rate_of_its_own():
    for seed in range(2):
        for size, best in ((1, 0.01), (128, 0.3)):
            for lr in (0.01, 0.3):
                known = {"train": "bn", "lr": lr, "batch_size": size}
                pretend(seed, 0, val_fraction=0.2, val_acc=50 + (lr == best), **known)
                pretend(seed, 90 + (lr == best), **known)
    assert plots.main(["--only", "batch_sizes", "--out", "out", "--format", "csv"]) == 0
    table = pd.read_csv("out/tables/batch_sizes.csv")
    assert table[["batch size", "learning rate"]].values.tolist() == [[1, 0.01], [128, 0.3]]
    assert table["test accuracy (%): mean"].tolist() == [91, 91]


def test_a_short_recipe_has_a_best_rate_of_its_own_where_it_was_tried():
    """Of 160 epochs 0.1 is best, of ten 0.3; forty were not tried, and the longest trial says."""
    method = {"experiment": "", "norm": "bn", "train": "bn", "batch_size": 128, "depth": 14}
    method["precision"] = "bf16"
    table = []
    for lr in (0.1, 0.3):
        for epochs, best in ((160, 0.1), (10, 0.3)):
            tried = {"val_fraction": 0.2, "val_acc": 50 + (lr == best)}
            table.append(method | tried | {"epochs": epochs, "lr": lr})
        for epochs in (160, 40, 10):
            table.append(method | {"val_fraction": 0.0, "epochs": epochs, "lr": lr})
        # in another precision there was no trial, and no rate is its own
        table.append(method | {"val_fraction": 0.0, "epochs": 160, "lr": lr, "precision": "fp32"})
    kept = sweeps.at_own_rate(pd.DataFrame(table).assign(record=None))
    assert set(kept.precision) == {"bf16"}
    assert kept.set_index("epochs").lr.to_dict() == {160: 0.1, 40: 0.1, 10: 0.3}


def test_why_features_die_is_judged_by_runs_without_weight_decay():
    """The same channels in both: dead features stay, and small γ do not fall by half."""
    for seed in range(3):
        pretend(seed, 50, train="bn")
        pretend(seed, 50, train="bn", weight_decay=0.0)
    found = verdicts()
    dead = found["share of dead features without decay − with, depth 14"]
    assert dead == "confirmed (3 of 5 seeds)"
    small = found["½ · share of |γ| < 0.01 with decay − share without, depth 14"]
    assert small == "contradicted (3 of 5 seeds)"


def test_small_gammas_are_counted_among_the_living_and_the_dead():
    """Of five channels that a ReLU follows two are dead, of which one has a small γ; of the three
    living one has, too. The sixth is a shortcut's."""
    table = {"gamma": [0.001, 0.5, -0.002, 0.4, -3, 0], "active": [0, 0.009, 0.01, 0.5, 1, None]}
    run = types.SimpleNamespace(record=types.SimpleNamespace(table=lambda kind: None))
    assert math.isnan(features.share_of_dead(run))
    assert math.isnan(features.dead_among_small(run))
    run.record.table = lambda kind: pd.DataFrame(table)
    assert features.share_of_dead(run) == 40
    assert features.small_among_living(run) == pytest.approx(100 / 3)
    assert features.dead_among_small(run) == 50


def test_davis_frank_is_judged_by_a_one_sided_paired_test():
    for seed, gain in enumerate((1, 2, 1.5)):
        for weight, c, accuracy in (
            (1.0, 1.0, 80 + 5 * seed),
            (0.1, 100.0, 80 + 5 * seed + gain),
            (0.1, 1.0, 79),
        ):
            pretend(
                seed,
                accuracy,
                "bn_init",
                train="all",
                gamma_init=f"constant:{weight:g}",
                bn_weight=weight,
                c=c,
                input_norm="dataset",
                val_acc=50,
            )
    verdict, at_the_end = verdicts().values()
    p = scipy.stats.ttest_1samp([1, 2, 1.5], 0, alternative="greater").pvalue
    assert at_the_end == "confirmed (3 of 10 seeds)"
    tests = f"one-sided p = {p:.3g}, two-sided {2 * p:.3g}, 2 comparisons"
    assert verdict == f"confirmed ({tests}; 3 of 10 seeds)"


def test_the_order_of_a_sum_does_not_decide_how_a_mean_is_rounded():
    """Ten times the float nearest 0.1 is 1, and their sum is one bit below."""
    exact, summed = 0.75, sum([0.1] * 10) * 0.75
    assert summed < exact
    assert str(stats.Mean(summed, math.nan, 1)) == str(stats.Mean(exact, math.nan, 1)) == "0.8 (1)"
    assert mean_and_deviation(pd.Series([summed])) == "0.8 (1)"  # as a grid's report has it


def difference(*values) -> stats.Difference:
    return stats.Difference.of(pd.Series(values, dtype=float))


def judge(cases) -> list[str]:
    return list(map(str, stats.judge(cases)))


def test_a_range_is_judged_by_the_interval_and_one_seed_by_nothing():
    judged = [difference(*values) for values in ((1, 2, 3), (8, 9, 10), (4, 5, 6), (0.0,))]
    verdicts = [judge([(stats.Within(5), one)])[0] for one in judged]
    never = "open (more than 1,000 seeds would decide)"
    assert verdicts == ["confirmed", "contradicted", never, "open (1 seed)"]
    # 2 ± 4.303 · 1 / √3 lies within 5; 4.5 needs a half-width of 0.5: t(17) · 1 / √18 = 0.497
    assert stats.Within(5).seeds_to_decide(difference(3.5, 4.5, 5.5)) == 18


def test_the_cases_of_a_claim_are_corrected_by_holm():
    # as R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.02, math.nan]) == pytest.approx([0.02, math.nan], nan_ok=True)
    weak = difference(0.9, 2.0, 1.1, 0.3, 0.6)
    assert judge([(stats.Above(), weak)]) == ["confirmed"]
    # t(5 degrees) at 2.5 / 3 % · s / √6 = 0.93 is the first below the mean of 0.98
    alone = "open (alone confirmed, but one of 3 cases; about 6 seeds would decide)"
    assert judge([(stats.Above(), weak)] * 3) == [alone] * 3


def test_a_deep_network_with_fewer_parameters_decides_for_depth_alone():
    for seed, noise in enumerate((-0.1, 0, 0.1)):
        pretend(seed, 60, train="bn", width=4, params_trained=4480)
        pretend(seed, 50 + noise, train="bn", depth=56, params_trained=4256)
        pretend(seed, 50 + noise, train="bn", depth=62, params_trained=4704)
    found = verdicts()
    never = "open (no number of seeds would decide)"
    assert found["depth 56 − width 4 (deep has 224 fewer)"] == never
    assert found["depth 62 − width 4 (deep has 224 more)"] == "contradicted (3 of 5 seeds)"


def test_the_figure_of_depths_is_of_a_recipe_that_has_several():
    pretend(0, 50, train="bn", dataset="cifar10-jpeg")
    one = sweeps.distinct(runs.read_runs(Path("results")))
    lengths = ((14, 160), (14, 30), (32, 30))
    several = [one.assign(depth=depth, epochs=epochs) for depth, epochs in lengths]
    figure = plots.FIGURES["accuracy_depth"].make(pd.concat(several))
    assert list(figure.axes[0].lines[0].get_xdata()) == [14, 32]
    assert "30 epochs" in figure.get_suptitle()


def test_plots_set_published_figures_beside_a_variant_of_the_data_set(capsys):
    assert set(sweeps.published("cifar10-jpeg").source) >= {"Frankle et al. 2021", "Vinod 2020"}
    assert sweeps.published("cifar100").empty
    assert sweeps.published("digits").empty
    pretend(0, 50, train="bn", dataset="cifar10-jpeg", image_size="32x32")
    assert plots.main(["--only", "accuracy", "--dataset", "cifar10-jpeg", "--out", "out"]) == 0
    assert "| bn | ours − Frankle et al. 2021, cifar10 | +2.0 |" in capsys.readouterr().out
    assert not Path("out/figures").exists()


def test_scaled_images_have_figures_of_their_own_without_published_points(monkeypatch):
    for size in ("32x32", "16x16"):
        for depth in (14, 32):
            pretend(0, 50, train="bn", dataset="cifar10-jpeg", image_size=size, depth=depth)
            pretend(0, 50, train="bn", dataset="mine", image_size=size, depth=depth)
    pretend(1, 50, train="bn", dataset="mine", image_size="16x16", depth=14)
    drawn = {}
    monkeypatch.setattr(
        plots, "save", lambda figure, path, _: drawn.update({path.name: figure.axes[0]})
    )
    assert plots.main(["--only", "accuracy_depth", "--out", "out"]) == 0
    names = {"cifar10-jpeg", "cifar10-jpeg-16x16", "mine", "mine-32x32"}  # "mine" has mostly 16
    assert set(drawn) == {f"accuracy_depth-{name}" for name in names}
    labels = {name: " ".join(axis.get_legend_handles_labels()[1]) for name, axis in drawn.items()}
    assert "Frankle" in labels["accuracy_depth-cifar10-jpeg"]
    assert "Frankle" not in labels["accuracy_depth-cifar10-jpeg-16x16"]


def test_lines_of_one_figure_tell_the_settings_in_which_they_differ(monkeypatch):
    for depth in (14, 32):
        pretend(0, 50, train="bn", precision="bf16", depth=depth)
    pretend(0, 50, train="all", precision="fp32", lr=0.3, depth=14)
    pretend(0, 50, train="none", precision="fp32", lr=0.1, depth=14)
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path, _: drawn.append(figure.axes[0]))
    assert plots.main(["--only", "accuracy_depth", "--out", "out"]) == 0
    labels = drawn[0].get_legend_handles_labels()[1]
    assert labels[:3] == [
        "all (1 seed, lr 0.3, fp32)",
        "bn (1 seed, lr 0.1, bf16)",
        "none (1 seed)",
    ]


def test_all_sizes_of_images_stand_in_one_figure_beside_the_published_points(monkeypatch):
    for size, depths in (("32x32", (14,)), ("16x16", (14, 32))):
        for depth in depths:
            for dataset in ("cifar10-jpeg", "mine"):
                pretend(0, 50, train="bn", dataset=dataset, image_size=size, depth=depth)
    for depth in (14, 32):
        pretend(0, 50, train="bn", depth=depth)
    drawn = {}
    monkeypatch.setattr(
        plots, "save", lambda figure, path, _: drawn.update({path.name: figure.axes[0]})
    )
    assert plots.main(["--only", "depth", "--out", "out"]) == 0
    labels = {name: axis.get_legend_handles_labels()[1] for name, axis in drawn.items()}
    ours = [f"{size} pixels, 1 epoch (1 seed)" for size in ("16x16", "32x32")]
    assert labels.pop("depth-mine") == ours
    (beside,) = labels.values()  # digits have one size, which accuracy_depth shows, and no paper
    assert beside[:2] == ours
    assert "Vinod 2020, cifar10" in beside


def test_plots_of_a_data_set_without_runs_name_those_that_have_some(capsys):
    pretend(0, 50, train="bn", dataset="wine")
    assert "there are wine" in refusal(capsys, "--dataset", "w\nine")
    assert not Path("tables").exists()


def test_plots_without_a_run_name_the_command(capsys):
    Path("empty").mkdir()
    assert plots.main(["--results", "empty"]) == 0
    out = capsys.readouterr().out
    assert all(
        f"{name}: not run yet: python exp_" in out
        for name in ("accuracy", "claims", "davis_frank", "pruning")
    )
    assert not Path("tables").exists()


def accuracies(*words) -> pd.DataFrame:
    """The table of accuracies, by what was trained."""
    assert plots.main(["--only", "accuracy", "--out", "out", "--format", "csv", *words]) == 0
    table = pd.read_csv("out/tables/accuracy.csv")
    return table.rename(columns=lambda c: c.removeprefix("test accuracy (%): ")).set_index(
        "trained"
    )


def test_a_copied_experiment_stands_beside_bn_under_its_own_name():
    for seed in range(2):
        for train in ("bn", "all", "none"):
            pretend(seed, 50, train=train)
        pretend(seed, 60, "bn_last_stage", train="bn")
        pretend(seed, 61, "bn_last_stage", train="bn of the last stage")
        pretend(seed, 62, "thirds", train="custom-1a2b3c", depth=32)
        pretend(seed, 63, "slow", train="bn", lr=0.01)
    table = accuracies()
    together = table[table.recipe == table.recipe["all"]]
    assert set(together.index) == {
        "bn",
        "all",
        "none",
        "bn_last_stage: bn",
        "bn_last_stage: bn of the last stage",
        "thirds: custom-1a2b3c",
    }
    assert together["mean"]["bn"] == 50
    assert together["mean"]["bn_last_stage: bn"] == 60
    assert (together.seeds == 2).all()
    (apart,) = {recipe for recipe in table.recipe if recipe not in set(together.recipe)}
    assert apart.startswith("slow: digits, ")
    assert "lr 0.01" in apart
    every = sweeps.distinct(runs.read_runs(Path("results")))
    labels = {
        line.get_label() for line in plots.FIGURES["accuracy_depth"].make(every).axes[0].lines
    }
    assert labels == {f"{name} (2 seeds)" for name in together.index}
    alone = every[every.experiment == "thirds"]
    assert tables.accuracy(alone.assign(depth=float("nan"))) is not None
    assert next(tables.accuracy(alone)).title.startswith("thirds: digits, ")


def test_a_legend_of_long_labels_stays_within_its_figure():
    short, long = [f"bn+shortcut ({n} seeds)" for n in range(4)], ["a user's experiment" * 3] * 4
    for labels, columns in ((short, 2), (long, 1)):
        figure, (axis,) = figures.panel("", "", "")
        for label in labels:
            axis.plot([0, 1], [0, 1], label=label)
        figures.legend_below(axis)
        figure.canvas.draw()
        (legend,) = figure.legends
        assert legend._ncols == columns
        assert legend.get_window_extent().width <= figure.bbox.width


def test_runs_that_stand_beside_others_are_told_of(capsys):
    """Those in another precision, which no table averages; and those that have another's name."""
    for folder, precision in (("results", "fp32"), ("others", "bf16")):
        for seed in range(2):
            made = pretend(seed, 50, train="bn", precision=precision)
            (to := Path(folder, "bn_only", made.name)).parent.mkdir(parents=True, exist_ok=True)
            made.rename(to)
    assert plots.main(["--with", "others", "--only", "accuracy"]) == 0
    printed = capsys.readouterr()
    assert "the runs of results are in fp32, most of others in bf16" in printed.out
    shutil.copytree("results", "copy")
    assert "nowhere is no folder: --with names" in refusal(capsys, "--with", "copy", "nowhere")
    assert plots.main(["--with", "copy", "--only", "accuracy"]) == 0
    printed = capsys.readouterr()
    assert "fp32, most" not in printed.out
    assert "left out: copy: 2 of its runs, which have the names of runs before" in printed.err


def test_runs_of_older_and_newer_versions_and_without_a_depth_are_averaged_with_the_others(capsys):
    unknown = "lr classes weight_init params_total test_top5 commit threads precision"
    older = dict.fromkeys(unknown.split())
    pretend(0, 50)
    pretend(1, 52, **older | {"precision": "fp32"})
    newer = pretend(2, 54)
    epochs, norms = [1, 2, 3], np.array([1.5, 2.5, 3.5])
    three = pd.concat([pd.read_csv(newer)] * 3).assign(epoch=epochs, epochs=3)
    for seed in (3, 4):
        of_seed = three.assign(seed=seed, test_acc=60 + seed, gradient_norm=norms + seed)
        of_seed.to_csv(newer.with_name(f"{seed}.csv"), index=False)
    table = accuracies()
    assert sorted(zip(table["mean"], table.seeds, strict=True)) == [(52, 3), (63.5, 2)]
    read = runs.read_runs(Path("results"))
    assert read.gradient_norm.dropna().tolist() == [6.5, 7.5]
    assert (read.lr == 0.1).all()
    assert not capsys.readouterr().err
    for column in ("status", "test_acc"):
        pd.read_csv(newer).drop(columns=column).to_csv(newer.with_name("bad.csv"), index=False)
        assert accuracies().seeds.sum() == 5
        lacks = f"bad.csv: it cannot be used: it lacks the columns {column}"
        assert lacks in capsys.readouterr().err


def test_names_that_look_like_numbers_or_like_nothing_are_names(capsys):
    for dataset, train in (("2024", "7"), ("None", "NA"), ("1e5", "none"), ("1e5", "bn")):
        pretend(0, 50, "mine", dataset=dataset, train=train)
        pretend(0, 50, dataset=dataset, train="bn")
    assert plots.main(["--out", "out", "--format", "md"]) == 0
    assert not capsys.readouterr().err
    table = Path("out/tables/accuracy.md").read_text()
    for label in ("mine: 7", "mine: NA", "mine: bn"):
        assert f"\n| {label} | ours | 50.0 (1) |" in table
    assert plots.main(["--dataset", "2024", "--only", "accuracy"]) == 0
    assert "| mine: 7 | ours | 50.0 (1) |" in capsys.readouterr().out


@pytest.mark.parametrize("experiment, missing", [("bn_only", ""), ("my_mixer", None)])
def test_a_network_without_a_depth_has_none_in_every_table_and_figure(experiment, missing, capsys):
    for seed in range(2):
        for train in ("bn", "all", "none"):
            shape = {"arch": "mixer", "depth": missing, "width": missing}
            pretend(seed, 50 + seed, experiment, train=train, **shape)
            pretend(seed, 60 + seed, train=train)
    pretend(0, 70, "odd", arch="resnet", depth=missing, width=missing)
    assert plots.main(["--out", "out", "--format", "md", "tex", "csv", "png"]) == 0
    printed = capsys.readouterr()
    assert not printed.err
    assert "nan" not in printed.out
    assert "mixer" in printed.out
    table = accuracies()
    without = table[table.depth == "no depth"]
    assert without["mean"]["bn"].tolist()[0] == 50.5
    assert table[table.depth == "depth 14"]["mean"]["bn"] == 60.5
    assert plots.main(["--pack", "packed"]) == 0
    assert tables_of("--results", "packed") == tables_of()


def test_a_new_table_and_a_new_figure_are_one_function_each(monkeypatch, capsys):
    for known in ("TABLES", "FIGURES"):
        monkeypatch.setattr(registry, known, getattr(registry, known).copy())
        monkeypatch.setattr(plots, known, getattr(registry, known))

    @registry.table("exp_bn_only.py --seed 7")
    def best_seed(runs):
        """The seed of the best run."""
        for title, sweep in sweeps.sweeps(runs, "depth"):
            yield tables.Table(title, [{"seed": sweep.seed[sweep.test_acc.idxmax()]}])

    @registry.figure("exp_bn_only.py --seed 7")
    def accuracy_seed(runs):
        """Accuracy by seed."""
        figure, (axis,) = figures.panel("seeds", "seed", "test accuracy (%)")
        axis.plot(runs.seed, runs.test_acc)
        return figure

    assert plots.main(["--only", "best_seed", "accuracy_seed", "--results", "."]) == 0
    assert capsys.readouterr().out.count("not run yet: python exp_bn_only.py --seed 7") == 2
    for seed in range(3):
        pretend(seed, 50 + seed)
    assert plots.main(["--only", "best_seed", "accuracy_seed", "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert "The seed of the best run." in out
    assert "| 2 |" in out
    tables_made = {f"tables/best_seed.{kind}" for kind in ("md", "tex", "csv")}
    figures_made = {f"figures/accuracy_seed-digits.{kind}" for kind in ("png", "pdf")}
    assert files_in("out").keys() == tables_made | figures_made
    assert plots.main([]) == 0
    assert Path("tables/best_seed.md").exists()
    assert Path("tables/accuracy.md").exists()
    err = refusal(capsys, "--only", "best_sed")
    assert "best_seed" in err
    assert "accuracy_seed" in err


def tables_of(*words) -> dict[str, bytes]:
    shutil.rmtree("made", ignore_errors=True)
    assert plots.main([*map(str, words), "--out", "made", "--format", "md", "csv", "png"]) == 0
    return {path.name: path.read_bytes() for path in sorted(Path("made").rglob("*.*"))}


def test_packed_runs_say_what_the_runs_said(capsys):
    for words in ("--train bn", "--train all", "--seed 1"):
        assert run("--epochs", 2, *words.split()) == 0
    assert run(*"--lr 1e6 --train all-bn --epochs 20".split()) == 1
    mlp = "--hidden 16 --bn before after"
    assert exp_mlp_lenet.main([*GRID[:2], *GRID[4:], *mlp.split()]) == 0
    Path("results/bench").mkdir()
    Path("results/bench/cpu.csv").write_text(
        "device,threads,arch,depth,width,train,image_size,batch_size,variant,limit_s,share_of_step,"
        "start_s\ncpu,2,resnet,14,1,bn,32,128,start-up,,,2.5\n"
    )
    capsys.readouterr()
    expected, told = tables_of(), capsys.readouterr().err
    assert plots.main(["--pack", "packed"]) == 0
    kinds = [f"digits/{kind}.csv.gz" for kind in ("channels", "epochs", "pruning")]
    assert sorted(files_in("packed")) == ["bench.csv", *kinds]
    capsys.readouterr()
    found = tables_of("--results", "packed")
    assert [name for name in expected if found.get(name) != expected[name]] == []
    assert found.keys() == expected.keys()
    assert "diverged" in told
    assert "diverged" in capsys.readouterr().err
    packed = files_in("packed")
    assert plots.main(["--results", "packed", "--pack", "packed"]) == 0
    assert files_in("packed") == packed  # the same runs, the same bytes
    shutil.rmtree("results")
    assert run("--epochs", 2, "--seed", 2) == 0
    assert plots.main(["--with", "packed", "--pack", "packed"]) == 0
    epochs = pd.read_csv("packed/digits/epochs.csv.gz", dtype={"hidden": str})
    assert epochs.run.nunique() == 7
    assert epochs[epochs.experiment == "bn_only"].seed.max() == 2
    assert epochs.hidden.dropna().unique().tolist() == ["16"]
    assert plots.main(["--with", "packed", "--only", "accuracy", "--out", "out"]) == 0
    table = pd.read_csv("out/tables/accuracy.csv").set_index("trained")
    assert table["test accuracy (%): seeds"]["bn"] == 3  # a run that both have counts once


def files_in(folder) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_damaged_pack_is_named_and_left_out(capsys):
    assert run("--epochs", 1) == 0
    assert plots.main(["--pack", "packed"]) == 0
    for harm in (b"no gzip", Path("packed/digits/epochs.csv.gz").read_bytes()[:-30]):
        Path("packed/digits/epochs.csv.gz").write_bytes(harm)
        capsys.readouterr()
        assert plots.main(["--results", "packed", "--only", "accuracy"]) == 0
        why = "left out: packed/digits/epochs.csv.gz: it cannot be used"
        assert one_line(capsys).startswith(why)


def test_the_committed_tables_are_those_of_the_committed_runs():
    words = ["--results", str(HERE / "evidence"), "--out", ".", "--format", "md", "csv"]
    assert plots.main(words) == 0
    committed = files_in(HERE / "evidence/tables").items()
    # LaTeX is as pandas' version writes it
    expected = {name: content for name, content in committed if not name.endswith(".tex")}
    assert files_in("tables") == expected


def test_what_a_user_runs_changes_no_tracked_file():
    """The README's first command, with fewer epochs, other commands of its, and then a test of what
    is committed, in a clone."""
    what = "ls-files -z --cached --others --exclude-standard".split()
    listed = subprocess.run(["git", "-C", HERE, *what], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no checkout of git's")
    for name in filter(None, listed.stdout.split("\0")):
        if (HERE / name).exists():
            (to := Path("clone", name)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HERE / name, to)

    def does(*words) -> str:
        options = {"check": True, "capture_output": True, "text": True, "env": environment()}
        return subprocess.run(words, cwd="clone", **options).stdout

    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b"]
    does(*git, "init")
    does(*git, "add", ".")
    does(*git, "commit", "-m", "a clone")
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    first = re.search(r"requirements.txt && python (exp_bn_only.py .*)", readme)[1]
    assert "test accuracy" in does(sys.executable, *first.split(), "--epochs", "10")
    asked = "--only accuracy learning_curves --with evidence"
    does(sys.executable, "plots.py", *asked.split())
    does(sys.executable, "plots.py", "--pack", "results/packed")
    for command in re.findall(r"python (predict.py evidence/\S+ --dataset digits)", readme):
        does(sys.executable, *command.split())
    does(sys.executable, "-m", "pytest", "-q", "tests/test_plots.py", "-k", "readme")
    assert does("git", "status", "--porcelain") == ""


def test_the_numbers_in_readme_and_docs_are_those_of_the_tables():
    """Every row of a table of findings, results and speed stands in evidence/tables/, and every
    number with a decimal point there or in the CSVs that it speaks of."""
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    said = [readme[readme.index("## What holds") : readme.index("## CIFAR-10")]]
    said += [(HERE / "docs" / name).read_text(encoding="utf-8") for name in DOCS]
    made = sorted((HERE / "evidence/tables").glob("*.md"))
    tables = "\n".join(path.read_text(encoding="utf-8") for path in made)
    epochs = pd.read_csv(HERE / "evidence/digits/epochs.csv.gz", low_memory=False)
    precision = epochs.query("experiment == 'bn_only' and train == 'bn' and epochs == 60")
    known = {
        *re.findall(r"\d+\.\d+", tables),
        *(f"{seconds:.1f}" for seconds in before_and_after_onednns_layout()),
        *(f"{seconds:.3f}" for seconds in precision.groupby("precision").seconds.median()),
        precision.torch.iloc[0].rpartition(".")[0],
    }
    lines = "\n".join(said).splitlines()
    rows = [line for line in lines if line.startswith("|") and "![" not in line and line != "| | |"]
    prose = " ".join(line for line in lines if not line.startswith(("|", "    ")))
    assert len(rows) > 30
    assert not set(rows) - set(tables.splitlines())
    assert not set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\w)", prose)) - known
    assert len(readme.encode()) <= 10_000


def before_and_after_onednns_layout() -> pd.Series:
    """Median seconds of an epoch of the two runs that docs/speed.md speaks of."""
    epochs = pd.read_csv(HERE / "evidence/cifar10-jpeg/epochs.csv.gz", low_memory=False)
    deep = "epochs == 30 and depth == 56 and train == 'bn' and seed == 2"
    grouped = "norm == 'gn:4' and lr == 0.3 and val_fraction == 0.1"
    runs = pd.concat([epochs.query(deep), epochs.query(grouped)])
    assert runs.run.nunique() == 2
    return runs.groupby(["run", "commit"]).seconds.median()


DOCS = ("findings.md", "results.md", "speed.md")


def test_plots_need_no_torch():
    loaded = "import sys, plots; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=HERE).returncode == 0
