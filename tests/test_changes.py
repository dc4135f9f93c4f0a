"""What a script changes while it trains, or before: the run goes on to the same digits and its
record is true, or the script is told what would be right."""

from functools import partial
from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import common
import predict
from harness import onednn
from harness.errors import UserError
from harness.parts import redrawn, words
from harness.speed import has_bf16
from tests.helpers import Forked, arguments, forked, rows, the_csv
from tests.test_copies import BUILT, SMALL, made, script


def fitted(args, recipe=common.recipe, **options):
    """The rows of a run of γ and β."""
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "bn")
    return common.fit(model, data, args, recipe, **options).rows


def resumed(capsys, *given, **options) -> None:
    """A run that is stopped after each epoch ends as a whole one does."""
    for _ in range(3):
        fitted(arguments("--time-limit", 1e-9), *given, **options)
    fitted(arguments("--results", "whole", "--checkpoints", "whole"), *given, **options)
    assert rows(the_csv()) == rows(the_csv("whole"))
    assert "is not used" not in capsys.readouterr().err


def smooth(model, x, y, optimizer, args, loss_scale=1):
    """A step with label smoothing, which also looks at the exact weights."""
    assert all(p.dtype == torch.float32 for p in model.parameters())
    logits = common.forward(model, x, args)
    loss = F.cross_entropy(logits, y, label_smoothing=0.1)
    (loss * loss_scale).backward()
    optimizer.step()
    optimizer.zero_grad()
    return common.tally(logits.detach(), loss.detach(), y)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_ones_own_has_another_loss_and_exact_weights(precision):
    if precision == "bf16" and not has_bf16(torch.device("cpu")):
        pytest.skip("this processor has no bf16")
    (usual,) = fitted(arguments("--epochs", 1, "--precision", precision))
    (other,) = fitted(arguments("--epochs", 1, "--precision", precision, "--force"), step=smooth)
    assert other["train_loss"] != usual["train_loss"]


def test_a_run_with_a_step_of_ones_own_goes_on(capsys):
    resumed(capsys, step=smooth)


class Both(torch.optim.Optimizer):
    """Two optimizers as one: SGD for γ, Adam for β."""

    def __init__(self, model, args):
        layers = common.norms(model).values()
        self.parts = [
            torch.optim.SGD([layer.weight for layer in layers], args.lr, momentum=0.9),
            torch.optim.Adam([layer.bias for layer in layers], 0.01),
        ]
        super().__init__([p for part in self.parts for p in part.param_groups], {})

    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state):
        for part, its in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(its)


def test_two_optimizers_as_one_go_on(capsys):
    resumed(capsys, lambda model, args: common.Recipe(Both(model, args), None, "constant"))


class SAM(torch.optim.Optimizer):
    """As it usually is: the moments are those of an optimizer inside."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})
        self.base_optimizer = torch.optim.SGD(self.param_groups, 0.1, momentum=0.9)

    def step(self, closure=None):
        self.base_optimizer.step()


def test_an_optimizer_that_forgets_the_moments_of_one_inside_is_refused():
    def sam(model, args):
        trained = [p for p in model.parameters() if p.requires_grad]
        return common.Recipe(SAM(trained), None, "constant")

    with pytest.raises(UserError, match="keeps another optimizer, base_optimizer"):
        fitted(arguments(), sam)


def test_what_is_trainable_may_not_change_and_what_is_frozen_may_not_move():
    def unfreeze(model):
        model.output.weight.requires_grad_(True)
        return {}

    @torch.no_grad()
    def move(model):
        model.output.weight.add_(1)
        return {}

    with pytest.raises(UserError, match="what is trainable has changed in epoch 1"):
        fitted(arguments(), also=unfreeze)
    with pytest.raises(UserError, match=r"output.weight is frozen, and has changed in epoch 1"):
        fitted(arguments(), also=move)
    assert not list(Path().rglob("*.csv"))


DRAWN_OVER = """
def build(args, data):
    model = common.build_model(args, data)
    with torch.no_grad():
        DRAW
    return model
"""


@pytest.mark.parametrize(
    "draw, differs",
    [
        ("model.bn.weight.fill_(2)", {"gamma_init": "own"}),
        ("model.stage1[0].bn2.bias.fill_(1)", {"beta_init": "own"}),
        ("model.conv.weight.neg_()", {"weight_init": "own"}),
        ("pass", {}),
    ],
)
def test_a_start_that_a_script_has_drawn_over_is_recorded_as_its_own(draw, differs, capsys):
    script("start", DRAWN_OVER.replace("DRAW", draw) + BUILT)
    (row,) = made("start", "--epochs", 1)
    usual = {"gamma_init": "uniform", "beta_init": "zeros", "weight_init": "he_normal"}
    assert {key: row[key] for key in usual} == usual | differs
    (checkpoint,) = Path().rglob("*[0-9a-f].pt")
    assert predict.main([str(checkpoint), "--dataset", "digits"]) == 0
    assert f"{float(row['test_acc']):.2f} %" in capsys.readouterr().out


def test_a_start_of_a_scripts_own_name_is_what_the_constructor_draws():
    settings = """
@dataclass
class Settings(common.Settings):
    gamma_init: str = "log-normal"
    weight_init: str = "xavier"
"""
    body = """
def network(args, size, classes):
    model = common.network(args, size, classes)
    nn.init.xavier_normal_(model.conv.weight)
    for norm in common.norms(model).values():
        norm.weight.data.log_normal_(0, 0.5)
    kept.append((model, model.conv.weight.detach().clone(), model.bn.weight.detach().clone()))
    return model


kept = []


def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data, network)
    ((_, conv, gamma),) = kept
    assert model.conv.weight.equal(conv) and model.bn.weight.equal(gamma)
    assert model.bn.bias.eq(0).all()
    common.freeze(model, "bn")
    return common.fit(model, data, args)
"""
    script("named", settings + body)
    (row,) = made("named", "--epochs", 1)
    assert (row["gamma_init"], row["weight_init"]) == ("log-normal", "xavier")
    assert row["beta_init"] == "zeros"


def test_a_script_that_takes_some_training_images_has_these_as_its_subset():
    args = arguments()
    data = common.load_data(args)
    for kind in (data.images, data.labels):
        kind["train"] = kind["train"][:100]
    model = common.build_model(args, data)
    common.freeze(model, "bn")
    (row, *_) = common.fit(model, data, args).rows
    assert row["subset"] == "100"


def test_a_grid_shows_the_default_of_a_flag_of_ones_own():
    text = """
@dataclass
class Settings(common.Settings):
    lists = {"last": [1, 2]}
    last: int = common.flag(1, "blocks from the end", common.number(int, 1))

def one(args):
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, lambda name, *_: "stage3" in name and "bn" in name, called="last")
    return common.fit(model, data, args)

def run(args):
    code, outcomes = common.run_grid(common.grid(args), one)
    print("lasts:", *common.table_of(outcomes)["last"])
    print("tables:", *(rows["last"].unique() for rows in common.tables_of(outcomes, args)))
    return code
"""
    script("last", text)
    shown = forked("exp_last.py", *SMALL, "--epochs", 1, "--depth", 8).out
    assert "lasts: 1 2\n" in shown and "last 1:\n" in shown and "tables: [1] [2]" in shown


@pytest.mark.parametrize("seed", range(6))
def test_no_start_is_taken_for_one_of_the_scripts_own(seed):
    """A sum over weights depends on how they lie in memory, which build_model changes at its end:
    half of all networks of this depth once were recorded as of a start of their script's own."""
    args = arguments("--depth", 32, "--seed", seed)
    model = common.build_model(args, common.load_data(args))
    assert not redrawn(model)
    with torch.no_grad():
        model.stage3[0].conv1.weight[0, 0, 0, 0] += 1e-6
    assert redrawn(model) == {"weight_init"}


def test_a_network_of_ones_own_under_a_name_of_its_own_has_the_shape_that_it_reads():
    text = """
@dataclass
class Settings(common.Settings):
    arch: str = "mine"

def mine(args, size, classes):
    units = 16 * args.width
    return nn.Sequential(nn.Flatten(), nn.Linear(64, units), nn.Linear(units, classes))

def build(args, data):
    return common.build_model(args, data, mine)
"""
    script("mine", text + BUILT.replace('"bn"', '"output"'))
    shown = forked("exp_mine.py", *SMALL, "--epochs", 1, "--width", 2, "--depth", 3)
    row, csv = rows(the_csv())[0], the_csv()
    assert (row["arch"], row["depth"], row["width"]) == ("mine", "", "2")
    assert csv.name.startswith("mine-w2-")
    assert "warning: --depth has no part" in shown.err and "--width" not in shown.err
    checkpoint = str(Path("checkpoints/mine", csv.stem).with_suffix(".pt"))
    assert predict.main([checkpoint, "--dataset", "digits"]) == 0


def test_a_copys_own_arch_has_its_part():
    copied = Path(common.__file__).with_name("exp_norms.py").read_text()
    Path("exp_copied.py").write_text(copied + "# mine\n")
    words = "--dataset digits --epochs 1 --quiet --seeds 0 --device cpu".split()
    shown = forked("exp_copied.py", *words, "--arch", "mlp", "--norm", "none", "--train", "bias")
    assert "warning" not in shown.err
    (path,) = Path("results/copied").glob("mlp-digits-bias-*[0-9a-f].csv")
    assert rows(path)[0]["hidden"] == "512-512-512"


def test_a_grids_table_has_numbers_where_its_columns_are_numbers():
    text = """
@dataclass
class Settings(common.Settings):
    lists = {"noise": [0.0, 0.2], "seed": [0, 1]}
    noise: float = common.flag(0.0, "share of the labels", common.number(float, 0))
    tag: str = common.flag("", "text")

def one(args):
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "bias")
    return common.fit(model, data, args, also=lambda model: {"gamma": 1.5})

def run(args):
    code, outcomes = common.run_grid(common.grid(args), one)
    table = common.table_of(outcomes)
    print("of 0.2:", len(table[table.noise == 0.2]), table.gamma.mean(), table.epochs.sum())
    print("text:", table.train.iloc[0], table.tag.isna().all(), *map(type, table.script[:1]))
    print("accuracy:", common.mean_and_deviation(table.train_acc) != "not run")
    return code
"""
    script("noise", text)
    shown = forked("exp_noise.py", *SMALL, "--epochs", 1, "--depth", 8)
    assert "of 0.2: 2 1.5 4\n" in shown.out
    assert "text: bias True <class 'str'>\n" in shown.out and "accuracy: True" in shown.out
    names = {path.stem for path in Path("results/noise").glob("*[0-9a-f].csv")}
    told = {word.rstrip(":") for word in shown.err.split() if word.startswith("resnet8-")}
    assert len(names) == 4 and told == names  # and in the bar no name that no run has


def test_a_layer_with_a_method_of_its_own_calculates_as_it_says():
    """Also on one thread of a CPU, where others have oneDNN's layout."""
    args = arguments()
    model = common.build_model(args, common.load_data(args))
    assert onednn.suits(model, common.ResNet, common.Block)
    model.stage1[0].forward = MethodType(lambda block, x: F.leaky_relu(x), model.stage1[0])
    assert not onednn.suits(model, common.ResNet, common.Block)


def test_the_biases_of_a_recurrent_layer_are_biases():
    model = nn.ModuleDict({"rnn": nn.LSTM(4, 4), "output": nn.Linear(4, 2)})
    assert words(model)["bias"] == {"rnn.bias_ih_l0", "rnn.bias_hh_l0", "output.bias"}


SCALAR = """
class Scalar(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels, affine=False)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * super().forward(x)
"""


def test_a_norm_whose_scale_has_a_name_of_its_own_starts_as_its_own():
    network = """
def network(args, size, classes):
    return nn.Sequential(
        nn.Conv2d(size[2], 8, 3), Scalar(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, classes))

def build(args, data):
    return common.build_model(args, data, network)
"""
    script("scalar", SCALAR + network + BUILT)
    (row,) = made("scalar", "--epochs", 1)
    assert (row["gamma_init"], row["params_trained"]) == ("own", "1")


def test_a_kind_of_normalisation_without_gamma_and_beta_for_each_channel_is_refused():
    text = Path(common.__file__).with_name("exp_norms.py").read_text()
    before, main, after = text.partition("def kind(text)")
    Path("exp_kinds.py").write_text(f"{before}{SCALAR}\n\nKINDS['one'] = Scalar\n\n\n{main}{after}")
    process = Forked("exp_kinds.py", *SMALL, "--depth", 8, "--norm", "one", "--epochs", 1)
    assert process.wait() == 2
    assert process.err.count("\n") == 1 and "--norm one: its γ and β" in process.err


def test_runs_of_other_starts_stay_apart_where_a_script_has_drawn_over_some():
    script("some", DRAWN_OVER.replace("DRAW", "model.bn.weight.fill_(2)") + BUILT)
    for start in ("uniform", "ones"):
        forked("exp_some.py", *SMALL, "--epochs", 1, "--gamma-init", start)
    found = [rows(path)[0]["gamma_init"] for path in Path("results/some").glob("*[0-9a-f].csv")]
    assert sorted(found) == ["own", "own+ones"]


def test_a_weight_that_is_computed_without_an_inverse_starts_from_what_it_is_computed_of():
    """As LoRA's, which adds a product of two small matrices that is zero at the start."""

    class LoRA(nn.Module):
        def __init__(self, rows, columns):
            super().__init__()
            self.a, self.b = (
                nn.Parameter(torch.randn(2, columns)),
                nn.Parameter(torch.zeros(rows, 2)),
            )

        def forward(self, weight):
            return weight + self.b @ self.a

    def network(args, size, classes, lora=True):
        layer = nn.Linear(64, classes)
        if lora:
            nn.utils.parametrize.register_parametrization(layer, "weight", LoRA(classes, 64))
        return nn.Sequential(nn.Flatten(), layer)

    args = arguments()
    data = common.load_data(args)
    usual = common.build_model(args, data, partial(network, lora=False))
    assert common.build_model(args, data, network)[1].weight.equal(usual[1].weight)


def test_images_of_one_size_are_asked_for_in_all_splits():
    images = {"train": np.zeros((20, 8, 8, 1), np.uint8), "test": np.zeros((9, 8, 8, 3), np.uint8)}
    labels = {split: np.arange(len(x)) % 2 for split, x in images.items()}
    with pytest.raises(UserError, match="test images of 8x8x3: .* as train's: 8x8x1"):
        common.make_data(arguments(), "mixed", images, labels)


def penalty(model, x, y, optimizer, args, loss_scale=1):
    """A step that differentiates a gradient, with BatchNorm's statistics held."""
    for layer in common.norms(model).values():
        layer.eval()
    x.requires_grad_(True)
    logits = common.forward(model, x, args)
    loss = F.cross_entropy(logits, y)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + slope.square().sum()).backward()
    optimizer.step()
    optimizer.zero_grad()
    return common.tally(logits.detach(), loss.detach(), y)


def test_a_step_of_ones_own_may_do_what_onednn_cannot():
    args = arguments("--image-size", 16, "--epochs", 1)
    assert len(fitted(args, step=penalty)) == 1
