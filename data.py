"""Seeds and data: where every random number comes from, and every image.

The experiments use this through common.py."""
from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from tqdm import tqdm

from parallel import first, first_goes_first, processes, share
from records import UserError, dataset_name, replacing, warn

# ---------------------------------------------------------------------------------------------------------------- seeds
# Four independent streams derive from one seed, all drawn on the CPU: seed 3 gives the same frozen features whichever
# parameters are trained and whatever the device, so that comparisons are paired.

STREAMS = ("weights", "batchnorm", "order", "random_params")


def generator(seed: int, stream: str, epoch: int = 0) -> torch.Generator:
    """The generator of one stream of `seed`. The data order and its augmentation have one for each epoch, which a resumed run finds again."""
    state = np.random.SeedSequence([seed, STREAMS.index(stream), epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


# ----------------------------------------------------------------------------------------------------------------- data

TORCHVISION = {  # --dataset: torchvision's class, and where its files lie below --data
    "mnist": ("MNIST", "MNIST/raw/*-ubyte"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw/*-ubyte"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/ or cifar-10-python.tar.gz"),
    "cifar100": ("CIFAR100", "cifar-100-python/ or cifar-100-python.tar.gz"),
}
DATASETS = ("digits", *TORCHVISION, "imagefolder", "imagenet")
AUGMENTED = ("cifar10", "cifar100", "imagefolder", "imagenet")  # by default; a mirrored digit is no digit
PAD = 4  # pixels of black around an image before the random crop (He et al., section 4.2)


@dataclass
class Data:
    """A data set on the device. For each split, images are uint8 (N, H, W, C) and labels int64 (N,)."""
    name: str
    classes: list[str]
    images: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return tuple(self.images["train"].shape[1:])

    @cached_property
    def mean_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each channel of the training images, (C,), in units of 0 … 255."""
        images, levels = self.images["train"], torch.arange(256, dtype=torch.float64)
        counts = torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in images.cpu().unbind(-1)])
        mean = (counts * levels).sum(1) / counts.sum(1)
        variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1)
        return mean.float().to(images.device), variance.sqrt().clamp(min=1e-3).float().to(images.device)  # a constant channel deviates by 0

    @cached_property
    def padded(self) -> torch.Tensor:
        return F.pad(self.images["train"], (0, 0, PAD, PAD, PAD, PAD))

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, H, W, C) to float (N, C, H, W), channels last in memory."""
        mean, std = self.mean_std
        return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)

    def batches(self, split: str, batch_size: int = 500):
        """The images of a split and their labels in stored order, for evaluation; of several processes each has its share."""
        for images, labels in zip(share(self.images[split]).split(batch_size), share(self.labels[split]).split(batch_size)):
            yield self.normalise(images), labels

    def training_batches(self, seed: int, epoch: int, batch_size: int, augment: str):
        """Every training image once, in the order and with the augmentation of (seed, epoch); of several processes each has its share of a batch."""
        labels, (height, width, _), draw = self.labels["train"], self.size, generator(seed, "order", epoch)
        n, device = len(labels), labels.device
        order = torch.randperm(n, generator=draw)
        shift = torch.randint(2 * PAD + 1, (2, n), generator=draw) if "crop" in augment else torch.full((2, n), PAD)
        mirror = torch.rand(n, generator=draw) < (0.5 if "flip" in augment else 0)
        rows = shift[0, :, None] + torch.arange(height)
        columns = shift[1, :, None] + torch.where(mirror[:, None], torch.arange(width).flip(0), torch.arange(width))
        brightness = torch.empty(n, 1, 1, 1).uniform_(0.8, 1.2, generator=draw) if "brightness" in augment else None
        order, rows, columns, brightness = (x if x is None else x.to(device) for x in (order, rows, columns, brightness))
        for i in map(share, split_batches(order, batch_size)):
            images = self.padded[i[:, None, None], rows[i, :, None], columns[i, None, :]]
            if brightness is not None:
                images = (images * brightness[i]).clamp_(max=255)
            yield self.normalise(images), labels[i]


def split_batches(order: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Consecutive batches, the last one smaller. A last batch of one sample for a process, which has no variance of its own, joins the one before."""
    batches = list(order.split(batch_size))
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) < 2 * processes():
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def load_data(args) -> Data:
    """The data set that `args` names, on its device. Raises UserError where it is absent or not as it must be."""
    with first_goes_first():
        return load_imagenet(args) if args.dataset == "imagenet" else load_images(args)


def load_images(args) -> Data:
    if args.dataset == "imagefolder":
        images, labels, classes = load_folder(Path(args.data), args.image_size, args.workers, args.quiet)
    else:
        images, labels, classes = load_digits() if args.dataset == "digits" else load_torchvision(args.dataset, Path(args.data or "data"))
        if args.image_size:
            images = {split: resize(x, args.image_size) for split, x in images.items()}
    height, width = images["train"].shape[1:3]
    if min(height, width) < 8:
        raise UserError(f"the images of {dataset_name(args)} have {width}x{height} pixels, and the networks need 8x8: add --image-size 8")
    make_splits(images, labels, args)
    return Data(dataset_name(args), classes, on_device(images, args), on_device(labels, args))


def on_device(arrays: dict[str, np.ndarray], args) -> dict[str, torch.Tensor]:
    return {split: torch.from_numpy(array).to(args.device) for split, array in arrays.items()}


def make_splits(images: dict, labels: dict, args) -> None:
    """Makes the subset and the validation split that `args` asks for and, where there is none, a test split."""
    n = len(labels["train"])
    if "test" not in labels:
        hold_out(images, labels, n - round(n / 5), "a test split of 20 %", "test")
    if args.subset:
        hold_out(images, labels, args.subset, f"--subset {args.subset}")
    if args.val_fraction:
        keep = round(len(labels["train"]) * (1 - args.val_fraction))
        hold_out(images, labels, keep, f"--val-fraction {args.val_fraction:g}", "val", args.split_seed)


def hold_out(images: dict, labels: dict, keep: int, what: str, split: str | None = None, seed: int = 0) -> None:
    """Keeps `keep` training images, the same for every seed and each class in its share. The others become `split`, or go."""
    from sklearn.model_selection import train_test_split
    n, classes = len(labels["train"]), len(np.unique(labels["train"]))
    if keep == n:
        return
    try:
        kept, rest = train_test_split(np.arange(n), train_size=keep, stratify=labels["train"], random_state=seed)
    except ValueError:  # scikit-learn's reasons: more than there are, or too few to have each class on both sides
        raise UserError(f"{what} leaves {keep} of {n} training images: it must leave from {classes} to {n - classes}, "
                        f"so that each of the {classes} classes is on both sides, or all {n}") from None
    for arrays in (images, labels):
        if split:
            arrays[split] = arrays["train"][np.sort(rest)]
        arrays["train"] = arrays["train"][np.sort(kept)]


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 (N, H, W, C) to (N, size, size, C), bilinear with antialiasing."""
    def scale(piece):
        return F.interpolate(piece.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear", antialias=True).round().byte().permute(0, 2, 3, 1)
    return torch.cat([scale(piece) for piece in torch.from_numpy(images).split(1000)]).contiguous().numpy()


def load_digits():
    """The 1,797 handwritten digits of 8x8 pixels inside scikit-learn, whose brightness is 0 … 16 there."""
    from sklearn.datasets import load_digits
    digits = load_digits()
    return {"train": np.rint(digits.images * 255 / 16).astype(np.uint8)[..., None]}, {"train": digits.target.astype(np.int64)}, list("0123456789")


def load_torchvision(dataset: str, root: Path):
    """A data set of torchvision's from `root`, downloaded and verified there if it is not."""
    import torchvision
    name, where = TORCHVISION[dataset]
    source = getattr(torchvision.datasets, name)
    try:
        splits = {split: source(root, train=split == "train") for split in ("train", "test")}
    except RuntimeError:  # absent or damaged
        is_new, lock = not root.exists(), root / f".{dataset}.lock"
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(lock), redirect_stdout(io.StringIO()):
                splits = {split: source(root, train=split == "train", download=True) for split in ("train", "test")}
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                lock.unlink(missing_ok=True)
            for folder in (root / name / "raw", root / name, *[root] * is_new):
                with suppress(OSError):  # something came in
                    folder.rmdir()
            raise UserError(f"{dataset} is not in {root} and could not be downloaded ({' '.join(str(error).split())[:120]}): "
                            f"put its files at {root / where}, or try --dataset digits, which needs none") from None
    pixels = {split: np.asarray(s.data) for split, s in splits.items()}
    labels = {split: np.asarray(s.targets, np.int64) for split, s in splits.items()}
    return {split: x.reshape(*x.shape[:3], -1) for split, x in pixels.items()}, labels, list(splits["train"].classes)


def load_folder(root: Path, image_size: int | None, workers: int, quiet: bool):
    """The images of `list_folder`: decoded once, then read from a cache that knows the files' sizes and dates."""
    files, labels, classes = list_folder(root)
    key = hashlib.sha256(json.dumps([files, image_size]).encode()).hexdigest()
    beside = root / f".decoded-{image_size or 'native'}.npz"
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "train-bn-only", re.sub(r"\W+", "-", str(beside.resolve())) + ".npz")
    for cache in (beside, own):
        try:
            with np.load(cache) as stored:
                if str(stored["key"]) == key:
                    return {split: stored[split] for split in files}, labels, classes
        except Exception:  # absent, or damaged in one of the many ways that a zip archive can be
            continue
    paths = [root / path for split in files for path, _, _ in files[split]]
    images = dict(zip(files, np.split(decode(paths, image_size, workers, quiet), np.cumsum([len(f) for f in files.values()])[:-1])))
    for cache in (beside, own):
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with replacing(cache) as stream:
                np.savez(stream, key=key, **images)
            break
        except OSError:  # read-only or full: the next place, or no cache
            continue
    return images, labels, classes


def list_folder(root: Path) -> tuple[dict[str, list], dict[str, np.ndarray], list[str]]:
    """For each split the images' paths below `root`, with bytes and modification time, and their labels; and the classes.

    `root` holds train/CLASS/ and test/CLASS/ (or val/), or train/CLASS/ alone, or, as torchvision's ImageFolder has it, CLASS/."""
    files, labels, classes, no_images = {}, {}, {}, []
    for split, folder in find_splits(root).items():
        classes[split] = class_folders(folder)
        files[split], numbers = [], []
        for number, name in enumerate(classes[split]):
            listed = sorted(walk(os.path.join(folder, name), len(str(root)) + 1, no_images))
            if not listed:
                raise UserError(f"the class folder {folder / name} holds no image: put one in, or remove the folder")
            files[split] += listed
            numbers += [number] * len(listed)
        labels[split] = np.array(numbers, np.int64)
    if not classes["train"]:
        raise UserError(f"{root}/train holds no class folder: images belong in {root}/train/CLASS/")
    if odd := sorted(set(classes["train"]) ^ set(classes.get("test", classes["train"]))):
        raise UserError(f"{root}: training and test images must have the same classes, and only one of them has {', '.join(odd[:5])}")
    if no_images and first():
        others = f" and {len(no_images) - 1:,} others" * (len(no_images) > 1)
        warn(f"{no_images[0]}{others}, which {'are' if others else 'is'} no image, left out")
    return files, labels, classes["train"]


def find_splits(root: Path) -> dict[str, Path]:
    """The folders of the training and, where there is one, of the test images, in which the folders of the classes are."""
    if (root / "train").is_dir():
        tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
        return {"train": root / "train"} | ({"test": tests[0]} if tests else {})
    folders = class_folders(root) if root.is_dir() else []
    if inside := [name for name in folders if (root / name / "train").is_dir()]:
        raise UserError(f"{root} has no folder train/, but {root / inside[0]} has: name that with --data")
    if not folders or {"test", "val"} & set(folders):
        raise UserError(f"{root} has no folder train/: images belong in {root}/train/CLASS/ and {root}/test/CLASS/ or {root}/val/CLASS/, "
                        f"or all in {root}/CLASS/, of which a fifth is then the test")
    return {"train": root}


def class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def walk(folder: str, skip: int, no_images: list[str]):
    """Path, without its first `skip` characters, bytes and modification time of every image in and below `folder` that is not hidden. What is
    no image goes to `no_images`."""
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.name == "Thumbs.db":
            continue
        if entry.is_dir():
            yield from walk(entry.path, skip, no_images)
        elif not entry.is_file():
            raise UserError(f"{entry.path} is no file that can be read: remove it, or give an image in its place")
        elif not is_image(entry.path):
            no_images.append(entry.path)
        else:
            status = entry.stat()
            yield entry.path[skip:].replace(os.sep, "/"), status.st_size, status.st_mtime_ns


def is_image(path: str) -> bool:
    """Whether a file is an image by its name, and must then be one that can be read, or by its content."""
    if path.lower().endswith((".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")):
        return True
    from PIL import Image
    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow's plugins raise a dozen kinds
        return False


def read_image(path: Path):
    """An image file as Pillow's RGB image: of an animation the first frame, transparency left out, 16 bits of gray scaled to 8, where Pillow would cut them off at 255.
    Raises UserError for what is no image, is cut or damaged, or has so many pixels (89 millions) that it is made to fill the memory."""
    from PIL import Image
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise ValueError("it is no file")
        with Image.open(path) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels")
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers of no known scale")
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        raise UserError(f"{path} cannot be read as an image ({getattr(error, 'strerror', None) or error}): give another in its place, or none") from None


def decode(paths: list[Path], image_size: int | None, workers: int, quiet: bool) -> np.ndarray:
    """The images as one uint8 array (N, H, W, 3), all of one size already, or scaled and cropped to `image_size`."""
    from PIL import Image, ImageOps

    def read(path):
        image = read_image(path)
        return np.asarray(ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR) if image_size else image)

    pool, images = ThreadPoolExecutor(workers), None
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of damaged EXIF data and the like
            for i, image in enumerate(progress_bar(pool.map(read, paths), desc="decoding", total=len(paths), unit=" images", disable=quiet)):
                if images is None:
                    images = np.empty((len(paths), *image.shape), np.uint8)
                if image.shape != images.shape[1:]:
                    (height, width), (h, w) = images.shape[1:3], image.shape[:2]
                    raise UserError(f"the images differ in size ({paths[0]}: {width}x{height}, {paths[i]}: {w}x{h} pixels): add --image-size 32, or 224 for networks of ImageNet's size")
                images[i] = image
    finally:
        pool.shutdown(cancel_futures=True)
    return images


# ------------------------------------------------------------------------------------------- images too many for memory

class Streamed(Data):
    """Images that are decoded as they are needed, by worker processes: `images[split]` are paths (N,), as a NumPy array of text.

    Training: torchvision's random resized crop (of open_lth's scale and ratio) and flip, drawn for each image from (seed, epoch, image), whatever the number of workers. Test: the
    centre of the image scaled to 256/224 of the size. Normalised with ImageNet's mean and deviation."""

    def __init__(self, name, classes, images, labels, image_size: int, workers: int, device):
        super().__init__(name, classes, images, labels)
        self.image_size, self.workers, self.device = image_size, workers, device

    @property
    def size(self):
        return self.image_size, self.image_size, 3

    @cached_property
    def mean_std(self):
        return tuple(255 * torch.tensor(values, device=self.device) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def batches(self, split, batch_size=250):
        from torchvision.transforms import v2
        transform = v2.Compose([v2.Resize(round(self.image_size * 256 / 224)), v2.CenterCrop(self.image_size)])
        return self.stream(split, share(torch.arange(len(self.labels[split]))).split(batch_size), transform, None)

    def training_batches(self, seed, epoch, batch_size, augment):
        from torchvision.transforms import v2
        transform = [v2.RandomResizedCrop(self.image_size, scale=(0.1, 1), ratio=(0.8, 1.25)) if "crop" in augment else v2.Resize((self.image_size, self.image_size))]
        transform += [v2.RandomHorizontalFlip()] * ("flip" in augment) + [v2.ColorJitter(brightness=0.2)] * ("brightness" in augment)
        order = torch.randperm(len(self.labels["train"]), generator=generator(seed, "order", epoch))
        return self.stream("train", list(map(share, split_batches(order, batch_size))), v2.Compose(transform), (seed, epoch))

    def stream(self, split, batches, transform, seeds):
        files = Files(self.images[split], transform, seeds)
        loader = torch.utils.data.DataLoader(files, batch_sampler=[batch.tolist() for batch in batches], num_workers=self.workers, pin_memory=self.device.type == "cuda")
        try:
            for batch, images in zip(batches, loader):
                yield self.normalise(images.to(self.device, non_blocking=True)), self.labels[split][batch.to(self.device)]
        except UserError as error:  # from a worker process, behind its traceback
            raise UserError(str(error).strip().splitlines()[-1].partition(": ")[2]) from None


class Files(torch.utils.data.Dataset):
    """Image files as uint8 (H, W, 3), transformed with the randomness of `seeds` and the image's number."""

    def __init__(self, paths, transform, seeds):
        self.paths, self.transform, self.seeds = paths, transform, seeds

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        image = read_image(self.paths[i])
        with torch.random.fork_rng(devices=[]):
            if self.seeds:
                torch.manual_seed(int(np.random.SeedSequence([*self.seeds, i]).generate_state(1, np.uint64)[0]))
            return torch.from_numpy(np.array(self.transform(image)))


def load_imagenet(args) -> Streamed:
    """`--data`/train/CLASS/* and val/CLASS/* (or test/), of any size, left on disk."""
    from torchvision.datasets import ImageFolder
    root, images, labels, classes = Path(args.data or "data/imagenet"), {}, {}, {}
    for split_name, names in (("train", ["train"]), ("test", ["val", "test"])):
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if not folder:
            raise UserError(f"{root} has no folder {' or '.join(names)}/: ImageNet's images belong in {root}/train/CLASS/ and {root}/val/CLASS/, or name another folder with --data")
        try:
            found = ImageFolder(folder)
        except FileNotFoundError as error:
            raise UserError(f"{' '.join(str(error).split())}") from None
        images[split_name], labels[split_name] = np.array([path for path, _ in found.samples]), np.array(found.targets)
        classes[split_name] = found.classes
    if odd := sorted(set(classes["train"]) ^ set(classes["test"])):
        raise UserError(f"{root}: training and test images must have the same classes, and only one of them has {', '.join(odd[:5])}")
    make_splits(images, labels, args)
    return Streamed("imagenet", classes["train"], images, on_device(labels, args), args.image_size or 224, args.workers, args.device)


def progress_bar(*args, **options):
    """tqdm's, which writes a line a minute where nobody watches."""
    return tqdm(*args, dynamic_ncols=True, mininterval=0.2 if sys.stderr.isatty() else 60, **options)
