"""Images in folders: small ones decoded once into memory, many and large ones streamed.

Nothing of what is random is decided here."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from harness.dataset import Data, make_splits, on_device
from harness.errors import UserError, warn
from harness.files import replacing
from harness.processes import first, share
from harness.progress import progress_bar
from harness.summaries import counted

# -------------------------------------------------------------------------------- what a folder has

NAMES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def list_folder(root: Path) -> tuple[dict[str, list], dict[str, np.ndarray], list[str]]:
    """For each split the images' paths below `root`, with bytes and modification time, and their
    labels; and the classes.

    `root` holds train/CLASS/ and test/CLASS/ (or val/), or train/CLASS/ alone, or, as torchvision's
    ImageFolder has it, CLASS/."""
    files, labels, classes, no_images = {}, {}, {}, []
    for split, folder in find_splits(root).items():
        classes[split] = class_folders(folder)
        files[split], numbers = [], []
        for number, name in enumerate(classes[split]):
            path = os.path.join(folder, name)
            listed = sorted(walk(path, root, no_images))
            if not listed:
                raise UserError(f"the class folder {path} holds no image: put one in, or remove it")
            files[split] += listed
            numbers += [number] * len(listed)
        labels[split] = np.array(numbers, np.int64)
    if not classes["train"]:
        where = f"images belong in {root}/train/CLASS/"
        raise UserError(f"{root}/train holds no class folder: {where}")
    odd = sorted(set(classes["train"]) ^ set(classes.get("test", classes["train"])))
    if odd:
        raise UserError(different_classes(root, odd))
    if no_images and first():
        n = len(no_images) - 1
        others = f" and {counted(n, 'other')}" if n else ""
        verb = "are" if others else "is"
        warn(f"{no_images[0]}{others}, which {verb} no image, left out")
    if len(classes["train"]) == 1 and first():
        (only,) = classes["train"]
        warn(f"{root} has the class {only} alone: every answer will be right")
    return files, labels, classes["train"]


def different_classes(root: Path, odd: list[str]) -> str:
    rule = "training and test images must have the same classes"
    return f"{root}: {rule}, and only one of them has {', '.join(odd[:5])}"


def find_splits(root: Path) -> dict[str, Path]:
    """The folders of the training and, where there is one, of the test images, in which the folders
    of the classes are."""
    if (root / "train").is_dir():
        tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
        if len(tests) > 1 and first():
            warn(f"{tests[1]} has no part: {tests[0]} is the test split")
        return {"train": root / "train"} | ({"test": tests[0]} if tests else {})
    folders = class_folders(root) if root.is_dir() else []
    inside = [name for name in folders if (root / name / "train").is_dir()]
    if inside:
        found = root / inside[0]
        raise UserError(f"{root} has no folder train/, but {found} has: name that with --data")
    if not folders or {"test", "val"} & set(folders):
        lacks = "has no folder train/" if root.is_dir() else "is no folder"
        raise UserError(
            f"{root} {lacks}: images belong in {root}/train/CLASS/ and "
            f"{root}/test/CLASS/ or {root}/val/CLASS/, or all in {root}/CLASS/, of which a "
            "fifth is then the test"
        )
    return {"train": root}


def class_folders(folder: Path) -> list[str]:
    entries = os.scandir(folder)
    return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def walk(folder: str, root: Path, no_images: list[str]):
    """Path from `root` on, bytes and modification time of every image in and below `folder` that is
    not hidden. What is no image goes to `no_images`."""
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.name == "Thumbs.db":
            continue
        if entry.is_dir():
            yield from walk(entry.path, root, no_images)
        elif not entry.is_file():
            instead = "remove it, or give an image in its place"
            raise UserError(f"{entry.path} is no file that can be read: {instead}")
        elif not is_image(entry.path):
            no_images.append(entry.path)
        else:
            status = entry.stat()
            below = os.path.relpath(entry.path, root).replace(os.sep, "/")
            yield below, status.st_size, status.st_mtime_ns


def is_image(path: str) -> bool:
    """Whether a file is an image by its name, and must then be one that can be read, or by its
    content."""
    if path.lower().endswith(NAMES):
        return True
    from PIL import Image

    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow's plugins raise a dozen kinds
        return False


# ------------------------------------------------------------------------------------ into memory


def load_folder(root: Path, image_size: int | None, workers: int, quiet: bool):
    """The images of `list_folder` as uint8 (N, H, W, 3) of each split, their labels, the classes:
    decoded once, then read from a cache that knows the files' sizes and dates."""
    files, labels, classes = list_folder(root)
    key = hashlib.sha256(json.dumps([files, image_size]).encode()).hexdigest()
    beside = root / f".decoded-{image_size or 'native'}.npz"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    own = Path(home, "train-bn-only", re.sub(r"\W+", "-", str(beside.resolve())) + ".npz")
    for cache in (beside, own):
        try:
            with np.load(cache) as stored:
                if str(stored["key"]) == key:
                    return {split: stored[split] for split in files}, labels, classes
        except Exception:  # absent, or damaged in one of the many ways that a zip archive can be
            continue
    images = {}
    for split, listed in files.items():
        paths = [root / path for path, _, _ in listed]
        size = (image_size, image_size) if image_size else None
        images[split] = decode(paths, size, workers, quiet, like=images.get("train"))
    for cache in (beside, own):
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with replacing(cache) as stream:
                np.savez(stream, key=key, **images)
            break
        except OSError:  # read-only or full: the next place, or no cache
            continue
    return images, labels, classes


def read_image(path: Path):
    """An image file as Pillow's RGB image: of an animation the first frame, transparency left out,
    16 bits of gray scaled to 8, where Pillow would cut them off at 255.

    Raises UserError for what is no image, is cut or damaged, or has so many pixels (89 millions)
    that it is made to fill the memory."""
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
                gray = np.asarray(image).clip(0, 65535) / 257
                image = Image.fromarray(gray.round().astype(np.uint8))
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        why = getattr(error, "strerror", None) or error
        message = f"{path} cannot be read as an image ({why}): give another in its place, or none"
        raise UserError(message) from None


def decode(
    paths: list[Path], size: tuple[int, int] | None, workers: int, quiet: bool, like=None
) -> np.ndarray:
    """The images as one uint8 array (N, H, W, 3), all of one size already (and of that of `like`),
    or scaled and cropped to `size`: width, height."""
    from PIL import Image, ImageOps

    def read(path):
        image = read_image(path)
        if size:
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        return np.asarray(image)

    pool, images = ThreadPoolExecutor(workers), None
    try:
        # Pillow's, of damaged EXIF data and the like
        with warnings.catch_warnings(action="ignore"):
            decoded = pool.map(read, paths)
            bar = {"desc": "decoding", "total": len(paths), "unit": " images", "disable": quiet}
            for i, image in enumerate(progress_bar(decoded, **bar)):
                if images is None:
                    shape = image.shape if like is None else like.shape[1:]
                    images = np.empty((len(paths), *shape), np.uint8)
                if image.shape != images.shape[1:]:
                    (height, width), (h, w) = images.shape[1:3], image.shape[:2]
                    raise UserError(
                        f"the images differ in size ({width}x{height}, and {paths[i]} has {w}x{h} "
                        "pixels): add --image-size 32, or 224 for networks of ImageNet's size"
                    )
                images[i] = image
    finally:
        pool.shutdown(cancel_futures=True)
    return images


# ----------------------------------------------------------------------------------------- streamed


def list_imagenet(root: Path):
    """The paths of `root`/train/CLASS/* and val/CLASS/* (or test/), as NumPy arrays of text, their
    labels, and the classes."""
    from torchvision.datasets import ImageFolder

    paths, labels, classes = {}, {}, {}
    for split, names in (("train", ["train"]), ("test", ["val", "test"])):
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if not folder:
            raise UserError(
                f"{root} has no folder {' or '.join(names)}/: ImageNet's images belong in "
                f"{root}/train/CLASS/ and {root}/val/CLASS/, or name another folder with --data"
            )
        try:
            found = ImageFolder(folder)
        except FileNotFoundError as error:
            raise UserError(" ".join(str(error).split())) from None
        paths[split] = np.array([path for path, _ in found.samples])
        labels[split], classes[split] = np.array(found.targets), found.classes
    odd = sorted(set(classes["train"]) ^ set(classes["test"]))
    if odd:
        raise UserError(different_classes(root, odd))
    return paths, labels, classes["train"]


class Files(torch.utils.data.Dataset):
    """Image files as uint8 (H, W, 3), each transformed with the randomness of `seed_of(number)`."""

    def __init__(self, paths, transform, seed_of):
        self.paths, self.transform, self.seed_of = paths, transform, seed_of

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        image = read_image(self.paths[i])
        with torch.random.fork_rng(devices=[]):
            if self.seed_of:
                torch.manual_seed(self.seed_of(i))
            return torch.from_numpy(np.array(self.transform(image)))


def read_ahead(files: Files, batches: list[torch.Tensor], workers: int, pin_memory: bool):
    """The images of each of `batches`, which hold numbers, uint8 (N, H, W, 3), as worker processes
    decode them."""
    numbers = [batch.tolist() for batch in batches]
    loader = torch.utils.data.DataLoader(
        files, batch_sampler=numbers, num_workers=workers, pin_memory=pin_memory
    )
    try:
        yield from loader
    except UserError as error:  # from a worker process, behind its traceback
        last = str(error).strip().splitlines()[-1]
        raise UserError(last.partition(": ")[2]) from None


class Streamed(Data):
    """Images that are decoded as they are needed, by worker processes: `images[split]` are paths
    (N,). Of `pixels` height and width, normalised with ImageNet's mean and deviation."""

    pixels, workers = 224, 1

    @classmethod
    def of(cls, args, paths: dict, labels: dict, classes: list[str]) -> Streamed:
        """The images of `list_imagenet`, with the splits that `args` asks for."""
        made_with = make_splits(paths, labels, args)
        labels = on_device(labels, args.device)
        data = cls("imagenet", classes, paths, labels, made_with=made_with)
        data.pixels, data.workers = args.image_size or 224, args.workers
        data.source = data.digest[:6]
        return data

    @property
    def size(self):
        return self.pixels, self.pixels, 3

    @cached_property
    def digest(self) -> str:
        """Of the classes, the images' names and the labels: the images are never read all at
        once."""
        found = hashlib.sha256("\n".join(self.classes).encode())
        for split in sorted(self.labels):
            names = [Path(path).name for path in self.images[split]]
            found.update("\n".join([split, *names]).encode())
            found.update(self.labels[split].cpu().numpy().tobytes())
        return found.hexdigest()

    @cached_property
    def mean_std(self):
        device = next(iter(self.labels.values())).device
        channels = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return tuple(255 * torch.tensor(values, device=device) for values in channels)

    def batches(self, split: str):
        """For evaluation: the centre of the image scaled to 256/224 of the size."""
        from torchvision.transforms import v2

        scale = [v2.Resize(round(self.pixels * 256 / 224)), v2.CenterCrop(self.pixels)]
        batches = share(torch.arange(len(self.labels[split]))).split(250)
        return self.stream(split, batches, v2.Compose(scale))

    def stream(self, split: str, batches, transform, seed_of=None):
        labels = self.labels[split]
        files = Files(self.images[split], transform, seed_of)
        images = read_ahead(files, batches, self.workers, labels.device.type == "cuda")
        for batch, x in zip(batches, images, strict=True):
            x = x.to(labels.device, non_blocking=True)
            yield self.normalise(x), labels[batch.to(labels.device)]


def augmented(pixels: int, augment: str):
    """torchvision's random resized crop, of open_lth's scale and ratio, flip and brightness."""
    from torchvision.transforms import v2

    transform = [v2.Resize((pixels, pixels))]
    if "crop" in augment:
        transform = [v2.RandomResizedCrop(pixels, scale=(0.1, 1), ratio=(0.8, 1.25))]
    if "flip" in augment:
        transform.append(v2.RandomHorizontalFlip())
    if "brightness" in augment:
        transform.append(v2.ColorJitter(brightness=0.2))
    return v2.Compose(transform)
