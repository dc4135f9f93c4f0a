"""The smoke tests, in a minute: parameter counts, what is frozen stays frozen, the loop beside a
plain one, resume, the CSV contract, every script end to end on `digits`, errors. `pytest` runs
these and those in tests/."""

import itertools
import re
import signal
import time
from pathlib import Path

from tests.helpers import folder  # noqa: F401, every test's own
from tests.helpers import (
    BATCHNORM,
    GRID,
    HERE,
    SMALL,
    Forked,
    agrees,
    arguments,
    counts,
    ends_as_a_whole_one,
    files,
    rows,
    run,
    run_name,
    the_csv,
)
import pandas as pd
import pytest
import torch
from filelock import FileLock

import common
from harness import checkpoints
from harness import runs as records
from harness.config import Process
from harness.parts import parts
import exp_bn_init
import exp_bn_only
import exp_depth_width
import exp_mlp_lenet
import exp_norms
import exp_random_params
import predict

# ---------------------------------------------------------------------- parameters, frozen and not

TOTAL = {14: "175K", 32: "467K", 56: "856K", 110: "1.73M", 218: "3.48M", 434: "6.98M", 866: "14.0M"}


@pytest.mark.parametrize("depth", BATCHNORM)
def test_parameter_counts_equal_the_papers(depth):
    found = counts(depth)
    assert found["gamma"] == found["beta"] == BATCHNORM[depth] // 2
    assert (found["output"], found["shortcut"]) == (650, 2560)
    assert agrees(sum(found.values()), TOTAL[depth])


MEANS = {  # what the words of --train mean
    "all": "gamma beta output shortcut conv",
    "none": "",
    "all-bn": "output shortcut conv",
    "bn": "gamma beta",
    "gamma": "gamma",
    "beta": "beta",
    "output": "output",
    "shortcut": "shortcut",
    "conv": "conv",
    "bn+output": "gamma beta output",
    "gamma+shortcut": "gamma shortcut",
    "conv+output+beta": "conv output beta",
}


@pytest.mark.parametrize("train, means", MEANS.items())
def test_what_is_trained_moves_and_nothing_else_does(train, means):
    args = arguments("--train", train, "--epochs", 1)
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    before = {part: [p.detach().clone() for p in ps.values()] for part, ps in parts(model).items()}
    statistics = [each.clone() for each in running_statistics(model)]
    args.quiet = True
    assert common.fit(model, data, args).code == 0
    for part, ps in parts(model).items():
        for old, new in zip(before[part], ps.values(), strict=True):
            assert torch.equal(old, new) == (part not in means.split()), part
    for old, new in zip(statistics, running_statistics(model), strict=True):
        assert not torch.equal(old, new)


def running_statistics(model) -> list[torch.Tensor]:
    buffers = checkpoints.buffers(model).values()
    return [buffer for buffer in buffers if buffer.is_floating_point()]


def test_one_seed_gives_one_start_whatever_is_trained():
    models = {}
    for train in ("bn", "output", "all"):
        args = arguments("--train", train, "--seed", 3)
        models[train] = common.build_model(args, common.load_data(args))
        common.freeze(models[train], args.train)
    args = arguments("--seed", 4)
    other = common.build_model(args, common.load_data(args))
    for name, p in models["bn"].named_parameters():
        assert torch.equal(p, models["output"].get_parameter(name))
        assert torch.equal(p, models["all"].get_parameter(name))
        assert name.endswith("bias") or not torch.equal(p, other.get_parameter(name))


# --------------------------------------------------------------------------------------------- data


def numbered() -> common.Data:
    """150 images, each different from the others, whose labels are their numbers."""
    data = common.load_data(arguments())
    data.images["train"] = torch.arange(150 * 64).remainder(251).to(torch.uint8).view(150, 8, 8, 1)
    data.labels["train"] = torch.arange(150)
    return data


def batches(data, epoch: int, augment: str) -> list[tuple[torch.Tensor, int]]:
    """The images of an epoch and their numbers, in its order."""
    found = []
    for images, labels in data.training_batches(0, epoch, 7, augment):
        found += zip(images, labels.tolist(), strict=True)
    return found


def test_training_batches_hold_every_image_once_in_an_order_of_the_epoch():
    data = numbered()
    first = batches(data, 1, "none")
    order = [i for _, i in first]
    assert sorted(order) == list(range(150))
    for image, i in first:
        assert torch.equal(image, data.normalise(data.images["train"][i : i + 1])[0])
    assert order != [i for _, i in batches(data, 2, "none")]


def test_images_are_cropped_after_padding_by_four_and_mirrored():
    data, seen = numbered(), set()
    padded = data.normalise(torch.nn.functional.pad(data.images["train"], (0, 0, 4, 4, 4, 4)))
    views = list(itertools.product(range(9), range(9), (False, True)))
    for image, i in batches(data, 1, "crop+flip"):
        for row, column, mirrored in views:
            crop = padded[i, :, row : row + 8, column : column + 8]
            if torch.equal(image, crop.flip(2) if mirrored else crop):
                seen.add((row, column, mirrored))
                break
        else:
            pytest.fail(f"image {i} is no crop of itself")
    rows_seen, columns_seen, mirrored_seen = map(set, zip(*seen, strict=True))
    assert rows_seen == columns_seen == set(range(9))
    assert mirrored_seen == {False, True}


# -------------------------------------------------------------------------- every script end to end


def recorded() -> list[dict]:
    """The rows of all runs."""
    return [row for path in Path("results").rglob("*[0-9a-f].csv") for row in rows(path)]


WITHOUT_DEPTH = [word for word in GRID if word not in ("--depth", "8")]


def test_a_grid_makes_each_run_once_and_takes_those_that_are_free(capsys):
    words = [*GRID, "--depths", "8", "14", "--widths", "1", "--seeds", "0", "1", "0"]
    assert exp_depth_width.main([*words, "--dry-run"]) == 0
    assert not files()
    assert "4 runs: 0 finished, 4 to make" in capsys.readouterr().out
    args = arguments("--epochs", 1, "--seed", 1)
    args.process = Process(Path("exp_depth_width.py"))
    path, _ = records.run_files(args, run_name(args))
    path.parent.mkdir(parents=True)
    with FileLock(path.with_name(f".{path.stem}.lock")):
        assert exp_depth_width.main(words) == 0
    assert "another process" in capsys.readouterr().err
    assert len(list(Path("results").rglob("*[0-9a-f].csv"))) == 3
    made = {path: content for path, content in files().items() if not path.endswith(".lock")}
    assert exp_depth_width.main(words) == 0
    out = capsys.readouterr().out
    assert "4 runs: 3 finished, 1 to make" in out
    assert "depth 14" in out
    assert "(2)" in out
    assert {path: content for path, content in files().items() if path in made} == made


def test_random_params_end_to_end(capsys):
    words = "--per-channel 2 all --also output --seeds 0 1".split()
    assert exp_random_params.main([*GRID, *words]) == 0
    out = capsys.readouterr().out
    assert "6 runs" in out
    assert out.count("(2)") == 3
    assert "random:2+output" in out
    assert "overtakes bn+output: random" in out or "none of these" in out
    assert {row["experiment"] for row in recorded()} == {"random_params"}


def test_davis_frank_end_to_end(capsys):
    start = "--network cifar_resnet14 --bn-weight 0.1 --c 100 --input-norm bn dataset"
    words = ["davis_frank", *WITHOUT_DEPTH, *start.split()]
    assert exp_bn_init.main([*words, "--seeds", "1", "2", "3"]) == 0
    out = capsys.readouterr().out
    assert "9 runs" in out
    assert "2 comparisons" in out
    assert out.count("p = ") == 2
    assert exp_bn_init.main([*words, "--train", "bn"]) == 2
    assert "unrecognized arguments: --train" in capsys.readouterr().err
    assert exp_bn_init.main([*words, "--seeds", "1", "2"]) == 0
    assert "too few seeds" in capsys.readouterr().out
    assert "1869972635" in {row["seed"] for row in recorded()}
    assert exp_bn_init.complex_seed(0) == 4186399962


def test_frankle_end_to_end(capsys):
    words = "--gamma-init uniform symmetric --beta-init ones --weight-init binary --seed 1"
    assert exp_bn_init.main(["frankle", *GRID, *words.split()]) == 0
    assert "γ symmetric, β ones, weights binary" in capsys.readouterr().out


def test_mlp_end_to_end(capsys):
    words = "--hidden 30 20 --bn before after none --train bn random:2 hidden --activation tanh"
    assert exp_mlp_lenet.main([*WITHOUT_DEPTH, *words.split()]) == 0
    out = capsys.readouterr().out
    assert "8 runs" in out  # without BatchNorm, no bn
    assert out.count("100 trained") == 5
    assert out.count("2,570 trained") == 3
    assert exp_mlp_lenet.main([*WITHOUT_DEPTH, "--bn", "none", "--train", "bn"]) == 2
    assert "hidden" in capsys.readouterr().err


def test_lenet_end_to_end(capsys):
    words = [*WITHOUT_DEPTH, "--arch", "lenet5"]
    size = "--image-size 28 --bn none --train all"
    assert exp_mlp_lenet.main([*words, *size.split()]) == 0
    assert "61,706 trained" in capsys.readouterr().out
    assert exp_mlp_lenet.main(words) == 2
    assert "--image-size 28" in capsys.readouterr().err


def test_norms_end_to_end(capsys):
    words = [*GRID, "--train", "norm", "--seeds", "0", "1"]
    assert exp_norms.main(words) == 0
    out = capsys.readouterr().out
    found = recorded()
    assert len(found) == 14
    assert {row["params_trained"] for row in found} == {"672"}
    assert {row.get("norm", "bn") for row in found} == {"bn", *exp_norms.KINDS, "gn:4"}
    assert {row["train"] for row in found} == {"bn", "norm"}
    assert all(f", {kind}, rate 0.1" in out for kind in ("bn", "gn:4", "rms", "none"))
    assert exp_norms.main(words) == 0
    assert "14 finished, 0 to make" in capsys.readouterr().out


def test_predict_gives_the_accuracy_of_the_csv(capsys):
    for words in ("--train bn", "--train random:2+output", "--image-size 16"):
        assert run(*words.split(), "--results", words, "--checkpoints", words) == 0
        checkpoint = next(Path(words).rglob("*.pt"))
        assert predict.main([str(checkpoint), "--dataset", "digits"]) == 0
        accuracy = float(rows(the_csv(words))[-1]["test_acc"])
        assert f"{accuracy:.2f} % of 359 test images" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ records


def test_the_csv_contract():
    assert run("--seed", 5) == 0
    path = the_csv()
    columns = (
        "experiment run dataset subset val_fraction arch depth width train gamma_init beta_init "
        "weight_init augment seed epochs batch_size optimizer lr momentum weight_decay schedule "
        "warmup_epochs precision params_total params_trained epoch train_loss train_acc val_loss "
        "val_acc test_loss test_acc test_top5 seconds device threads torch commit status"
    ).split()
    table = pd.read_csv(path)
    assert list(table.columns[: len(columns)]) == columns
    assert table.epoch.tolist() == [1, 2, 3]
    assert set(table.status) == {"ok"}
    assert table.subset.tolist() == [150] * 3
    assert re.fullmatch(r"resnet8-w1-digits-bn-s5-[0-9a-f]{6}", path.stem)
    assert path.parent.name == "bn_only"
    first = table.iloc[0]
    assert first.experiment == "bn_only"
    assert (first.train, first.params_trained) == ("bn", 672)
    assert (first.optimizer, first.lr) == ("sgd", 0.1)
    assert first.test_top5 >= first.test_acc


def test_what_gamma_and_beta_have_become_is_a_table():
    assert run() == 0
    table = pd.read_csv(the_csv())
    learned = pd.read_csv(the_csv().with_suffix(".bn.csv.gz"))
    columns = "layer channel gamma beta gamma_init beta_init running_mean running_var active"
    assert list(learned.columns) == columns.split()
    assert len(learned) == 336
    assert learned.active.isna().sum() == 32 + 64
    assert learned.active.dropna().between(0, 1).all()
    assert learned.gamma_init.between(0, 1).all()
    assert (learned.beta_init == 0).all()
    assert (learned.gamma != learned.gamma_init).mean() > 0.99
    pruned = pd.read_csv(the_csv().with_suffix(".prune.csv.gz"))
    assert pruned.test_acc[0] == pytest.approx(table.test_acc.iloc[-1])
    assert pruned.zeroed.tolist() == [(learned.gamma.abs() < t).sum() for t in pruned.threshold]


def test_the_same_command_twice_gives_the_same_csv():
    for place in ("a", "b"):
        assert run("--results", place, "--checkpoints", place, "--augment", "crop+flip") == 0
    assert rows(the_csv("a")) == rows(the_csv("b"))
    for kind in ("bn", "prune"):
        assert table_of(kind, "a") == table_of(kind, "b")


def table_of(kind: str, results: str) -> bytes:
    return the_csv(results).with_suffix(f".{kind}.csv.gz").read_bytes()


def test_killed_and_resumed_equals_never_killed():
    words = "--epochs 12 --train all --augment crop+flip --val-fraction 0.2 --quiet".split()
    killed = [*words, "--results", "killed", "--checkpoints", "killed"]
    for epochs in (3, 7):
        process = Forked(HERE / "exp_bn_only.py", *SMALL, *killed)
        deadline = time.monotonic() + 60
        while not list(Path("killed").rglob("*.csv")) or len(rows(the_csv("killed"))) < epochs:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.err
    assert 3 <= len(rows(the_csv("killed"))) < 12
    assert run(*killed) == run(*words, "--results", "whole", "--checkpoints", "whole") == 0
    assert rows(the_csv("killed")) == rows(the_csv("whole"))
    assert table_of("bn", "killed") == table_of("bn", "whole")
    assert [p.suffix for p in Path("killed").rglob("*") if p.is_file()].count(".pt") == 1


def test_time_limit_stops_after_an_epoch_and_the_same_command_goes_on(capsys):
    assert exp_bn_only.main([*SMALL, "--time-limit", "1e-9"]) == 0
    assert "1 of 3 epochs: the same command goes on" in capsys.readouterr().out
    assert len(rows(the_csv())) == 1
    assert run() == 0
    ends_as_a_whole_one()


def test_a_finished_run_is_not_made_again_unless_forced(capsys):
    assert run() == 0
    before, when = the_csv().read_bytes(), the_csv().stat().st_mtime_ns
    assert exp_bn_only.main(SMALL) == 0
    out = capsys.readouterr().out
    assert "finished before" in out
    assert "python exp_bn_only.py" in out
    assert "--train output" in out
    assert "chance: 10.00 %" in out
    assert "672 of" in out
    assert the_csv().read_bytes() == before
    assert the_csv().stat().st_mtime_ns == when
    assert run("--force") == 0
    assert the_csv().stat().st_mtime_ns != when  # its bytes may be the same, seconds included


# ----------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("train", ["bn", "all"])
def test_the_loop_equals_a_plain_one(train):
    words = "--depth 14 --augment none --subset 200 --weight-decay 0.01 --train"
    args = arguments(*words.split(), train)
    data = common.load_data(args)
    ours, plain = common.build_model(args, data), common.build_model(args, data)
    plain.to(memory_format=torch.contiguous_format)
    for model in (ours, plain):
        common.freeze(model, train)
        model.train()
    optimizer, *_ = common.recipe(ours, args)
    trained = [p for p in plain.parameters() if p.requires_grad]
    one_by_one = {"foreach": False, "fused": False}
    reference = torch.optim.SGD(trained, 0.1, 0.9, weight_decay=0.01, **one_by_one)
    images, labels = data.images["train"], data.labels["train"]
    mean, std = images.float().mean(), images.float().std(correction=0)
    order = torch.randperm(200, generator=common.generator(0, "order", 1))
    for i in common.split_batches(order, 50):
        x, y = (images[i].float().permute(0, 3, 1, 2) - mean) / std, labels[i]
        common.train_step(ours, data.normalise(images[i]), y, optimizer, args)
        reference.zero_grad()
        torch.nn.functional.cross_entropy(plain(x.contiguous()), y).backward()
        reference.step()
    for name, p in ours.named_parameters():
        other = plain.get_parameter(name)
        close = 2e-3 * other.abs().max().item() + 1e-4
        assert torch.allclose(p, other, atol=close), name


# ------------------------------------------------------------------------------------------- errors

ERRORS = {
    "--sync-bn": "torchrun",
    "--graph": "one GPU",
    "--warmup-epochs 4": "as many or fewer",
    "--depths 14 32": "takes --depth;",
    "--depth 15": "14 and 20",
    "--depth 5": "8 and 14",
    "--arch vgg --depth 14": "11, 13, 16, 19",
    "--arch vgg --depth 11": "--image-size 16",
    "--arch imagenet_resnet --depth 18 --width 2": "width 1",
    "--train random:0": "random:K",
    "--train random:2+conv": "frozen otherwise",
    "--optimizer sgdm": "adam",
    "--warmup-epochs -1": "from 0",
    "--dataset imagenet --data x": "x/train/CLASS",
    "--depth 14.5": "whole number",
    "--width 0": "from 1",
    "--train gamma+nonsense": "'nonsense'",
    "--train hidden": "conv",
    "--train=": "joined with +",
    "--dataset nothing": "digits",
    "--dataset imagefolder": "--data",
    "--subset 100000": "of 1438",
    "--subset 5": "from 10",
    "--subset -3": "from 2",
    "--val-fraction 1": "below 1",
    "--val-fraction nan": "below 1",
    "--epochs 0": "from 1",
    "--lr -1": "above 0",
    "--lr 0": "above 0",
    "--lr inf": "above 0",
    "--lr nan": "above 0",
    "--lr fast": "a number",
    "--momentum 1": "below 1",
    "--weight-decay -0.1": "from 0",
    "--weight-decay inf": "from 0",
    "--batch-size 0": "from 1",
    "--seed -1": "from 0",
    "--seed 1.5": "whole number",
    "--time-limit 0": "above 0",
    "--image-size 4": "from 8",
    "--device cuda:99": "cpu",
    "--device toaster": "cpu",
    "--precision fp8": "bf16",
    "--gamma-init constant:x": "constant:X",
    "--beta-init nan": "constant:X",
    "--no-such-flag": "--help",
    "--results /dev/null/x": "--results",
    "--checkpoints /dev/null/x": "--checkpoints",
    "--weight-init zeros": "he_normal",
    "--augment spin": "crop",
    "--augment none+flip": "none",
    "--workers 0": "from 1",
}


@pytest.mark.parametrize("words, says", ERRORS.items())
def test_bad_input_is_one_line_and_exit_code_2(words, says, capsys):
    assert run(*words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert says in printed.err
    assert [path.name for path in Path().iterdir()] in ([], ["cache"])  # no empty folder, either
