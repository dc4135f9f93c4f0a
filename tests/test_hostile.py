"""Files that mean harm or are not what they seem: checkpoints with a payload, names of any kind,
images that are none."""

import os
import re
import struct
import zlib
from pathlib import Path

from tests.helpers import (
    FOLDER,
    SMALL,
    image_folder,
    linux_only,
    one_line,
    run,
    the_checkpoint,
    the_csv,
    unfinished,
)
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness import errors, folders
from harness import files as harness_files
import exp_bn_only
import exp_mlp_lenet
import plots
import predict

pytestmark = linux_only

MADE = {"results", "checkpoints", "tables", "figures"}  # the folders of what a user makes


def top_level() -> set[str]:
    """What lies in the current folder, but for matplotlib's cache."""
    return {path.name for path in Path().iterdir()} - {"cache"}


def prints_no_command(text: str) -> bool:
    """Whether no terminal would take something in `text` for a command."""
    return all(character.isprintable() or character == "\n" for character in text)


# -------------------------------------------------------------------------------------- checkpoints


class Payload:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_checkpoint_with_a_payload_runs_no_code(capsys):
    path = unfinished()
    content = harness_files.read_checkpoint(path)
    previous = path.with_suffix(".previous.pt").read_bytes()
    for harm in (
        {"epoch": Payload()},
        content | {"trained": Payload()},
        content | {"about": content["about"] | {"seed": Payload()}},
    ):
        harness_files.write_checkpoint(path, harm)
        assert predict.main([str(path), "--dataset", "digits"]) == 2
        assert "PyTorch refuses it" in capsys.readouterr().err
        path.with_suffix(".previous.pt").write_bytes(previous)
        assert run("--time-limit", 1e-9) == 0
        assert "PyTorch refuses it" in capsys.readouterr().err
    path.write_bytes(harness_files.MAGIC + b"2\n" + b"\n" + b"cos\nmkdir\n(S'evil'\ntR.")
    assert predict.main([str(path), "--dataset", "digits"]) == 2
    assert not list(Path().rglob("*evil*"))


def test_a_checkpoint_whose_settings_mean_harm_opens_nothing():
    path = unfinished()
    content = harness_files.read_checkpoint(path)
    for experiment in ("../../evil", "bn_only; import evil"):
        about = content["about"] | {"experiment": experiment}
        harmful = {"about": about, "script": f"{experiment}.py"}
        harness_files.write_checkpoint(path, content | harmful)
        assert predict.main([str(path), "--dataset", "digits"]) == 2, experiment
    for changed in (
        {"arch": "--help"},
        {"depth": 99999999999},
        {"train": 7},
        {"seed": -1},
        {"width": "$(touch evil)"},
    ):
        settings = content["settings"] | changed
        harness_files.write_checkpoint(path, content | {"settings": settings})
        assert predict.main([str(path), "--dataset", "digits"]) == 2, changed
    assert not list(Path().rglob("*evil*"))


# -------------------------------------------------------------------------------------------- names

NAMES = [
    "a,b",
    "quo\"te's",
    "\x1b[31mred\x07",
    "line\nbreak\ttab",
    "..",
    "$x^2$ & 100%",
    "|~#{}\\",
    "=1+1",
    "-rf",
    "naïve γ 猫",
    b"\xff\xfe".decode(errors="surrogateescape"),
]


def folder_of_odd_names() -> Path:
    """Images of 8x8 pixels, whose folder, classes and files have names that few would give."""
    draw, root = np.random.default_rng(0), Path("out side", '$\\frac{\n\x1b[2J,|"&%$')
    for split, each in (("train", 4), ("test", 2)):
        for name in NAMES:
            if name == "..":
                continue
            (root / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}\n\x1b;,.png")
    return root


def columns(line: str) -> int:
    """Of a line of a table in Markdown, in which a | that is text stands behind a \\."""
    return len(line.replace("\\|", "").split("|"))


def test_names_of_any_kind_damage_nothing(capsys):
    data = folder_of_odd_names()
    words = ["--dataset", "imagefolder", "--data", str(data)]
    words += "--subset 20 --epochs 1 --batch-size 10".split()
    assert run(*words) == 0
    assert exp_bn_only.main([*SMALL, *words, "--train", "all"]) == 0
    checkpoint = str(next(Path("checkpoints").rglob("*.pt")))
    images = map(str, sorted(data.rglob("*.png"))[:3])
    assert predict.main([checkpoint, *images, "--filters", "filters.png"]) == 0
    assert plots.main([]) == 0
    text = capsys.readouterr().out
    assert prints_no_command(text)
    assert "\\x1b[31mred" in text
    table = pd.read_csv(next(Path("results").rglob("*-bn-*[0-9a-f].csv")))
    assert len(table) == 1
    assert table.dataset[0] == '$\\frac{\\n\\x1b[2J,|"&%$'
    for path in Path("tables").glob("*.md"):
        for block in path.read_text().split("\n\n"):
            if block.startswith("| "):
                assert len(set(map(columns, block.splitlines()))) == 1, path
    assert top_level() == MADE | {"out side", "filters.png"}
    made = [path for folder in MADE for path in Path(folder).rglob("*")]
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in made)


def test_classes_of_a_table_may_have_any_name(capsys):
    names = [name for name in [*NAMES, "/etc/passwd", "../../x"] if not name.startswith("\udcff")]
    numbers = np.arange(10.0 * len(names))
    table = pd.DataFrame({"x": numbers, 'what, "is" it\n?': np.repeat(names, 10)})
    table.to_csv("t,\x07\n.csv", index=False)
    words = ["--dataset", "csv", "--data", "t,\x07\n.csv"]
    recipe = "--hidden 8 --epochs 1 --batch-size 10".split()
    assert exp_mlp_lenet.main([*words, *recipe]) == 0
    assert plots.main([]) == 0
    assert predict.main([str(the_checkpoint()), *words]) == 0
    assert prints_no_command(capsys.readouterr().out)
    assert top_level() <= MADE | {"t,\x07\n.csv"}


def test_a_csv_that_names_a_path_writes_nowhere_else(capsys):
    assert run("--epochs", 1) == 0
    table = pd.read_csv(the_csv())
    table.assign(dataset="../../../evil", run="../../evil").to_csv(the_csv(), index=False)
    assert plots.main([]) == 0
    assert not [path for path in Path("..").rglob("*") if path.name.startswith("evil")]
    assert top_level() == MADE


# ------------------------------------------------------------------------------------------- images


def png_of(width: int, height: int) -> bytes:
    """A black PNG of this size, one bit a pixel; of more than 2^27 pixels one that only claims to
    have them."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(min(1 << 24, height * (1 + (width + 7) // 8))))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


NO_IMAGES = {
    "bomb": png_of(60000, 60000),
    "smaller bomb": png_of(10000, 10000),
    "largest bomb": png_of(2**31 - 1, 2**31 - 1),
    "empty": b"",
    "text": b"no image",
    "PNG's first bytes": b"\x89PNG\r\n\x1a\n",
    "GIF's": b"GIF89a",
    "PPM of terabytes": b"P6 99999999 99999999 255\n",
    "JPEG's": b"\xff\xd8\xff\xe0" + bytes(50),
}


@pytest.mark.parametrize("content", NO_IMAGES.values(), ids=NO_IMAGES)
def test_an_image_file_that_is_none_is_one_line(content, capsys):
    root = image_folder()
    (root / "train/cat/0.png").write_bytes(content)
    assert run(*FOLDER, "--subset", 10, "--epochs", 1) == 2
    assert "pets/train/cat/0.png cannot be read as an image" in one_line(capsys)


def test_an_image_file_that_is_none_is_one_line_where_images_are_streamed(capsys):
    root = image_folder()
    (root / "train/cat/0.png").write_bytes(png_of(10000, 10000))
    streamed = "--dataset imagenet --data pets --image-size 32 --workers 1"
    network = "--arch imagenet_resnet --depth 18 --epochs 1 --quiet"
    assert exp_bn_only.main([*streamed.split(), *network.split()]) == 2
    assert "pets/train/cat/0.png cannot be read as an image" in one_line(capsys)


def test_a_table_for_a_network_of_images_is_one_line(capsys):
    assert run() == 0
    capsys.readouterr()
    for dataset in ("wine", "csv"):
        table = ["--dataset", dataset, "--data", "x.csv"]
        assert predict.main([str(the_checkpoint()), *table]) == 2
        assert "exp_mlp_lenet.py" in one_line(capsys)


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: os.symlink("absent", path)], ids=["pipe", "dangling link"]
)
def test_what_is_no_file_is_one_line(make, capsys):
    root = image_folder()
    make(root / "train/cat/7.png")
    assert run(*FOLDER, "--epochs", 1) == 2
    assert "pets/train/cat/7.png is no file" in one_line(capsys)
    make("photo.png")
    with pytest.raises(errors.UserError, match="no file|No such file"):
        decoded(["photo.png"])


def test_images_of_every_kind_become_rgb():
    gray = np.linspace(0, 1, 64).reshape(8, 8)
    eight = Image.fromarray((gray * 255).round().astype(np.uint8))
    sixteen = Image.fromarray((gray * 65535).round().astype(np.uint16))
    kinds = {
        "16 bits.png": sixteen,
        "gray.png": eight,
        "palette.png": eight.convert("P"),
        "cmyk.jpg": eight.convert("CMYK"),
        "alpha.png": eight.convert("RGBA"),
        "bits.png": eight.convert("1"),
        "gray and alpha.png": eight.convert("LA"),
        "16 bits.tif": sixteen,
    }
    for name, image in kinds.items():
        image.save(name, **{"quality": 100} if name == "cmyk.jpg" else {})
    eight.save("animated.gif", save_all=True, append_images=[eight.rotate(90), eight.rotate(180)])
    names = [*kinds, "animated.gif"]
    for name, image in zip(names, decoded(names), strict=True):
        same = eight.convert("1") if name == "bits.png" else eight
        expected = np.asarray(same.convert("RGB")).astype(int)
        lossy = name.startswith(("cmyk", "animated", "palette"))
        assert image.shape == (8, 8, 3), name
        assert np.abs(image - expected).max() <= (8 if lossy else 1), name
    Image.fromarray(gray.astype(np.float32)).save("float.tif")
    with pytest.raises(errors.UserError, match="floating-point"):
        decoded(["float.tif"])


def decoded(names: list[str]) -> np.ndarray:
    return folders.decode(list(map(Path, names)), None, 2, quiet=True).astype(int)
