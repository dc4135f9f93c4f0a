"""What a copied script may change, and what stays true: each test writes the script into a folder
of its own."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import common
import plots
from harness.errors import UserError
from tests.helpers import HERE, Forked, arguments, forked, rows

SMALL = "--dataset digits --subset 200 --epochs 4 --batch-size 50 --precision fp32".split()
SMALL += ["--device", "cpu"]


def made(name: str, *words, results="results") -> list[dict]:
    """The rows of the one run that the script exp_NAME.py makes."""
    places = ["--results", results, "--checkpoints", f"{results}-checkpoints"]
    forked(f"exp_{name}.py", *SMALL, *words, *places)
    (path,) = Path(results, name).glob("*[0-9a-f].csv")
    return rows(path)


def script(name: str, text: str) -> None:
    """`text` as a script that ends like all of them."""
    end = '\n\nif __name__ == "__main__":\n    sys.exit(common.main(run, Settings, __doc__))\n'
    start = "import sys\nfrom dataclasses import dataclass\n"
    start += "import common\nimport torch\nfrom torch import nn\n"
    settings = "" if "class Settings" in text else "Settings = common.Settings\n"
    Path(f"exp_{name}.py").write_text(start + settings + text + end)


PLAIN = """
def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    return common.fit(model, data, args)
"""
BUILT = """

def run(args):
    data = common.load_data(args)
    model = build(args, data)
    common.freeze(model, "bn")
    return common.fit(model, data, args)
"""


def test_another_optimizer_has_its_name_in_the_record():
    script(
        "adamw",
        """
def recipe(model, args):
    trained = [p for p in model.parameters() if p.requires_grad]
    return common.scheduled(torch.optim.AdamW(trained, lr=0.01, weight_decay=0.02), args)

def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    return common.fit(model, data, args, recipe)
""",
    )
    (first, *_) = made("adamw", "--depth", 8)
    assert (first["optimizer"], first["lr"], first["weight_decay"]) == ("adamw", "0.01", "0.02")
    assert first["schedule"] == "step"
    assert first["train"] == "bn"


CNN = """
def build(args, data):
    return common.build_model(args, data, small_cnn)

def small_cnn(args, size, classes):
    return nn.Sequential(
        nn.Conv2d(size[2], 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(16, 32, 3), nn.GroupNorm(4, 32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))
"""

VIT = """
class SmallViT(nn.Module):
    def __init__(self, size, classes):
        super().__init__()
        self.patches = nn.Conv2d(size[2], 32, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 16, 32))
        about = {"dropout": 0.1, "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(32, 4, 64, **about)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, classes)

    @property
    def output(self):
        return self.head

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).mT + self.position).mean(1))

def vit(args, size, classes):
    return SmallViT(size, classes)

def build(args, data):
    return common.build_model(args, data, vit)
"""

OWN_RUN = """
def run(args):
    data = common.load_data(args)
    model = build(args, data)
    common.freeze(model, args.train)
    return common.fit(model, data, args)
"""


@pytest.mark.parametrize("name, network, count", [("cnn", CNN, 96), ("vit", VIT, 256)])
def test_a_network_of_ones_own_has_a_seed_a_record_and_a_checkpoint(name, network, count):
    script(name, network + OWN_RUN)
    whole = made(name, "--train", "norm", results="whole")
    assert made(name, "--train", "norm", results="again") == whole
    for _ in range(2):
        made(name, "--train", "norm", "--time-limit", 1e-9, results="stopped")
    assert made(name, "--train", "norm", results="stopped") == whole
    first = whole[0]
    assert (first["train"], first["depth"], first["width"]) == ("norm", "", "")
    assert int(first["params_trained"]) == count
    assert first["arch"] in ("small_cnn", "vit")
    (checkpoint,) = Path("whole-checkpoints", name).glob("*.pt")
    printed = forked(HERE / "predict.py", checkpoint, "--dataset", "digits").out
    assert f"{float(whole[-1]['test_acc']):.2f} % of 359" in printed
    other = made(name, "--train", "norm", "--seed", 1, results="other")
    assert other[0]["train_loss"] != first["train_loss"]


def test_a_network_built_outside_build_model_has_the_seed_of_its_run_in_a_grid_too():
    script(
        "bare",
        """
@dataclass
class Settings(common.Settings):
    lists = {"seed": [0]}

def one(args):
    data = common.load_data(args)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    common.freeze(model, "all")
    return common.fit(model, data, args)

def run(args):
    return common.run_grid(common.grid(args), one)[0]
""",
    )
    for seeds in ("0", "1"), ("1", "0"):
        forked("exp_bare.py", *SMALL, "--seeds", *seeds, "--results", seeds[0])
    first, second = (sorted(Path(name, "bare").glob("*[0-9a-f].csv")) for name in "01")
    assert len(first) == 2
    assert [rows(path) for path in first] == [rows(path) for path in second]


def test_a_data_set_of_ones_own_is_a_function_that_returns_images_and_labels():
    script(
        "stripes",
        """
import numpy as np

def stripes():
    draw = np.random.default_rng(0)
    labels = np.arange(300) % 2
    images = draw.integers(0, 100, (300, 8, 8, 1))
    images[labels == 1, ::2] += 150
    return images, labels

def run(args):
    data = common.make_data(args, "stripes", *stripes())
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    return common.fit(model, data, args)
""",
    )
    table = made("stripes", "--depth", 8, "--epochs", 8)
    assert (table[0]["dataset"], table[0]["classes"], table[0]["image_size"]) == (
        "stripes",
        "2",
        "8x8",
    )
    assert float(table[-1]["test_acc"]) > 90


DROPOUT = """
@dataclass
class Settings(common.Settings):
    dropout: float = common.flag(0.0, "before the output layer", common.number(float, 0, 1))

def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)
    model.output = nn.Sequential(nn.Dropout(args.dropout), model.output)
    common.freeze(model, args.train)
    measure = lambda model: {"gamma": model.bn.weight.mean().item()}
    return common.fit(model, data, args, also=measure)
"""


def test_a_new_column_is_in_the_csv_and_old_runs_are_still_read(capsys):
    script("dropout", PLAIN)
    old = made("dropout", "--depth", 8)
    script("dropout", DROPOUT)
    forked("exp_dropout.py", *SMALL, "--depth", 8, "--dropout", 0.5)
    tables = {
        pd.read_csv(path).get("dropout", pd.Series([0.0])).iloc[0]: rows(path)
        for path in Path("results/dropout").glob("*[0-9a-f].csv")
    }
    assert set(tables) == {0.0, 0.5}
    assert tables[0.0] == old
    assert "gamma" in tables[0.5][0]
    assert plots.main(["--only", "accuracy", "--out", "out"]) == 0
    shown = capsys.readouterr()
    assert "damaged" not in shown.err
    assert "dropout 0.5" in shown.out


def test_biases_alone_by_a_word_and_by_a_predicate():
    script("biases", PLAIN)
    by_word = made("biases", "--depth", 8, "--train", "bias")
    script(
        "stage",
        """
def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(
        model,
        lambda name, module, parameter: name.startswith("stage1") and name.endswith("bias"),
        called="beta of the first stage",
    )
    return common.fit(model, data, args)
""",
    )
    stage = made("stage", "--depth", 8)
    assert "has no part" not in forked("exp_stage.py", *SMALL, "--force").err
    told = "--train output has no part in this script, which trains beta of the first stage"
    assert told in forked("exp_stage.py", *SMALL, "--train", "output").err
    assert (by_word[0]["train"], by_word[0]["params_trained"]) == ("bias", str(336 + 10))
    assert (stage[0]["train"], stage[0]["params_trained"]) == ("beta of the first stage", "32")
    assert "beta_of_the_first_stage" in stage[0]["run"]


def test_a_record_says_of_what_the_network_and_the_data_were_made_whatever_fit_is_told():
    script(
        "changed",
        """
def run(args):
    data = common.load_data(args.but(subset=200, val_fraction=0.2))
    wide = args.but(width=2, gamma_init="ones")
    model = common.build_model(wide, data, half if args.lr == 0.2 else common.network)
    common.freeze(model, args.train)
    return common.fit(model, data, args)

def half(args, size, classes):
    return common.network(args.but(width=args.width // 2), size, classes)
""",
    )
    first = made("changed", "--depth", 8)[0]
    assert [first[name] for name in ("width", "gamma_init")] == ["2", "ones"]
    assert [first[name] for name in ("subset", "val_fraction")] == ["200", "0.2"]
    assert first["run"].startswith("resnet8-w2-")
    own = made("changed", "--depth", 8, "--lr", 0.2, results="b")[0]
    assert [own[name] for name in ("arch", "width", "params_trained")] == ["half", "1", "672"]


def test_a_network_of_another_seed_than_the_runs_is_refused():
    script(
        "seeds",
        """
def run(args):
    data = common.load_data(args)
    model = common.build_model(args.but(seed=7), data)
    common.freeze(model, args.train)
    return common.fit(model, data, args)
""",
    )
    process = Forked("exp_seeds.py", *SMALL)
    assert process.wait() == 2
    told = "the network is of seed 7, and fit is given seed 0: give both the same settings"
    assert process.err == f"error: {told}\n"


def test_two_networks_of_one_name_in_one_run_are_refused():
    """The second would be shown the first one's accuracy."""
    script(
        "two",
        """
def run(args):
    data = common.load_data(args)
    for p in (0.0, 0.9):
        def dropout(args, size, classes):
            model = common.network(args, size, classes)
            model.output = nn.Sequential(nn.Dropout(p), model.output)
            return model
        model = common.build_model(args, data, dropout)
        common.freeze(model, args.train)
        outcome = common.fit(model, data, args)
    return outcome
""",
    )
    process = Forked("exp_two.py", *SMALL, "--quiet")
    assert process.wait() == 2
    assert process.err.startswith("error: this script calls fit twice for dropout14-w1-digits-bn")


def test_a_record_says_what_was_trained_whatever_the_flag_said():
    script(
        "more",
        """
def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    model.output.bias.requires_grad_(True)
    return common.fit(model, data, args)
""",
    )
    first = made("more", "--depth", 8)[0]
    assert first["train"].startswith("custom-")
    assert first["params_trained"] == str(672 + 10)
    assert made("more", "--depth", 8, "--train", "beta", results="b")[0]["train"] == "bias"


def test_an_edited_script_is_another_run_and_overwrites_nothing():
    script("edited", PLAIN)
    before = made("edited", "--depth", 8)
    (path,) = Path("results/edited").glob("*[0-9a-f].csv")
    content = path.read_bytes()
    script("edited", PLAIN.replace("freeze(model, args.train)", "freeze(model, 'gamma')"))
    forked("exp_edited.py", *SMALL, "--depth", 8)
    other = [one for one in Path("results/edited").glob("*[0-9a-f].csv") if one != path]
    assert path.read_bytes() == content
    assert len(other) == 1
    assert rows(other[0])[0]["train"] == "gamma"
    assert before[0]["train"] == "bn"


def test_two_versions_of_a_script_are_two_experiments_in_a_table(capsys):
    script("edited", PLAIN)
    made("edited", "--depth", 8)
    script("edited", PLAIN + "# edited\n")
    forked("exp_edited.py", *SMALL, "--depth", 8)
    assert plots.main(["--only", "accuracy", "--format", "csv"]) == 0
    table = pd.read_csv("tables/accuracy.csv")
    assert len(table) == 2
    assert table.trained.nunique() == 2


def test_a_network_of_ones_own_stands_beside_bn_in_table_and_figure(capsys):
    script("cnn", CNN + OWN_RUN)
    for seed in (0, 1):
        forked("exp_cnn.py", *SMALL, "--train", "gamma", "--seed", seed)
    forked(HERE / "exp_bn_only.py", *SMALL, "--quiet")
    assert plots.main(["--only", "accuracy", "accuracy_depth"]) == 0
    shown = capsys.readouterr()
    assert "cnn: small_cnn, gamma" in shown.out.partition("**digits, resnet")[2] + shown.out
    table = pd.read_csv("tables/accuracy.csv").set_index("trained")
    assert table.loc["cnn: small_cnn, gamma"].recipe == table.loc["bn"].recipe
    assert Path("figures/accuracy_depth-digits.png").exists()
    assert not shown.err
    assert plots.main(["--only", "parameters"]) == 0
    counts = pd.read_csv("tables/parameters.csv").set_index("trained").parameters
    assert counts["cnn: gamma"] == 48


ALSO = """
def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    return common.fit(model, data, args, also=lambda model: {MEASURED})
"""


def test_what_a_script_measures_is_never_a_setting(capsys):
    script("also", ALSO.replace("{MEASURED}", "{'same': 0.5 + args.seed, 'none': float('nan')}"))
    for seed in (0, 1):
        forked("exp_also.py", *SMALL, "--depth", 8, "--seed", seed)
    assert plots.main(["--only", "accuracy", "--format", "csv"]) == 0
    assert list(pd.read_csv("tables/accuracy.csv").filter(like="seeds").iloc[:, 0]) == [2]


@pytest.mark.parametrize(
    "measured, says",
    [
        ("{'test_acc': 99.0}", "test_acc"),
        ("{'norm': 1.0}", "norm"),
        ("{'x': [1]}", "a number"),
        ("None", "numbers by name"),
    ],
)
def test_what_a_script_cannot_measure_is_one_line(measured, says):
    script("also", ALSO.replace("{MEASURED}", measured))
    process = Forked("exp_also.py", *SMALL, "--depth", 8, "--quiet")
    assert process.wait() == 2
    assert says in process.err
    assert process.err.count("\n") == 1


IMAGES, LABELS = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 2


@pytest.mark.parametrize(
    "images, labels, says",
    [
        (IMAGES + 0.5, LABELS, "bytes"),
        (IMAGES.astype(int) - 300, LABELS, "0 to 255"),
        (IMAGES, LABELS[1:], "one label an image"),
        (IMAGES, LABELS + 1, "without a gap"),
        (IMAGES, LABELS.astype(str), "without a gap"),
        ({"train": IMAGES, "test": IMAGES}, {"train": LABELS, "test": LABELS + 1}, "0 to 1, as"),
        (IMAGES[..., 0], LABELS, "(N, height, width, channels)"),
        (IMAGES.transpose(0, 3, 1, 2), LABELS, "(N, height, width, channels)"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(images, labels, says):
    with pytest.raises(UserError, match=re.escape(says)):
        common.make_data(arguments(), "mine", images, labels)


def test_a_test_split_need_not_have_every_class():
    images, labels = (
        dict.fromkeys(("train", "test"), IMAGES),
        {"train": LABELS, "test": LABELS * 0 + 1},
    )
    data = common.make_data(arguments("--subset", 30), "mine", images, labels)
    assert data.classes == ["0", "1"]
    assert data.labels["test"].all()


def test_freeze_refuses_what_it_cannot_do():
    args = arguments()
    model = common.build_model(args, common.load_data(args))
    with pytest.raises(UserError, match="another name"):
        common.freeze(model, lambda name, module, p: True, called="bn")
    with pytest.raises(UserError, match="words of --train or a predicate"):
        common.freeze(model, ["gamma"])


def test_a_recipe_returns_a_recipe():
    args = arguments()
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "bn")
    with pytest.raises(UserError, match="common.scheduled"):
        common.fit(model, data, args, lambda model, args: torch.optim.AdamW(model.parameters()))


def test_a_function_passed_through_partial_works():
    script(
        "partial",
        PLAIN.replace("def run(args)", "def of(word, args)").replace("args.train", "word"),
    )
    text = (
        Path("exp_partial.py")
        .read_text()
        .replace("common.main(run,", "common.main(functools.partial(of, 'beta'),")
    )
    Path("exp_partial.py").write_text("import functools\n" + text)
    assert made("partial", "--depth", 8)[0]["train"] == "beta"


def test_the_guide_has_a_script_a_step_and_a_normalisation_that_work(capsys):
    guide = (HERE / "docs/copying.md").read_text(encoding="utf-8")
    whole, step, norm = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    Path("exp_dropout.py").write_text(whole)
    asked = [*SMALL, "--epochs", 1, "--depth", 8, "--dropout", 0, 0.6, "--seeds", 0, 1]
    told = forked("exp_dropout.py", *asked).out
    assert told.count("(2)") == 2
    assert "with_dropout8-w1-digits-bn-s1" in told
    assert len(list(Path("results/dropout").glob("with_dropout8-*[0-9a-f].csv"))) == 4
    assert plots.main(["--only", "accuracy"]) == 0
    assert "dropout 0.6" in capsys.readouterr().out
    script("smooth", step + PLAIN.replace("data, args)\n", "data, args, step=smooth)\n"))
    assert len(made("smooth", "--epochs", 1, "--depth", 8)) == 1
    text = (HERE / "exp_norms.py").read_text(encoding="utf-8")
    before, main, after = text.partition("def kind(text)")
    Path("exp_l1.py").write_text(before + norm + "\n\n" + main + after)
    forked("exp_l1.py", *SMALL, "--epochs", 1, "--depth", 8, "--norm", "bn", "l1")
    assert plots.main(["--only", "norms"]) == 0
    assert "| l1 | 0.1 | " in capsys.readouterr().out


def test_the_digests_of_our_own_scripts_are_those_that_the_names_count_on():
    """After a change to a script put what is printed here into harness/ours.json."""
    import json

    from harness.source import source_digest

    now = {
        path.name: source_digest(path)
        for path in [HERE / "common.py", *sorted(HERE.glob("exp_*.py"))]
    }
    assert json.loads((HERE / "harness/ours.json").read_text()) == now
