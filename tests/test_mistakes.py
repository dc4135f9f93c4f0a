"""What a copied script can get wrong costs one line, and nothing that was made before."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import common
from harness.config import parser_for
from harness.errors import UserError
from tests.helpers import HERE, Forked, arguments, forked, rows
from tests.test_copies import CNN, OWN_RUN, PLAIN, SMALL, made, script

QUICK = [*SMALL, "--epochs", 1]
SHARED_BLOCK = """
class Repeated(nn.Module):
    def __init__(self, repetitions, channels, classes):
        super().__init__()
        self.repetitions, self.bn = repetitions, nn.BatchNorm2d(channels)
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.output = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.first(x)
        for _ in range(self.repetitions):
            x = self.bn(self.conv(x)).relu()
        return self.output(x.mean((2, 3)))

def repeated(args, size, classes):
    return Repeated(args.depth, 4 * args.width, classes)

def build(args, data):
    return common.build_model(args, data, repeated)
"""


def refused(name: str, *words) -> str:
    """The one line with which exp_NAME.py ends, by exit code 2."""
    process = Forked(f"exp_{name}.py", *QUICK, "--quiet", *words)
    assert process.wait() == 2
    assert process.err.count("\n") == 1
    return process.err


def made_of(name: str) -> dict[str, dict]:
    """The first row of each run of exp_NAME.py, by the run's name."""
    return {path.stem: rows(path)[0] for path in Path("results", name).glob("*[0-9a-f].csv")}


def test_settings_of_which_a_network_is_made_tell_its_runs_apart():
    script("repeated", SHARED_BLOCK + OWN_RUN)
    for depth, width in ((8, 1), (14, 1), (8, 2)):
        forked("exp_repeated.py", *QUICK, "--depth", depth, "--width", width)
    found = made_of("repeated")
    assert {(row["depth"], row["width"]) for row in found.values()} == {
        ("8", "1"),
        ("14", "1"),
        ("8", "2"),
    }
    assert all(run.startswith(f"repeated{row['depth']}-w") for run, row in found.items())


def test_settings_that_a_network_and_a_recipe_leave_aside_are_named():
    script(
        "cnn",
        CNN + RECIPE + OWN_RUN.replace("fit(model, data, args)", "fit(model, data, args, recipe)"),
    )
    asked = ["--train", "norm", "--depth", 8, "--momentum", 0.5, "--lr", 0.2]
    err = forked("exp_cnn.py", *QUICK, *asked).err
    assert [word for word in ("--depth", "--momentum", "--lr", "--width") if word in err] == [
        "--depth",
        "--momentum",
    ]
    (row,) = made_of("cnn").values()
    assert (row["depth"], row["schedule"], row["lr"]) == ("", "constant", "0.2")


RECIPE = """
def recipe(model, args):
    trained = [p for p in model.parameters() if p.requires_grad]
    return common.Recipe(torch.optim.AdamW(trained, lr=args.lr))
"""


MINE = """
import numpy as np

def run(args):
    pixels = np.random.default_rng(0).integers(0, 256, (40, SIZE, 8, 1), np.uint8)
    data = common.make_data(args, "mine", pixels, np.arange(40) % 2)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    return common.fit(model, data, args)

# the script's source is the same whatever the size
import os
SIZE = int(os.environ["SIZE"])
"""


def test_images_of_another_size_under_the_same_name_overwrite_nothing():
    script("mine", MINE)
    words = ["exp_mine.py", "--epochs", 1, "--depth", 8, "--precision", "fp32", "--device", "cpu"]
    assert Forked(*words, SIZE="8").wait() == 0
    before = {path: path.read_bytes() for path in Path(".").glob("*/mine/*.[cp]*")}
    other = Forked(*words, SIZE="9")
    assert other.wait() == 2
    assert "image_size 8x8 instead of 9x8" in other.err
    assert before == {path: path.read_bytes() for path in Path(".").glob("*/mine/*.[cp]*")}
    assert Forked(*words, "--force", SIZE="9").wait() == 0


@pytest.mark.parametrize("name", "threads status run script varied given but processes".split())
def test_a_flag_cannot_be_called_what_means_something_else(name):
    settings = f"@dataclass\nclass Settings(common.Settings):\n    {name}: float = "
    script("named", settings + 'common.flag(0.0, "x")\n' + PLAIN)
    assert f"no flag can be called {name}" in refused("named")


def test_a_flag_whose_default_is_a_number_takes_numbers():
    script(
        "flags",
        """
@dataclass
class Settings(common.Settings):
    share: float = common.flag(0.5, "50% of all, or 100 %%")
    sizes: list = common.flag([1, 2], "of layers")
"""
        + PLAIN,
    )
    assert "'much' is not a number" in refused("flags", "--share", "much")
    assert "'1.5' is not a whole number" in refused("flags", "--sizes", 2, 1.5)
    help = Forked("exp_flags.py", "--help")
    assert help.wait() == 0
    assert "50% of all, or 100 %" in help.out
    row = made("flags", "--depth", 8, "--epochs", 1, "--share", -0.25, "--sizes", 3, 4)[0]
    assert (row["share"], row["sizes"]) == ("-0.25", "3-4")


def test_a_list_that_no_run_is_made_of_is_refused():
    script(
        "listed",
        """
@dataclass
class Settings(common.Settings):
    lists = {"depth": [8], "seed": [0]}
"""
        + PLAIN
        + """
def every(args):
    return common.run_grid(common.grid(args, depth=args.varied["depth"]), run)[0]
""",
    )
    path = Path("exp_listed.py")
    path.write_text(path.read_text().replace("common.main(run,", "common.main(every,"))
    assert "no runs for all of --seeds" in refused("listed", "--seeds", 0, 1)
    assert not Path("results").exists()
    forked("exp_listed.py", *QUICK, "--depths", 8)
    assert len(made_of("listed")) == 1


def test_a_run_that_returns_nothing_is_told_what_to_return():
    script("forgot", PLAIN.replace("return ", ""))
    assert "return common.fit" in refused("forgot", "--depth", 8)


def test_a_predicate_that_chooses_nothing_is_refused():
    args = arguments()
    model = common.build_model(args, common.load_data(args))
    with pytest.raises(UserError, match="'biases' chooses none"):
        common.freeze(model, lambda name, module, p: name.endswith("bais"), called="biases")


def test_a_network_with_fewer_outputs_than_classes_is_named():
    with pytest.raises(UserError, match="makes 2 numbers of an image"):
        common.cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    "images, classes, says",
    [
        (np.zeros((0, 8, 8, 1), np.uint8), None, "no train images"),
        ((np.zeros((4, 8, 8, 1)), np.zeros((2, 8, 8, 1))), None, "dictionaries"),
        (np.zeros((40, 8, 8, 1), np.uint8), ["one"], "a name for each"),
    ],
)
def test_data_that_lacks_something_is_refused(images, classes, says):
    labels = np.arange(len(images)) % 2
    with pytest.raises(UserError, match=says):
        common.make_data(arguments("--subset", 30), "mine", images, labels, classes)


def test_names_of_classes_may_be_an_array():
    images, labels = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 2
    data = common.make_data(
        arguments("--subset", 30), "mine", images, labels, np.array(["cat", "dog"])
    )
    assert data.classes == ["cat", "dog"]


def test_a_part_that_is_missing_for_want_of_a_normalisation_says_what_one_is():
    args = arguments()
    data = common.load_data(args)
    model = common.build_model(args, data, lambda args, size, classes: nn.Linear(64, classes))
    with pytest.raises(UserError, match="inherits from one of PyTorch's"):
        common.freeze(model, "norm")


def test_help_shows_no_empty_default():
    class Settings(common.Settings):
        pass

    assert "(default )" not in parser_for(Settings, "").format_help()


# ------------------------------------------------------------- what would make an untrue record


@pytest.fixture
def network():
    args = arguments("--depth", 8)
    return common.build_model(args, common.load_data(args))


@pytest.mark.parametrize("other", ["random:4", "random:2"])
def test_one_number_of_random_entries_is_given_once(network, other):
    with pytest.raises(UserError, match="one random:K"):
        common.freeze(network, f"random:2+{other}")


@pytest.mark.parametrize("called", ["bn+output", "random:2", "all-conv+bn", "none"])
def test_a_predicate_is_not_called_by_words_that_mean_something_else(network, called):
    with pytest.raises(UserError, match="another name"):
        common.freeze(network, lambda name, module, p: name == "conv.weight", called=called)
    common.freeze(network, lambda name, module, p: name == "conv.weight", called="bn of stage 1")


def test_a_recipe_without_an_optimizer_trains_nothing():
    args = arguments("--depth", 8, "--epochs", 1)
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "bn")
    with pytest.raises(UserError, match="does not hold it"):
        common.fit(model, data, args, lambda model, args: common.Recipe())
    assert not Path("results").exists()


def test_a_networks_own_mistake_at_a_batch_of_one_is_not_batchnorms():
    class Mistaken(nn.Module):
        def forward(self, x):
            raise ValueError("my own mistake")

    with pytest.raises(ValueError, match="my own mistake"):
        common.forward(Mistaken(), torch.zeros(1, 1, 8, 8), arguments())


def test_a_grid_whose_run_diverged_says_so_each_time():
    once = [*QUICK, "--depths", 8, "--widths", 1, "--lr", 1e30, "--quiet"]
    for _ in range(2):
        process = Forked(HERE / "exp_depth_width.py", *once)
        assert process.wait() == 1
        assert re.search(r"failed: resnet8-w1-digits-bn-s0-\w{6} \(diverged\)", process.err)


def test_a_table_of_ones_own_is_not_called_as_one_of_scikit_learns(tmp_path):
    import sklearn.datasets

    wine = sklearn.datasets.load_wine(as_frame=True).frame
    wine.to_csv("wine.csv", index=False)
    wine.to_csv("digits.csv", index=False)
    for data in (["wine"], ["csv", "--data", "wine.csv"], ["csv", "--data", "digits.csv"]):
        forked(HERE / "exp_mlp_lenet.py", "--hidden", 8, "--epochs", 1, "--dataset", *data)
    found = {rows(path)[0]["dataset"] for path in Path("results/mlp_lenet").glob("*[0-9a-f].csv")}
    assert found == {"wine", "wine-csv", "digits-csv"}


@pytest.mark.parametrize(
    "words, says",
    [
        ("--dataset wine --arch lenet5", "--arch lenet5 needs images"),
        ("--dataset wine --augment flip", "wine is a table"),
        ("--dataset wine --image-size 16", "wine is a table"),
        ("--dataset digits --target class", "--target is for --dataset csv"),
    ],
)
def test_what_is_of_images_is_refused_for_tables(words, says):
    process = Forked(HERE / "exp_mlp_lenet.py", *words.split(), "--epochs", 1, "--quiet")
    assert process.wait() == 2
    assert says in process.err and process.err.count("\n") == 1


def test_a_validation_split_of_no_image_is_refused():
    with pytest.raises(UserError, match="--val-fraction 0.0001 leaves 150 of 150"):
        common.load_data(arguments("--val-fraction", 0.0001))


@pytest.mark.parametrize("name", ["hours", "record"])
def test_names_that_plots_gives_are_taken(name):
    args = arguments("--depth", 8, "--epochs", 1)
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "bn")
    with pytest.raises(UserError, match=f"'{name}', which is no name of a new column"):
        common.fit(model, data, args, also=lambda model: {name: 1.0})
    own = (
        f"@dataclass\nclass Settings(common.Settings):\n    {name}: float = common.flag(1.0, '')\n"
    )
    script("taken", own + PLAIN)
    assert f"no flag can be called {name}" in refused("taken")


def test_grid_and_match_each_say_what_is_compared():
    process = Forked(HERE / "exp_depth_width.py", *QUICK, "--grid", "--match-bn-params", "--quiet")
    assert process.wait() == 2
    assert "give one of them" in process.err
