"""Behaviour that a user would miss. `pytest`, with tests/test_faults.py, takes under five minutes on two cores; everything runs on the CPU, on scikit-learn's digits."""

import copy
import csv
import functools
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from argparse import Namespace
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is there: a second thread gains these small networks little, and costs much on busy cores

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from PIL import Image

import bench
import common
from harness import checkpoints, dataset, errors, folders, processes, speed
from harness import files as harness_files
from harness import runs as records
from harness.config import Process, parse
from harness.parts import spelling
from harness import entries, inside
import exp_bn_init
import exp_bn_only
import exp_depth_width
import exp_mlp_lenet
import exp_random_params
import plots
import predict

HERE = Path(__file__).parent
SMALL = "--dataset digits --depth 8 --subset 150 --epochs 3 --batch-size 50 --precision fp32 --device cpu".split()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test has a folder of its own as the current one, and as the place of the user's cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def run(*words) -> int:
    return exp_bn_only.main([*SMALL, "--quiet", *map(str, words)])


def start(*words, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, HERE / "exp_bn_only.py", *SMALL, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def the_csv(results="results") -> Path:
    found = list(Path(results).glob("*/*.csv"))
    assert len(found) == 1, found
    return found[0]


def rows(path: Path) -> list[dict]:
    """Without what may differ between two runs of one command."""
    with open(path, newline="") as stream:
        return [
            {key: value for key, value in row.items() if key not in ("seconds", "commit")}
            for row in csv.DictReader(stream)
        ]


def arguments(*words) -> common.Settings:
    words = [*SMALL, *map(str, words)]
    return common.resolved(parse(common.Settings, words, "", Process(Path("exp_test.py"))))


def run_name(args) -> str:
    return records.name_run(args).run


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------------------- networks

BATCHNORM = {14: 1120, 32: 2464, 56: 4256, 110: 8288, 218: 16352, 434: 32480, 866: 64736}
TOTAL = {14: "175K", 32: "467K", 56: "856K", 110: "1.73M", 218: "3.48M", 434: "6.98M", 866: "14.0M"}
WIDE = {2: "696K", 4: "2.78M", 8: "11.1M", 16: "44.3M", 32: "177M"}


def counts(depth: int, width: int = 1) -> dict[str, int]:
    with torch.device("meta"):
        return {
            part: sum(p.numel() for p in ps.values())
            for part, ps in common.parts(common.ResNet(depth, width, 3, 10)).items()
        }


def agrees(n: int, published: str) -> bool:
    """Whether `published` is n, rounded or (696,618: "696K") cut off."""
    unit = {"K": 1e3, "M": 1e6}[published[-1]]
    return abs(n / unit - float(published[:-1])) < 10.0 ** -len(published[:-1].partition(".")[2])


@pytest.mark.parametrize("depth", BATCHNORM)
def test_parameter_counts_equal_the_papers(depth):
    found = counts(depth)
    assert found["gamma"] == found["beta"] == BATCHNORM[depth] // 2
    assert (found["output"], found["shortcut"]) == (650, 2560)
    assert agrees(sum(found.values()), TOTAL[depth])


def test_the_deepest_network_is_ready_in_seconds():
    began = time.process_time()
    model = common.network(arguments("--depth", 866), (8, 8, 1), 10)
    common.freeze(model, "bn")
    assert (
        common.count_parameters(model)[0] == 64_736 and time.process_time() - began < 6
    )  # 1 s; 18 s when `parts` walked the network at each parameter


@pytest.mark.parametrize("width", WIDE)
def test_parameter_counts_of_wide_networks(width):
    found = counts(14, width)
    assert found["gamma"] + found["beta"] == 1120 * width
    assert agrees(sum(found.values()), WIDE[width])


@pytest.mark.parametrize("size, channels", [(8, 1), (28, 1), (32, 3), (33, 5)])
def test_any_image_size_and_number_of_channels(size, channels):
    model = common.ResNet(14, 1, channels, 7)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 7)
    assert model.stage3(model.stage2(model.stage1(torch.randn(2, 16, size, size)))).shape[1:] == (
        64,
        -(-size // 4),
        -(-size // 4),
    )


# ------------------------------------------------------------------------------------------------------------- freezing

PARTS = [
    "all",
    "none",
    "all-bn",
    "bn",
    "gamma",
    "beta",
    "output",
    "shortcut",
    "conv",
    "bn+output",
    "gamma+shortcut",
    "conv+output+beta",
]
MEANS = {
    "all": {"gamma", "beta", "output", "shortcut", "conv"},
    "none": set(),
    "all-bn": {"output", "shortcut", "conv"},
}


@pytest.mark.parametrize("train", PARTS)
def test_what_is_trained_moves_and_nothing_else_does(train):
    args = arguments("--train", train, "--epochs", 1)
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    before = {
        part: [p.detach().clone() for p in ps.values()] for part, ps in common.parts(model).items()
    }
    statistics = [s.clone() for s in checkpoints.buffers(model).values() if s.is_floating_point()]
    args.quiet = True
    assert common.fit(model, data, args).code == 0
    expected = MEANS.get(train) or set(train.replace("bn", "gamma+beta").split("+")) - {"none"}
    for part, ps in common.parts(model).items():
        for old, new in zip(before[part], ps.values()):
            assert torch.equal(old, new) == (part not in expected), part
    assert not any(
        torch.equal(old, new)
        for old, new in zip(
            statistics, [s for s in checkpoints.buffers(model).values() if s.is_floating_point()]
        )
    )


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
            assert common.trained_as(model) == spellings[0], train


def test_one_seed_gives_one_start_whatever_is_trained():
    models = {}
    for train in ("bn", "output", "all"):
        args = arguments("--train", train, "--seed", 3)
        models[train] = common.build_model(args, common.load_data(args))
        common.freeze(models[train], args.train)
    other = common.build_model(args := arguments("--seed", 4), common.load_data(args))
    for name, p in models["bn"].named_parameters():
        assert torch.equal(p, models["output"].get_parameter(name)) and torch.equal(
            p, models["all"].get_parameter(name)
        )
        assert name.endswith("bias") or not torch.equal(p, other.get_parameter(name))


def test_initialisations():
    def model(*words):
        args = arguments("--depth", 14, "--width", 4, *words)
        return common.build_model(args, common.load_data(args))

    default = model()
    conv = default.stage3[1].conv1.weight
    assert conv.std().item() == pytest.approx((2 / conv[0].numel()) ** 0.5, rel=0.02)
    gamma = torch.cat([bn.weight for bn in common.norms(default).values()])
    assert (
        0 <= gamma.min()
        and gamma.max() <= 1
        and gamma.mean().item() == pytest.approx(0.5, abs=0.02)
    )
    assert not torch.cat([bn.bias for bn in common.norms(default).values()]).any()
    other = model(
        "--gamma-init", "symmetric", "--beta-init", "constant:0.25", "--weight-init", "binary"
    )
    assert torch.cat([bn.weight for bn in common.norms(other).values()]).min() < -0.9
    assert all((bn.bias == 0.25).all() for bn in common.norms(other).values())
    binary = other.stage3[1].conv1.weight
    assert torch.equal(binary.sign(), conv.sign()) and len(binary.abs().unique()) == 1
    uniform = model("--weight-init", "he_uniform").stage3[1].conv1.weight
    assert uniform.abs().max().item() == pytest.approx((6 / uniform[0].numel()) ** 0.5, rel=0.01)
    orthogonal = model("--weight-init", "orthogonal").stage3[1].conv1.weight.flatten(1)
    assert torch.allclose(orthogonal @ orthogonal.T, 2 * torch.eye(len(orthogonal)), atol=1e-4)


IMAGENET = {18: 9600, 34: 17024, 50: 53120, 101: 105344, 152: 151424, 200: 176000}


@pytest.mark.parametrize("depth", IMAGENET)
def test_parameter_counts_of_imagenet_networks(depth):
    with torch.device("meta"):
        found = common.parts(common.imagenet_resnet(depth, (224, 224, 3), 1000))
    assert (
        sum(p.numel() for part in ("gamma", "beta") for p in found[part].values())
        == IMAGENET[depth]
    )
    assert (
        all(p.shape[2:] == (1, 1) for p in found["shortcut"].values())
        and next(iter(found["output"].values())).shape[0] == 1000
    )


@pytest.mark.parametrize(
    "words",
    ["--arch vgg --depth 11 --image-size 16", "--arch imagenet_resnet --depth 18 --image-size 16"],
)
def test_other_networks_train(words):
    assert run("--epochs", 1, "--subset", 20, "--train", "bn+output", *words.split()) == 0
    assert float(rows(the_csv())[0]["train_loss"]) < 10


# ---------------------------------------------------------------------------------------------------- random parameters


@pytest.mark.parametrize("depth", BATCHNORM)
def test_two_random_entries_per_channel_are_as_many_as_batchnorm_has(depth):
    model = common.ResNet(depth, 1, 3, 10)
    model.seed = 0
    total = common.count_parameters(model)[1]
    common.freeze(model, "random:2")
    assert common.count_parameters(model) == (BATCHNORM[depth], total)


def test_random_entries_move_and_all_others_stay():
    args = arguments("--train", "random:3+output", "--epochs", 2, "--weight-decay", 0.01)
    data = common.load_data(args)
    model = common.build_model(args, data)
    start = {
        name: layer.weight.detach().clone()
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Conv2d)
    }
    bn = [bn.weight.detach().clone() for bn in common.norms(model).values()]
    common.freeze(model, args.train)
    assert all(
        torch.equal(model.get_submodule(name).weight, weight) for name, weight in start.items()
    )
    args.quiet = True
    assert common.fit(model, data, args).code == 0
    for name, weight in start.items():
        moved = (model.get_submodule(name).weight != weight).flatten(1)
        assert moved.sum(1).tolist() == [3] * len(weight), name
    assert all(
        torch.equal(old, layer.weight) for old, layer in zip(bn, common.norms(model).values())
    )
    optimizer, *_ = common.recipe(model, args)
    assert (
        sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        == 3 * sum(map(len, start.values())) + 650
    )


def test_random_entries_are_put_in_place_without_a_scatter():
    """Which deterministic mode would make a sort of, on CUDA, in every convolution and step."""

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(str(function))
            return function(*args, **kwargs or {})

    called, model = [], common.ResNet(8, 1, 1, 10)
    model.seed = 0
    common.freeze(model, "random:2")
    with Names():
        model(torch.randn(2, 1, 8, 8)).sum().backward()
    assert any("gather" in name for name in called) and not [
        name for name in called if "scatter" in name or "index_put" in name
    ]


def test_fewer_random_entries_are_among_more_and_all_is_everything():
    chosen = {}
    for k in ("2", "4", "all", "1000"):
        model = common.ResNet(8, 1, 1, 10)
        model.seed = 5
        common.freeze(model, f"random:{k}")
        chosen[k] = [
            set(row.tolist())
            for m in model.modules()
            if isinstance(m, entries.RandomEntries)
            for row in m.index
        ]
    assert (
        all(
            two < four <= every for two, four, every in zip(chosen["2"], chosen["4"], chosen["all"])
        )
        and chosen["all"] == chosen["1000"]
    )
    assert sum(map(len, chosen["all"])) == sum(
        m.weight.numel()
        for m in common.ResNet(8, 1, 1, 10).modules()
        if isinstance(m, torch.nn.Conv2d)
    )


def test_a_step_with_random_entries_costs_little_more_than_one_of_all():
    """At CIFAR's size, by the processor's time on one thread, so that neither what else runs nor waiting threads count."""
    seconds, steps, threads = {"random:2": [], "all": []}, {}, torch.get_num_threads()
    for train in seconds:
        args = arguments("--train", train, "--depth", 14, "--image-size", 32)
        data = common.load_data(args)
        model = common.build_model(args, data)
        common.freeze(model, train)
        steps[train] = (
            model.train(),
            *next(data.training_batches(0, 1, 128, "none")),
            common.recipe(model, args).optimizer,
            args,
        )
    torch.set_num_threads(1)
    try:
        for _ in range(7):
            for train, words in steps.items():
                began = time.process_time()
                common.train_step(*words)
                seconds[train].append(time.process_time() - began)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds["random:2"]) < 1.15 * min(seconds["all"])


# ----------------------------------------------------------------------------------------------------------------- data


def tiny_cifar10(root: Path) -> np.ndarray:
    """CIFAR-10 in its own file format, 20 images a file."""
    folder, draw = root / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)
    pixels = []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels.append(draw.integers(0, 256, (20, 3072), np.uint8))
        (folder / name).write_bytes(
            pickle.dumps({"data": pixels[-1], "labels": [i % 10 for i in range(20)]})
        )
    (folder / "batches.meta").write_bytes(
        pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    )
    return np.concatenate(pixels[:5]).reshape(-1, 3, 32, 32)


def test_cifar10_through_torchvision(monkeypatch):
    import torchvision.datasets.cifar

    pixels = tiny_cifar10(Path("data"))
    monkeypatch.setattr(
        torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).exists()
    )
    args = arguments("--dataset", "cifar10", "--subset", 80, "--augment", "none")
    args.subset = None
    data = common.load_data(args)
    assert (
        data.size == (32, 32, 3) and data.classes[3] == "class 3" and len(data.labels["test"]) == 20
    )
    assert np.array_equal(data.images["train"].permute(0, 3, 1, 2).numpy(), pixels)
    assert run("--dataset", "cifar10", "--subset", 80, "--epochs", 1) == 0
    assert (
        rows(the_csv())[0]["augment"] == "crop+flip" and rows(the_csv())[0]["dataset"] == "cifar10"
    )


def test_mnist_through_torchvision():
    raw = Path("data/MNIST/raw")
    raw.mkdir(parents=True)
    for split, n in (("train", 60), ("t10k", 20)):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(
            np.array([2051, n, 28, 28], ">i4").tobytes()
            + np.arange(n * 784).astype(np.uint8).tobytes()
        )
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(
            np.array([2049, n], ">i4").tobytes() + bytes(i % 10 for i in range(n))
        )
    data = common.load_data(arguments("--dataset", "mnist", "--subset", 30, "--image-size", 14))
    assert (
        data.size == (14, 14, 1)
        and len(data.labels["train"]) == 30
        and data.labels["train"].bincount().tolist() == [3] * 10
    )


def test_training_batches_hold_every_image_once_and_augment_as_asked():
    args = arguments("--batch-size", 7)
    data = common.load_data(args)
    data.images["train"] = torch.arange(150 * 64).remainder(251).to(torch.uint8).view(150, 8, 8, 1)
    data.labels["train"] = torch.arange(150)
    plain = {int(y): x for xs, ys in data.training_batches(0, 1, 7, "none") for x, y in zip(xs, ys)}
    assert sorted(plain) == list(range(150))
    assert all(
        torch.equal(plain[i], data.normalise(data.images["train"][i : i + 1])[0]) for i in plain
    )
    assert [ys.tolist() for _, ys in data.training_batches(0, 1, 7, "none")] != [
        ys.tolist() for _, ys in data.training_batches(0, 2, 7, "none")
    ]
    padded = data.normalise(torch.nn.functional.pad(data.images["train"], (0, 0, 4, 4, 4, 4)))
    seen = set()
    for xs, ys in data.training_batches(0, 1, 7, "crop+flip"):
        for x, i in zip(xs, ys):
            views = {
                (r, c, f): (
                    padded[i, :, r : r + 8, c : c + 8].flip(2)
                    if f
                    else padded[i, :, r : r + 8, c : c + 8]
                )
                for r in range(9)
                for c in range(9)
                for f in (0, 1)
            }
            match = [view for view, pixels in views.items() if torch.equal(pixels, x)]
            assert match
            seen.add(match[0])
    assert {r for r, _, _ in seen} == {c for _, c, _ in seen} == set(range(9)) and {
        f for _, _, f in seen
    } == {0, 1}


def test_a_last_batch_of_one_joins_the_one_before():
    assert [len(b) for b in dataset.split_batches(torch.arange(11), 5)] == [5, 6]
    assert [len(b) for b in dataset.split_batches(torch.arange(12), 5)] == [5, 5, 2]
    assert [len(b) for b in dataset.split_batches(torch.arange(3), 1)] == [1, 1, 1]
    assert run("--subset", 101, "--epochs", 1) == 0


def test_subset_and_validation_are_stratified_and_the_same_for_every_seed():
    one, two = (
        common.load_data(arguments("--subset", 200, "--val-fraction", 0.25, "--seed", seed))
        for seed in (0, 1)
    )
    for split, n in (("train", 150), ("val", 50), ("test", 359)):
        assert len(one.labels[split]) == n and torch.equal(one.images[split], two.images[split])
        share = one.labels[split].bincount() / n
        assert (share - 0.1).abs().max() < 0.03
    assert (
        len(np.unique(np.concatenate([x.reshape(len(x), -1) for x in one.images.values()]), axis=0))
        > 0.99 * 559
    )


def image_folder(root="pets", sizes=((12, 12),), test="test") -> Path:
    draw = np.random.default_rng(0)
    for split, n in (("train", 6), (test, 2)) if test else (("train", 6),):
        for name in ("cat", "dog"):
            (Path(root) / split / name).mkdir(parents=True)
            for i in range(n):
                height, width = sizes[i % len(sizes)]
                Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)).save(
                    Path(root) / split / name / f"{i}.png"
                )
    return Path(root)


FOLDER = ["--dataset", "imagefolder", "--data", "pets"]


def test_image_folder_is_decoded_once_and_again_when_it_changes(monkeypatch):
    root = image_folder()
    decoded = []
    monkeypatch.setattr(
        folders,
        "decode",
        lambda *a, decode=folders.decode, **k: decoded.append(1) or decode(*a, **k),
    )
    args = arguments(*FOLDER, "--subset", 10)
    args.subset = None
    first, second = common.load_data(args), common.load_data(args)
    assert (
        len(decoded) == 2
        and first.classes == ["cat", "dog"]
        and first.labels["train"].tolist() == [0] * 6 + [1] * 6
    )
    assert torch.equal(first.images["train"], second.images["train"])
    assert np.array_equal(
        first.images["train"][7], np.asarray(Image.open(root / "train/dog/1.png"))
    )
    Image.new("RGB", (12, 12), "red").save(root / "train/dog/1.png")
    assert (
        common.load_data(args).images["train"][7, 0, 0].tolist() == [255, 0, 0]
        and len(decoded) == 4
    )
    (root / ".decoded-native.npz").write_bytes(b"damaged")
    assert (
        common.load_data(args).images["train"][7, 0, 0].tolist() == [255, 0, 0]
        and len(decoded) == 6
    )


def test_image_folder_without_a_test_split_of_differing_sizes_and_read_only(monkeypatch):
    image_folder(sizes=((12, 12), (20, 16)), test=None)
    for name in ("cat", "dog"):
        for i in range(6, 15):
            Image.new("L", (9, 30), i).save(f"pets/train/{name}/{i}.png")

    def replacing(path, replacing=harness_files.replacing):
        if path.parent.name == "pets":  # as root no folder is read-only
            raise PermissionError(13, "Permission denied", str(path))
        return replacing(path)

    monkeypatch.setattr(folders, "replacing", replacing)
    assert run(*FOLDER, "--image-size", 10, "--subset", 20, "--epochs", 1) == 0
    assert rows(the_csv())[0]["dataset"] == "pets" and rows(the_csv())[0]["image_size"] == "10x10"
    assert list(Path("cache").rglob("*.npz")) and not list(Path("pets").glob(".*"))


def test_images_in_class_folders_alone_give_a_fifth_to_the_test(capsys):
    image_folder(test=None)
    Path("pets/train").rename("alone")
    assert (
        run(*FOLDER[:2], "--data", "alone", "--subset", 8, "--epochs", 1) == 0
        and not capsys.readouterr().err
    )
    data = common.load_data(arguments(*FOLDER[:2], "--data", "alone", "--subset", 8))
    assert (
        data.classes == ["cat", "dog"]
        and len(data.labels["test"]) == 2
        and rows(the_csv())[0]["dataset"] == "alone"
    )


def test_a_file_that_is_no_image_is_left_out_with_one_line(capsys):
    root = image_folder()
    (root / "train/cat/notes.txt").write_text("cats")
    (root / "train/cat/1.png").rename(root / "train/cat/an image by its content")
    assert run(*FOLDER, "--subset", 10, "--epochs", 1) == 0
    assert (
        capsys.readouterr().err
        == "warning: pets/train/cat/notes.txt, which is no image, left out\n"
    )
    (root / "test/dog/Makefile").write_text("all:")
    assert len(common.load_data(arguments(*FOLDER, "--subset", 12)).labels["train"]) == 12
    assert "and 1 others, which are no image" in capsys.readouterr().err


def test_brightness_scales_each_image():
    args = arguments("--augment", "brightness+crop")
    assert args.augment == "crop+brightness"
    data = common.load_data(args)
    data.images["train"] = torch.full((150, 8, 8, 1), 200, dtype=torch.uint8)
    data.images["train"][0] = 0
    pixels = (
        torch.cat([x for x, _ in data.training_batches(0, 1, 50, "brightness")]) * data.mean_std[1]
        + data.mean_std[0]
    )
    levels = pixels[:, 0].flatten(1).max(1).values
    assert (
        torch.allclose(pixels[:, 0].flatten(1).min(1).values, levels, atol=0.01)
        and len(levels.round().unique()) > 20
    )
    assert levels[levels > 1].min() > 159 and levels.max() <= 240.01


def test_imagenet_is_streamed_and_does_not_depend_on_the_workers(capsys):
    image_folder(sizes=((224, 224), (100, 300)), test="val")
    words = [
        "--dataset",
        "imagenet",
        "--data",
        "pets",
        "--image-size",
        64,
        "--arch",
        "imagenet_resnet",
        "--depth",
        18,
        "--subset",
        10,
        "--batch-size",
        4,
        "--epochs",
        1,
    ]
    data = common.load_data(args := arguments(*words, "--workers", 2))
    assert (
        data.size == (64, 64, 3)
        and sum(len(y) for _, y in data.batches("test")) == 4
        and args.warmup_epochs == 1
        and args.lr == 0.4
    )
    one, two = (
        torch.cat(
            [
                x
                for x, _ in common.load_data(arguments(*words, "--workers", n)).training_batches(
                    0, 1, 4, "crop+flip"
                )
            ]
        )
        for n in (1, 2)
    )
    other = torch.cat([x for x, _ in data.training_batches(0, 2, 4, "crop+flip")])
    assert torch.equal(one, two) and one.shape == (10, 3, 64, 64) and not torch.equal(one, other)
    assert (
        run(*words) == 0
        and rows(the_csv())[0]["dataset"] == "imagenet"
        and rows(the_csv())[0]["image_size"] == "64x64"
    )
    assert (
        predict.main(
            [
                str(next(Path("checkpoints").rglob("*.pt"))),
                "--dataset",
                "imagenet",
                "--data",
                "pets",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert (
        f"{float(rows(the_csv())[0]['test_acc']):.2f} % of 4 test images" in capsys.readouterr().out
    )


def test_imagenets_crops_are_open_lths():
    """Of scale 0.1 to 1 and ratio 0.8 to 1.25: on an image that is brighter from left to right and from top to bottom a crop shows where it was cut."""
    ramp = np.stack(
        np.broadcast_arrays(
            np.arange(250, dtype=np.uint8)[None, :],
            np.arange(250, dtype=np.uint8)[:, None],
            np.uint8(0),
        ),
        2,
    )
    for split in ("train", "val"):
        Path(f"ramps/{split}/one").mkdir(parents=True)
        for i in range(2):
            Image.fromarray(ramp).save(f"ramps/{split}/one/{i}.png")
    data = common.load_data(
        arguments(
            "--dataset",
            "imagenet",
            "--data",
            "ramps",
            "--image-size",
            32,
            "--subset",
            2,
            "--workers",
            1,
        )
    )
    data.images["train"], data.labels["train"] = (
        np.repeat(data.images["train"][:1], 200),
        data.labels["train"][:1].repeat(200),
    )
    mean, std = (x[:, None, None] for x in data.mean_std)
    pixels = torch.cat([x * std + mean for x, _ in data.training_batches(0, 1, 100, "crop")])
    widths, heights = (
        (pixels[:, 0].amax((1, 2)) - pixels[:, 0].amin((1, 2))),
        (pixels[:, 1].amax((1, 2)) - pixels[:, 1].amin((1, 2))),
    )
    area, ratio = (widths * heights / 250**2), widths / heights
    assert (
        0.07 < area.min() < 0.2
        and area.max() > 0.85
        and 0.75 < ratio.min() < 0.9
        and 1.1 < ratio.max() < 1.33
    )


def test_davis_frank_on_imagenet():
    image_folder(sizes=((64, 64),), test="val")
    words = "davis_frank --dataset imagenet --data pets --image-size 64 --network resnet18 --val-fraction 0.4 --seeds 1 --epochs 1 --batch-size 4 --workers 1 --bn-weight 0.1 --quiet".split()
    assert exp_bn_init.main(words) == 0 and len(list(Path("results").rglob("*[0-9a-f].csv"))) == 2


# -------------------------------------------------------------------------------------------------------------- recipes


def test_schedules():
    def rates(*words):
        args = arguments(*words)
        return [
            0.1 * common.rate(args)(epoch) for epoch in range(args.epochs)
        ]  # --lr 0.1, the default but for ImageNet

    assert rates("--epochs", 160) == pytest.approx([0.1] * 80 + [0.01] * 40 + [0.001] * 40)
    assert rates("--epochs", 3) == pytest.approx([0.1, 0.1, 0.01]) and rates("--epochs", 1) == [0.1]
    imagenet = [4 * rate for rate in rates("--dataset", "imagenet", "--epochs", 90)]
    assert (
        len(imagenet) == 90
        and imagenet[:30] == pytest.approx([0.4] * 30)
        and imagenet[30] == pytest.approx(0.04)
        and imagenet[80] == pytest.approx(0.0004)
    )
    assert [
        arguments("--dataset", "imagenet", "--epochs", n).warmup_epochs for n in (90, 18, 1)
    ] == [5, 1, 1]
    for schedule, last in (
        ("cosine", 0.0025),
        ("linear-cosine", 0.0003),
        ("exponential", 0.0016),
        ("constant", 0.1),
    ):
        found = rates("--epochs", 10, "--schedule", schedule)
        assert found == sorted(found, reverse=True) and found[-1] == pytest.approx(last, rel=0.2), (
            schedule
        )
    restarts = rates("--epochs", 14, "--schedule", "restarts")
    assert (
        restarts[0] == restarts[2] == restarts[6] == 0.1
        and max(restarts[1], restarts[5], restarts[13]) < 0.06
    )


def test_warm_up_rises_step_by_step_from_zero_and_goes_on_after_a_stop():
    args = arguments(
        "--schedule", "cosine", "--warmup-epochs", 2, "--epochs", 4
    )  # three steps an epoch
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "bn")
    optimizer, scheduler, _ = common.recipe(model, args)
    found = []
    optimizer.step()
    for epoch in range(1, 5):
        common.train_epoch(
            model,
            data,
            optimizer,
            args,
            epoch,
            [50] * 3,
            common.progress_bar(disable=True),
            lambda *_: found.append(optimizer.param_groups[0]["lr"]) or torch.zeros(3),
        )
        scheduler.step()
    cosine = [0.05 * (1 + np.cos(np.pi * epoch / 4)) for epoch in range(4) for _ in range(3)]
    assert (
        found == pytest.approx([rate * min(1, step / 6) for step, rate in enumerate(cosine)])
        and found[0] == 0
    )
    words = ["--schedule", "cosine", "--warmup-epochs", 2, "--epochs", 4]
    assert (
        run(*words, "--time-limit", 1e-9) == 0
        and run(*words) == run(*words, "--results", "whole", "--checkpoints", "whole") == 0
    )
    assert rows(the_csv()) == rows(the_csv("whole"))


@pytest.mark.parametrize(
    "words",
    ["--optimizer adam", "--momentum 0", "--schedule cosine --warmup-epochs 1 --train random:2+bn"],
)
def test_other_recipes_resume_to_the_same_digits(words):
    words = ["--epochs", 4, *words.split()]
    for _ in range(3):
        assert run(*words, "--time-limit", 1e-9) == 0
    assert run(*words) == run(*words, "--results", "whole", "--checkpoints", "whole") == 0
    assert rows(the_csv()) == rows(the_csv("whole"))


def test_tensorboard():
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run("--tensorboard") == 0
    found = events.EventAccumulator(
        str(next(Path("results/bn_only/tensorboard").iterdir()))
    ).Reload()
    assert [round(e.value, 2) for e in found.Scalars("test_acc")] == [
        round(float(row["test_acc"]), 2) for row in rows(the_csv())
    ]
    assert found.Tags()["histograms"] == ["gamma"]


# ---------------------------------------------------------------------------------------------------------------- grids

GRID = [*SMALL, "--epochs", "1", "--quiet"]


def test_a_grid_makes_each_run_once_and_takes_those_that_are_free(capsys):
    words = [*GRID, "--depths", "8", "14", "--widths", "1", "--seeds", "0", "1"]
    assert exp_depth_width.main([*words, "--dry-run"]) == 0 and not files()
    assert "4 runs: 0 finished, 4 to make" in capsys.readouterr().out
    args = arguments("--epochs", 1, "--seed", 1)
    args.process = Process(Path("exp_depth_width.py"))
    path, _ = records.run_files(args, run_name(args))
    path.parent.mkdir(parents=True)
    with FileLock(path.with_name(f".{path.stem}.lock")):
        assert exp_depth_width.main(words) == 0
    assert (
        "another process" in capsys.readouterr().err
        and len(list(Path("results").rglob("*[0-9a-f].csv"))) == 3
    )
    made = {path: content for path, content in files().items() if not path.endswith(".lock")}
    assert exp_depth_width.main(words) == 0
    out = capsys.readouterr().out
    assert "4 runs: 3 finished, 1 to make" in out and "depth 14" in out and "(2)" in out
    assert {path: content for path, content in files().items() if path in made} == made


def test_a_grid_stops_at_the_time_limit_and_goes_on(capsys):
    words = [*SMALL, "--quiet", "--epochs", "2", "--width", "1", "--seeds", "0", "1"]
    assert (
        exp_depth_width.main([*words, "--time-limit", "1e-9"]) == 0
        and "stopped at the time limit" in capsys.readouterr().out
    )
    assert len(rows(the_csv())) == 1
    assert exp_depth_width.main(words) == 0 and "(2)" in capsys.readouterr().out


def test_two_processes_share_a_grid():
    command = [
        sys.executable,
        HERE / "exp_depth_width.py",
        *GRID,
        "--depths",
        "8",
        "14",
        "--width",
        "1",
        "--seeds",
        *"012345",
    ]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert len(list(Path("results").rglob("*[0-9a-f].csv"))) == 12 and not [
        path for path in files() if path.endswith((".lock", ".new"))
    ]


def test_a_failed_run_does_not_stop_a_grid_and_is_named(capsys, monkeypatch):
    def fit(model, data, args, fit=common.fit, **options):
        if args.seed == 0 and not args.dry_run:
            raise OSError(28, "No space left on device")
        return fit(model, data, args, **options)

    monkeypatch.setattr(common, "fit", fit)
    assert (
        exp_depth_width.main(
            [*GRID, "--depth", "8", "--width", "1", "--seeds", "0", "1", "--lr", "0.1"]
        )
        == 1
    )
    printed = capsys.readouterr()
    assert (
        "failed: resnet8-w1-digits-bn-s0" in printed.err
        and "No space left" in printed.err
        and "(1)" in printed.out
    )


def test_what_a_grid_would_ignore_is_an_error(capsys):
    for script, words in (
        (exp_random_params, "--train output"),
        (exp_mlp_lenet, "--dataset digits --width 2"),
        (exp_depth_width, "--match-bn-params --widths 1"),
        (exp_mlp_lenet, "--dataset digits --hidden 32,32"),
        (exp_mlp_lenet, "--dataset digits --hidden 8 --tune 2 --bn before after"),
        (exp_bn_init, "davis_frank --val-fraction 0"),
    ):
        assert (
            script.main(
                ["--dataset", "digits", *words.split()]
                if script is not exp_bn_init
                else words.split()
            )
            == 2
        ), words
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1, words


def test_matched_depths_are_the_references():
    assert {width: exp_depth_width.matched_depth(width) for width in (2, 3, 4, 5, 7, 8)} == {
        2: 26,
        3: 44,
        4: 56,
        5: 74,
        7: 104,
        8: 116,
    }
    for width in (3, 5, 7):
        wide, deep = counts(14, width), counts(exp_depth_width.matched_depth(width))
        assert wide["gamma"] == deep["gamma"] and wide["beta"] == deep["beta"]


def test_random_params_end_to_end(capsys):
    assert (
        exp_random_params.main(
            [*GRID, "--per-channel", "2", "all", "--also", "output", "--seeds", "0", "1"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert (
        "6 runs" in out
        and out.count("(2)") == 3
        and "random:2+output" in out
        and ("overtakes bn: random" in out or "none of these" in out)
    )
    assert {
        row["experiment"] for path in Path("results").rglob("*[0-9a-f].csv") for row in rows(path)
    } == {"random_params"}


def test_davis_frank_end_to_end(capsys):
    words = [
        "davis_frank",
        *(word for word in GRID if word not in ("--depth", "8")),
        "--network",
        "cifar_resnet14",
        "--bn-weight",
        "0.1",
        "--c",
        "100",
        "--input-norm",
        "bn",
        "dataset",
    ]
    assert exp_bn_init.main([*words, "--seeds", "1", "2", "3"]) == 0
    out = capsys.readouterr().out
    assert "9 runs" in out and "2 comparisons" in out and out.count("p = ") == 2
    assert (
        exp_bn_init.main([*words, "--train", "bn"]) == 2
        and "unrecognized arguments: --train" in capsys.readouterr().err
    )
    assert (
        exp_bn_init.main([*words, "--seeds", "1", "2"]) == 0
        and "too few seeds" in capsys.readouterr().out
    )
    assert {
        row["seed"] for path in Path("results").rglob("*[0-9a-f].csv") for row in rows(path)
    } >= {"1869972635"} and exp_bn_init.complex_seed(0) == 4186399962


def test_davis_frank_groups_and_start():
    args = arguments("--depth", 14, "--gamma-init", "constant:0.1")
    args = exp_bn_init.DavisFrank(**vars(args) | {"bn_weight": 0.1, "c": 100.0, "input_norm": "bn"})
    data = common.load_data(args)
    model = common.build_model(args, data)
    exp_bn_init.start_linear_layers(model, 1)
    model = exp_bn_init.normalise_input(model, data, 0.1)
    common.freeze(model, exp_bn_init.all_but_inputs_beta, called="all")
    assert common.trained_as(model) == "all"
    optimizer, scheduler, _ = exp_bn_init.recipe(model, args)
    decay, plain, gamma = optimizer.param_groups
    assert (
        (decay["weight_decay"], plain["weight_decay"], gamma["weight_decay"]) == (1e-4, 0, 0)
        and gamma["lr"] == pytest.approx(0.001)
        and decay["lr"] == plain["lr"] == 0.1
    )
    assert (
        model[0].weight.item() == pytest.approx(0.058)
        and not model[0].bias.requires_grad
        and len(gamma["params"]) == 16
        and len(plain["params"]) == 16
    )
    x, _ = next(data.training_batches(1, 1, 10, "none"))
    assert 0 <= x.min() and x.max() == 1


def test_frankle_end_to_end(capsys):
    assert (
        exp_bn_init.main(
            [
                "frankle",
                *GRID,
                "--gamma-init",
                "uniform",
                "symmetric",
                "--beta-init",
                "ones",
                "--weight-init",
                "binary",
                "--seed",
                "1",
            ]
        )
        == 0
    )
    assert "γ symmetric, β ones, weights binary" in capsys.readouterr().out


def test_mlp_and_lenet_end_to_end(capsys):
    words = [word for word in GRID if word not in ("--depth", "8")]
    assert (
        exp_mlp_lenet.main(
            [
                *words,
                "--hidden",
                "30",
                "20",
                "--bn",
                "before",
                "after",
                "none",
                "--train",
                "bn",
                "random:2",
                "hidden",
                "--activation",
                "tanh",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert (
        "8 runs" in out and out.count("100 trained") == 5 and out.count("2,570 trained") == 3
    )  # without BatchNorm, no bn
    assert (
        exp_mlp_lenet.main(
            [*words, "--arch", "lenet5", "--image-size", "28", "--bn", "none", "--train", "all"]
        )
        == 0
        and "61,706 trained" in capsys.readouterr().out
    )
    assert (
        exp_mlp_lenet.main([*words, "--arch", "lenet5"]) == 2
        and "--image-size 28" in capsys.readouterr().err
    )
    assert (
        exp_mlp_lenet.main([*words, "--bn", "none", "--train", "bn"]) == 2
        and "hidden" in capsys.readouterr().err
    )


TABLE = [
    "--dataset",
    "csv",
    "--data",
    "flowers.csv",
    "--quiet",
    "--epochs",
    "30",
    "--hidden",
    "16",
    "--train",
    "all",
    "--batch-size",
    "16",
    "--precision",
    "fp32",
]


def test_tables(capsys):
    assert exp_mlp_lenet.main(["--dataset", "wine", *TABLE[4:]]) == 0
    draw = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "a": draw.normal(size=90),
            "species": np.repeat(["x", "y", "z"], 30),
            "b": np.repeat([0.0, 5.0, 10.0], 30),
        }
    )
    table.to_csv("flowers.csv", index=False)
    assert exp_mlp_lenet.main([*TABLE, "--target", "species"]) == 0
    last = rows(next(Path("results/mlp_lenet").glob("mlp*flowers*.csv")))[-1]
    assert (
        float(last["test_acc"]) == 100 and last["dataset"] == "flowers" and last["classes"] == "3"
    )
    for change, says in (
        (lambda t: t.assign(c="red"), "text in c"),
        (lambda t: t.assign(a=t.a.where(t.a > 0)), "missing values in a"),
    ):
        change(table)[[*change(table).columns.drop("species"), "species"]].to_csv(
            "bad.csv", index=False
        )
        capsys.readouterr()
        assert exp_mlp_lenet.main([*TABLE[:3], "bad.csv", *TABLE[4:]]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and says in err
    assert (
        exp_mlp_lenet.main([*TABLE, "--target", "nothing"]) == 2
        and "columns a" in capsys.readouterr().err
    )
    assert (
        exp_mlp_lenet.main(["--dataset", "csv"]) == 2 and "--data FILE" in capsys.readouterr().err
    )
    assert (
        exp_mlp_lenet.main([*TABLE[:3], "gone.csv", *TABLE[4:]]) == 2
        and "gone.csv" in capsys.readouterr().err
    )


def test_tuning_goes_on_and_ends_with_a_command(capsys):
    pytest.importorskip("optuna")
    words = [
        "--dataset",
        "digits",
        "--subset",
        "200",
        "--epochs",
        "1",
        "--hidden",
        "16",
        "--quiet",
        "--precision",
        "fp32",
    ]
    assert (
        exp_mlp_lenet.main(
            [*words, "--tune", "3", "--results", "at_once", "--checkpoints", "at_once"]
        )
        == 0
    )
    at_once = capsys.readouterr().out
    assert (
        exp_mlp_lenet.main([*words, "--tune", "2"]) == 0
        and "best of 2 trials" in capsys.readouterr().out
    )
    assert (
        exp_mlp_lenet.main([*words, "--tune", "3", "--time-limit", "1e-9", "--epochs", "2"]) == 1
        and "no trial" in capsys.readouterr().err
    )
    assert exp_mlp_lenet.main([*words, "--tune", "3", "--dry-run"]) == 2
    assert exp_mlp_lenet.main([*words, "--tune", "3"]) == 0
    out = capsys.readouterr().out
    assert (
        out == at_once.replace(" --results at_once --checkpoints at_once", "")
        and "best of 3 trials" in out
        and "on the validation split" in out
    )
    command = re.search(r"python exp_mlp_lenet.py (.*)", out)[1]
    assert exp_mlp_lenet.main([*command.split(), "--quiet", "--subset", "200"]) == 0
    assert plots.main(["--only", "tuned", "mlp_lenet", "--format", "csv"]) == 0
    assert (
        len(pd.read_csv("tables/tuned.csv")) == 3 and len(pd.read_csv("tables/mlp_lenet.csv")) == 1
    )  # a trial is no run to average


def test_tuning_on_data_that_are_not_there_leaves_no_study(capsys):
    pytest.importorskip("optuna")
    assert exp_mlp_lenet.main("--tune 2 --dataset csv --data nowhere.csv".split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "nowhere.csv" in err and not Path("results").exists()


def test_other_images_under_the_same_name_are_noticed(capsys):
    (root := Path("a/pets")).parent.mkdir()
    image_folder(root)
    (other := Path("b/pets")).parent.mkdir()
    image_folder(other)
    Image.new("RGB", (12, 12), "red").save(other / "train/dog/1.png")
    words = ["--dataset", "imagefolder", "--subset", 10, "--epochs", 2]
    assert run(*words, "--data", root) == 0
    assert (
        run(*words, "--data", other) == 2
        and "other data under the same name" in capsys.readouterr().err
    )
    assert run(*words, "--data", other, "--force", "--time-limit", 1e-9) == 0
    assert (
        run(*words, "--data", root) == 0
        and "other data" in capsys.readouterr().err
        and len(rows(the_csv())) == 2
    )


# -------------------------------------------------------------------------------------------------------------- records


def test_the_csv_contract():
    assert run("--seed", 5) == 0
    path = the_csv()
    design = (
        "experiment run dataset subset val_fraction arch depth width train gamma_init beta_init weight_init augment seed epochs batch_size optimizer lr momentum "
        "weight_decay schedule warmup_epochs precision params_total params_trained epoch train_loss train_acc val_loss val_acc test_loss test_acc test_top5 "
        "seconds device threads torch commit status"
    ).split()
    table = pd.read_csv(path)
    assert list(table.columns[: len(design)]) == design
    assert (
        table.epoch.tolist() == [1, 2, 3]
        and set(table.status) == {"ok"}
        and table.subset.tolist() == [150] * 3
    )
    assert (
        re.fullmatch(r"resnet8-w1-digits-bn-s5-[0-9a-f]{6}", path.stem)
        and path.parent.name == "bn_only"
    )
    first = table.iloc[0]
    assert (
        first.experiment,
        first.train,
        first.lr,
        first.optimizer,
        first.params_trained,
        first.test_top5 >= first.test_acc,
    ) == ("bn_only", "bn", 0.1, "sgd", 672, True)
    learned = pd.read_csv(path.with_suffix(".bn.csv.gz"))
    assert (
        list(learned.columns)
        == "layer channel gamma beta gamma_init beta_init running_mean running_var active".split()
    )
    assert (
        len(learned) == 336
        and learned.active.isna().sum() == 32 + 64
        and learned.active.dropna().between(0, 1).all()
    )
    assert (
        learned.gamma_init.between(0, 1).all()
        and (learned.beta_init == 0).all()
        and (learned.gamma != learned.gamma_init).mean() > 0.99
    )
    pruned = pd.read_csv(path.with_suffix(".prune.csv.gz"))
    assert pruned.test_acc[0] == pytest.approx(
        table.test_acc.iloc[-1]
    ) and pruned.zeroed.tolist() == [(learned.gamma.abs() < t).sum() for t in pruned.threshold]


def test_activity_is_the_share_of_activations_above_zero():
    args = arguments("--depth", 14)
    data = common.load_data(args)
    model = common.build_model(args, data).eval()
    with torch.no_grad():
        x = torch.cat([x for x, _ in data.batches("test")])
        stem = torch.relu(model.bn(model.conv(x)))
        block = model.stage1[0]
        middle = torch.relu(block.bn1(block.conv1(stem)))
        out = torch.relu(block.bn2(block.conv2(middle)) + stem)
        test = functools.partial(common.evaluate, model, data, "test", args)
        active = inside.activity(model, common.norms(model), test, 359)
    for name, activation in (("bn", stem), ("stage1.0.bn1", middle), ("stage1.0.bn2", out)):
        assert torch.allclose(active[name], (activation > 0).float().mean((0, 2, 3)), atol=1e-5)
    assert set(active) == {name for name in common.norms(model) if "shortcut" not in name}


@pytest.mark.parametrize("bn, active", [("before", 226), ("after", 0)])
def test_a_batchnorm_after_the_activation_has_no_relu_of_its_own(bn, active):
    words = "--arch lenet5 --image-size 12 --dataset digits --subset 150 --epochs 1 --batch-size 50 --precision fp32 --quiet".split()
    assert exp_mlp_lenet.main([*words, "--bn", bn]) == 0
    learned = pd.read_csv(the_csv().with_suffix(".bn.csv.gz"))
    assert len(learned) == 6 + 16 + 120 + 84 and learned.active.notna().sum() == active


def test_the_same_command_twice_gives_the_same_csv():
    assert (
        run("--results", "a", "--augment", "crop+flip")
        == run("--results", "b", "--checkpoints", "other", "--augment", "crop+flip")
        == 0
    )
    assert rows(the_csv("a")) == rows(the_csv("b"))
    for kind in ("bn", "prune"):
        assert (
            the_csv("a").with_suffix(f".{kind}.csv.gz").read_bytes()
            == the_csv("b").with_suffix(f".{kind}.csv.gz").read_bytes()
        )


def test_every_setting_that_changes_a_number_changes_the_name():
    changes = [
        "--depth 14",
        "--width 2",
        "--train all",
        "--gamma-init ones",
        "--beta-init ones",
        "--weight-init binary",
        "--dataset mnist",
        "--image-size 16",
        "--subset 100",
        "--val-fraction 0.1",
        "--augment flip",
        "--epochs 4",
        "--batch-size 51",
        "--lr 0.2",
        "--momentum 0.8",
        "--weight-decay 0",
        "--seed 1",
    ]
    names = {run_name(arguments(*change.split())) for change in ["", *changes]}
    assert len(names) == len(changes) + 1
    same = ["--results x", "--checkpoints x", "--time-limit 3", "--quiet", "--workers 1", "--force"]
    assert {run_name(arguments(*change.split())) for change in same} <= names


def test_killed_and_resumed_equals_never_killed():
    words = [
        "--epochs",
        12,
        "--train",
        "all",
        "--augment",
        "crop+flip",
        "--val-fraction",
        0.2,
        "--quiet",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    for _ in range(2):
        process, seen = (
            start(*words, "--results", "killed", "--checkpoints", "killed", env=environment),
            len(list(Path("killed").rglob("*.pt"))),
        )
        while process.poll() is None and (
            not list(Path("killed").rglob("*.csv")) or len(rows(the_csv("killed"))) < 3 + 4 * seen
        ):
            time.sleep(0.005)
        process.kill()
        process.communicate()
    assert 3 <= len(rows(the_csv("killed"))) < 12
    assert (
        run(*words, "--results", "killed", "--checkpoints", "killed")
        == run(*words, "--results", "whole", "--checkpoints", "whole")
        == 0
    )
    assert rows(the_csv("killed")) == rows(the_csv("whole"))
    assert (
        the_csv("killed").with_suffix(".bn.csv.gz").read_bytes()
        == the_csv("whole").with_suffix(".bn.csv.gz").read_bytes()
    )
    assert [p.suffix for p in Path("killed").rglob("*") if p.is_file()].count(".pt") == 1


def test_time_limit_stops_after_an_epoch_and_the_same_command_goes_on(capsys):
    assert exp_bn_only.main([*SMALL, "--time-limit", "1e-9"]) == 0
    assert (
        "1 of 3 epochs: the same command goes on" in capsys.readouterr().out
        and len(rows(the_csv())) == 1
    )
    assert run() == 0 and run("--results", "whole", "--checkpoints", "whole") == 0
    assert rows(the_csv()) == rows(the_csv("whole"))


def test_a_finished_run_is_not_made_again_unless_forced(capsys):
    assert run() == 0
    before, when = the_csv().read_bytes(), the_csv().stat().st_mtime_ns
    assert exp_bn_only.main(SMALL) == 0
    out = capsys.readouterr().out
    assert (
        "finished before" in out
        and "python exp_bn_only.py" in out
        and "--train output" in out
        and "chance: 10.00 %" in out
        and "672 of" in out
    )
    assert the_csv().read_bytes() == before and the_csv().stat().st_mtime_ns == when
    assert (
        run("--force") == 0 and the_csv().stat().st_mtime_ns != when
    )  # its bytes may be the same, seconds included


def test_a_csv_that_came_without_its_checkpoint_is_made_again(capsys):
    assert run() == 0
    when, digits = the_csv().stat().st_mtime_ns, rows(the_csv())
    next(Path("checkpoints").rglob("*.pt")).unlink()
    assert run() == 0 and "takes its place" in capsys.readouterr().err
    assert the_csv().stat().st_mtime_ns != when and rows(the_csv()) == digits


def test_a_loss_that_is_not_finite_ends_the_run(capsys):
    assert run("--lr", 1e6, "--train", "all-bn", "--epochs", 20) == 1
    table = rows(the_csv())
    assert (
        {row["status"] for row in table} == {"diverged"}
        and len(table) < 20
        and set(table[0]) | {"seconds", "commit"} == set(records.COLUMNS)
    )
    assert "diverged" in capsys.readouterr().err
    assert (
        run("--lr", 1e6, "--train", "all-bn", "--epochs", 20) == 1
        and "--force" in capsys.readouterr().err
    )


def test_a_second_process_says_so_and_stops(capsys):
    args = arguments()
    args.process = Process(Path("exp_bn_only.py"))
    path, _ = records.run_files(args, run_name(args))
    path.parent.mkdir(parents=True)
    with FileLock(path.with_name(f".{path.stem}.lock")):
        assert run() == 1
    assert "another process" in capsys.readouterr().err
    assert run() == 0


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_at_once_and_say_how_to_go_on(sent, code):
    # A shell starts what it puts in the background with SIGINT ignored: the test must not depend on how it was started itself.
    with start(
        "--epochs", 500, "--quiet", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    ) as process:
        while not list(Path("results").rglob("*.csv")):
            time.sleep(0.01)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
    assert (
        process.returncode == code
        and err.strip() == "stopped: the same command goes on after the last complete epoch"
    )


@pytest.mark.parametrize("damage", ["newest", "both", "other run", "pickle", "csv"])
def test_damage_is_noticed_and_costs_no_digit(damage, capsys, monkeypatch):
    assert run("--results", "whole", "--checkpoints", "whole") == 0
    for _ in range(2):
        assert run("--time-limit", 1e-9) == 0
    newest, previous = sorted(Path("checkpoints").rglob("*.pt"), key=lambda p: "previous" in p.name)
    if damage == "other run":
        assert run("--seed", 1, "--results", "x", "--checkpoints", "x") == 0
        newest.write_bytes(next(Path("x").rglob("*.pt")).read_bytes())
    elif damage == "pickle":

        class Evil:
            def __reduce__(self):
                return (os.mkdir, ("evil",))

        harness_files.write_checkpoint(newest, {"epoch": Evil()})
    elif damage == "csv":
        the_csv().write_bytes(the_csv().read_bytes()[:-40])
    else:
        for path in (newest, previous) if damage == "both" else (newest,):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
    trained = []
    monkeypatch.setattr(
        common,
        "train_epoch",
        lambda *a, train_epoch=common.train_epoch: trained.append(a[4]) or train_epoch(*a),
    )
    assert run() == 0 and rows(the_csv()) == rows(the_csv("whole"))
    assert trained == (
        [1, 2, 3] if damage in ("both", "csv") else [2, 3]
    )  # the previous checkpoint is of epoch 1
    warnings = capsys.readouterr().err.strip().splitlines()
    assert (
        all(line.startswith("warning:") for line in warnings)
        and (len(warnings) == 1 or damage in ("both", "csv"))
        and warnings
    )
    assert not Path("evil").exists()


def test_a_finished_run_whose_checkpoint_is_damaged_is_made_again(capsys):
    assert run() == 0
    whole, checkpoint = rows(the_csv()), next(Path("checkpoints").rglob("*.pt"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    assert run() == 0 and rows(the_csv()) == whole
    assert (
        capsys.readouterr().err
        == f"warning: the checkpoint {checkpoint} is not used: its checksum does not fit its content\n"
    )


def test_a_checkpoint_is_small_and_knows_its_random_start():
    args = arguments("--depth", 866)
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    content = checkpoints.state(model, checkpoints.fingerprint(model))
    harness_files.write_checkpoint(Path("x.pt"), content)
    assert Path("x.pt").stat().st_size < 900_000
    other = common.build_model(arguments("--depth", 866, "--seed", 1), data)
    common.freeze(other, args.train)
    content["version"] = 2
    before = torch.cat([p.detach().flatten() for p in other.parameters()])
    with pytest.raises(errors.Damaged, match="frozen weights"):
        checkpoints.restore(other, content)
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in other.parameters()]))


# ------------------------------------------------------------------------------------------------- speed and precision


@pytest.mark.parametrize("train", ["bn", "all"])
def test_the_loop_equals_a_plain_one(train):
    args = arguments(
        "--train",
        train,
        "--depth",
        14,
        "--augment",
        "none",
        "--subset",
        200,
        "--weight-decay",
        0.01,
    )
    data = common.load_data(args)
    ours, plain = (
        common.build_model(args, data),
        common.build_model(args, data).to(memory_format=torch.contiguous_format),
    )
    for model in (ours, plain):
        common.freeze(model, train)
    optimizer, *_ = common.recipe(ours, args)
    reference = torch.optim.SGD(
        [p for p in plain.parameters() if p.requires_grad],
        0.1,
        0.9,
        weight_decay=0.01,
        foreach=False,
        fused=False,
    )
    mean, std = data.images["train"].float().mean(), data.images["train"].float().std(correction=0)
    for i in common.split_batches(
        torch.randperm(200, generator=common.generator(0, "order", 1)), 50
    ):
        x, y = (
            (data.images["train"][i].float().permute(0, 3, 1, 2) - mean) / std,
            data.labels["train"][i],
        )
        common.train_step(ours.train(), data.normalise(data.images["train"][i]), y, optimizer, args)
        reference.zero_grad()
        torch.nn.functional.cross_entropy(plain.train()(x.contiguous()), y).backward()
        reference.step()
    for name, p in ours.named_parameters():
        assert torch.allclose(
            p,
            plain.get_parameter(name),
            atol=2e-3 * plain.get_parameter(name).abs().max().item() + 1e-4,
        ), name


@pytest.mark.skipif(not speed.has_bf16(torch.device("cpu")), reason="this processor has no bf16")
def test_bf16_agrees_with_fp32():
    outputs = {}
    for precision in ("fp32", "bf16"):
        args = arguments("--precision", precision, "--depth", 14)
        data = common.load_data(args)
        model = common.build_model(args, data)
        common.freeze(model, "bn")
        x, y = next(data.training_batches(0, 1, 100, "none"))
        loss = torch.nn.functional.cross_entropy(common.forward(model, x, args), y)
        loss.backward()
        outputs[precision] = (
            loss.item(),
            torch.cat([p.grad for p in model.parameters() if p.requires_grad]),
        )
        assert run("--precision", precision, "--epochs", 30) == 0
    assert outputs["bf16"][0] == pytest.approx(outputs["fp32"][0], rel=0.01)
    # 8 bits of mantissa through 14 layers: 0.975 to 0.985, by seed and number of threads
    assert (
        torch.nn.functional.cosine_similarity(outputs["bf16"][1], outputs["fp32"][1], dim=0) > 0.95
    )
    final = [float(rows(path)[-1]["test_acc"]) for path in Path("results").glob("*/*.csv")]
    assert len(final) == 2 and min(final) > 30 and abs(final[0] - final[1]) < 15


@pytest.fixture
def quickly_compiled(monkeypatch):
    """torch.compile without its code generator, which takes minutes: traced, differentiated and functionalised like any, and run by PyTorch's operators."""
    compiled, compile = [], functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, **options: compiled.append(function) or compile(function, **options),
    )
    yield compiled
    torch.compiler.reset()


def bench_arguments(*words) -> Namespace:
    found = []
    monkey = bench.share_out, bench.compare
    bench.compare = lambda args, threads: found.append(args) or []
    try:
        assert (
            bench.main(
                [
                    "--images",
                    "100",
                    "--device",
                    "cpu",
                    "--precision",
                    "fp32",
                    "--batch-size",
                    "50",
                    "--image-size",
                    "8",
                    *map(str, words),
                ]
            )
            == 0
        )
    finally:
        bench.share_out, bench.compare = monkey
    return found[0]


@pytest.mark.parametrize("train", ["bn", "all"])
def test_a_step_of_every_variant_of_the_bench_equals_the_plain_ones(train, quickly_compiled):
    args = bench_arguments("--depths", 8, "--train", train, "--compile")
    for n in range(len(bench.PARTS)):
        plain = bench.build(args, None)
        ours = bench.build(
            args,
            tuple(
                part
                for part in bench.PARTS[: n + 1]
                if part not in ("bf16", "frozen weights cast once", "CUDA graph")
            ),
        )
        x, y = next(ours.data.training_batches(0, 1, 50, "crop+flip"))
        expected = plain.step(x.contiguous(), y)[0]
        assert float(
            ours.step(ours.model.train(), x, y, ours.optimizer, ours.args)[0]
        ) / 50 == pytest.approx(expected, rel=1e-5)
        for name, p in plain.model.named_parameters():
            assert torch.allclose(p, ours.model.get_parameter(name), rtol=1e-4, atol=1e-5), (
                bench.PARTS[n],
                name,
            )


def test_the_bench_measures_every_variant(monkeypatch, capsys):
    monkeypatch.setattr(
        bench,
        "in_processes",
        lambda n, threads, measure, *arguments: [measure(*arguments) for _ in range(n)],
    )
    monkeypatch.setattr(bench, "WINDOW", 0.1)
    words = "--depths 8 --images 100 --turns 1 --device cpu --batch-size 50 --image-size 8".split()
    assert bench.main(words) == bench.main([*words, "--grid"]) == 0
    tables = {
        path.stem.endswith("grid"): pd.read_csv(path)
        for path in Path("results/bench").glob("*.csv")
    }
    loops = tables[False][tables[False].epoch_s.notna()]
    assert list(loops.variant[:3]) == ["plain", "data on the device", "channels_last"] and (
        loops[["train_images_per_s", "test_images_per_s", "peak_mb", "limit_s", "share_of_limit"]]
        > 0
    ).all(axis=None)
    assert loops.speedup.to_numpy() == pytest.approx(
        loops.epoch_s[0] / loops.epoch_s.to_numpy(), rel=1e-4
    ) and loops.epoch_s[0] == pytest.approx(
        50_000 / loops.train_images_per_s[0] + 10_000 / loops.test_images_per_s[0], rel=0.5
    )
    assert tables[False].start_s.count() == 1 and tables[
        False
    ].share_of_step.sum() == pytest.approx(1, abs=0.05)
    assert list(tables[True].processes) == [
        n for n in (1, 2, 4, 8, 16, 32, 64) if n <= torch.get_num_threads()
    ]
    assert plots.main(["--only", "speed"]) == 0
    assert f"| plain | {loops.train_images_per_s[0]:,.0f} |" in Path("tables/speed.md").read_text()
    for wrong, says in (
        ("--epochs 3", "unrecognized arguments: --epochs"),
        ("--dry-run", "unrecognized arguments: --dry-run"),
        ("--train none", "trains nothing"),
        ("--depths 15", "14 and 20"),
        ("--images 1", "from 100"),
    ):
        assert bench.main([*words, *wrong.split()]) == 2 and says in capsys.readouterr().err
    assert (
        bench.main([*words, "--results", "/dev/null/x"]) == 1
        and len(capsys.readouterr().err.splitlines()) == 1
    )


def test_the_bench_counts_work_as_its_formula_does():
    """ResNet-8 on 8x8 pixels by hand: convolutions of 3x3 and 1x1, then the output layer."""
    stages = {
        (3, 16): 8,
        (16, 16): 8,
        (16, 32): 4,
        (32, 32): 4,
        (32, 64): 2,
        (64, 64): 2,
    }  # channels in and out: height and width after
    flops = {
        c: 2 * 9 * c[0] * c[1] * size**2 * (2 if c == (16, 16) else 1) for c, size in stages.items()
    }
    forward = sum(flops.values()) + 2 * 16 * 32 * 16 + 2 * 32 * 64 * 4 + 2 * 64 * 10
    elements = 3 * 16 * 64 + 3 * 32 * 16 + 3 * 64 * 4
    found = bench.work(bench_arguments("--depths", 8))
    assert found["test"] == (forward, 4 * elements)
    assert found["train"] == (
        2 * forward - flops[3, 16],
        14 * elements - 5 * 16 * 64,
    )  # nothing before the first convolution is trained, and nothing before the first BatchNorm
    assert bench.work(bench_arguments("--depths", 8, "--train", "all"))["train"] == (
        3 * forward - flops[3, 16],
        14 * elements,
    )


def test_a_measurement_has_a_process_of_its_own():
    args = bench_arguments("--depths", 8)
    found = bench.in_processes(2, 1, bench.speed, args, bench.PARTS[:2], 0)
    assert len(found) == 2 and all(
        one["train_images_per_s"] > 0 and one["peak_mb"] > 100 for one in found
    )
    assert (
        0.5
        < bench.in_processes(1, 1, bench.start, args, bench.PARTS[:2], time.time())[0]["start_s"]
        < 60
    )


def test_frozen_weights_are_cast_once_and_come_back_bit_for_bit():
    args = arguments("--train", "gamma+output")
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    before, (x, _) = (
        {name: p.detach().clone() for name, p in model.named_parameters()},
        next(data.training_batches(0, 1, 20, "none")),
    )
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        usual = model.eval()(x)
        with common.frozen_in(torch.bfloat16, model):
            assert {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16} == {
                name for name in before if "conv" in name or "shortcut.0" in name
            }
            assert torch.equal(model(x), usual)
    assert all(
        torch.equal(p, before[name]) and p.dtype == torch.float32
        for name, p in model.named_parameters()
    )


def test_compiled_blocks_calculate_what_eager_ones_do(quickly_compiled):
    assert run("--results", "eager") == 0 and not quickly_compiled
    assert run("--compile") == 0 and len(quickly_compiled) == 3  # the blocks of a ResNet-8
    eager, compiled = pd.read_csv(the_csv("eager")), pd.read_csv(the_csv())
    assert compiled.compile.all() and compiled.run[0] != eager.run[0]
    for column in ("train_loss", "test_loss", "test_acc"):
        assert compiled[column].to_numpy() == pytest.approx(eager[column].to_numpy(), rel=1e-3), (
            column
        )
    assert run("--compile", "--force", "--time-limit", 1e-9) == run("--compile") == 0
    assert pd.read_csv(the_csv()).drop(columns="seconds").equals(compiled.drop(columns="seconds"))


@pytest.mark.parametrize(
    "given, words, threads", [(None, [], 1), (None, ["--image-size", "16"], 2), ("2", [], 2)]
)
def test_small_images_take_one_thread_unless_told_otherwise(given, words, threads):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | (
        {"OMP_NUM_THREADS": given} if given else {}
    )
    code = f"import sys, exp_bn_only; from harness import speed; speed.ALL_THREADS = 2; sys.exit(exp_bn_only.main({[*SMALL, '--epochs', '1', '--quiet', *words]}))"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment | {"PYTHONPATH": str(HERE)}
    )
    assert {row["threads"] for row in rows(the_csv())} == {str(threads)}


def test_every_run_has_the_whole_budget_of_compiled_graphs(quickly_compiled, monkeypatch, capsys):
    monkeypatch.setattr(speed, "COMPILED_KINDS", 5)
    assert (
        exp_depth_width.main(
            [*GRID, "--depths", "8", "--widths", "1", "2", "3", "--grid", "--compile"]
        )
        == 0
    )  # three kinds of block each
    assert run("--compile", "--depth", 14, "--epochs", 1) == 0
    assert (
        run("--compile", "--depth", 20, "--epochs", 1, "--train", "random:2") == 1
    )  # nine blocks, each of its own kind
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("error: --compile failed, leave it out (")
    )


def test_no_compiler_is_one_line(monkeypatch, capsys):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/nowhere"))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    assert run("--compile") == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("error: --compile failed, leave it out (")
    )
    torch.compiler.reset()


class RecordedStep:
    """What stands in for a CUDA graph where there is no GPU: it remembers the step that was captured, which is taken back, and makes it again at each replay,
    with what was read from memory at the capture, the rates among it, as it is by then."""

    def __init__(self, monkeypatch, model, optimizer):
        self.model, self.optimizer, self.captures = model, optimizer, 0
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream, capture_error_mode: self)

    def __enter__(self):
        self.captures += 1
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.before = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def __exit__(self, *_):
        self.model.load_state_dict(self.before[0])
        self.optimizer.load_state_dict(self.before[1])
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate

    def replay(self):
        now = [group["lr"] for group in self.optimizer.param_groups]
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = float(rate)
        self.step.tally.copy_(
            common.train_step(self.model, self.step.x, self.step.y, self.optimizer, self.args)
        )
        for group, rate in zip(self.optimizer.param_groups, now):
            group["lr"] = rate


@pytest.mark.parametrize("words", ["--schedule step", "--schedule cosine --warmup-epochs 2"])
def test_a_graphed_step_makes_every_step_once_at_its_rate(monkeypatch, words):
    """All of it but CUDA: which steps are captured and replayed, on which batches, at which learning rate; and that one capture is enough."""
    args, found = arguments("--subset", 120, "--batch-size", 20, "--epochs", 4, *words.split()), []
    data = common.load_data(args)
    for graphed in (False, True):
        model = common.build_model(args, data)
        common.freeze(model, "bn")
        optimizer, scheduler, _ = common.recipe(model, args)
        step = common.train_step
        if graphed:
            recorded = RecordedStep(monkeypatch, model, optimizer)
            step = recorded.step = speed.GraphedStep(common.train_step, 20)
            recorded.args = args
        for epoch in range(1, 5):
            common.train_epoch(
                model,
                data,
                optimizer,
                args,
                epoch,
                [20, 20, 20, 20, 20, 20],
                common.progress_bar(disable=True),
                step,
            )
            step(
                model,
                *(x[:7] for x in next(data.training_batches(0, 9, 20, "none"))),
                optimizer,
                args,
            )
            scheduler.step()
        found.append(
            [p.detach().clone() for p in model.parameters()]
            + list(checkpoints.buffers(model).values())
        )
    assert recorded.captures == 1
    assert all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found)
    )  # a rate is a float32 there, and rounded


# --------------------------------------------------------------------------------------------------------------- errors

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
    assert (
        printed.out == ""
        and printed.err.startswith("error: ")
        and printed.err.count("\n") == 1
        and says in printed.err
    )
    assert [path.name for path in Path().iterdir()] in ([], ["cache"])  # no empty folder, either


def test_bf16_without_hardware_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(speed, "has_bf16", lambda device: False)
    assert run("--precision", "bf16") == 2 and "--precision fp32" in capsys.readouterr().err


def test_the_commit_says_whether_a_script_was_changed_or_added():
    def commit():
        return subprocess.run(
            [sys.executable, "-c", "from harness import runs; print(runs.commit())"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": "project"},
        ).stdout.strip()

    def git(*words):
        subprocess.run(
            ["git", "-C", "project", "-c", "user.name=A", "-c", "user.email=a@b", *words],
            check=True,
            capture_output=True,
        )

    Path("project/venv").mkdir(parents=True)
    shutil.copytree(
        HERE / "harness", "project/harness", ignore=shutil.ignore_patterns("__pycache__")
    )
    Path("project/.gitignore").write_text("__pycache__/\n")
    assert commit() == ""
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    Path("project/venv/other.py").touch()
    assert re.fullmatch("[0-9a-f]{10}", commit())
    Path("project/exp_copy.py").touch()
    assert re.fullmatch(r"[0-9a-f]{10}\+", commit())


@pytest.mark.parametrize(
    "script",
    [
        "exp_bn_only",
        "exp_random_params",
        "exp_depth_width",
        "exp_bn_init",
        "exp_mlp_lenet",
        "predict",
        "bench",
        "plots",
    ],
)
def test_ctrl_c_during_imports_is_one_line(script):
    for slow in ("torch", "pandas"):
        Path(f"{slow}.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, HERE / f"{script}.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert (
        done.returncode == -signal.SIGINT
        and done.stderr == "stopped: the same command begins again\n"
    )


def no_network(*_, **__):
    raise OSError("no network")


@pytest.mark.parametrize(
    "dataset, where",
    [
        ("cifar10", "cifar-10-batches-py"),
        ("mnist", "MNIST"),
        ("cifar100", "cifar-100-python"),
        ("fashion_mnist", "FashionMNIST"),
    ],
)
def test_a_data_set_that_cannot_be_had(dataset, where, capsys, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    assert run("--dataset", dataset, "--data", "here") == 2
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1
        and f"here/{where}" in err
        and "--dataset digits" in err
        and not Path("results").exists()
    )
    assert not Path("here").exists()


@pytest.mark.parametrize(
    "harm, says",
    {
        "no train": "no folder train/",
        "empty class": "pets/train/bird holds no image",
        "only a note": "pets/train/bird holds no image",
        "one above": "name that with --data",
        "broken image": "pets/train/cat/9.png",
        "other classes": "bird",
        "sizes": "--image-size 32, or 224",
        "no classes": "no class folder",
        "absent": "no folder train/",
        "tiny": "--image-size 8",
    }.items(),
)
def test_image_folders_that_cannot_be_used(harm, says, capsys):
    if harm != "absent":
        root = image_folder(
            sizes=((12, 12), (12, 14))
            if harm == "sizes"
            else ((6, 6),)
            if harm == "tiny"
            else ((12, 12),)
        )
    if harm == "no train":
        (root / "train").rename(root / "training")
    elif harm == "empty class":
        (root / "train/bird").mkdir()
    elif harm == "only a note":
        (root / "train/bird").mkdir()
        (root / "train/bird/notes.txt").write_text("birds")
    elif harm == "one above":
        (root / "train").rename(root / "photos")
        (root / "photos").rename("photos")
        shutil.rmtree(root)
        (root / "mine").mkdir(parents=True)
        Path("photos").rename(root / "mine/train")
    elif harm == "broken image":
        (root / "train/cat/9.png").write_bytes((root / "train/cat/1.png").read_bytes()[:50])
    elif harm == "other classes":
        (root / "test/dog").rename(root / "test/bird")
    elif harm == "no classes":
        (root / "train").rename(root / "gone")
        (root / "train").mkdir()
    before = files()
    assert run(*FOLDER, "--subset", 10) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says in err
    assert {path: content for path, content in files().items() if ".decoded" not in path} == before


def test_a_full_disk_is_one_line_and_what_is_on_disk_is_whole(monkeypatch, capsys):
    assert run("--time-limit", 1e-9) == 0
    before = files()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(harness_files.os, "fsync", full)
        patch.setattr(
            records.Run,
            "__enter__",
            lambda self, enter=records.Run.__enter__: (
                patch.undo(),
                enter(self),
                patch.setattr(harness_files.os, "fsync", full),
            )[1],
        )
        assert run() == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device" in err and files() == before
    assert (
        run() == 0
        and run("--results", "whole", "--checkpoints", "whole") == 0
        and rows(the_csv()) == rows(the_csv("whole"))
    )


def test_dry_run_tells_and_writes_nothing(capsys):
    assert run("--dry-run", "--train", "bn+output") == 0
    out = capsys.readouterr().out
    assert (
        "1,322 of" in out
        and "gamma 336" in out
        and "seconds on cpu: 3 epochs of" in out
        and ".csv" in out
        and not files()
    )


# --------------------------------------------------------------------------------------------------- several processes

WITHOUT_BATCHNORM = """
import sys, dataclasses, common, exp_mlp_lenet as mlp
@dataclasses.dataclass
class Settings(mlp.Settings):
    lists = {}
    depth: int = 2
    bn: str = "none"
    activation: str = "tanh"
    hidden: list = dataclasses.field(default_factory=lambda: [32])
sys.exit(common.main(mlp.run, Settings, "", None))
"""


def environment() -> dict[str, str]:
    """A child process's: it finds the project from any folder, has one thread, and needs no network to join others."""
    return (
        os.environ
        | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
        | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
    )


def together(script, *words, processes=2) -> str:
    """What `torchrun` printed; its exit code must be 0."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
            str(script),
            *map(str, words),
        ],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_calculate_what_one_does():
    Path("exp_plain.py").write_text(WITHOUT_BATCHNORM)
    words = "--dataset digits --subset 450 --batch-size 95 --epochs 2 --precision fp32 --train all --quiet".split()  # ten steps, the last of each epoch of 70
    subprocess.run(
        [sys.executable, "exp_plain.py", *words, "--results", "one"],
        check=True,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )
    together("exp_plain.py", *words, "--results", "two")
    one, two = (pd.read_csv(the_csv(folder)) for folder in ("one", "two"))
    for column in ("train_loss", "train_acc", "test_loss", "test_acc", "test_top5"):
        assert two[column].to_numpy() == pytest.approx(one[column].to_numpy(), rel=1e-5), column
    assert one.run[0] != two.run[0] and two.processes[0] == 2


def test_two_processes_learn_with_batchnorm_and_go_on_to_the_same_digits():
    words = [*SMALL, "--epochs", 12, "--subset", 600, "--depth", 8, "--quiet"]
    together(HERE / "exp_bn_only.py", *words, "--results", "whole", "--checkpoints", "whole")
    together(HERE / "exp_bn_only.py", *words, "--time-limit", 1e-9)
    assert len(rows(the_csv())) == 1
    together(HERE / "exp_bn_only.py", *words)
    assert rows(the_csv()) == rows(the_csv("whole")) and len(rows(the_csv())) == 12
    alone = []
    for seed in range(3):
        assert run(*words[len(SMALL) :], "--seed", seed, "--results", f"alone{seed}") == 0
        alone.append(float(rows(the_csv(f"alone{seed}"))[-1]["test_acc"]))
    assert min(alone) - 10 < float(rows(the_csv())[-1]["test_acc"]) < max(alone) + 10


@pytest.mark.parametrize("script", ["exp_bn_only.py", "exp_depth_width.py"])
def test_a_dry_run_under_torchrun_prints_one_plan(script):
    printed = together(
        HERE / script, *SMALL, "--dry-run", *["--widths", "1"] * (script == "exp_depth_width.py")
    )
    assert (
        printed.count("trains ") == {"exp_bn_only.py": 1, "exp_depth_width.py": 2}[script]
        and not files()
    )


def test_processes_wait_for_the_first_as_long_as_it_takes():
    """While it downloads, say: here three seconds, of collectives that give up after one unless they are told otherwise."""
    Path("exp_slow.py").write_text("""
import sys, time, datetime, common, exp_bn_only
from harness import processes
import torch.distributed.distributed_c10d as c10d
c10d.default_pg_timeout = datetime.timedelta(seconds=1)
common.load_digits = lambda load=common.load_digits: (processes.first() and time.sleep(3), load())[1]
sys.exit(common.main(exp_bn_only.run, common.Settings, "", None))
""")
    together("exp_slow.py", *SMALL, "--epochs", 1, "--quiet")
    assert len(rows(the_csv())) == 1


def test_every_process_has_the_gpu_of_its_rank(monkeypatch):
    chosen, zeros = [], torch.zeros
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(
        torch, "zeros", lambda *size, device=None, **options: zeros(*size, **options)
    )
    monkeypatch.setattr(speed, "has_bf16", lambda device: True)
    args = common.resolved(parse(common.Settings, SMALL[:-2], "", Process()))
    assert args.device == torch.device("cuda", 1) and chosen == [args.device]


def test_a_grid_under_torchrun_makes_every_run_once():
    together(
        HERE / "exp_depth_width.py", *GRID, "--widths", 1, "--depths", 8, 14, "--seeds", 0, 1, 2
    )
    found = [rows(path) for path in Path("results").rglob("*[0-9a-f].csv")]
    assert len(found) == 6 and all(len(table) == int(table[0]["epochs"]) for table in found)


def test_every_sample_is_in_one_share(monkeypatch):
    monkeypatch.setattr(processes, "processes", lambda: 3)
    monkeypatch.setattr(dataset, "processes", lambda: 3)
    batches, shares = dataset.split_batches(torch.arange(103), 50), []
    assert [len(batch) for batch in batches] == [50, 53]  # 3 of 103 would leave a process with one
    for rank in range(3):
        monkeypatch.setattr(processes.dist, "get_rank", lambda rank=rank: rank)
        shares += [processes.share(batch) for batch in batches]
    assert sorted(torch.cat(shares).tolist()) == list(range(103)) and min(map(len, shares)) >= 16


# -------------------------------------------------------------------------------------------------------------- predict


def test_predict_gives_the_accuracy_of_the_csv(capsys):
    for words in ("--train bn", "--train random:2+output", "--image-size 16"):
        assert run(*words.split(), "--results", words, "--checkpoints", words) == 0
        checkpoint = next(Path(words).rglob("*.pt"))
        assert predict.main([str(checkpoint), "--dataset", "digits"]) == 0
        assert (
            f"{float(rows(the_csv(words))[-1]['test_acc']):.2f} % of 359 test images"
            in capsys.readouterr().out
        )


@pytest.mark.parametrize(
    "script, words",
    [
        (exp_bn_init, "davis_frank --network cifar_resnet14 --input-norm bn --seeds 1"),
        (exp_mlp_lenet, "--hidden 32 --dataset wine"),
        (exp_mlp_lenet, "--arch lenet5 --image-size 12"),
    ],
)
def test_predict_knows_the_networks_of_every_experiment(script, words, capsys):
    shared = "--dataset digits --epochs 2 --batch-size 50 --precision fp32 --quiet".split()
    assert (
        script.main(
            [*words.split()[:1], *shared, *words.split()[1:]]
            if script is exp_bn_init
            else [*shared, *words.split()]
        )
        == 0
    )
    checkpoints = [str(path) for path in Path("checkpoints").rglob("*.pt")]
    dataset = "wine" if "wine" in words else "digits"
    assert predict.main([*checkpoints, "--dataset", dataset]) == 0
    out = capsys.readouterr().out
    for path in Path("results").rglob("*[0-9a-f].csv"):
        assert f"{path.stem}: {float(rows(path)[-1]['test_acc']):.2f} %" in out


def test_predict_names_classes_and_draws(capsys):
    digits = common.load_data(arguments())
    for i, image in enumerate(digits.images["test"][:3]):
        Image.fromarray(image.numpy()[..., 0]).save(f"{i}.png")
    assert run() == 0 and run("--train", "all") == 0
    paths = [str(path) for path in sorted(Path("checkpoints").rglob("*.pt"))]
    assert (
        predict.main(
            [
                *paths,
                "0.png",
                "--filters",
                "filters.png",
                "2.png",
                "--feature-maps",
                "maps.pdf",
                "1.png",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert Path("filters.png").stat().st_size > 2000 and Path("maps.pdf").stat().st_size > 2000
    args = arguments()
    model = common.build_model(args, digits)
    common.freeze(model, "bn")
    checkpoints.restore(
        model, harness_files.read_checkpoint(Path(next(c for c in paths if "-bn-" in c)))
    )
    with torch.inference_mode():
        p = common.forward(model.eval(), next(digits.batches("test"))[0][:1], args).softmax(1)[0]
    assert (
        f"0.png: {p.argmax()} {100 * p.max():.1f} %" in out.partition("-bn-")[2]
        and out.count("2.png: ") == 2
    )


def test_predict_refuses_what_it_cannot_use(capsys):
    assert run() == 0
    checkpoint = next(Path("checkpoints").rglob("*.pt"))
    content = harness_files.read_checkpoint(checkpoint)
    Path("short.pt").write_bytes(checkpoint.read_bytes()[:-100])
    harness_files.write_checkpoint(
        Path("other.pt"), content | {"about": content["about"] | {"experiment": "../other"}}
    )
    harness_files.write_checkpoint(
        Path("deep.pt"), content | {"settings": content["settings"] | {"depth": 15}}
    )
    harness_files.write_checkpoint(Path("empty.pt"), {})
    Path("text.png").write_text("no image")
    for words, expected in (
        ("absent.pt x.png", "absent.pt cannot be read"),
        ("short.pt x.png", "checksum"),
        ("other.pt x.png", "is not here"),
        ("deep.pt x.png", "14 and 20"),
        ("empty.pt x.png", "no checkpoint"),
        ("x.png", "name a checkpoint"),
        (str(checkpoint), "name an image"),
        (f"{checkpoint} text.png", "cannot be read as an image"),
        (f"{checkpoint} --dataset digits --filters nowhere/x.png", "cannot be written"),
        (f"{checkpoint} --dataset imagefolder", "needs --data"),
    ):
        assert predict.main(words.split()) == 2, words
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0], lines
