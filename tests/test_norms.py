"""exp_norms.py: other normalisations and none, a transformer, biases."""

import re
from functools import partial
from pathlib import Path

from tests.helpers import GRID, SMALL, arguments, one_line, rows, the_csv
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import common
from harness.config import Process, parse
from harness.files import read_checkpoint, write_checkpoint
from harness.norms import Calibrated, calibrate
from harness.parts import parts, trained_as
import exp_bn_only
import exp_norms
import predict


def network(norm: str, *words):
    args = arguments("--depth", 14, *words)
    data = common.load_data(args)
    return exp_norms.with_norm(common.build_model(args, data), norm), data, args


def test_a_grid_tells_runs_apart_whose_names_do_not(capsys):
    words = [word for word in GRID if word != "--quiet"]
    assert exp_norms.main([*words, "--norm", "none", "rms", "--lr", "0.1"]) == 0
    out = capsys.readouterr().out
    for kind in ("none", "rms"):
        assert re.search(rf"norm-s0-\w+ \(norm {kind}\): [\d.]+ %", out)


def test_batchnorm_here_is_that_of_the_other_scripts():
    assert exp_norms.main([*GRID, "--norm", "bn"]) == 0
    assert exp_bn_only.main(GRID) == 0
    here, there = (next(Path("results", e).glob("*[0-9a-f].csv")) for e in ("norms", "bn_only"))
    assert here.name == there.name
    assert [row | {"experiment": "bn_only"} for row in rows(here)] == rows(there)


def test_all_kinds_have_the_same_random_weights_and_scales():
    usual = dict(network("bn")[0].named_parameters())
    for norm in ("gn:4", "ln", "in", "rms", "calibrated", "none"):
        model, *_ = network(norm)
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
        found = dict(model.named_parameters())
        assert set(found) == set(usual)
        assert all(torch.equal(found[name], usual[name]) for name in usual)


def test_kinds_calculate_what_they_are_called():
    x = torch.randn(6, 8, 4, 4) * 3 + 1
    gamma, beta = torch.rand(8), torch.randn(8)

    def of(layer):
        layer.weight.data, layer.bias.data = gamma.clone(), beta.clone()
        return layer(x)

    def scaled(y):
        return y * gamma[:, None, None] + beta[:, None, None]

    everything = (1, 2, 3)
    square = x.pow(2).mean(everything, keepdim=True)
    variance, mean = torch.var_mean(x, everything, correction=0, keepdim=True)
    expected = {
        "none": scaled(x),
        "rms": scaled(x / (square + 1e-5).sqrt()),
        "ln": scaled((x - mean) / (variance + 1e-5).sqrt()),
        "in": F.instance_norm(x, weight=gamma, bias=beta),
    }
    for name, y in expected.items():
        assert torch.allclose(of(exp_norms.KINDS[name](8)), y, atol=1e-5), name
    layer = Calibrated(8)
    calibrate(layer, partial(layer, x))
    assert torch.allclose(of(layer), F.batch_norm(x, None, None, gamma, beta, True), atol=1e-5)


def test_a_calibrated_network_is_batchnorms_on_the_first_batch_and_constant_afterwards():
    usual, data, args = network("bn")
    model, *_ = network("calibrated")
    (x, _), (other, _) = list(data.training_batches(0, 1, 75, "none"))[:2]
    calibrate(model, partial(common.forward, model, x, args))
    with torch.no_grad():
        assert torch.allclose(model(x), usual.train()(x), atol=1e-4)
        assert not torch.allclose(model(other), usual(other), atol=1e-2)
        assert torch.allclose(model(other)[:1], model(other[:1]), atol=1e-5)


def test_without_normalisation_training_and_testing_are_the_same():
    model, data, args = network("none")
    x, _ = next(data.training_batches(0, 1, 50, "none"))
    with torch.no_grad():
        assert torch.equal(model.train()(x), model.eval()(x))
        assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)


class Plain:
    """A ResNet whose γ and β alone are trained, in float64 and by the papers' equations alone: of
    the code under test it has only the random start and the batches."""

    def __init__(self, model, norm: str):
        self.norm, self.constants = norm, {}
        self.values = {name: p.detach().double() for name, p in model.named_parameters()}
        self.trained = {
            name: p.requires_grad_()
            for name, p in self.values.items()
            if re.search(r"bn|shortcut\.1", name)
        }
        self.velocity = {name: torch.zeros_like(p) for name, p in self.trained.items()}

    def normalised(self, x, layer: str):
        gamma, beta = self.values[f"{layer}.weight"], self.values[f"{layer}.bias"]
        return self.standard(x, layer) * gamma[:, None, None] + beta[:, None, None]

    def standard(self, x, layer: str):
        if self.norm == "none":
            return x
        if self.norm == "rms":
            return x / (x.pow(2).mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        if self.norm.startswith("gn:"):
            groups = x.unflatten(1, (int(self.norm.removeprefix("gn:")), -1))
            variance, mean = torch.var_mean(groups, (2, 3, 4), correction=0, keepdim=True)
            return ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        over = (1, 2, 3) if self.norm == "ln" else (0, 2, 3)
        variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
        if self.norm == "calibrated":  # those of the first batch
            first = variance.detach(), mean.detach()
            variance, mean = self.constants.setdefault(layer, first)
        return (x - mean) / (variance + 1e-5).sqrt()

    def conv(self, x, layer: str, stride: int = 1):
        weight = self.values[f"{layer}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def logits(self, x):
        x = self.normalised(self.conv(x, "conv"), "bn").relu()
        for block in ("stage1.0", "stage2.0", "stage3.0"):
            stride = 1 if block == "stage1.0" else 2
            out = self.normalised(self.conv(x, f"{block}.conv1", stride), f"{block}.bn1").relu()
            out = self.normalised(self.conv(out, f"{block}.conv2"), f"{block}.bn2")
            if stride == 2:
                x = self.conv(x, f"{block}.shortcut.0", stride)
                x = self.normalised(x, f"{block}.shortcut.1")
            x = (out + x).relu()
        return F.linear(x.mean((2, 3)), self.values["output.weight"], self.values["output.bias"])

    def step(self, x, y, rate: float) -> float:
        loss = F.cross_entropy(self.logits(x.double()), y)
        gradients = torch.autograd.grad(loss, list(self.trained.values()))
        with torch.no_grad():
            for (name, p), g in zip(self.trained.items(), gradients, strict=True):
                self.velocity[name] = 0.9 * self.velocity[name] + g + 1e-4 * p
                p -= rate * self.velocity[name]
        return loss.item()


@pytest.mark.parametrize("norm", ["bn", "gn:4", "ln", "rms", "calibrated", "none"])
def test_a_run_of_each_kind_is_what_a_plain_loop_makes_of_it(norm):
    assert exp_norms.main([*SMALL, "--quiet", "--norm", norm, "--lr", "0.1"]) == 0
    found = [float(row["train_loss"]) for row in rows(the_csv("results"))]
    args = arguments()
    data = common.load_data(args)
    plain, losses = Plain(common.build_model(args, data), norm), []
    for epoch, rate in enumerate((0.1, 0.1, 0.01), 1):
        batches = data.training_batches(0, epoch, 50, args.augment)
        losses.append(sum(plain.step(x, y, rate) for x, y in batches) / 3)
    assert found == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("norm", ["calibrated", "rms", "gn:2"])
def test_a_run_goes_on_to_the_same_digits_and_predict_opens_it(norm, capsys):
    words = [*GRID, "--epochs", "3", "--norm", norm]
    places = [["--results", name, "--checkpoints", name] for name in ("whole", "stopped")]
    assert exp_norms.main([*words, *places[0]]) == 0
    for _ in range(3):
        exp_norms.main([*words, *places[1], "--time-limit", "1e-9"])
    assert rows(the_csv("whole")) == rows(the_csv("stopped"))
    (path,) = Path("whole").rglob("*.pt")
    content = read_checkpoint(path)
    del content["settings"]["bn"]  # as before the script could be asked for it
    write_checkpoint(path, content)
    capsys.readouterr()
    assert predict.main([str(path), "--dataset", "digits", "--device", "cpu"]) == 0
    assert f"{float(rows(the_csv('whole'))[-1]['test_acc']):.2f} % of" in capsys.readouterr().out


def test_gamma_and_beta_are_both_whatever_the_normalisation():
    assert exp_norms.main([*GRID, "--norm", "bn", "none", "--train", "gamma+beta"]) == 0
    found = [rows(path)[0] for path in Path("results/norms").glob("*[0-9a-f].csv")]
    assert {row["train"] for row in found} == {"bn", "norm"}


def test_batchnorm_behind_the_activation():
    words = [*SMALL, "--bn", "after"]
    args = parse(exp_norms.Settings, words, "", Process(Path("exp_norms.py")))
    args = common.resolved(args.but(depth=8))
    data = common.load_data(args)
    model = exp_norms.build(args, data).eval()
    x, _ = next(data.batches("test"))
    with torch.no_grad():
        block, stem = model.stage1[0], model.bn[1](torch.relu(model.conv(x)))
        out = block.bn1[1](torch.relu(block.conv1(stem)))
        out = block.bn2[1](torch.relu(block.conv2(out))) + stem
        assert torch.allclose(model.stage1(model.bn(model.conv(x))), out, atol=1e-5)
    assert exp_norms.main([*GRID, "--norm", "bn", "--bn", "after", "--train", "norm", "all"]) == 0
    found = [rows(path)[0] for path in Path("results/norms").glob("*[0-9a-f].csv")]
    assert {row["train"]: row["params_trained"] for row in found} == {"bn": "672", "all": "77754"}
    assert {row["bn"] for row in found} == {"after"}


def test_a_transformers_parts():
    words = [*SMALL[:2], "--arch", "vit", "--device", "cpu"]
    args = parse(exp_norms.Settings, words, "", Process(Path("exp_norms.py")))
    args = common.resolved(args.but(depth=6))
    model = exp_norms.build(args, common.load_data(args))
    sizes = {part: sum(p.numel() for p in of.values()) for part, of in parts(model).items()}
    assert (sizes["gamma"], sizes["beta"], sizes["position"]) == (1664, 1664, 16 * 128)
    assert sizes["input"] == 128 * 4 + 128
    assert sizes["output"] == 1290
    weights = [layer.self_attn.in_proj_weight for layer in model.encoder.layers]
    assert not torch.equal(weights[0], weights[1])  # PyTorch copies one layer
    common.freeze(model, "output+norm+input+position")
    assert trained_as(model) == "norm+output+input+position"
    common.freeze(model, "random:2")  # as many as the LayerNorms'
    assert common.count_parameters(model)[0] == 2 * 1664


@pytest.mark.parametrize(
    "words",
    [
        "--arch vit --depth 1 --train output norm+output input+position",
        "--arch mlp --hidden 32 --norm none bn --train bias norm",
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_transformers_and_mlps_train_what_they_say(words, precision):
    if precision == "bf16" and not common.speed.has_bf16(torch.device("cpu")):
        pytest.skip("this processor has no bf16")
    small = [word for word in SMALL if word not in ("--depth", "8", "--precision", "fp32")]
    assert exp_norms.main([*small, "--quiet", "--precision", precision, *words.split()]) == 0
    found = [rows(path)[-1] for path in Path("results/norms").glob("*[0-9a-f].csv")]
    assert all(row["status"] == "ok" and len(row["test_acc"]) for row in found)
    trained = {row["train"]: int(row["params_trained"]) for row in found}
    assert trained in (
        {"output": 1290, "norm+output": 1290 + 6 * 128, "input+position": 640 + 2048},
        {"bias": 42, "norm": 64, "bn": 64},
    )


def test_instance_norm_is_a_group_for_each_channel():
    """PyTorch's own, in values and in gradients, whose place it takes in `KINDS`."""
    x = torch.randn(3, 8, 5, 5)
    found = []
    for norm in (nn.InstanceNorm2d(8, affine=True), exp_norms.KINDS["in"](8)):
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1, 1, 8))
        image = x.clone().requires_grad_()
        norm(image).square().sum().backward()
        found.append((norm(image).detach(), norm.weight.grad, image.grad))
    for ours, pytorchs in zip(*found, strict=True):
        assert torch.allclose(ours, pytorchs, atol=1e-5)


def test_the_share_of_dead_features_is_measured_after_every_epoch(capsys):
    assert exp_norms.main([*GRID, "--epochs", "2", "--norm", "bn", "--watch"]) == 0
    first, last = rows(the_csv())
    assert 0 <= float(first["dead"]) <= 100
    assert 0 <= float(last["small_gammas"]) <= 100
    words = [*GRID, "--norm", "bn", "--seeds", "1"]
    assert exp_norms.main(words) == 0
    capsys.readouterr()
    assert exp_norms.main([*words, "--watch"]) == 0
    assert "made without --watch: --force" in one_line(capsys)


@pytest.mark.parametrize(
    "words, says",
    [
        ("--norm gn:3", "give a divisor of 16"),
        ("--norm gn:0", "from 1"),
        ("--norm batch", "gn:G"),
        ("--arch vit --norm bn", "LayerNorm"),
        ("--arch mlp --depth 3", "--hidden"),
        ("--arch mlp --norm in", "hidden layer"),
        ("--arch mlp --bn after", "of a resnet"),
        ("--hidden 32", "of an mlp"),
        ("--train position", "'position' is no part"),
    ],
)
def test_what_does_not_fit_is_one_line(words, says, capsys):
    small = [word for word in GRID if word not in ("--depth", "8")]
    code = exp_norms.main([*small, *words.split()])
    err = capsys.readouterr().err
    assert code == 2 or "failed: " in err
    assert says in err
    assert "Traceback" not in err
