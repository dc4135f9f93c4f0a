"""What somebody found who changed copied scripts without having written them: settings that were
read and not recorded, code beside a script, data of one name, mistakes without a clear line."""

import ast
import gc
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import common
import exp_norms
import plots
import predict
from harness import runs as records
from harness.config import Process, parse
from harness.errors import UserError
from harness.parts import inner_layers
from harness.source import names_imported, source_of
from report.runs import read_runs
from tests.helpers import FOLDER, HERE, SMALL, arguments, forked, image_folder, rows, run
from tests.test_copies import PLAIN, script

# ------------------------------------------------------------------------------------------ recipes


def fitted(recipe, *words) -> dict:
    """The last row of a run of all parameters by `recipe`."""
    args = arguments("--train", "all", "--epochs", 1, *words)
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    return common.fit(model, data, args, recipe).rows[-1]


def without_decay_first(model, args):
    norms = [p for norm in common.norms(model).values() for p in norm.parameters()]
    others = [p for p in model.parameters() if all(p is not each for each in norms)]
    groups = [{"params": norms, "weight_decay": 0.0}, {"params": others}]
    beta = args.momentum
    optimizer = torch.optim.AdamW(groups, args.lr, (beta, 0.999), weight_decay=args.weight_decay)
    return common.scheduled(optimizer, args)


def test_what_a_recipe_reads_is_recorded_as_given_and_makes_another_run():
    words = [[], ["--weight-decay", 3], ["--momentum", 0.1], ["--lr", 0.02]]
    runs = [fitted(without_decay_first, *each) for each in words]
    assert len({row["run"] for row in runs}) == 4
    found = [(row["weight_decay"], row["momentum"], row["lr"]) for row in runs]
    assert found[0] == ("0.0001", "0.9", "0.1")
    assert (found[1][0], found[2][1], found[3][2]) == ("3.0", "0.1", "0.02")


def cyclic(model, args):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    return common.Recipe(
        optimizer, torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-4, args.lr), "cyclic"
    )


def test_the_rate_that_was_asked_for_is_that_of_the_records():
    assert fitted(cyclic, "--lr", 0.05)["lr"] == "0.05"


def other_optimizers(model, args):
    first, second = (torch.optim.SGD(model.parameters(), lr=args.lr) for _ in range(2))
    return common.Recipe(first, torch.optim.lr_scheduler.StepLR(second, 1), "steps")


def by_a_metric(model, args):
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    return common.Recipe(optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), "x")


def by_closures(model, args):
    return common.Recipe(torch.optim.LBFGS(model.parameters()), None, "constant")


@pytest.mark.parametrize(
    "recipe, says",
    [
        (other_optimizers, "that of another optimizer"),
        (by_a_metric, "not stepped by the number of epochs alone"),
        (by_closures, "LBFGS calculates a step's loss several times"),
    ],
)
def test_recipes_that_the_loop_cannot_follow_are_refused(recipe, says):
    with pytest.raises(UserError, match=says):
        fitted(recipe)
    assert not Path("results").exists()


# --------------------------------------------------------------------------------------------- code


def test_a_module_beside_a_script_is_part_of_its_source():
    Path("common.py").write_text((HERE / "common.py").read_text(encoding="utf-8"))
    Path("exp_mine.py").write_text("import common\nfrom nets import net\n")
    Path("nets.py").write_text("import torch\n")
    digests = {source_of(Path("exp_mine.py").resolve())}
    source_of.cache_clear()
    assert digests == {source_of(Path("exp_mine.py").resolve())}
    for name in ("nets.py", "common.py", "exp_mine.py"):
        with open(name, "a") as file:
            file.write("\n# changed\n")
        source_of.cache_clear()
        digests.add(source_of(Path("exp_mine.py").resolve()))
    assert len(digests) == 4


def test_a_script_of_ours_is_an_edited_one_where_common_was_edited():
    for name in ("common.py", "exp_bn_only.py"):
        shutil.copy(HERE / name, name)
    ours = Path("exp_bn_only.py").resolve()
    assert source_of(ours) == ""
    with open("common.py", "a") as file:
        file.write("\n# changed\n")
    source_of.cache_clear()
    assert len(source_of(ours)) == 6


def test_a_finalizer_that_parses_does_not_disturb_the_reading_of_a_script():
    def deeper(frames: int):
        return deeper(frames - 1) if frames else ast.parse("x = [1, (2, 3)]")

    def collected(phase, _):
        deeper(10)  # as pytest's hook does, which formats what a destructor raised

    before = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(1)
    try:
        found = names_imported(HERE / "exp_bn_only.py")[0]
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(collected)
    assert "common" in found


def test_predict_says_that_a_script_has_changed_since(capsys):
    script("mine", PLAIN)
    forked("exp_mine.py", *SMALL, "--epochs", 1, "--quiet")
    (checkpoint,) = Path("checkpoints/mine").glob("*.pt")
    assert predict.main([str(checkpoint), "--dataset", "digits"]) == 0
    assert not capsys.readouterr().err
    script("mine", PLAIN + "\n# changed\n")
    source_of.cache_clear()
    assert predict.main([str(checkpoint), "--dataset", "digits"]) == 0
    assert "exp_mine.py, or what it imports, has changed since" in capsys.readouterr().err


def test_convolutions_of_one_and_three_dimensions_start_as_asked():
    def net(args, size, classes):
        return nn.Sequential(nn.Conv1d(8, 4, 3), nn.Conv3d(1, 4, 3), nn.Linear(4, classes))

    args = arguments("--weight-init", "binary")
    model = common.build_model(args, common.load_data(args), net)
    for layer in model:
        assert layer.weight.detach().abs().std().item() == pytest.approx(0, abs=1e-6)
    assert inner_layers(model) == [model[0], model[1]]


def test_lazy_layers_take_their_shapes_from_the_images_and_their_start_from_the_seed():
    def lazy(args, size, classes):
        layers = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*layers, nn.LazyLinear(classes))

    def plain(args, size, classes):
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(4 * 6 * 6, classes))

    args = arguments()
    data = common.load_data(args)
    found, wanted = (common.build_model(args, data, build).state_dict() for build in (lazy, plain))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    "output, told",
    [
        (lambda x: (x, x), "returns a tuple: it"),
        (lambda x: x[:, 0], r"returns a tensor of shape \(50,\): it"),
    ],
)
def test_a_network_that_returns_no_logits_is_told_what_it_has_to(output, told):
    class Net(nn.Sequential):
        def forward(self, x):
            return output(super().forward(x))

    args = arguments()
    data = common.load_data(args)
    model = Net(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match=told):
        common.fit(model, data, args)


# -------------------------------------------------------------------------------------------- grids


@dataclass
class Powers(exp_norms.Settings):
    lists = exp_norms.Settings.lists | {"power": [1.0]}

    power: float = common.flag(2.0, "of nothing")
    plain: int = 3


def powers(*words) -> Powers:
    words = [*SMALL, "--epochs", "1", "--quiet", *words]
    return parse(Powers, words, "", Process(Path("exp_powers.py")))


def test_reports_average_over_seeds_alone(capsys):
    args = powers("--power", "1", "2", "--seed", "0", "1", "--norm", "bn")
    code, outcomes = records.make_grid(common.grid(args), exp_norms.run)
    for table in common.tables_of(outcomes, args, "depth", "train", "norm", "lr"):
        exp_norms.report(table)
    told = re.sub(r"\d+\.\d ± \d+\.\d", "ACCURACY", capsys.readouterr().out)
    assert code == 0
    headings = re.findall(r"^power .*:$", told, re.MULTILINE)
    assert headings == ["power 1.0:", "power 2.0:"]
    assert told.count("ACCURACY (2)") == 2


def test_a_grid_varies_what_its_records_show():
    with pytest.raises(UserError, match="a grid varies flags.*plain is none"):
        common.grid(powers(), plain=[1, 2])
    with pytest.raises(UserError, match="nonsense is none"):
        common.grid(powers(), nonsense=[1])
    (one,) = common.grid(powers("--norm", "bn"), seed=[0])
    with pytest.raises(UserError, match="varies plain, which is in no run's name: a flag"):
        common.run_grid([one, one.but(plain=2)], exp_norms.run)
    assert len(records.each_once([one, one.but(quiet=False)])) == 1


def test_the_settings_of_a_grid_are_those_of_no_run():
    with pytest.raises(UserError, match=r"of no single run: common.grid\(args\)"):
        exp_norms.run(powers().but(device="auto"))


@dataclass
class Typed(common.Settings):
    maybe: float | None = common.flag(None, "a number, if given")
    times: "int | None" = common.flag(None, "a whole number, if given")
    word: str | None = common.flag(None, "a word, if given")


def test_a_flag_without_a_default_has_the_type_of_its_annotation():
    args = parse(Typed, "--maybe 0.5 --times 3 --word 7".split(), "", Process())
    assert (args.maybe, args.times, args.word) == (0.5, 3, "7")
    assert parse(Typed, [], "", Process()).maybe is None
    for words in ("--maybe abc", "--times 0.5"):
        with pytest.raises(UserError, match="is not a"):
            parse(Typed, words.split(), "", Process())


# --------------------------------------------------------------------------------------------- data


def test_folders_of_one_name_are_not_averaged():
    few = ["--subset", 10, "--epochs", 1]
    image_folder("here/pets")
    image_folder("there/pets")
    for path in Path("there/pets/train/cat").iterdir():
        Image.new("RGB", (12, 12), "red").save(path)
    for seed, place in enumerate(("here", "there")):
        assert run("--dataset", "imagefolder", "--data", f"{place}/pets", *few, "--seed", seed) == 0
    assert run("--dataset", "imagefolder", "--data", "here/pets", *few, "--seed", 2) == 0
    runs = read_runs(Path("results"))
    assert sorted(runs.groupby("dataset").size()) == [1, 2]
    assert all(re.fullmatch(r"pets \([0-9a-f]{6}\)", name) for name in runs.dataset)


def test_a_folder_that_is_called_like_a_data_set_is_not_taken_for_it():
    image_folder("digits")
    assert run("--dataset", "imagefolder", "--data", "digits", "--subset", 10, "--epochs", 1) == 0
    (row,) = read_runs(Path("results")).to_dict("records")
    assert row["dataset"] == "digits-folder"


def test_a_folder_within_a_folder_is_said_to_be_one_class(capsys):
    image_folder()
    assert run(*FOLDER, "--subset", 10, "--epochs", 1, "--dry-run") == 0
    assert "warning" not in capsys.readouterr().err
    Path("nested/train").mkdir(parents=True)
    Path("pets/train").rename("nested/train/images")
    nested = ["--dataset", "imagefolder", "--data", "nested", "--subset", 5]
    assert run(*nested, "--epochs", 1, "--dry-run") == 0
    alone = "warning: nested has the class images alone: every answer will be right\n"
    assert capsys.readouterr().err == alone


def test_a_run_of_an_earlier_version_goes_on_without_the_digest_of_its_images():
    image_folder()
    words = [*FOLDER, "--subset", 10, "--epochs", 2]
    assert run(*words) == 0
    (path,) = Path("results/bn_only").glob("*[0-9a-f].csv")
    whole = rows(path)
    path.unlink()
    assert run(*words, "--force", "--time-limit", "1e-9") == 0
    path.write_text(re.sub(r",[^,\n]*$", "", path.read_text(), flags=re.MULTILINE))
    assert "data" not in rows(path)[0]
    assert run(*words) == 0
    assert rows(path) == whole


def test_a_split_of_another_name_is_refused():
    images, labels = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 2
    splits = ("train", "valid", "test")
    with pytest.raises(UserError, match="images of train, valid, test: give those of train, val"):
        common.make_data(
            arguments(), "mine", dict.fromkeys(splits, images), dict.fromkeys(splits, labels)
        )


def test_predict_and_plots_refuse_what_they_cannot_read(capsys):
    script(
        "four",
        """
import numpy as np
def load_data(args):
    images, labels = np.zeros((40, 8, 8, 4), np.uint8), np.arange(40) % 2
    images[::2] = 200
    return common.make_data(args, "four", images, labels)
"""
        + PLAIN.replace("common.load_data", "load_data"),
    )
    forked("exp_four.py", "--device", "cpu", "--depth", 8, "--epochs", 1, "--quiet")
    (checkpoint,) = Path("checkpoints/four").glob("*.pt")
    Image.new("RGB", (8, 8), "red").save("red.png")
    assert predict.main([str(checkpoint), "red.png"]) == 2
    assert "knows images of 4 channels" in capsys.readouterr().err
    assert plots.main(["--results", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere is no folder")
