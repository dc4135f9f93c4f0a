"""What is compared with what, and who may say something about a claim."""

from pathlib import Path

import pandas as pd
import pytest

import plots
from report import claims, figures, stats, sweeps
from report.runs import read_runs
from report.sweeps import distinct, usual_start
from tests.test_plots import difference, judge, pretend, verdicts


def distinct_runs(folder="results") -> pd.DataFrame:
    return distinct(read_runs(Path(folder)))


def test_an_edited_script_of_ours_is_an_experiment_of_its_own():
    for seed in range(2):
        pretend(seed, 50, train="bn")
        pretend(seed, 99, train="bn", script="abc123", lr=0.1)
    runs = distinct_runs()
    assert usual_start(runs).test_acc.tolist() == [50, 50]
    assert set(runs.experiment) == {"", "bn_only abc123"}
    # and where the edited alone has made runs
    for path in Path("results/bn_only").glob("*bn.csv"):
        path.unlink()
    assert set(distinct_runs().experiment) == {"bn_only abc123"}


def test_the_images_of_a_record_without_a_size_are_as_the_data_set_has_them():
    pretend(0, 50, train="bn", image_size=None)
    pretend(1, 51, train="bn")
    pretend(0, 52, train="bn", dataset="flowers", image_size=None)
    runs = distinct_runs()
    ((title, sweep),) = sweeps.sweeps(runs[runs.dataset == "digits"])
    assert len(sweep) == 2 and "pixels" not in title
    assert [name for name, _ in sweeps.by_data(runs)] == ["digits", "flowers"]


def test_networks_of_ones_own_are_averaged_over_seeds_alone(capsys):
    for seed in range(2):
        pretend(seed, 50, train="bn")
        for depth, width in ((16, 1), (16, 2), (11, 1)):
            shape = {"arch": "vgg", "depth": depth, "width": width}
            pretend(seed, 60 + depth + width, "mine", train="bn", **shape)
        for norm in ("bn", "ln", "rms"):  # a column of ours, in a network that is not
            mlp = {"arch": "mlp", "depth": 16, "train": "norm", "norm": norm}
            pretend(seed, 20 + len(norm), "mine", **mlp)
    assert plots.main(["--only", "accuracy", "--format", "md"]) == 0
    printed = capsys.readouterr().out
    assert "| trained | source | depth 11 | depth 14 | depth 16 |" in printed
    assert "| mine: vgg, bn | ours | 72.0 ± 0.0 (2) |  | 77.0 ± 0.0 (2) |" in printed
    assert "| mine: vgg x2, bn | ours |  |  | 78.0 ± 0.0 (2) |" in printed
    for named, mean in (("norm", 22), ("norm, norm ln", 22), ("norm, norm rms", 23)):
        assert f"| mine: mlp, {named} | ours |  |  | {mean}.0 ± 0.0 (2) |" in printed


def test_every_network_has_a_row_in_the_table_of_parameters(capsys):
    for hidden, number in (("16", 640), ("64", 2560)):
        mlp = {"arch": "mlp", "depth": 2, "width": None, "hidden": hidden, "train": "bn"}
        path = pretend(0, 50, "tables", params_trained=number, **mlp)
        path.rename(path.with_stem(f"mlp-{number:06d}"))  # in a folder as plots.py has, too
    assert plots.main(["--only", "parameters", "--format", "md"]) == 0
    printed = capsys.readouterr().out
    assert "| MLP 16 | ours | 174,970 | 640 |" in printed
    assert "| MLP 64 | ours | 174,970 | 2,560 |" in printed


def test_what_comes_of_a_claim_stands_beside_that_of_other_data():
    for seed, noise in enumerate((-1, 0, 1)):
        for dataset, gain in (("digits", 20), ("mnist", 0)):
            pretend(seed, 70 + gain + noise, train="bn", dataset=dataset)
            pretend(seed, 70, train="random:2", dataset=dataset)
        pretend(seed, 60 + noise, train="bn", depth=32)
    assert plots.main(["--only", "verdicts", "--out", "out", "--format", "md"]) == 0
    shown = Path("out/tables/verdicts.md").read_text(encoding="utf-8").splitlines()
    assert "| claim | source | digits | mnist |" in shown
    paper = "Frankle et al. 2021"
    deep = f"| 1. bn: accuracy rises with depth | {paper} | contradicted"
    beats = f"| 2. bn beats as many random parameters | {paper} | confirmed"
    early = "(by fewer seeds than asked for)"
    assert f"{deep} {early} |  |" in shown
    assert f"{beats} {early} | open |" in shown
    for seed in (3, 4):
        pretend(seed, 90, train="bn")
        pretend(seed, 70, train="random:2")
    assert plots.main(["--only", "verdicts", "--out", "out", "--format", "md"]) == 0
    shown = Path("out/tables/verdicts.md").read_text(encoding="utf-8").splitlines()
    assert f"{beats} | open |" in shown


def test_random_entries_are_compared_with_what_is_trained_beside_them():
    for train, accuracy in (
        ("bn", 50),
        ("bn+output", 60),
        ("random:8", 40),
        ("random:16", 51),
        ("bn+random:4", 70),
        ("output+random:8", 55),
    ):
        pretend(0, accuracy, train=train)
        pretend(1, accuracy, train=train)
    assert plots.main(["--only", "random_params", "--out", "out", "--format", "md"]) == 0
    alone, bn, output = Path("out/tables/random_params.md").read_text().split("**digits")[1:]
    assert "The smallest K whose mean overtakes bn: random:16." in alone
    assert "bn+random:4" not in alone
    assert "The smallest K whose mean overtakes bn: bn+random:4." in bn
    assert "None of these overtakes bn+output." in output


def test_what_a_claim_says_beside_is_judged_apart_and_counted_with_it():
    """Claim 10 holds, its control does not; either is one of two cases."""
    for seed, noise in enumerate((-1, 0, 1)):
        pretend(seed, 60, train="bn", params_trained=1120)
        pretend(seed, 70 + noise, train="bn+shortcut", params_trained=3680)
        pretend(seed, 80, train="bn+random:4", params_trained=3360)
        pretend(seed, 70 + 3 * noise, train="bn+random:5", params_trained=3920)
    assert plots.main(["--only", "verdicts", "--out", "out", "--format", "csv"]) == 0
    table = pd.read_csv("out/tables/verdicts.csv").set_index("claim").verdict
    control = "10b. the shortcuts hold back more than about as many random entries do"
    early = "by fewer seeds than asked for"
    assert table["10. the shortcuts hold something back"] == f"confirmed ({early})"
    assert table[control] == f"contradicted in 1, open in 1 of 2 cases (1 case {early})"
    found = verdicts()
    needed = "open (more than 1,000 seeds would decide)"
    assert found["bn+shortcut − bn+random:5, depth 14"] == needed


def test_trials_of_a_search_are_no_runs_that_speak():
    for seed in range(3):
        for place, accuracy in (("before", 60), ("after", 50 + seed)):
            mlp = {"arch": "mlp", "hidden": "77", "bn": place, "train": "bn"}
            pretend(seed, accuracy, "mlp_lenet_tune", val_fraction=0.2, **mlp)
    pretend(0, 10, train="none")
    assert set(verdicts()) == {"none − chance, depth 14"}


def test_kinds_of_normalisation_have_an_equal_choice_of_rates():
    """BatchNorm's best of three is 0.1; that it was tried at 3, too, gives it no other."""
    for seed in range(3):
        for kind, rates in ((None, (0.03, 0.1, 0.3, 3)), ("none", (0.03, 0.1, 0.3))):
            for lr in rates:
                known = {"train": "norm" if kind else "bn", "norm": kind, "lr": lr}
                best = 50 + (lr == 0.1) + 5 * (lr == 3)
                pretend(seed, 0, "norms", val_fraction=0.2, val_acc=best, **known)
                pretend(seed, 60 + 20 * (lr == 3) + 0.1 * seed, "norms", **known)
    assert plots.main(["--only", "claims", "--out", "out", "--format", "csv"]) == 0
    table = pd.read_csv("out/tables/claims.csv").set_index("case")
    assert table.loc["bn − none, depth 14", "ours: mean"] == pytest.approx(0)
    assert table.loc["bn − none, depth 14", "recipe"].endswith("rates 0.1, 0.1")


def test_a_gap_grows_to_the_deepest_networks_that_can_be_judged():
    """Two seeds at depth 56, which close the gap, decide nothing."""
    for kind, train in ((None, "bn"), ("ln", "norm")):
        known = {"train": train, "norm": kind}
        for lr in (0.1, 0.3):
            pretend(0, 0, "norms", lr=lr, val_fraction=0.2, val_acc=50 - lr, **known)
        for seed in range(3):
            for depth, gap in ((14, 0), (32, 5 + 0.1 * seed), (56, 0)):
                if depth < 56 or seed < 2:
                    accuracy = 60 - gap * (kind == "ln")
                    pretend(seed, accuracy, "norms", lr=0.1, depth=depth, **known)
    assert verdicts()["bn − ln: depth 32 − depth 14"] == "confirmed (3 of 5 seeds)"


def test_what_diverges_counts_as_chance_where_kinds_and_rates_are_compared():
    """Two of three networks without normalisation diverge at 0.1: there it is at 10 % in two seeds,
    and of its trials 0.03 is the best, whose one run does not diverge."""
    for seed in range(3):
        for kind, lr in (("bn", 0.1), ("none", 0.1), ("none", 0.03)):
            known = {"train": "norm", "norm": kind, "lr": lr}
            lost = "diverged" if kind == "none" and lr == 0.1 and seed else "ok"
            best = 60 if lr == 0.1 else 50
            pretend(seed, 0, "norms", val_fraction=0.2, val_acc=best, status=lost, **known)
            pretend(seed, 90, "norms", depth=32, **known)
            if lr == 0.1:
                lost = "diverged" if kind == "none" and seed else "ok"
                pretend(seed, 90, "norms", status=lost, **known)
        pretend(seed, 0, "norms", val_fraction=0.2, val_acc=1, train="norm", norm="bn", lr=0.3)
    assert {case for case in verdicts() if case.startswith("bn")} == {"bn − none, depth 32"}
    table = pd.read_csv("out/tables/claims.csv").set_index("case")
    assert table.loc["bn − none, depth 32", "recipe"].endswith("rates 0.1, 0.03")
    for path in Path("results/norms").glob("*0.2*0.03*.csv"):  # its rate is 0.1 now
        path.unlink()
    for seed in range(3):
        trial = {"train": "norm", "norm": "none", "lr": 0.3}
        pretend(seed, 0, "norms", val_fraction=0.2, val_acc=1, **trial)
    found = verdicts()["bn − none, depth 14"]
    table = pd.read_csv("out/tables/claims.csv").set_index("case")
    assert found.endswith("2 diverged, here at chance)")
    assert table.loc["bn − none, depth 14", "ours: mean"] == pytest.approx((0 + 80 + 80) / 3)


def test_a_recipe_with_the_seeds_that_are_asked_for_speaks_before_the_papers():
    for seed in range(5):
        for lr, gain in ((0.1, 10), (0.03, 20)):
            if seed < 3 or lr == 0.03:
                pretend(seed, 50 + gain + 0.1 * seed, train="bn", lr=lr)
                pretend(seed, 50, train="random:2", lr=lr)
        pretend(seed, 70 + 0.1 * seed, train="all", lr=0.03)
        pretend(seed, 60, train="all-bn", lr=0.03)
    found = verdicts()
    assert found["bn − random:2, depth 14"] == "confirmed"
    assert found["all − all-bn, depth 14"] == "confirmed (5 of 10 seeds)"
    table = pd.read_csv("out/tables/claims.csv").set_index("case")
    assert table.loc["bn − random:2, depth 14", "ours: mean"] == pytest.approx(20.2)


def test_every_claim_has_a_source_and_every_open_case_the_seeds_it_needs():
    assert claims.SOURCES.keys() == claims.CLAIMS.keys()
    nothing, all_but = difference(1, -1, 0.01), difference(-1, -2, -3)
    assert judge([(stats.Above(), nothing)]) == ["open (more than 1,000 seeds would decide)"]
    for_it = stats.Above(decides="for")
    assert judge([(for_it, all_but)]) == ["open (no number of seeds would decide)"]


def test_how_far_gammas_move_is_told_in_hundredths():
    for seed in range(2):
        pretend(seed, 50, train="bn")
    assert plots.main(["--only", "movement", "--out", "out", "--format", "md", "csv"]) == 0
    row = pd.read_csv("out/tables/movement.csv").iloc[0]
    shown = Path("out/tables/movement.md").read_text(encoding="utf-8")
    assert 0 < row["γ: mean"] < 1
    assert f"| bn | depth 14 | {row['γ: mean']:.2f} ± 0.00 (2) |" in shown


def test_what_a_user_runs_says_nothing_about_the_claims():
    for seed in range(5):
        for place, accuracy in (("before", 60), ("after", 50 + seed)):
            mlp = {"arch": "mlp", "hidden": "512", "bn": place, "train": "bn"}
            if seed < 3:
                pretend(seed, accuracy, "mlp_lenet", **mlp)
            pretend(seed, 110 - accuracy, "my_mlp", **mlp)
    assert verdicts() == {"before − after, bn, MLP 512": "confirmed (3 of 5 seeds)"}


def test_another_recipe_speaks_of_the_depths_that_one_compares():
    for seed in range(3):
        for depth, accuracy in ((14, 50), (56, 60 + 0.1 * seed), (110, 70)):
            pretend(seed, accuracy, train="bn", depth=depth)
            if depth > 14 and seed < 2:
                pretend(seed, 50, train="bn", depth=depth, lr=0.03)
    confirmed = {"depth 56 − depth 14", "depth 110 − depth 14", "depth 110 − depth 56"}
    found = verdicts()
    assert {case for case in found if case.startswith("depth")} == confirmed
    assert {found[case] for case in confirmed} == {"confirmed (3 of 5 seeds)"}


def test_a_case_of_two_seeds_is_not_counted_among_those_that_are_corrected_for():
    for seed, noise in enumerate((-1, 0, 1)):
        pretend(seed, 50, train="bn", depth=14)
        pretend(seed, 52.8 + noise, train="bn", depth=32)  # p = 0.02
        if seed < 2:
            pretend(seed, 60 + noise, train="bn", depth=56)
    found = verdicts()
    assert found["depth 32 − depth 14"] == "confirmed (3 of 5 seeds)"
    assert found["depth 56 − depth 14"] == "open (2 seeds)"


def test_of_two_recipes_the_papers_speaks():
    for seed in range(3):
        for lr, gain in ((0.03, 5), (0.1, -5)):
            pretend(seed, 50 + gain + 0.1 * seed, train="bn", lr=lr)
            pretend(seed, 50, train="random:2", lr=lr)
    assert verdicts()["bn − random:2, depth 14"] == "contradicted (3 of 5 seeds)"


def test_rates_that_each_method_has_of_its_own_bring_a_recipe_no_nearer_to_the_papers():
    for momentum, gain, rates in ((0.9, 5, (0.01, 0.03)), (0.8, -5, (0.1, 0.3))):
        for train in ("bn", "random:2"):
            for lr, chosen in zip(rates, (True, False), strict=True):
                trial = {"val_fraction": 0.2, "val_acc": 50 + chosen}
                pretend(0, 50, train=train, momentum=momentum, lr=lr, **trial)
            for seed in range(3):
                accuracy = 50 + (gain + 0.1 * seed if train == "bn" else 0)
                pretend(seed, accuracy, train=train, momentum=momentum, lr=rates[0])
    assert verdicts()["bn − random:2, depth 14"] == "confirmed (3 of 5 seeds)"


def pretend_in_full(seed: int) -> None:
    """A run of the main paper's length."""
    path = pretend(seed, 50, train="bn", epochs=160)
    row = pd.read_csv(path)
    pd.concat([row.assign(epoch=epoch) for epoch in range(1, 161)]).to_csv(path, index=False)


def test_a_third_of_the_features_is_judged_at_the_papers_length_alone():
    for seed in range(3):
        pretend(seed, 50, train="bn")
    assert verdicts()["bn − a third, depth 14"] == "open (not at 160 epochs)"
    for seed in range(3):
        pretend_in_full(seed)
    assert verdicts()["bn − a third, depth 14"] == "contradicted (3 of 5 seeds)"


def test_a_longer_run_of_too_few_seeds_is_shown_and_not_judged(capsys):
    for seed in range(3):
        pretend(seed, 50, train="bn")
    pretend_in_full(0)
    assert plots.main(["--only", "claims", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| pruned − as trained, depth 14 |") == 2
    assert "too few to be judged (1 seed)" in printed
    assert "Claim 5" not in printed  # it has one case


def test_a_full_length_run_stands_beside_a_shorter_line_of_its_recipe():
    for seed in range(2):
        for depth in (14, 32):
            pretend(seed, 50, train="bn", depth=depth)
    pretend_in_full(0)
    other = pretend(1, 60, train="bn", epochs=160, lr=0.5)
    row = pd.read_csv(other)
    pd.concat([row.assign(epoch=epoch) for epoch in range(1, 161)]).to_csv(other, index=False)
    runs = distinct_runs()
    ((label, cell),) = figures.longer_runs(runs, sweeps.labelled(runs[runs.epochs < 160]))
    assert label == "bn, 160 epochs (1 seed)"
    assert len(cell) == 1


def test_what_alone_is_untrained_is_shown():
    for seed in range(3):
        pretend(seed, 10, train="none")
    assert verdicts() == {"none − chance, depth 14": "confirmed (3 of 5 seeds)"}


def test_networks_that_are_not_quite_equal_decide_one_side_alone():
    for_it = stats.Above(decides="for")
    ahead, behind = difference(1, 1.1, 1.2), difference(-1, -1.1, -1.2)
    assert judge([(for_it, ahead)]) == ["confirmed"]
    assert judge([(for_it, behind)]) == ["open (no number of seeds would decide)"]
    assert judge([(stats.Above(decides="against"), behind)]) == ["contradicted"]
    # and the case behind counts for nobody else: 3.0 alone would not survive two cases
    weak = difference(0.9, 2.0, 1.1, 0.3, 0.6)
    against = [(stats.Above(decides="against"), difference(0.1, 0, 0.2))]
    assert judge([(stats.Above(), weak), *against])[0] == "confirmed"


def test_seeds_that_would_decide_go_by_the_test_that_would():
    found = difference(0, 1, 2)  # s = d = 1
    assert stats.Above().seeds_to_decide(found) == 7  # t(6) at 97.5 % / √7 = 0.92
    assert stats.Above(level=0.05).seeds_to_decide(found) == 5  # t(4) at 95 % / √5 = 0.95
    against = difference(0, -1, -2)
    assert stats.Above(level=0.05).seeds_to_decide(against) == 7


def test_two_seeds_are_never_said_to_decide():
    assert judge([(stats.Above(), difference(1, 1.05))] * 4)[0] == "open (2 seeds)"
    one = [(stats.Above(), difference(3.0))] * 5
    weak = [(stats.Above(), difference(0.9, 2.0, 1.1, 0.3, 0.6))]
    assert judge([*one, *weak])[-1] == "confirmed"  # Holm does not count the single seeds


def test_a_power_law_is_fitted_to_sizes_that_all_its_seeds_have(capsys):
    for seed in range(3):
        for depth, number in ((14, 1000), (32, 2000), (56, 4000), (110, 8000)):
            if depth < 110 or seed < 2:
                # the error falls by half with each doubling, but for the deepest, which has none
                wrong = 40 * 1000 / number if depth < 110 else 40.0
                pretend(seed, 100 - wrong, train="bn", depth=depth, params_trained=number)
    pretend(2, 100, train="bn", depth=218, params_trained=16000)  # no error has no logarithm
    assert plots.main(["--only", "power_law", "--format", "csv", "--out", "out"]) == 0
    table = pd.read_csv("out/tables/power_law.csv")
    assert table[["sizes", "seeds"]].values.tolist() == [[3, 3], [4, 2]]
    assert table["exponent: mean"][0] == pytest.approx(-1)
    assert table["exponent: mean"].notna().all()


def test_diverged_runs_are_counted_among_those_that_were_made(capsys):
    pretend(0, 50, train="bn")
    pretend(1, 10, train="bn", status="diverged")
    assert plots.main(["--only", "made", "--format", "csv", "--out", "out"]) == 0
    assert pd.read_csv("out/tables/made.csv").runs.tolist() == [2]


def test_packing_takes_all_runs(capsys):
    pretend(0, 50, train="bn")
    for words in (["--dataset", "digits"], ["--only", "claims"], ["--format", "md"]):
        assert plots.main(["--pack", "packed", *words]) == 2
        assert "--pack writes all runs" in capsys.readouterr().err
    assert not Path("packed").exists()
