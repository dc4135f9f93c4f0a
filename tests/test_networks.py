"""Networks, their random start, and what of them is trained."""

import itertools
import math
import time

from tests.helpers import BATCHNORM, agrees, arguments, counts, rows, run, the_csv
import pytest
import torch

import common
from harness.parts import parts, trained_as
from harness import entries
from harness.zoo import VisionTransformer


WIDE = {2: "696K", 4: "2.78M", 8: "11.1M", 16: "44.3M", 32: "177M"}


def test_the_deepest_network_is_ready_in_seconds():
    began = time.process_time()
    model = common.network(arguments("--depth", 866), (8, 8, 1), 10)
    common.freeze(model, "bn")
    assert common.count_parameters(model)[0] == 64_736
    # 1 s; 18 s when `parts` walked the network at each parameter
    assert time.process_time() - began < 6


@pytest.mark.parametrize("width", WIDE)
def test_parameter_counts_of_wide_networks(width):
    found = counts(14, width)
    assert found["gamma"] + found["beta"] == 1120 * width
    assert agrees(sum(found.values()), WIDE[width])


@pytest.mark.parametrize("size, channels", [(8, 1), (28, 1), (32, 3), (33, 5)])
def test_any_image_size_and_number_of_channels(size, channels):
    model = common.ResNet(14, 1, channels, 7)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 7)
    quarter = math.ceil(size / 4)
    features = model.stage3(model.stage2(model.stage1(torch.randn(2, 16, size, size))))
    assert features.shape == (2, 64, quarter, quarter)


def test_one_choice_has_one_spelling():
    args = arguments()
    for spellings in (
        ["bn", "gamma+beta", "beta+gamma", "norm"],
        ["bn+output", "output+bn", "beta+output+gamma"],
        ["all-bn", "conv+shortcut+output"],
        ["all", "bn+conv+shortcut+output"],
        ["bias", "beta+bias"],
        ["bn", "bn+gamma"],
    ):
        for train in spellings:
            model = common.build_model(args, common.load_data(args))
            common.freeze(model, train)
            assert trained_as(model) == spellings[0], train


def test_what_a_constructor_draws_repeats_no_weight():
    """A transformer's positions were once an output projection's first rows, on another scale."""

    def vit(args, size, classes):
        return VisionTransformer(2, 1, size, classes)

    args = arguments("--dataset", "digits")
    model = common.build_model(args, common.load_data(args), vit)
    drawn = [
        parameter.detach().flatten() for parameter in model.parameters() if parameter.dim() > 1
    ]
    for one, other in itertools.combinations(drawn, 2):
        n = min(len(one), len(other))
        correlation = torch.corrcoef(torch.stack([one[:n], other[:n]]))[0, 1]
        assert abs(correlation) < 6 / math.sqrt(n)


def test_initialisations():
    def model(*words):
        args = arguments("--depth", 14, "--width", 4, *words)
        return common.build_model(args, common.load_data(args))

    default = model()
    conv = default.stage3[1].conv1.weight
    assert conv.std().item() == pytest.approx((2 / conv[0].numel()) ** 0.5, rel=0.02)
    gamma = torch.cat([bn.weight for bn in common.norms(default).values()])
    assert 0 <= gamma.min()
    assert gamma.max() <= 1
    assert gamma.mean().item() == pytest.approx(0.5, abs=0.02)
    assert not torch.cat([bn.bias for bn in common.norms(default).values()]).any()
    words = "--gamma-init symmetric --beta-init constant:0.25 --weight-init binary"
    other = model(*words.split())
    assert torch.cat([bn.weight for bn in common.norms(other).values()]).min() < -0.9
    assert all((bn.bias == 0.25).all() for bn in common.norms(other).values())
    binary = other.stage3[1].conv1.weight
    assert torch.equal(binary.sign(), conv.sign())
    assert len(binary.abs().unique()) == 1
    uniform = model("--weight-init", "he_uniform").stage3[1].conv1.weight
    assert uniform.abs().max().item() == pytest.approx((6 / uniform[0].numel()) ** 0.5, rel=0.01)
    orthogonal = model("--weight-init", "orthogonal").stage3[1].conv1.weight.flatten(1)
    assert torch.allclose(orthogonal @ orthogonal.T, 2 * torch.eye(len(orthogonal)), atol=1e-4)


IMAGENET = {18: 9600, 34: 17024, 50: 53120, 101: 105344, 152: 151424, 200: 176000}


@pytest.mark.parametrize("depth", IMAGENET)
def test_parameter_counts_of_imagenet_networks(depth):
    with torch.device("meta"):
        found = parts(common.imagenet_resnet(depth, (224, 224, 3), 1000))
    affine = [*found["gamma"].values(), *found["beta"].values()]
    assert sum(p.numel() for p in affine) == IMAGENET[depth]
    assert all(p.shape[2:] == (1, 1) for p in found["shortcut"].values())
    assert next(iter(found["output"].values())).shape[0] == 1000


@pytest.mark.parametrize(
    "words",
    ["--arch vgg --depth 11 --image-size 16", "--arch imagenet_resnet --depth 18"],
)
def test_other_networks_train(words):
    assert run("--epochs", 1, "--subset", 20, "--train", "bn+output", *words.split()) == 0
    assert float(rows(the_csv())[0]["train_loss"]) < 10


@pytest.mark.parametrize("depth", BATCHNORM)
def test_two_random_entries_per_channel_are_as_many_as_batchnorm_has(depth):
    model = common.ResNet(depth, 1, 3, 10)
    total = common.count_parameters(model)[1]
    common.freeze(model, "random:2")
    assert common.count_parameters(model) == (BATCHNORM[depth], total)


def test_random_entries_of_a_network_made_by_hand_are_of_the_seed_that_its_script_is_given():
    """What a run begins with (harness/starting.py), so that no two seeds share them."""
    chosen = {}
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        model = common.ResNet(8, 1, 1, 10)
        common.freeze(model, "random:2")
        index = next(m.index for m in model.modules() if isinstance(m, entries.RandomEntries))
        assert chosen.setdefault(seed, index).equal(index)
    assert not chosen[0].equal(chosen[1])


def test_random_entries_move_and_all_others_stay():
    args = arguments("--train", "random:3+output", "--epochs", 2, "--weight-decay", 0.01)
    data = common.load_data(args)
    model = common.build_model(args, data)
    start = {name: layer.weight.detach().clone() for name, layer in convolutions(model).items()}
    gammas = [norm.weight.detach().clone() for norm in common.norms(model).values()]
    common.freeze(model, args.train)
    for name, weight in start.items():
        assert torch.equal(model.get_submodule(name).weight, weight)
    args.quiet = True
    assert common.fit(model, data, args).code == 0
    for name, weight in start.items():
        moved = (model.get_submodule(name).weight != weight).flatten(1)
        assert moved.sum(1).tolist() == [3] * len(weight), name
    for old, norm in zip(gammas, common.norms(model).values(), strict=True):
        assert torch.equal(old, norm.weight)
    optimizer, *_ = common.recipe(model, args)
    (group,) = optimizer.param_groups
    channels = sum(map(len, start.values()))
    assert sum(p.numel() for p in group["params"]) == 3 * channels + 650


def convolutions(model) -> dict[str, torch.nn.Conv2d]:
    named = model.named_modules()
    return {name: layer for name, layer in named if isinstance(layer, torch.nn.Conv2d)}


def test_random_entries_are_put_in_place_without_a_scatter():
    """Which deterministic mode would make a sort of, on CUDA, in every convolution and step."""

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(str(function))
            return function(*args, **kwargs or {})

    called, model = [], common.ResNet(8, 1, 1, 10)
    common.freeze(model, "random:2")
    with Names():
        model(torch.randn(2, 1, 8, 8)).sum().backward()
    assert any("gather" in name for name in called)
    assert not [name for name in called if "scatter" in name or "index_put" in name]


def test_fewer_random_entries_are_among_more_and_all_is_everything():
    def chosen(k) -> list[set[int]]:
        """The entries of each channel."""
        model = common.ResNet(8, 1, 1, 10)
        model.seed = 5
        common.freeze(model, f"random:{k}")
        layers = [m for m in model.modules() if isinstance(m, entries.RandomEntries)]
        return [set(channel.tolist()) for layer in layers for channel in layer.index]

    everything = chosen("all")
    for two, four, every in zip(chosen(2), chosen(4), everything, strict=True):
        assert two < four <= every
    assert everything == chosen(1000)
    weights = [layer.weight for layer in convolutions(common.ResNet(8, 1, 1, 10)).values()]
    assert sum(map(len, everything)) == sum(weight.numel() for weight in weights)


def test_a_step_with_random_entries_costs_little_more_than_one_of_all():
    """At CIFAR's size, by the processor's time on one thread, so that neither what else runs nor
    waiting threads count."""
    seconds, steps, threads = {"random:2": [], "all": []}, {}, torch.get_num_threads()
    for train in seconds:
        args = arguments("--train", train, "--depth", 14, "--image-size", 32)
        data = common.load_data(args)
        model = common.build_model(args, data).train()
        common.freeze(model, train)
        x, y = next(data.training_batches(0, 1, 128, "none"))
        steps[train] = (model, x, y, common.recipe(model, args).optimizer, args)
    torch.set_num_threads(1)
    try:
        for _ in range(15):
            for train, words in steps.items():
                began = time.process_time()
                common.train_step(*words)
                seconds[train].append(time.process_time() - began)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds["random:2"]) < 1.15 * min(seconds["all"])
