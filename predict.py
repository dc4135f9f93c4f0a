"""Looks at trained networks: the classes of an image, the accuracy on a data set, filters and feature maps.

    python predict.py checkpoints/bn_only/resnet56-w1-digits-bn-s0-481e6d.pt --dataset digits           # the test accuracy, that of the CSV
    python predict.py CHECKPOINT photo.jpg other.png                                                    # the five likeliest classes of each
    python predict.py TRAINED_WHOLE.pt TRAINED_BN_ONLY.pt --filters filters.png                         # side by side
    python predict.py TRAINED_WHOLE.pt TRAINED_BN_ONLY.pt --feature-maps maps.png photo.jpg

A checkpoint holds what was trained; the rest of the network is drawn again from the run's seed, and its fingerprint compared.
"""
import argparse
import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import common  # before torch, which reads what it sets

import numpy as np
import torch
from torch import nn

from data import DATASETS, Data, Streamed, decode
from models import is_shortcut, network
from records import COLUMNS, Damaged, UserError, printable, read_checkpoint, taken_apart

GRAY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow has it


@dataclass
class Trained:
    """A network as its run left it; `data` knows the run's classes, image size, mean and deviation, and has no images."""
    path: Path
    name: str  # the run's, whatever the file is called
    args: argparse.Namespace
    model: nn.Module
    data: Data
    script: object


# ---------------------------------------------------------------------------------------------------------- a checkpoint

def load(path: Path, device: str) -> Trained:
    """Rebuilds the network of a checkpoint. Raises UserError for a file that is none, or is damaged."""
    try:
        with taken_apart():
            content = read_checkpoint(path)
            about = content["about"]
            name = re.sub(r"[^\w.+-]", "_", about["run"])
            script = experiment(about["experiment"])
            args = arguments(about, script, device)
            data = Data(about["dataset"], content["classes"], {"train": torch.zeros(1, *content["size"], dtype=torch.uint8)}, {})
            if "bn_weight" in args.own:
                model = script.build_davis_frank(args, data)
            else:
                model = common.build_model(args, data)
                common.freeze(model, args.train)
            common.restore(model, content)
            data.mean_std = tuple(torch.tensor(content[key], device=args.device) for key in ("mean", "std"))
            return Trained(path, name, args, model.eval(), data, script)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a checkpoint, such as checkpoints/bn_only/*.pt") from None
    except Damaged as error:
        raise UserError(f"{path} is no checkpoint that can be used: {error}; make its run again, or name another") from None


def experiment(name: str):
    """The script that made a run, for the networks and data sets that it alone has."""
    if f"exp_{name}.py" not in {path.name for path in Path(__file__).parent.glob("exp_*.py")}:
        raise UserError(f"exp_{name}.py, which made the checkpoint, is not here: put it beside predict.py")
    return importlib.import_module(f"exp_{name}")


def arguments(about: dict[str, str], script, device: str) -> argparse.Namespace:
    """The run's arguments from the settings in its checkpoint, through the command line's own checks."""
    parser = common.parser("", archs=(about["arch"],), build=getattr(script, "network", network))
    words = [f"--{key.replace('_', '-')}={about[key]}" for key in ("arch", "depth", "width", "train", "gamma_init", "beta_init", "weight_init", "seed")]
    args = parser.parse_args([*words, f"--device={device}", "--quiet"])
    args.own = {key: value for key, value in about.items() if key not in (*COLUMNS, "experiment", "run")}
    common.resolve(args)
    if about["precision"] == "fp32" or not common.has_bf16(args.device):
        args.precision = "fp32"
    return args


# ------------------------------------------------------------------------------------------------------------- questions

def print_accuracy(trained: Trained, dataset: str, folder: str | None, target: str | None) -> None:
    """The test accuracy, calculated as at the end of the run's epochs."""
    args, data = trained.args, read_data(trained, dataset, folder, target)
    if data.classes != trained.data.classes or data.size != trained.data.size:
        raise UserError(f"{trained.path} knows {len(trained.data.classes)} classes ({', '.join(trained.data.classes[:3])}, …), and {data.name} has others: name the data set it was trained on")
    data.mean_std = trained.data.mean_std
    result = common.evaluate(trained.model, data, "test", args)
    print(f"{trained.name}: {result['acc']:.2f} % of {len(data.labels['test']):,} test images of {data.name} right, {result['top5']:.2f} % among the five likeliest; loss {result['loss']:.4f}")


def read_data(trained: Trained, dataset: str, folder: str | None, target: str | None) -> Data:
    """A data set as the run had it: its images scaled where they have another size."""
    args = trained.args
    args.dataset, args.data, args.target = dataset, folder, target
    if dataset == "imagefolder" and not folder:
        raise UserError("--dataset imagefolder needs --data FOLDER, with images in FOLDER/test/CLASS/")
    load_data = getattr(trained.script, "load_data", common.load_data)
    if dataset not in DATASETS and load_data is common.load_data:
        raise UserError(f"--dataset {dataset}: {trained.path} was trained on images; a table is for networks of exp_mlp_lenet.py")
    size = trained.data.size
    if dataset == "imagenet":
        args.image_size = size[0]
    if len(size) < 3 or dataset == "imagenet":
        return load_data(args)
    try:
        data = load_data(args)
    except UserError:  # images of many sizes, or too small ones
        data = None
    if data is None or data.size[:2] != size[:2]:
        args.image_size = size[0]
        data = load_data(args)
    return data


def print_classes(trained: Trained, paths: list[Path]) -> None:
    """The five likeliest classes of each image, with their probabilities."""
    for path, logits in zip(paths, torch.cat([common.forward(trained.model, x, trained.args) for x in batches(trained, paths)])):
        best = logits.softmax(0).topk(min(5, len(logits)))
        print(printable(f"{path}: " + ", ".join(f"{trained.data.classes[i]} {100 * p:.1f} %" for p, i in zip(best.values.tolist(), best.indices.tolist()))))


def batches(trained: Trained, paths: list[Path]):
    """Images from files, scaled and normalised as those the network was tested on."""
    height, _, channels = image_size(trained)
    if trained.data.name == "imagenet":
        data = Streamed("", trained.data.classes, {"test": np.array(list(map(str, paths)))}, {"test": torch.zeros(len(paths), dtype=torch.long)}, height, 1, trained.args.device)
    else:
        pixels = decode(paths, height, 1, quiet=True)
        if channels == 1:
            pixels = np.rint(pixels @ GRAY).astype(np.uint8)[..., None]
        data = Data("", [], {"test": torch.from_numpy(pixels).to(trained.args.device)}, {"test": torch.zeros(len(paths), dtype=torch.long)})
    data.mean_std = trained.data.mean_std
    return (x for x, _ in data.batches("test"))


def image_size(trained: Trained) -> tuple[int, int, int]:
    if len(trained.data.size) < 3:
        raise UserError(f"{trained.path} was trained on a table, not on images: ask for its accuracy with --dataset")
    return trained.data.size


# -------------------------------------------------------------------------------------------------------------- pictures

def convolutions(trained: Trained) -> list[str]:
    """The names of the convolutions that are not shortcuts, from the input on."""
    names = [name for name, layer in trained.model.named_modules() if isinstance(layer, nn.Conv2d) and not is_shortcut(name)]
    if not names:
        raise UserError(f"{trained.path} is of a network without convolutions: it has no filters and no feature maps")
    return names


def draw_filters(networks: list[Trained], out: Path) -> None:
    """The filters of the first convolution, in colour where images are, each network's on a scale of its own."""
    grids = {}
    for trained in networks:
        weight = trained.model.get_submodule(convolutions(trained)[0]).weight.detach().float().cpu()
        weight = (weight - weight.min()) / (weight.max() - weight.min())
        grids[label(trained)] = [[filters.permute(1, 2, 0) if len(filters) == 3 else filters.mean(0) for filters in weight]]
    draw(grids, ["first convolution"], out)


@torch.inference_mode()
def draw_feature_maps(networks: list[Trained], out: Path, image: Path) -> None:
    """What one image makes of the first channels of an early and a middle layer: the second and the middle convolution, with the BatchNorm and ReLU after them."""
    grids, titles = {}, []
    for trained in networks:
        names, maps = convolutions(trained), {}
        chosen = [names[min(1, len(names) - 1)], names[len(names) // 2]]
        normalisers = {name: layer for name, layer in trained.model.named_modules() if isinstance(layer, nn.BatchNorm2d) and not is_shortcut(name)}
        followers = [list(normalisers.values())[names.index(name)] if len(normalisers) >= len(names) else trained.model.get_submodule(name) for name in chosen]
        hooks = [layer.register_forward_hook(lambda module, inputs, output, name=name: maps.update({name: output.float().relu()})) for name, layer in zip(chosen, followers)]
        for x in batches(trained, [image]):
            common.forward(trained.model, x, trained.args)
        for hook in hooks:
            hook.remove()
        grids[label(trained)] = [list(maps[name][0, :16].cpu()) for name in chosen]
        titles = chosen
    draw(grids, [f"after {name}" for name in titles], out)


def label(trained: Trained) -> str:
    return f"{trained.args.train} trained\n{trained.name}"


def draw(grids: dict[str, list[list[torch.Tensor]]], titles: list[str], out: Path) -> None:
    """A column for each network, a row for each title, and in each cell its pictures as a square."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure = plt.figure(figsize=(3.4 * len(grids), 0.5 + 3.2 * len(titles)), layout="constrained")
    cells = figure.subfigures(len(titles), len(grids), squeeze=False)
    for column, (name, rows) in enumerate(grids.items()):
        for row, pictures in enumerate(rows):
            side = int(np.ceil(np.sqrt(len(pictures))))
            cells[row, column].suptitle((f"{name}\n" if row == 0 else "") + titles[row], fontsize=7)
            for axis, picture in zip(cells[row, column].subplots(side, side, squeeze=False).flat, [*pictures, *[None] * (side * side - len(pictures))]):
                axis.set_axis_off()
                if picture is not None:
                    axis.imshow(picture.numpy(), cmap="gray")
    try:
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"{out} cannot be written ({error}): name a file that ends in .png or .pdf, in a folder that is there") from None
    plt.close(figure)
    print(f"drew {out}")


# ---------------------------------------------------------------------------------------------------------- command line

def run(args) -> int:
    paths = list(map(Path, args.files))
    checkpoints, images = [p for p in paths if p.suffix == ".pt"], [p for p in paths if p.suffix != ".pt"]
    if not checkpoints:
        raise UserError("name a checkpoint, a file that ends in .pt, such as checkpoints/bn_only/*.pt")
    if not (images or args.dataset or args.filters or args.feature_maps):
        raise UserError("name an image beside the checkpoint, or ask with --dataset, --filters or --feature-maps")
    networks = [load(path, args.device) for path in checkpoints]
    for trained in networks:
        if args.dataset:
            print_accuracy(trained, args.dataset, args.data, args.target)
        if images:
            print(trained.name)
            with torch.inference_mode():
                print_classes(trained, images)
    if args.filters:
        draw_filters(networks, args.filters)
    if args.feature_maps:
        draw_feature_maps(networks, *map(Path, args.feature_maps))
    return 0


def main(argv=None) -> int:
    parser = common.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.lists = True  # nothing here for `main` to resolve
    parser.parse_args = parser.parse_intermixed_args  # files may stand before and after flags
    parser.add_argument("files", nargs="+", metavar="FILE", help="checkpoints (.pt), and images")
    parser.add_argument("--dataset", choices=[*DATASETS, "breast_cancer", "wine", "csv"], help="print the accuracy on its test images")
    parser.add_argument("--data", metavar="FOLDER", help="where it is (default data)")
    parser.add_argument("--target", metavar="COLUMN", help="of a CSV file, the column of the classes (default the last)")
    parser.add_argument("--filters", type=Path, metavar="OUT.png", help="draw the filters of the first convolution")
    parser.add_argument("--feature-maps", nargs=2, metavar=("OUT.png", "IMAGE"), help="draw what an image makes of an early and a middle layer")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, … (default: cuda where there is one, else cpu)")
    parser.go_on = "the same command begins again"
    return common.main(run, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
