"""Records and checkpoints stay true where data change under a name, and where a script's own code
touches what the training loop counts on."""

import copy
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import common
import exp_mlp_lenet
import exp_norms
import predict
from harness import checkpoints, inside, onednn
from harness.config import flag, parser_for, recorded
from harness.errors import UserError
from harness.source import source_of
from harness.files import read_checkpoint
from harness.checks import materialise
from harness.runs import possible
from tests.helpers import HERE, Forked, arguments, files, forked, image_folder, one_line, rows
from tests.test_copies import BUILT, PLAIN, SMALL, made, script
from tests.test_mistakes import refused


def repaint(folder: str) -> None:
    """The same files with other images in them."""
    for path in Path(folder).rglob("*.png"):
        with Image.open(path) as image:
            inverted = 255 - np.asarray(image)
        Image.fromarray(inverted).save(path)


# --------------------------------------------------------------------------------------- other data


def test_a_grid_does_not_show_what_was_made_from_other_images(capsys):
    image_folder()
    words = ["--norm", "bn", "--dataset", "imagefolder", "--data", "pets", "--depth", "8"]
    words += ["--epochs", "1", "--quiet", "--precision", "fp32"]
    assert exp_norms.main(words) == 0
    before = files()
    assert exp_norms.main(words) == 0
    repaint("pets")
    capsys.readouterr()
    assert exp_norms.main(words) == 2
    assert "was made from other data under the same name" in one_line(capsys)
    results = {path: content for path, content in before.items() if path.startswith("results")}
    assert results.items() <= files().items()


OWN_DATA = """
def run(args):
    import numpy as np

    images = np.load("images.npy")
    data = common.make_data(args, "mine", images, np.arange(len(images)) % 4)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    return common.fit(model, data, args)
"""


def test_an_unfinished_run_of_a_scripts_own_data_is_kept_when_these_change():
    script("mine", OWN_DATA)
    images = np.random.default_rng(0).integers(256, size=(80, 8, 8, 1), dtype=np.uint8)
    np.save("images.npy", images)
    words = [word for word in SMALL if word not in ("--dataset", "digits")]
    words = words[: words.index("--subset")] + words[words.index("--subset") + 2 :]
    forked("exp_mine.py", *words, "--epochs", 2, "--time-limit", 1e-9)
    before = files()
    np.save("images.npy", 255 - images)
    again = Forked("exp_mine.py", *words, "--epochs", 2)
    assert again.wait() == 2 and "other data" in again.err
    changed = {path for path, content in files().items() if before.get(path) != content}
    assert changed == {"images.npy"}


def test_trials_of_another_table_are_no_trials_of_this_one(capsys):
    pytest.importorskip("optuna")
    draw = np.random.default_rng(0)
    words = "--dataset csv --data t.csv --epochs 1 --precision fp32 --hidden 8 --tune".split()
    for trials, code in ((1, 0), (1, 0), (2, 2)):
        if code or not Path("t.csv").exists():
            table = draw.normal(size=(60, 3)).round(3).tolist()
            lines = [",".join(map(str, [*row, i % 2])) for i, row in enumerate(table)]
            Path("t.csv").write_text("\n".join(["a,b,c,class", *lines]))
        capsys.readouterr()
        assert exp_mlp_lenet.main([*words, str(trials), "--quiet"]) == code
    assert "was made from other data under the same name" in one_line(capsys)


def test_folders_of_imagenet_with_as_many_images_have_other_digests():
    from harness.folders import Streamed

    made_of = []
    for classes in (["cat", "dog"], ["car", "ship"]):
        labels = {"train": torch.arange(2), "test": torch.arange(2)}
        paths = {split: np.array([f"{name}/1.jpg" for name in classes]) for split in labels}
        made_of.append(Streamed("imagenet", classes, paths, labels).digest)
    assert made_of[0] != made_of[1]


# ------------------------------------------------------------------------------ a script's own code


def test_a_copy_of_the_network_is_what_is_evaluated():
    """In oneDNN's layout, too, whose forward pass the copy has of itself."""
    args = arguments("--depth", 8, "--image-size", 16, "--precision", "fp32")
    torch.set_num_threads(1)
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "bn")
    with common.arithmetic(model, args, data.size):
        assert not onednn.here(args, 1) or "features" in vars(model)
        other = copy.deepcopy(model)
        nn.init.zeros_(other.output.weight)
        nn.init.zeros_(other.output.bias)
        found = common.evaluate(other, data, "test", args)["loss"]
    assert found == pytest.approx(np.log(10))


def test_an_edited_network_calculates_as_it_says(monkeypatch):
    """Whatever oneDNN's layout knows of the network as it came."""
    args = arguments("--depth", 8)
    model = common.build_model(args, common.load_data(args))
    assert onednn.suits(model, common.ResNet, common.Block)
    monkeypatch.setattr(onednn, "ours", lambda: {"common.py": "edited"})
    assert not onednn.suits(model, common.ResNet, common.Block)
    monkeypatch.undo()
    model.conv.padding_mode = "circular"
    assert not onednn.suits(model, common.ResNet, common.Block)


GRADIENTS = """
def run(args):
    import torch

    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)

    def also(model):
        x, y = next(iter(data.batches("test")))
        torch.nn.functional.cross_entropy(model(x), y).backward()
        return {"norm_of_gradient": float(model.bn.weight.grad.norm())}

    return common.fit(model, data, args, also=ALSO)
"""


def test_gradients_that_a_script_measures_are_not_trained_on():
    losses = []
    for name, also in (("with", "also"), ("without", "None")):
        script(name, GRADIENTS.replace("ALSO", also))
        table = made(name, *SMALL, "--epochs", 2)
        losses.append([row["train_loss"] for row in table])
    assert losses[0] == losses[1]


def test_two_layers_may_share_a_frozen_weight():
    class Tied(nn.Module):
        def __init__(self, *_):
            super().__init__()
            self.bn, self.a, self.b = nn.BatchNorm1d(64), nn.Linear(64, 64), nn.Linear(64, 64)
            self.b.weight, self.output = self.a.weight, nn.Linear(64, 10)

        def forward(self, x):
            return self.output(self.b(self.a(self.bn(x.flatten(1))).relu()))

    args = arguments("--epochs", 1)
    data = common.load_data(args)
    model = common.build_model(args, data, Tied)
    before = model.a.weight.clone()
    common.freeze(model, "bn")
    assert common.fit(model, data, args).finished
    assert torch.equal(model.a.weight, before)


def test_numbers_of_numpy_are_written_as_pythons(capsys):
    """In a schedule's state and in the settings, which PyTorch would refuse to read again."""
    args = arguments("--epochs", 2).but(lr=np.float64(0.05), weight_decay=np.float32(0))
    assert type(args.lr) is float and type(args.weight_decay) is float

    def cosine(model, args):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=args.lr)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: np.cos(epoch))
        return common.Recipe(optimizer, rate, "cosine")

    data = common.load_data(args)
    for limit in (1e-9, float("inf")):
        model = common.build_model(args, data)
        common.freeze(model, "bn")
        common.fit(model, data, args.but(time_limit=limit), cosine)
    assert "is not used" not in capsys.readouterr().err


def test_moments_of_ones_own_optimizer_may_have_any_shape():
    class Rows(torch.optim.SGD):
        pass

    weight = nn.Parameter(torch.zeros(3, 4))
    state = {"state": {0: {"v": torch.zeros(3)}}}
    checkpoints.check_moments(state, Rows([weight]))
    with pytest.raises(checkpoints.Damaged):
        checkpoints.check_moments(state, torch.optim.SGD([weight], 0.1))


def test_the_streams_of_python_and_numpy_have_the_seed_of_the_run():
    script(
        "drawn",
        """
def run(args):
    import random

    import numpy as np
    import torch

    data = common.load_data(args)
    model = common.build_model(args, data)
    with torch.no_grad():
        model.output.bias.copy_(torch.tensor(np.random.rand(10) + random.random()))
    common.freeze(model, "bn")
    return common.fit(model, data, args)
""",
    )
    losses = set()
    for name in ("first", "second"):
        np.random.rand(), random.random()  # which a process that is forked goes on from
        (row,) = made("drawn", *SMALL, "--epochs", 1, results=name)
        losses.add(row["test_loss"])
    assert len(losses) == 1


def test_a_network_of_ones_own_opens_whose_head_is_put_in_afterwards(capsys):
    script(
        "head",
        """
def build(args, data):
    from torch import nn

    model = common.build_model(args, data)
    model.output = nn.Linear(64, len(data.classes))
    return model
"""
        + BUILT,
    )
    made("head", *SMALL, "--epochs", 1)
    (checkpoint,) = Path().rglob("*[0-9a-f].pt")
    assert predict.main([str(checkpoint), "--dataset", "digits"]) == 0


def test_random_entries_beside_what_was_freed_by_hand_open(capsys):
    script(
        "by_hand",
        """
def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "random:2")
    model.output.bias.requires_grad_(True)
    return common.fit(model, data, args)
""",
    )
    made("by_hand", *SMALL, "--epochs", 1)
    (checkpoint,) = Path().rglob("*[0-9a-f].pt")
    assert predict.main([str(checkpoint), "--dataset", "digits"]) == 0


def test_a_scripts_relative_imports_are_in_the_names_of_its_runs():
    Path("nets").mkdir()
    Path("nets/__init__.py").write_text("from .blocks import WIDTH\n")
    Path("nets/blocks.py").write_text("WIDTH = 1\n")
    names = []
    for width in (1, 2):
        Path("nets/blocks.py").write_text(f"WIDTH = {width}\n")
        Path(f"exp_{width}.py").write_text("import nets\n")
        names.append(source_of(Path(f"exp_{width}.py").resolve()))
    assert names[0] != names[1]


def test_the_activity_behind_a_layer_norm_is_that_of_its_channels():
    """Channels come last, and a layer that the network repeats is counted as often."""
    norm, relu = nn.LayerNorm(3), nn.ReLU()
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([-100.0, 0, 100]))
    model = nn.Sequential(norm, relu)
    x = torch.randn(5, 4, 3)
    found = inside.activity(model, {"0": norm}, lambda: (model(x), model(x)))["0"]
    assert found[0] == 0 and 0 < found[1] < 1 and found[2] == 1


def test_a_list_of_a_flag_keeps_its_borders():
    @dataclass
    class Settings(common.Settings):
        parts: list = flag(["a"], "names")

    lists = (["a-b", "c"], ["a", "b-c"], ["a-b"], ["a", "b"], ["a-b,c"], ['["a"', "b"])
    cells = {recorded(Settings(parts=parts))["parts"] for parts in lists}
    assert len(cells) == len(lists)
    assert recorded(Settings(parts=["512", "512"]))["parts"] == "512-512"


def test_a_checkpoint_of_other_records_does_not_pass_for_a_finished_run():
    """Two --results with one --checkpoints: the network is what the run made of it."""
    words = [*SMALL, "--epochs", 3]
    whole = made_by("exp_bn_only", "one", words)
    made_by("exp_bn_only", "two", [*words, "--time-limit", 1e-9])
    assert made_by("exp_bn_only", "one", words) == whole
    (checkpoint,) = Path("checkpoints/bn_only").glob("*[0-9a-f].pt")
    assert read_checkpoint(checkpoint)["epoch"] == 3


def made_by(name: str, results: str, words) -> list[dict]:
    forked(HERE / f"{name}.py", *words, "--results", results, "--checkpoints", "checkpoints")
    (path,) = Path(results).rglob("*[0-9a-f].csv")
    keep = ("train_loss", "test_loss")
    return [{key: row[key] for key in keep} for row in rows(path)]


# --------------------------------------------------------------------------- one line, no traceback


def test_nothing_is_trained_by_ones_own_recipe_either():
    args = arguments("--epochs", 1, "--train", "none")
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "none")

    def adamw(model, args):
        return common.scheduled(torch.optim.AdamW(p for p in model.parameters() if p.requires_grad))

    assert common.fit(model, data, args, adamw).rows[-1]["train"] == "none"


def test_images_that_are_mirrored_views_are_data():
    images = dict.fromkeys(("train", "test"), np.zeros((40, 8, 8, 3), np.uint8)[..., ::-1])
    labels = dict.fromkeys(images, np.arange(40) % 4)
    args = arguments("--epochs", 1).but(subset=None)
    assert common.make_data(args, "bgr", images, labels).size == (8, 8, 3)


def test_a_flag_of_few_numbers_takes_them():
    @dataclass
    class Settings(common.Settings):
        heads: int = flag(4, "of attention", choices=(2, 4, 8))

    assert parser_for(Settings, "").parse_args(["--heads", "8"]).heads == 8


@pytest.mark.parametrize(
    "words, says",
    [
        ("--gamma-init constant:1e300", "constant:1e300"),
        ("--batch-size 100000000000000000000", "--batch-size"),
    ],
)
def test_numbers_that_no_tensor_holds_are_refused(words, says, capsys):
    assert exp_norms.main([*map(str, SMALL), *words.split()]) == 2
    assert says in one_line(capsys)


def test_a_start_is_the_number_that_was_given():
    start = parser_for(common.Settings, "").parse_args
    for text in ("constant:0.123456789", "constant:0.1", "constant:2"):
        assert start(["--gamma-init", text]).gamma_init == text


def test_a_table_with_infinite_numbers_is_refused(capsys):
    lines = [f"{i},{i % 2}" for i in range(40)]
    Path("t.csv").write_text("\n".join(["a,class", *lines, "inf,0"]))
    assert exp_mlp_lenet.main("--dataset csv --data t.csv --epochs 1 --hidden 8".split()) == 2
    assert "numbers beyond 3e38 in a" in one_line(capsys)


SETTINGS = """
@dataclass
class Settings(common.Settings):
    width: int = 2
"""


@pytest.mark.parametrize(
    "settings, says",
    [
        (SETTINGS.replace("@dataclass\n", ""), "needs @dataclass"),
        (SETTINGS.replace("width: int", "width"), "width needs its type"),
    ],
)
def test_defaults_that_would_be_ignored_are_refused(settings, says):
    script("own", settings + PLAIN)
    assert says in refused("own")


def test_a_grid_that_leaves_out_a_list_that_was_given_says_so():
    text = """
@dataclass
class Settings(common.Settings):
    lists = {"lr": [0.1], "seed": [0]}

def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    return common.fit(model, data, args)

def compare(args):
    code, _ = common.run_grid(common.grid(args, seed=args.varied["seed"]), run)
    return code

run_one, run = run, compare
"""
    script("rates", text)
    assert "no runs for all of --lrs" in refused("rates", "--lr", "0.3", "0.1")


def test_a_validation_split_of_ones_own_and_val_fraction_exclude_each_other():
    images = {split: np.zeros((40, 8, 8, 1), np.uint8) for split in ("train", "val", "test")}
    labels = dict.fromkeys(images, np.arange(40) % 4)
    args = arguments("--val-fraction", 0.2).but(subset=None)
    with pytest.raises(UserError, match="has a val split"):
        common.make_data(args, "mine", images, labels)


def test_a_view_of_an_image_says_what_is_right():
    class Viewing(nn.Module):
        def __init__(self, args, size, classes):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.output = nn.Linear(4 * 36, classes)

        def forward(self, x):
            return self.output(self.bn(self.conv(x)).view(len(x), -1))

    args = arguments("--epochs", 1)
    data = common.load_data(args)
    model = common.build_model(args, data, Viewing)
    common.freeze(model, "bn")
    with pytest.raises(UserError, match=r"flatten\(1\)"):
        common.fit(model, data, args)


def test_what_is_no_network_and_no_name_is_refused():
    args = arguments()
    data = common.load_data(args)
    with pytest.raises(UserError, match="build returns an nn.Module"):
        common.build_model(args, data, lambda *_: None)
    model = common.build_model(args, data)
    with pytest.raises(UserError, match="is no name"):
        common.freeze(model, lambda name, module, p: True, called=3)


def test_a_count_of_ones_own_is_recorded_in_full():
    args = arguments("--epochs", 1)
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "bn")
    outcome = common.fit(model, data, args, also=lambda model: {"steps": 12345678})
    assert outcome.rows[-1]["steps"] == "12345678"


def test_a_depth_of_ones_own_may_be_a_list():
    """Of a network of this collection it is a number, or the record is damaged."""
    assert possible("depth", {"depth": "2-1", "script": "abc123"})
    assert not possible("depth", {"depth": "2-1"})


def test_a_lazy_layer_takes_the_columns_of_a_table():
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.Linear(3, 2))
    materialise(model, (7,))
    assert model[0].weight.shape == (3, 7)


def test_a_head_of_ones_own_may_calculate_in_fp32():
    class Exact(nn.Module):
        def __init__(self, args, size, classes):
            super().__init__()
            self.bn, self.conv = nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3)
            self.output = nn.Linear(4, classes)

        def forward(self, x):
            features = self.conv(self.bn(x)).mean((2, 3)).float()
            with torch.autocast("cpu", enabled=False):
                return self.output(features)

    args = arguments().but(precision="bf16")  # without the hardware slow, and the same
    data = common.load_data(args)
    model = common.build_model(args, data, Exact)
    common.freeze(model, "bn")
    with common.arithmetic(model, args, data.size):
        images = torch.zeros(2, 1, 8, 8)
        assert common.forward(model, images, args).shape == (2, 10)
