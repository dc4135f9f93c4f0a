"""What two readings of the whole found: numbers that are not what they seem, and what was given and
ignored."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import bench
import exp_mlp_lenet
import exp_norms
import exp_random_params
import plots
import predict
from report import claims, stats
from report.claims import CLOSE, Finding
from tests.helpers import image_folder, one_line, run, the_checkpoint
from tests.test_plots import difference, pretend

TABLE = "--dataset csv --precision fp32 --hidden 16 --train all --batch-size 32 --quiet".split()


def on_table(file: str, *words) -> int:
    return exp_mlp_lenet.main([*TABLE, "--data", file, *map(str, words)])


def write_table(name: str, unit=1.0, offset=0.0) -> None:
    draw = np.random.default_rng(0)
    x = draw.integers(0, 1000, 300)
    columns = {"x": offset + x * unit, "same": 0.1, "y": np.where(x < 500, "low", "high")}
    pd.DataFrame(columns).to_csv(name, index=False)


def test_the_unit_of_a_column_does_not_matter():
    write_table("plain.csv")
    write_table("tiny.csv", unit=1e-20)
    for name in ("plain", "tiny"):
        assert on_table(f"{name}.csv", "--epochs", 8, "--results", name) == 0
    found = [pd.read_csv(next(Path(name).rglob("*.csv"))) for name in ("plain", "tiny")]
    assert found[0].test_acc.iloc[-1] > 85
    assert found[1].test_acc.iloc[-1] == pytest.approx(found[0].test_acc.iloc[-1], abs=3)


def test_an_offset_that_fp32_has_no_digits_for_is_refused(capsys):
    write_table("times.csv", unit=0.01, offset=1.7e9)
    assert on_table("times.csv") == 2
    assert "times.csv differs in x by less than fp32 tells: subtract" in one_line(capsys)


@pytest.mark.parametrize("kind", ["gz", "zip", "xz"])
def test_a_damaged_compressed_table_is_one_line(kind, capsys):
    write_table("whole.csv")
    packed = gzip.compress(Path("whole.csv").read_bytes())
    Path(f"cut.csv.{kind}").write_bytes(packed[: len(packed) // 2])
    assert on_table(f"cut.csv.{kind}") == 2
    assert "cannot be read as a CSV file" in one_line(capsys)


@pytest.mark.parametrize(
    "words, says",
    [
        ("--lr 0.5", "--tune chooses --lr itself"),
        ("--batch-size 16", "--tune chooses --batch-size itself"),
        ("--val-fraction 0", "give --val-fraction above 0"),
    ],
)
def test_tuning_does_not_ignore_what_was_given(words, says, capsys):
    tune = "--dataset wine --hidden 8 --epochs 1 --tune 1 --quiet".split()
    assert exp_mlp_lenet.main([*tune, *words.split()]) == 2
    assert says in one_line(capsys)


def test_a_damaged_file_of_trials_is_one_line(capsys):
    path = Path("results/mlp_lenet_tune/tune.db")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 100)
    tune = "--dataset wine --hidden 8 --epochs 1 --tune 1 --quiet".split()
    assert exp_mlp_lenet.main(tune) == 1
    assert "tune.db cannot be used" in one_line(capsys)
    assert path.read_bytes() == b"no database" * 100


def test_lenet5_on_a_table_says_what_is_right(capsys):
    assert exp_mlp_lenet.main("--dataset wine --arch lenet5 --quiet".split()) in (1, 2)
    assert "is a table, for --arch mlp" in capsys.readouterr().err


def test_bench_says_what_it_cannot_do_before_it_measures(capsys, monkeypatch):
    measured = []
    for name in ("compare", "share_out", "kinds_of_norm"):
        monkeypatch.setattr(
            bench, name, lambda args, threads: measured.append(args) or [{"variant": "none"}]
        )
    assert bench.main("--grid --norms bn ln".split()) == 2
    assert "--grid and --norms are different measurements" in one_line(capsys)
    assert bench.main("--train bn none --depth 8".split()) == 2
    assert "--train none trains nothing" in one_line(capsys)
    assert bench.main("--optimizer adam".split()) == 2
    assert not measured and not Path("results").exists()
    for words in ("--norms bn ln", "--norms bn none", "--compile", ""):
        assert bench.main(words.split()) == 0
    assert len(list(Path("results/bench").glob("*.csv"))) == 4


def test_feature_maps_of_a_transformer_are_pictures(capsys):
    words = "--dataset digits --arch vit --depth 1 --train output --subset 60 --epochs 1 --quiet"
    assert exp_norms.main([*words.split(), "--precision", "fp32"]) == 0
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("image.png")
    words = [str(the_checkpoint()), "--feature-maps", "maps.png", "image.png"]
    assert predict.main(words) == 0 and Path("maps.png").exists()


def test_two_networks_of_one_label_are_two_pictures():
    assert run("--epochs", 1) == 0
    checkpoint = str(the_checkpoint())
    assert predict.main([checkpoint, "--filters", "one.png"]) == 0
    assert predict.main([checkpoint, checkpoint, "--filters", "two.png"]) == 0
    with Image.open("one.png") as one, Image.open("two.png") as two:
        assert two.width == 2 * one.width


@pytest.mark.parametrize("words", ["--data nowhere", "--target nothing"])
def test_predict_does_not_ignore_what_was_given(words, capsys):
    assert predict.main(["any.pt", "image.png", *words.split()]) == 2
    assert "--data and --target are for --dataset" in one_line(capsys)


def test_pack_does_not_ignore_out(capsys):
    Path("results").mkdir()
    assert plots.main("--pack packed --out elsewhere".split()) == 2
    assert "leave out --dataset, --only, --format and --out" in one_line(capsys)


def test_networks_of_one_shape_and_two_sizes_have_two_rows_of_parameters(capsys):
    for total, trained, size in ((618, 16, "8x8"), (2154, 16, "16x16")):
        mlp = {"arch": "mlp", "depth": 2, "width": None, "hidden": "8", "image_size": size}
        mlp |= {"params_total": total, "params_trained": trained}
        pretend(0, 50, "mine", train="bn", **mlp)
    assert plots.main(["--only", "parameters", "--format", "md"]) == 0
    printed = capsys.readouterr().out
    assert "| MLP 8, 618 in all | ours | 618 | 16 |" in printed
    assert "| MLP 8, 2,154 in all | ours | 2,154 | 16 |" in printed


def test_other_csvs_beside_those_of_bench_are_named(capsys):
    Path("results/bench").mkdir(parents=True)
    Path("results/bench/notes.csv").write_text("a,b\n1,2\n")
    assert plots.main(["--only", "speed"]) == 0
    assert "notes.csv: it lacks the columns device" in capsys.readouterr().err


def test_figures_alone_leave_no_folder_of_tables(capsys):
    pretend(0, 50, train="bn")
    assert plots.main("--out out --format png".split()) == 0
    assert "out/tables" not in capsys.readouterr().out
    assert not Path("out/tables").exists() and list(Path("out/figures").glob("*.png"))


def test_equal_accuracies_have_a_p_value():
    a, b = (pd.DataFrame({"seed": range(5), "test_acc": 50.0}) for _ in range(2))
    assert stats.p_values(a, b) == (1, 1)
    assert stats.p_text(1.0) == "1"
    more = b.assign(test_acc=51.0)
    assert stats.p_values(more, b) == (0, 0)
    assert np.isnan(stats.p_values(a[:2], b[:2])).all()


def test_a_long_recipe_that_can_decide_speaks_before_a_short_one_that_cannot():
    def found(epochs, pairs):
        figure = difference(*np.linspace(0.9, 1.1, pairs))
        return Finding("4b", "case", figure, CLOSE, in_full=True, epochs=epochs)

    long, short, one = found(160, 4), found(30, 5), found(160, 1)
    assert max(short, long, key=lambda finding: finding.precedence) is long
    assert max(short, one, key=lambda finding: finding.precedence) is short
    (verdict,) = claims.verdicts_on([long])
    assert verdict.word == "confirmed" and "4 of 5 seeds" in verdict.reasons


def test_random_entries_overtake_on_the_seeds_that_both_have(capsys):
    rows = pd.DataFrame(
        {
            "arch": "resnet",
            "depth": 14,
            "width": 1,
            "train": ["bn", "bn", "random:2", "random:4"],
            "seed": [0, 1, 1, 1],
            "test_acc": [60.0, 80.0, 75.0, 81.0],
            "val_acc": np.nan,
            "params_trained": 1120,
        }
    )
    exp_random_params.report(rows, ["bn", "random:2", "random:4"])
    assert "the smallest K whose mean overtakes bn: random:4" in capsys.readouterr().out


def test_the_split_that_an_image_folder_does_not_use_is_named(capsys):
    image_folder("pets")
    shutil.copytree("pets/test", "pets/val")
    assert run("--dataset", "imagefolder", "--data", "pets", "--epochs", 1, "--subset", 4) == 0
    assert "pets/val has no part: pets/test is the test split" in capsys.readouterr().err
