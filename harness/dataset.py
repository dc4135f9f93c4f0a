"""The form of a data set, its splits, and where torchvision's come from."""

from __future__ import annotations

import hashlib
import io
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock

from harness.config import Settings
from harness.errors import UserError
from harness.processes import processes, share


@dataclass
class Data:
    """A data set by split, `train`, `test` and, with --val-fraction, `val`: labels int64 (N,), and
    images, uint8 (N, H, W, C) on the device; in folders.Streamed paths (N,), of a table
    (exp_mlp_lenet.py) float32 features (N, F).

    A subclass adds `training_batches(seed, epoch, batch_size, augment)`, which gives float inputs
    and labels on the device."""

    name: str
    classes: list[str]
    images: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    source: str = ""  # which of the folders or files of this name it comes from: a digest
    made_with: dict = field(default_factory=dict)  # the settings of its splits
    loaded: int | None = None  # training images, of which a script may take some away

    def __post_init__(self):
        if self.loaded is None:
            self.loaded = len(self.labels.get("train", ()))

    @property
    def size(self) -> tuple[int, ...]:
        """Of an image height, width, channels; of a table's row the number of features."""
        return tuple(self.images["train"].shape[1:])

    @cached_property
    def mean_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each channel of the training images, (C,), in units of
        0 … 255."""
        images, levels = self.images["train"], torch.arange(256, dtype=torch.float64)
        channels = [channel.reshape(-1) for channel in images.cpu().unbind(-1)]
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
        mean = (counts * levels).sum(1) / counts.sum(1)
        variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1)
        deviation = variance.sqrt().clamp(min=1e-3)  # a constant channel deviates by 0
        return mean.float().to(images.device), deviation.float().to(images.device)

    @cached_property
    def digest(self) -> str:
        """Of the images and labels of all splits, which tells other data under the same name."""
        on_cpu = [
            {split: values.cpu().contiguous().numpy() for split, values in kind.items()}
            for kind in (self.images, self.labels)
        ]
        return digest_of(*on_cpu)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, H, W, C) to float (N, C, H, W), channels last in memory."""
        mean, std = self.mean_std
        return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)

    def batches(self, split: str):
        """The images of a split and their labels in stored order, for evaluation; of several
        processes each has its share."""
        images, labels = share(self.images[split]), share(self.labels[split])
        for x, y in zip(images.split(500), labels.split(500), strict=True):
            yield self.normalise(x), y


def digest_of(images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> str:
    """The SHA-256 of the images and labels of all splits."""
    found = hashlib.sha256()
    for kind in (images, labels):
        for split in sorted(kind):
            found.update(f"{split} {list(kind[split].shape)}".encode())
            found.update(np.ascontiguousarray(kind[split]))
    return found.hexdigest()


def checked(name: str, images, labels) -> tuple[dict, dict]:
    """Images as uint8 and labels as int64, for each split. Raises UserError for what are none."""

    def refuse(what: str, right: str):
        raise UserError(f"the data set {name} has {what}: give {right}")

    images = dict(images) if isinstance(images, dict) else {"train": images}
    labels = dict(labels) if isinstance(labels, dict) else {"train": labels}
    try:
        images = {split: np.asarray(x) for split, x in images.items()}
        labels = {split: np.asarray(y) for split, y in labels.items()}
    except ValueError:  # as of a tuple of splits
        refuse("no arrays", "arrays, or dictionaries of them, by split: train and test")
    if not set(images) <= {"train", "val", "test"}:
        refuse(f"images of {', '.join(images)}", "those of train, val and test")
    if "train" not in images or set(images) != set(labels):
        found = f"images of {', '.join(images)} and labels of {', '.join(labels)}"
        refuse(found, "both of train and, where there are some, of test")
    for split, x in images.items():
        y = labels[split]
        if x.size == 0:
            refuse(f"no {split} images", "some")
        if x.ndim == 2:
            tables = "(N, height, width, channels); exp_mlp_lenet.py knows tables"
            refuse(f"{split} images of shape {x.shape}", tables)
        if x.ndim != 4 or (x.shape[1] in (1, 3) and x.shape[3] not in (1, 3)):
            refuse(f"{split} images of shape {x.shape}", "(N, height, width, channels)")
        if x.dtype != np.uint8 and (x.dtype.kind not in "iub" or x.min() < 0 or x.max() > 255):
            found = f"{split} images of {x.dtype} from {x.min():g} to {x.max():g}"
            refuse(found, "bytes, 0 to 255")
        if y.shape != x.shape[:1]:
            refuse(f"{len(x)} {split} images and labels of shape {y.shape}", "one label an image")
    known = np.unique(labels["train"])
    for split in images:
        y = labels[split]
        if y.dtype.kind not in "iu" or not np.array_equal(known, np.arange(len(known))):
            these = ", ".join(map(str, known[:5]))
            how = "as np.unique(labels, return_inverse=True)[1] makes them"
            refuse(f"labels {these} …", f"0, 1, 2, … without a gap, {how}")
        if not np.isin(y, known).all():  # another split need not have them all
            refuse(f"{split} labels from {y.min()} to {y.max()}", f"0 to {known[-1]}, as in train")
    # as from x[..., ::-1], which PyTorch does not take
    images = {split: np.ascontiguousarray(x, np.uint8) for split, x in images.items()}
    return images, {split: y.astype(np.int64, copy=False) for split, y in labels.items()}


def split_batches(order: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Consecutive batches, the last one smaller. A last batch of one sample for a process, which
    has no variance of its own, joins the one before."""
    batches, least = list(order.split(batch_size)), 2 * processes()
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def on_device(arrays: dict[str, np.ndarray], device) -> dict[str, torch.Tensor]:
    if isinstance(device, str):
        made = "common.grid(args) makes runs' of them, for common.run_grid(runs, run)"
        raise UserError(f"these settings have lists and are of no single run: {made}")
    return {split: torch.from_numpy(array).to(device) for split, array in arrays.items()}


def make_splits(images: dict, labels: dict, args: Settings) -> dict:
    """Makes the subset and the validation split that `args` asks for and, where there is none, a
    test split. Returns the settings of these. Raises UserError where images are not of one size."""
    sizes = {split: "x".join(map(str, x.shape[1:])) for split, x in images.items()}
    for split, size in sizes.items():
        if size != sizes["train"]:
            right = f"give them height, width and channels as train's: {sizes['train']}"
            raise UserError(f"there are {split} images of {size}: {right}")
    n = len(labels["train"])
    if "test" not in labels:
        hold_out(images, labels, n - round(n / 5), "a test split of 20 %", "test")
    if args.subset:
        hold_out(images, labels, args.subset, f"--subset {args.subset}")
    if args.val_fraction:
        if "val" in labels:
            raise UserError("--val-fraction: the data set has a val split: leave the flag out")
        keep = round(len(labels["train"]) * (1 - args.val_fraction))
        what = f"--val-fraction {args.val_fraction:g}"
        hold_out(images, labels, keep, what, "val", args.split_seed)
    return {"subset": args.subset, "val_fraction": args.val_fraction}


def hold_out(images, labels, keep: int, what: str, split: str | None = None, seed: int = 0) -> None:
    """Keeps `keep` training images, the same for every seed and each class in its share. The others
    become `split`, or go."""
    from sklearn.model_selection import train_test_split

    everything = labels["train"]
    n, classes = len(everything), len(np.unique(everything))
    if keep == n and not split:
        return
    try:
        kept, rest = train_test_split(
            np.arange(n), train_size=keep, stratify=everything, random_state=seed
        )
    except ValueError:  # more than there are, or too few to have each class on both sides
        need = f"so that each of the {classes} classes is on both sides"
        need += "" if split else f", or all {n}"
        raise UserError(
            f"{what} leaves {keep} of {n} training images: it must leave from {classes} to "
            f"{n - classes}, {need}"
        ) from None
    for arrays in (images, labels):
        if split:
            arrays[split] = arrays["train"][np.sort(rest)]
        arrays["train"] = arrays["train"][np.sort(kept)]


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 (N, H, W, C) to (N, size, size, C), bilinear with antialiasing."""
    if images.shape[1:3] == (size, size):
        return images
    scaled = []
    for piece in torch.from_numpy(images).split(1000):
        planes = piece.permute(0, 3, 1, 2).float()
        planes = F.interpolate(planes, (size, size), mode="bilinear", antialias=True)
        scaled.append(planes.round().byte().permute(0, 2, 3, 1))
    return torch.cat(scaled).contiguous().numpy()


TABLES = ("breast_cancer", "wine", "csv")  # --dataset of MLPs: inside scikit-learn, or a file
TORCHVISION = {  # --dataset: torchvision's class, and where its files lie below --data
    "mnist": ("MNIST", "MNIST/raw/*-ubyte"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw/*-ubyte"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/ or cifar-10-python.tar.gz"),
    "cifar100": ("CIFAR100", "cifar-100-python/ or cifar-100-python.tar.gz"),
}


UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, AssertionError)


def load_torchvision(dataset: str, root: Path):
    """A data set of torchvision's from `root`, downloaded and verified there if it is not."""
    import torchvision

    name, where = TORCHVISION[dataset]
    source = getattr(torchvision.datasets, name)

    def read(download: bool):
        return {s: source(root, train=s == "train", download=download) for s in ("train", "test")}

    try:
        splits = read(download=False)
    except UNREADABLE as absent_or_damaged:
        first = str(absent_or_damaged)
        is_new, lock = not root.exists(), root / f".{dataset}.lock"
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(lock), redirect_stdout(io.StringIO()):
                splits = read(download=True)
        except UNREADABLE as error:
            with suppress(OSError):
                lock.unlink(missing_ok=True)
            for folder in (root / name / "raw", root / name, *([root] if is_new else [])):
                with suppress(OSError):  # something came in
                    folder.rmdir()
            why = " ".join(str(error).split())[:120]
            if str(error) == first:  # MNIST's files are not verified, nor downloaded over others
                instead = "remove them, and they are downloaded again"
                raise UserError(f"{root / where}: files are damaged ({why}): {instead}") from None
            raise UserError(
                f"{dataset} is not in {root} and could not be downloaded ({why}): put its files at "
                f"{root / where}, or try --dataset digits, which needs none"
            ) from None
    pixels = {split: np.asarray(s.data) for split, s in splits.items()}
    images = {split: x.reshape(*x.shape[:3], -1) for split, x in pixels.items()}
    labels = {split: np.asarray(s.targets) for split, s in splits.items()}
    return images, labels, list(splits["train"].classes)
