"""What a copied script counts on: the network that fit leaves, records of what was trained, grids
whose reports hold, data that are not taken for others."""

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
import exp_bn_init
import exp_mlp_lenet
import exp_norms
import exp_random_params
import predict
from harness import runs as records
from harness.config import Process, parse
from harness.errors import UserError
from harness.folders import list_folder
from harness.parts import inner_layers, trained_as
from tests.helpers import FOLDER, GRID, HERE, SMALL, Forked, arguments, forked, image_folder
from tests.helpers import rows, run, the_csv
from tests.test_copies import PLAIN, script


def build(args, network=common.network):
    data = common.load_data(args)
    return data, common.build_model(args, data, network)


# --------------------------------------------------------------------------------------------- fit


def test_after_fit_a_network_is_what_its_run_left_also_where_it_was_finished_before():
    args, values = arguments("--epochs", 1), []
    for _ in range(2):
        data, model = build(args)
        common.freeze(model, "bn")
        outcome = common.fit(model, data, args)
        values.append(model.bn.weight.tolist())
    assert outcome.again
    assert values[0] == values[1]
    assert values[0] != build(args)[1].bn.weight.tolist()


def test_a_recipe_that_leaves_out_what_is_trainable_is_refused():
    args = arguments()
    data, model = build(args)
    common.freeze(model, "bn+output")

    def of_output(model, args):
        return common.scheduled(torch.optim.SGD(model.output.parameters(), args.lr), args)

    with pytest.raises(UserError, match="bn.weight is trainable, and the recipe's"):
        common.fit(model, data, args, of_output)


def test_what_a_script_measures_is_of_the_exact_weights():
    args, seen = arguments().but(precision="bf16"), []
    data, model = build(args)
    common.freeze(model, "bn")
    exact = model.conv.weight.tolist()

    def look(model):
        seen.append(model.conv.weight.tolist())
        return {}

    with common.arithmetic(model, args, data.size):
        assert model.conv.weight.tolist() != exact
        common.measure(model, data, args, look)
        assert model.conv.weight.tolist() != exact
    assert seen == [exact]


def test_an_optimizer_whose_moments_have_another_shape_goes_on():
    script(
        "adafactor",
        """
def recipe(model, args):
    trained = [p for p in model.parameters() if p.requires_grad]
    return common.scheduled(torch.optim.Adafactor(trained, lr=0.01), args)
"""
        + PLAIN.replace("fit(model, data, args)", "fit(model, data, args, recipe)"),
    )
    words = ["exp_adafactor.py", *SMALL, "--train", "all", "--quiet"]
    forked(*words, "--time-limit", "1e-9")
    going_on = forked(*words)
    assert not going_on.err
    interrupted = rows(the_csv())
    forked(*words, "--force")
    assert rows(the_csv()) == interrupted


def test_what_was_measured_in_earlier_epochs_stays():
    words = [*GRID, "--norm", "bn", "--epochs", "3"]
    assert exp_norms.main([*words, "--watch", "--time-limit", "1e-9"]) == 0
    assert exp_norms.main(words) == 0
    dead = [row["dead"] for row in rows(the_csv())]
    assert dead[0] and dead[1:] == ["", ""]


# ----------------------------------------------------------------------------------------- freezing


def test_random_entries_of_what_is_trained_are_refused():
    model = build(arguments())[1]
    for words in ("all-output+random:2", "all-bn+random:1", "random:2+conv", "bias+all+random:all"):
        with pytest.raises(UserError, match="of weights that are frozen otherwise"):
            common.freeze(model, words)


def test_a_head_of_several_modules_is_a_head_as_a_whole():
    def headed(args, size, classes):
        model = common.network(args, size, classes)
        model.output = nn.Sequential(nn.Dropout(0.1), model.output)
        return model

    model = build(arguments(), headed)[1]
    assert not set(inner_layers(model)) & set(model.output.modules())


def test_a_predicate_keeps_its_name_where_no_word_has_one():
    class Scaled(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.scale, self.origin = nn.Parameter(torch.ones(64)), nn.Parameter(torch.zeros(64))
            self.output = nn.Linear(64, classes)

        def forward(self, x):
            return self.output(x.flatten(1) * self.scale + self.origin)

    model = build(arguments(), lambda args, size, classes: Scaled(classes))[1]
    common.freeze(model, lambda name, module, p: name == "scale", called="scale alone")
    assert trained_as(model) == "scale alone"


# -------------------------------------------------------------------------------------- any network


def test_parametrised_weights_start_as_asked():
    def normed(args, size, classes):
        return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 10)))

    normal, binary = (
        build(arguments("--weight-init", start), normed)[1][1].weight
        for start in ("he_normal", "binary")
    )
    assert len(normal.abs().unique()) > 100
    assert torch.allclose(binary.abs(), binary.abs()[0, 0])


def test_networks_with_tensors_of_five_dimensions_and_normalisations_without_gamma():
    class Volume(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.output = nn.Conv3d(1, 4, 3), nn.Linear(4, 10)

        def forward(self, x):
            return self.output(self.conv(x.expand(-1, 3, -1, -1)[:, None]).mean((2, 3, 4)))

    args = arguments("--epochs", 1, "--image-size", 12)
    data, model = build(args, lambda args, size, classes: Volume())
    common.freeze(model, "all")
    assert common.fit(model, data, args).finished

    def without_gamma(args, size, classes):
        model = common.network(args, size, classes)
        model.bn = nn.BatchNorm2d(16, affine=False)
        return model

    data, model = build(args, without_gamma)
    common.freeze(model, "bn")
    assert common.fit(model, data, args).finished


def test_predict_and_grids_know_what_the_guides_script_has_trained(capsys):
    guide = (HERE / "docs/copying.md").read_text(encoding="utf-8")
    whole, *_ = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    Path("exp_dropout.py").write_text(whole)
    words = ["exp_dropout.py", *SMALL, "--epochs", 1, "--dropout", 0.6, "--quiet"]
    forked(*words)
    (checkpoint,) = Path("checkpoints/dropout").glob("*.pt")
    assert predict.main([str(checkpoint), "--dataset", "digits"]) == 0
    right = float(rows(the_csv())[-1]["test_acc"])
    assert f"{right:.2f} % of 359 test images" in capsys.readouterr().out
    # and its grid knows what is finished, though the network's name is not --arch's
    assert "2 runs: 1 finished, 1 to make" in forked(*words, "--seeds", 0, 1).out
    assert "2 runs: 2 finished, 0 to make" in forked(*words, "--seeds", 0, 1).out


def test_predict_shows_a_mistake_in_the_script_as_it_is():
    script("mine", "def build(args, data):\n    return common.build_model(args, data)\n" + PLAIN)
    forked("exp_mine.py", *SMALL, "--epochs", 1)
    path = Path("exp_mine.py")
    path.write_text(path.read_text().replace("common.build_model", "common.biuld_model"))
    (checkpoint,) = Path("checkpoints/mine").glob("*.pt")
    process = Forked(HERE / "predict.py", checkpoint, "--dataset", "digits")
    assert process.wait() == 1, process.err
    assert "has no attribute 'biuld_model'" in process.err


def test_predict_takes_images_in_the_shape_of_those_it_was_trained_on(capsys):
    image_folder(sizes=((12, 8),))
    assert run(*FOLDER, "--subset", 10, "--epochs", 1) == 0
    (checkpoint,) = Path("checkpoints/bn_only").glob("*.pt")
    trained = predict.load(checkpoint, "cpu")
    (x,) = predict.batches(trained, [Path("pets/test/cat/0.png")])
    assert x.shape == (1, 3, 12, 8)


# -------------------------------------------------------------------------------------------- grids


def test_one_run_is_never_counted_as_two_seeds(capsys):
    quick = [*GRID, "--seeds", "0"]
    assert exp_random_params.main([*quick, "--per-channel", "2", "2"]) == 0
    assert exp_norms.main([*quick, "--norm", "bn", "--train", "bn", "norm"]) == 0
    printed = capsys.readouterr().out
    assert "(1)" in printed and "(2)" not in printed


@pytest.mark.parametrize(
    "module, words",
    [
        (exp_norms, ["--norm", "bn"]),
        (exp_bn_init, ["frankle"]),
        (exp_random_params, ["--per-channel", "2"]),
    ],
)
def test_a_grid_of_which_nothing_is_finished_says_so(module, words, capsys):
    words = [*words, *GRID, "--epochs", "2"]
    assert module.main([*words, "--time-limit", "1e-9"]) == 0
    assert module.main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert not printed.err and "test accuracy" not in printed.out


@pytest.mark.parametrize(
    "name, words, told",
    [
        ("norms", "--norm bn --train bn", r"no depth, bn, bn, rate 0.1 +\d+\.\d \(1\)"),
        ("depth_width", "--depth 8 --width 1", r"bn +no depth +\d+\.\d \(1\) +2 trained"),
        ("random_params", "--per-channel 1", r"\nflat, no depth:\ntest accuracy in %"),
    ],
)
def test_reports_have_networks_without_a_depth(name, words, told):
    text = (HERE / f"exp_{name}.py").read_text(encoding="utf-8")
    flat = """def flat(args, size, classes):
    from torch import nn
    layers = nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, classes)
    return nn.Sequential(*layers)


@dataclass"""
    own = text.replace("@dataclass", flat).replace("NETWORKS[args.arch])", "flat)")
    own = own.replace("common.build_model(args, data) ", "common.build_model(args, data, flat) ")
    Path("exp_flat.py").write_text(own)
    assert re.search(told, forked("exp_flat.py", *SMALL, "--epochs", 1, *words.split()).out)


def test_a_dry_run_that_fails_stops_no_other_run(capsys):
    grid = common.grid(arguments("--epochs", 1), seed=[0], width=[1, 2])

    def work(args):
        if args.width == 2:
            raise MemoryError
        return run_of(args)

    code, outcomes = records.make_grid(grid, work)
    assert code == 1 and len(outcomes) == 1
    assert "out of memory" in capsys.readouterr().err


def run_of(args):
    data, model = build(args)
    common.freeze(model, "bn")
    return common.fit(model, data, args)


def test_random_parameters_are_held_against_bn_with_the_same_beside_it(capsys):
    assert exp_random_params.main([*GRID, "--per-channel", "2", "--also", "output"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"  bn\+output +\d", printed)
    assert "overtakes bn+output" in printed


@dataclass
class Settings(common.Settings):
    lists = {"skip": [False, True]}

    skip: bool = common.flag(False, "in a grid")
    on: bool = common.flag(True, "by default")
    where: Path = common.flag(Path("here"), "no plain value", Path)


def test_flags_that_are_true_or_false_and_values_that_are_not_plain():
    args = parse(Settings, ["--on", "False", "--skip", "false", "--where", "there"], "", Process())
    assert args.on is False and args.varied == {"skip": [False]}
    columns = records.name_run(common.resolved(args)).columns
    assert (columns["on"], columns["where"]) == (False, "there")
    with pytest.raises(UserError, match="'no' is neither True nor False"):
        parse(Settings, ["--on", "no"], "", Process())


# --------------------------------------------------------------------------------------------- data


def test_a_folder_of_images_may_be_the_current_one(monkeypatch):
    monkeypatch.chdir(image_folder())
    files, _, classes = list_folder(Path())
    assert classes == ["cat", "dog"]
    assert files["train"][0][0] == "train/cat/0.png"


def test_images_in_another_class_or_split_are_other_data(capsys):
    root = image_folder()
    assert run(*FOLDER, "--subset", 10, "--epochs", 1) == 0
    shutil.copytree(root, other := Path("other/pets"))
    cat, dog = (other / "train" / name / "1.png" for name in ("cat", "dog"))
    content = cat.read_bytes()
    shutil.copy(dog, cat)
    dog.write_bytes(content)
    words = ["--dataset", "imagefolder", "--subset", 10, "--epochs", 1]
    assert run(*words, "--data", other) == 2
    Image.new("RGB", (12, 12)).save(root / "test/cat/1.png")
    assert run(*words, "--data", root) == 2
    assert capsys.readouterr().err.count("other data under the same name") == 2


def test_splits_have_images_and_labels():
    images, labels = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 2
    for x, y in (
        ({"test": images}, {"test": labels}),
        ({"train": images}, {"train": labels, "test": labels}),
    ):
        with pytest.raises(UserError, match="give both of train and"):
            common.make_data(arguments(), "mine", x, y)


def test_a_run_of_another_network_under_the_same_name_leaves_no_lock():
    assert run("--epochs", 1) == 0
    csv = the_csv()
    csv.write_text(csv.read_text().replace(",8x8,", ",9x9,"))
    assert run("--epochs", 1) == 2
    assert not list(csv.parent.glob(".*.lock"))


def test_what_has_no_part_in_a_network_is_refused(capsys):
    assert exp_mlp_lenet.main(["--dataset=digits", "--arch=lenet5", "--hidden", "100"]) == 2
    assert "--hidden is of --arch mlp" in capsys.readouterr().err


def test_a_network_of_ones_own_takes_any_depth():
    settings = '@dataclass\nclass Settings(common.Settings):\n    arch: str = "mine"\n'
    script(
        "mine",
        settings
        + "from torch import nn\n"
        + "def deep(args, size, classes):\n"
        + "    layers = [nn.Linear(64, 64) for _ in range(args.depth - 1)]\n"
        + "    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, classes))\n"
        + PLAIN.replace("build_model(args, data)", "build_model(args, data, deep)"),
    )
    quick = [word for word in SMALL if word not in ("--depth", "8")]
    forked("exp_mine.py", *quick, "--epochs", 1, "--depth", 3, "--train", "bias", "--quiet")
    assert rows(the_csv())[0]["depth"] == "3"
    assert the_csv().name.startswith("mine3-")
