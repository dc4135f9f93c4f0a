"""Data sets, their splits, their batches."""

from pathlib import Path

from tests.helpers import (
    FOLDER,
    arguments,
    image_folder,
    rows,
    run,
    the_checkpoint,
    the_csv,
    tiny_cifar10,
)
import numpy as np
import torch
from PIL import Image

import common
from harness import dataset, folders
from harness import files as harness_files
import exp_bn_init
import predict


def test_cifar10_through_torchvision(monkeypatch):
    import torchvision.datasets.cifar

    def is_there(path, md5=None):
        return Path(path).exists()

    pixels = tiny_cifar10(Path("data"))
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", is_there)
    args = arguments("--dataset", "cifar10", "--subset", 80, "--augment", "none")
    args.subset = None
    data = common.load_data(args)
    assert data.size == (32, 32, 3)
    assert data.classes[3] == "class 3"
    assert len(data.labels["test"]) == 20
    assert np.array_equal(data.images["train"].permute(0, 3, 1, 2).numpy(), pixels)
    assert run("--dataset", "cifar10", "--subset", 80, "--epochs", 1) == 0
    assert rows(the_csv())[0]["augment"] == "crop+flip"
    assert rows(the_csv())[0]["dataset"] == "cifar10"


def test_mnist_through_torchvision():
    raw = Path("data/MNIST/raw")
    raw.mkdir(parents=True)
    for split, n in (("train", 60), ("t10k", 20)):
        pixels = np.arange(n * 784).astype(np.uint8).tobytes()
        labels = bytes(i % 10 for i in range(n))
        images_header = np.array([2051, n, 28, 28], ">i4").tobytes()
        labels_header = np.array([2049, n], ">i4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(images_header + pixels)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(labels_header + labels)
    data = common.load_data(arguments("--dataset", "mnist", "--subset", 30, "--image-size", 14))
    assert data.size == (14, 14, 1)
    assert len(data.labels["train"]) == 30
    assert data.labels["train"].bincount().tolist() == [3] * 10


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
        assert len(one.labels[split]) == n
        assert torch.equal(one.images[split], two.images[split])
        share = one.labels[split].bincount() / n
        assert (share - 0.1).abs().max() < 0.03
    everything = np.concatenate([x.reshape(len(x), -1) for x in one.images.values()])
    assert len(np.unique(everything, axis=0)) > 0.99 * 559


def test_image_folder_is_decoded_once_and_again_when_it_changes(monkeypatch):
    root, decoded = image_folder(), []

    def noted(*given, decode=folders.decode, **options):
        decoded.append(given)
        return decode(*given, **options)

    monkeypatch.setattr(folders, "decode", noted)
    args = arguments(*FOLDER, "--subset", 10)
    args.subset = None
    first, second = common.load_data(args), common.load_data(args)
    assert len(decoded) == 2
    assert first.classes == ["cat", "dog"]
    assert first.labels["train"].tolist() == [0] * 6 + [1] * 6
    assert torch.equal(first.images["train"], second.images["train"])
    dog = np.asarray(Image.open(root / "train/dog/1.png"))
    assert np.array_equal(first.images["train"][7], dog)
    Image.new("RGB", (12, 12), "red").save(root / "train/dog/1.png")
    assert common.load_data(args).images["train"][7, 0, 0].tolist() == [255, 0, 0]
    assert len(decoded) == 4
    (root / ".decoded-native.npz").write_bytes(b"damaged")
    assert common.load_data(args).images["train"][7, 0, 0].tolist() == [255, 0, 0]
    assert len(decoded) == 6


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
    assert rows(the_csv())[0]["dataset"] == "pets"
    assert rows(the_csv())[0]["image_size"] == "10x10"
    assert list(Path("cache").rglob("*.npz"))
    assert not list(Path("pets").glob(".*"))


def test_images_in_class_folders_alone_give_a_fifth_to_the_test(capsys):
    image_folder(test=None)
    Path("pets/train").rename("alone")
    assert run(*FOLDER[:2], "--data", "alone", "--subset", 8, "--epochs", 1) == 0
    assert not capsys.readouterr().err
    data = common.load_data(arguments(*FOLDER[:2], "--data", "alone", "--subset", 8))
    assert data.classes == ["cat", "dog"]
    assert len(data.labels["test"]) == 2
    assert rows(the_csv())[0]["dataset"] == "alone"


def test_a_file_that_is_no_image_is_left_out_with_one_line(capsys):
    root = image_folder()
    (root / "train/cat/notes.txt").write_text("cats")
    (root / "train/cat/1.png").rename(root / "train/cat/an image by its content")
    assert run(*FOLDER, "--subset", 10, "--epochs", 1) == 0
    left_out = "warning: pets/train/cat/notes.txt, which is no image, left out\n"
    assert capsys.readouterr().err == left_out
    (root / "test/dog/Makefile").write_text("all:")
    assert len(common.load_data(arguments(*FOLDER, "--subset", 12)).labels["train"]) == 12
    assert "and 1 other, which are no image" in capsys.readouterr().err
    (root / "test/dog/README").write_text("dogs")
    assert len(common.load_data(arguments(*FOLDER, "--subset", 12)).labels["train"]) == 12
    assert "and 2 others, which are no image" in capsys.readouterr().err


def test_brightness_scales_each_image():
    args = arguments("--augment", "brightness+crop")
    assert args.augment == "crop+brightness"
    data = common.load_data(args)
    data.images["train"] = torch.full((150, 8, 8, 1), 200, dtype=torch.uint8)
    data.images["train"][0] = 0
    mean, std = data.mean_std
    batches = data.training_batches(0, 1, 50, "brightness")
    pixels = torch.cat([x for x, _ in batches]) * std + mean
    levels = pixels[:, 0].flatten(1).max(1).values
    assert torch.allclose(pixels[:, 0].flatten(1).min(1).values, levels, atol=0.01)
    assert len(levels.round().unique()) > 20
    assert levels[levels > 1].min() > 159
    assert levels.max() <= 240.01


def test_imagenet_is_streamed_and_does_not_depend_on_the_workers(capsys):
    image_folder(sizes=((224, 224), (100, 300)), test="val")
    images = "--dataset imagenet --data pets --image-size 64 --subset 10"
    network = "--arch imagenet_resnet --depth 18 --batch-size 4 --epochs 1"
    words = [*images.split(), *network.split()]

    def epoch(number: int, workers: int) -> torch.Tensor:
        data = common.load_data(arguments(*words, "--workers", workers))
        return torch.cat([x for x, _ in data.training_batches(0, number, 4, "crop+flip")])

    args = arguments(*words)
    data = common.load_data(args)
    assert data.size == (64, 64, 3)
    assert sum(len(y) for _, y in data.batches("test")) == 4
    assert args.warmup_epochs == 1
    assert args.lr == 0.4
    one = epoch(1, workers=1)
    assert one.shape == (10, 3, 64, 64)
    assert torch.equal(one, epoch(1, workers=2))
    assert not torch.equal(one, epoch(2, workers=2))
    assert run(*words) == 0
    assert rows(the_csv())[0]["dataset"] == "imagenet"
    assert rows(the_csv())[0]["image_size"] == "64x64"
    asked = "--dataset imagenet --data pets --device cpu"
    assert predict.main([str(the_checkpoint()), *asked.split()]) == 0
    accuracy = float(rows(the_csv())[0]["test_acc"])
    assert f"{accuracy:.2f} % of 4 test images" in capsys.readouterr().out


def test_imagenets_crops_are_open_lths():
    """Of scale 0.1 to 1 and ratio 0.8 to 1.25: on an image that is brighter from left to right and
    from top to bottom a crop shows where it was cut."""
    levels = np.arange(250, dtype=np.uint8)
    channels = np.broadcast_arrays(levels[None, :], levels[:, None], np.uint8(0))
    ramp = np.stack(channels, 2)
    for split in ("train", "val"):
        Path(f"ramps/{split}/one").mkdir(parents=True)
        for i in range(2):
            Image.fromarray(ramp).save(f"ramps/{split}/one/{i}.png")
    words = "--dataset imagenet --data ramps --image-size 32 --subset 2 --workers 1"
    data = common.load_data(arguments(*words.split()))
    data.images["train"] = np.repeat(data.images["train"][:1], 200)
    data.labels["train"] = data.labels["train"][:1].repeat(200)
    mean, std = (x[:, None, None] for x in data.mean_std)
    pixels = torch.cat([x * std + mean for x, _ in data.training_batches(0, 1, 100, "crop")])
    widths, heights, _ = (pixels.amax((2, 3)) - pixels.amin((2, 3))).T
    area, ratio = widths * heights / 250**2, widths / heights
    assert 0.07 < area.min() < 0.2
    assert area.max() > 0.85
    assert 0.75 < ratio.min() < 0.9
    assert 1.1 < ratio.max() < 1.33


def test_davis_frank_on_imagenet():
    image_folder(sizes=((64, 64),), test="val")
    network = "davis_frank --network resnet18 --bn-weight 0.1 --seeds 1"
    images = "--dataset imagenet --data pets --image-size 64 --val-fraction 0.4 --workers 1"
    words = [*network.split(), *images.split(), "--epochs", "1", "--batch-size", "4", "--quiet"]
    assert exp_bn_init.main(words) == 0
    assert len(list(Path("results").rglob("*[0-9a-f].csv"))) == 2


def test_each_image_has_a_stream_of_its_own():
    streams = [common.stream_seed(3, stream, 7) for stream in common.STREAMS if stream != "images"]
    images = [common.stream_seed(3, "images", 7, image) for image in range(100)]
    assert len({*streams, *images}) == len(streams) + len(images)
