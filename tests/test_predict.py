"""predict.py."""

from pathlib import Path

from tests.helpers import HERE, run, rows, arguments
import numpy as np
import pytest
import torch
from PIL import Image

import common
from harness import checkpoints, speed
from harness import files as harness_files
import exp_bn_init
import exp_mlp_lenet
import predict


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


def test_a_network_of_bf16_opens_where_there_is_none(monkeypatch, capsys):
    for module in (predict, speed):
        monkeypatch.setattr(module, "has_bf16", lambda device: False)
    (path,) = HERE.glob("evidence/checkpoints/bn_only/resnet56-w1-digits-bn-s0-*.pt")
    assert predict.main([str(path), "--dataset", "digits", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    right = float(out.split(": ")[1].split(" %")[0])
    assert abs(right - 95.54) < 1
    assert "in fp32: its run was in bf16" in out


def test_predict_names_classes_and_draws(capsys):
    digits = common.load_data(arguments())
    for i, image in enumerate(digits.images["test"][:3]):
        Image.fromarray(image.numpy()[..., 0]).save(f"{i}.png")
    assert run() == 0
    assert run("--train", "all") == 0
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
    drawn = np.asarray(Image.open("filters.png").convert("L"))
    assert (drawn < 100).mean() > 0.05
    assert Path("maps.pdf").stat().st_size > 2000
    args = arguments()
    model = common.build_model(args, digits)
    common.freeze(model, "bn")
    checkpoints.restore(
        model, harness_files.read_checkpoint(Path(next(c for c in paths if "-bn-" in c)))
    )
    with torch.inference_mode():
        p = common.forward(model.eval(), next(digits.batches("test"))[0][:1], args).softmax(1)[0]
    assert f"0.png: {p.argmax()} {100 * p.max():.1f} %" in out.partition("-bn-")[2]
    assert out.count("2.png: ") == 2


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
