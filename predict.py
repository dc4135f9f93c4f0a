"""Looks at trained networks: the classes of an image, the accuracy on a data set, filters and
feature maps.

    python predict.py evidence/checkpoints/bn_only/resnet56-*.pt --dataset digits
    python predict.py CHECKPOINT photo.jpg other.png                    # the five likeliest classes
    python predict.py WHOLE.pt BN_ONLY.pt --filters filters.png         # side by side
    python predict.py WHOLE.pt BN_ONLY.pt --feature-maps maps.png photo.jpg

A checkpoint names the tensors that it holds. The network is built as its script does (its `build`),
at the random start of the run's seed; the tensors are put in, and the rest is compared by its
fingerprint.
"""

import dataclasses
import importlib.util
import itertools
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import common  # before torch, which reads what it sets

import numpy as np
import torch
from torch import nn

from harness import checkpoints, folders
from harness.config import Process, Settings, flags
from harness.dataset import TABLES
from harness.errors import Damaged, Parser, UserError, damaged_if_malformed, guarded, printable
from harness.errors import warn
from harness.files import read_checkpoint
from harness.parts import is_shortcut
from harness.runs import COLUMNS, file_name
from harness.speed import has_bf16
from harness.starting import find_device
from harness.zoo import DEPTHS

GRAY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow has it
HERE = Path(__file__).parent
DATASETS = flags(Settings)["dataset"].choices


@dataclass
class Trained:
    """A network as its run left it; `data` knows the run's classes, image size, mean and deviation,
    and has none of its images, but a black one for their size."""

    path: Path
    name: str  # the run's, whatever the file is called
    args: Settings
    model: nn.Module
    data: common.Data
    script: object
    precision: str  # of the run; the network opens in fp32 where the device has no bf16


# ------------------------------------------------------------------------------------ a checkpoint


def load(path: Path, device: str) -> Trained:
    """Rebuilds the network of a checkpoint. Raises UserError for a file that is none, is damaged,
    or of a network that its script does not build."""
    try:
        with damaged_if_malformed():
            content = read_checkpoint(path)
            about = content["about"]
        script = script_named(about["experiment"], content.get("script", ""))
        with damaged_if_malformed():
            args = settings_of(content, device, getattr(script, "Settings", Settings))
            image = torch.zeros(1, *content["size"], dtype=torch.uint8)
            data = common.Images(about["dataset"], content["classes"], {"train": image}, {})
        own = Process(Path(script.__file__)).source  # a mistake in it shows as it is
        if own != about.get("script", "") and content["version"] > 1:
            changed = f"{Path(script.__file__).name}, or what it imports, has changed since"
            warn(f"{changed}: what it builds now need not be the network of {path}")
        with nullcontext() if own else damaged_if_malformed():
            model = build(script, args, data)
        with damaged_if_malformed():
            put_in(model, content, args.train)
            scale = [torch.tensor(content[key], device=args.device) for key in ("mean", "std")]
            data.mean_std = tuple(scale)
            name = file_name(about["run"], also="+")
            return Trained(path, name, args, model.eval(), data, script, about["precision"])
    except OSError as error:
        example = "such as evidence/checkpoints/bn_only/*.pt"
        raise UserError(
            f"{path} cannot be read ({error.strerror}): name a checkpoint, {example}"
        ) from None
    except Damaged as error:
        instead = "make its run again, or name another"
        raise UserError(f"{path} is no checkpoint that can be used: {error}; {instead}") from None


def script_named(experiment: str, file: str):
    """The script that made a run, for the networks and data sets that it alone has: in the current
    folder, or beside this file.

    file: its name, where the checkpoint says it; an experiment may be called otherwise."""
    names = [file] if file else [f"exp_{experiment}.py", f"{experiment}.py"]
    for folder, name in itertools.product((Path(), HERE), names):
        if name in {path.name for path in folder.glob("*.py")}:
            spec = importlib.util.spec_from_file_location(Path(name).stem, folder / name)
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            return module
    raise UserError(f"{names[0]}, which made the checkpoint, is not here: put it beside predict.py")


def build(script, args: Settings, data: common.Data) -> nn.Module:
    """The network as the script builds it, by its function `build(args, data)` if it has one.
    Raises Damaged where it has none, and a network of its own."""
    common.seed_everything(args.seed)  # as in a run
    if hasattr(script, "build"):
        return script.build(args, data)
    if args.arch not in DEPTHS:
        raise Damaged(f"it holds {args.arch}, and its script has no build(args, data) to make it")
    return common.build_model(args, data)


def put_in(model: nn.Module, content: dict, train: str) -> None:
    """Puts a checkpoint's tensors into a network at its random start. Raises Damaged where they do
    not fit."""
    if content["version"] == 1:  # which named nothing, and knew the words of --train alone
        if train != "all":
            common.freeze(model, train)
    else:
        held = set(content["trained"]["shapes"])
        words = [word for word in train.split("+") if word.startswith("random:")]
        entries = content.get("entries", "+".join(words))  # which older ones do not say
        if entries:
            common.freeze(model, entries)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in held)
    try:
        checkpoints.restore(model, content)
    except Damaged as error:
        hint = (
            "the script has changed since, has trained them in an earlier fit, or lacks a function "
        )
        hint += "build(args, data) for its network"
        raise Damaged(f"{error} ({hint})") from None


def settings_of(content: dict, device: str, known: type[Settings]) -> Settings:
    """The run's settings, those of its experiment alone included; what the script has learned to
    be asked since is at its default."""
    found = content["settings"] if content["version"] > 1 else settings_of_version_1(content)
    names = {field.name for field in dataclasses.fields(known)}
    own = [(name, type(value), None) for name, value in found.items() if name not in names]
    kind = dataclasses.make_dataclass("Settings", own, bases=(known,))
    mine = {"quiet": True, "data": ".", "device": device}
    mine |= dict.fromkeys(("compile", "graph", "sync_bn", "tensorboard"), False)
    if not has_bf16(find_device(device)):
        mine["precision"] = "fp32"
    return common.resolved(kind(**found | mine))


def settings_of_version_1(content: dict) -> dict:
    """From the columns of the records, which are text."""
    about = content["about"]
    kinds = {field.name: field.type for field in dataclasses.fields(Settings)}
    names = "arch depth width train gamma_init beta_init weight_init seed precision".split()
    found = {name: int(about[name]) if "int" in kinds[name] else about[name] for name in names}
    own = {key: value for key, value in about.items() if key not in COLUMNS}
    if "hidden" in own:
        own["hidden"] = [int(width) for width in own["hidden"].split("-") if width]
    for flag in ("compile", "processes", "sync_bn"):
        own.pop(flag, None)
    return found | own


# --------------------------------------------------------------------------------------- questions


def print_accuracy(trained: Trained, dataset: str, folder: str | None, target: str | None) -> None:
    """The test accuracy, calculated as at the end of the run's epochs."""
    data = read_data(trained, dataset, folder, target)
    if data.classes != trained.data.classes or data.size != trained.data.size:
        known = f"{len(trained.data.classes)} classes ({', '.join(trained.data.classes[:3])}, …)"
        instead = f"{data.name} has others: name the data set it was trained on"
        raise UserError(f"{trained.path} knows {known}, and {instead}")
    data.mean_std = trained.data.mean_std
    with common.arithmetic(trained.model, trained.args, data.size):
        result = common.evaluate(trained.model, data, "test", trained.args)
    count = f"{len(data.labels['test']):,} test images of {data.name}"
    others = f"{result['top5']:.2f} % among the five likeliest; loss {result['loss']:.4f}"
    right = float(f"{result['acc']:.6g}")  # as the records have it
    print(f"{trained.name}: {right:.2f} % of {count} right, {others}")
    if trained.precision != trained.args.precision:
        print(f"  in {trained.args.precision}: its run was in {trained.precision}")


def read_data(
    trained: Trained, dataset: str, folder: str | None, target: str | None
) -> common.Data:
    """A data set as the run had it: its images scaled where they have another size."""
    args = trained.args.but(dataset=dataset, data=folder, subset=None, val_fraction=0.0)
    if hasattr(args, "target"):
        args = args.but(target=target or "")
    if dataset == "imagefolder" and not folder:
        need = "with images in FOLDER/test/CLASS/"
        raise UserError(f"--dataset imagefolder needs --data FOLDER, {need}")
    load_data = getattr(trained.script, "load_data", common.load_data)
    if dataset not in DATASETS and load_data is common.load_data:
        why = "was trained on images; a table is for networks of exp_mlp_lenet.py"
        if dataset not in TABLES:
            known = ", ".join(DATASETS)
            why = f"asks for one of {known}, for an image, or for load_data(args) in its script"
        raise UserError(f"--dataset {dataset}: {trained.path} {why}")

    def loaded(**settings):
        common.seed_everything(args.seed)  # as in a run, for what a script draws
        return load_data(args.but(**settings))

    size = trained.data.size
    if len(size) < 3:
        return loaded()
    if dataset == "imagenet":
        return loaded(image_size=size[0])
    try:
        data = loaded(image_size=None)
        if data.size[:2] == size[:2]:
            return data
    except UserError:  # images of many sizes, or too small ones
        pass
    return loaded(image_size=size[0])


def print_classes(trained: Trained, paths: list[Path]) -> None:
    """The five likeliest classes of each image, with their probabilities."""
    logits = [common.forward(trained.model, x, trained.args) for x in batches(trained, paths)]
    for path, probabilities in zip(paths, torch.cat(logits).softmax(1), strict=True):
        best = probabilities.topk(min(5, len(probabilities)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        likeliest = [f"{trained.data.classes[i]} {100 * p:.1f} %" for p, i in pairs]
        print(printable(f"{path}: {', '.join(likeliest)}"))


def batches(trained: Trained, paths: list[Path]):
    """Images from files, scaled and normalised as those the network was tested on."""
    height, width, channels = image_size(trained)
    labels = {"test": torch.zeros(len(paths), dtype=torch.long, device=trained.args.device)}
    if trained.data.name == "imagenet":
        files = {"test": np.array(list(map(str, paths)))}
        data = folders.Streamed("", trained.data.classes, files, labels)
        data.pixels = height
    else:
        pixels = folders.decode(paths, (width, height), 1, quiet=True)
        if channels == 1:
            pixels = np.rint(pixels @ GRAY).astype(np.uint8)[..., None]
        elif channels != 3:
            instead = "ask for its accuracy with --dataset"
            raise UserError(f"{trained.path} knows images of {channels} channels: {instead}")
        images = {"test": torch.from_numpy(pixels).to(trained.args.device)}
        data = common.Images("", [], images, labels)
    data.mean_std = trained.data.mean_std
    return (x for x, _ in data.batches("test"))


def image_size(trained: Trained) -> tuple[int, int, int]:
    if len(trained.data.size) < 3:
        instead = "ask for its accuracy with --dataset"
        raise UserError(f"{trained.path} was trained on a table, not on images: {instead}")
    return trained.data.size


# ---------------------------------------------------------------------------------------- pictures


def convolutions(trained: Trained) -> dict[nn.Conv2d, nn.Module]:
    """The convolutions that are not shortcuts, from the input on, each with the normalisation that
    follows it, or itself where none does, or one over another layer's output."""
    found, last, norms = {}, None, common.norms(trained.model)
    for name, layer in trained.model.named_modules():
        if is_shortcut(name):
            continue
        if isinstance(layer, nn.Conv2d):
            last = layer
            found[last] = last
        elif name in norms and last:
            found[last], last = layer, None
        elif getattr(layer, "weight", None) is not None or isinstance(layer, nn.LayerNorm):
            last = None
    if not found:
        without = "it has no filters and no feature maps"
        raise UserError(f"{trained.path} is of a network without convolutions: {without}")
    return found


def draw_filters(networks: list[Trained], out: Path) -> None:
    """The filters of the first convolution, in colour where images are, each network's on a scale
    of its own."""
    grids = []
    for trained in networks:
        layer, *_ = convolutions(trained)
        weight = layer.weight.detach().float().cpu()
        weight = (weight - weight.min()) / (weight.max() - weight.min())
        grids.append((label(trained), [[picture(filters) for filters in weight]]))
    draw(grids, ["first convolution"], out)


def picture(filters: torch.Tensor) -> torch.Tensor:
    """A filter over three channels in colour, over others their mean."""
    return filters.permute(1, 2, 0) if len(filters) == 3 else filters.mean(0)


@torch.inference_mode()
def draw_feature_maps(networks: list[Trained], out: Path, image: Path) -> None:
    """What one image makes of the first channels of an early and a middle layer: the second and the
    middle convolution, with the normalisation and ReLU after them."""
    grids, maps = [], {}

    def keep(layer, inputs, output):
        maps[layer] = output.float().relu()

    for trained in networks:
        layers = list(convolutions(trained).values())
        chosen = [layers[min(1, len(layers) - 1)], layers[len(layers) // 2]]
        hooks = [layer.register_forward_hook(keep) for layer in chosen]
        for x in batches(trained, [image]):
            common.forward(trained.model, x, trained.args)
        for hook in hooks:
            hook.remove()
        grids.append((label(trained), [list(maps[layer][0, :16].cpu()) for layer in chosen]))
    draw(grids, ["after the second convolution", "after the middle convolution"], out)


def label(trained: Trained) -> str:
    return f"{trained.args.train} trained\n{trained.name}"


def draw(grids: list[tuple[str, list]], titles: list[str], out: Path) -> None:
    """A column for each network, a row for each title, and in each cell its pictures as a square.

    grids: for each network its label, and for each title the pictures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = 3.4 * len(grids), 0.5 + 3.2 * len(titles)
    figure = plt.figure(figsize=size, layout="constrained")
    cells = figure.subfigures(len(titles), len(grids), squeeze=False)
    for column, (name, rows) in enumerate(grids):
        for row, pictures in enumerate(rows):
            above = f"{name}\n" if row == 0 else ""
            cells[row, column].suptitle(above + titles[row], fontsize=7)
            side = int(np.ceil(np.sqrt(len(pictures))))
            axes = cells[row, column].subplots(side, side, squeeze=False).ravel()
            for axis in axes:
                axis.set_axis_off()
            for axis, one in zip(axes, pictures):  # noqa: B905, a square may have room left
                axis.imshow(one.numpy(), cmap="gray")
    try:
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        instead = "name a file that ends in .png or .pdf, in a folder that is there"
        raise UserError(f"{out} cannot be written ({error}): {instead}") from None
    plt.close(figure)
    print(f"drew {out}")


# ------------------------------------------------------------------------------------ command line


def look(args) -> int:
    paths = list(map(Path, args.files))
    found = [path for path in paths if path.suffix == ".pt"]
    images = [path for path in paths if path.suffix != ".pt"]
    if not found:
        example = "such as evidence/checkpoints/bn_only/*.pt"
        raise UserError(f"name a checkpoint, a file that ends in .pt, {example}")
    if not (images or args.dataset or args.filters or args.feature_maps):
        asks = "ask with --dataset, --filters or --feature-maps"
        raise UserError(f"name an image beside the checkpoint, or {asks}")
    if (args.data or args.target) and not args.dataset:
        raise UserError("--data and --target are for --dataset: name the data set, too")
    networks = [load(path, args.device) for path in found]
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
    parser = Parser(__doc__)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="checkpoints (.pt), and images")
    known = ", ".join((*DATASETS, *TABLES))
    of_scripts = "or what load_data(args) in the network's script takes"
    add("--dataset", help=f"print the accuracy on its test images: {known}, {of_scripts}")
    add("--data", metavar="FOLDER", help="where it is (default data)")
    add(
        "--target",
        metavar="COLUMN",
        help="of a CSV file, the column of the classes (default the last)",
    )
    add("--filters", type=Path, metavar="OUT.png", help="draw the filters of the first convolution")
    pictures = ("OUT.png", "IMAGE")
    add("--feature-maps", nargs=2, metavar=pictures, help="draw what an image makes of two layers")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps, … (default auto)")

    def work() -> int:
        args = parser.parse_intermixed_args(argv)  # files may stand before and after flags
        find_device(args.device)
        return look(args)

    return guarded(work, "the same command begins again")


if __name__ == "__main__":
    sys.exit(main())
