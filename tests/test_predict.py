"""predict.py."""

from pathlib import Path

from tests.helpers import HERE, arguments, forked, one_line, rows, run, the_checkpoint
from tests.test_copies import script
import numpy as np
import pytest
import torch
from PIL import Image

import common
from harness import checkpoints, speed
from harness import files as harness_files
import exp_bn_init
import exp_mlp_lenet
import exp_norms
import predict


@pytest.mark.parametrize(
    "experiment, dataset, words",
    [
        (exp_bn_init, "digits", "davis_frank --network cifar_resnet14 --input-norm bn --seeds 1"),
        (exp_mlp_lenet, "wine", "--hidden 32"),
        (exp_mlp_lenet, "digits", "--arch lenet5 --image-size 12"),
    ],
)
def test_predict_knows_the_networks_of_every_experiment(experiment, dataset, words, capsys):
    recipe = "--epochs 2 --batch-size 50 --precision fp32 --quiet"
    assert experiment.main([*words.split(), "--dataset", dataset, *recipe.split()]) == 0
    checkpoints = [str(path) for path in Path("checkpoints").rglob("*.pt")]
    assert predict.main([*checkpoints, "--dataset", dataset]) == 0
    out = capsys.readouterr().out
    for path in Path("results").rglob("*[0-9a-f].csv"):
        assert f"{path.stem}: {float(rows(path)[-1]['test_acc']):.2f} %" in out


OWN_DATA = """
@dataclass
class Settings(common.Settings):
    dataset: str = "mine"

def load_data(args):
    pixels = torch.randint(256, (60, 8, 8, 1), generator=torch.Generator().manual_seed(0))
    return common.make_data(args, "mine", pixels.byte().numpy(), list(range(3)) * 20)

def run(args):
    data = load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    return common.fit(model, data, args)
"""


def test_a_data_set_of_a_scripts_own_is_found_by_its_load_data(capsys):
    script("mine", OWN_DATA)
    forked("exp_mine.py", "--epochs", 1, "--depth", 8, "--device", "cpu", "--quiet")
    (path,) = Path("checkpoints/mine").glob("*.pt")
    (csv,) = Path("results/mine").glob("*[0-9a-f].csv")
    assert predict.main([str(path), "--dataset", "mine", "--device", "cpu"]) == 0
    assert f"{float(rows(csv)[-1]['test_acc']):.2f} % of 12 test images" in capsys.readouterr().out
    assert run("--epochs", 1) == 0
    (other,) = Path("checkpoints/bn_only").glob("*.pt")
    capsys.readouterr()
    assert predict.main([str(other), "--dataset", "mine"]) == 2
    assert "load_data(args) in its script" in capsys.readouterr().err


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
    words = "0.png --filters filters.png 2.png --feature-maps maps.pdf 1.png"
    assert predict.main([*paths, *words.split()]) == 0
    out = capsys.readouterr().out
    drawn = np.asarray(Image.open("filters.png").convert("L"))
    assert (drawn < 100).mean() > 0.05
    assert Path("maps.pdf").stat().st_size > 2000
    args = arguments()
    model = common.build_model(args, digits)
    common.freeze(model, "bn")
    (of_bn,) = (path for path in paths if "-bn-" in path)
    checkpoints.restore(model, harness_files.read_checkpoint(Path(of_bn)))
    with torch.inference_mode():
        p = common.forward(model.eval(), next(digits.batches("test"))[0][:1], args).softmax(1)[0]
    assert f"0.png: {p.argmax()} {100 * p.max():.1f} %" in out.partition("-bn-")[2]
    assert out.count("2.png: ") == 2


def test_feature_maps_are_those_behind_a_convolutions_own_normalisation():
    """And not behind the input's, which Davis and Frank's networks begin with."""
    words = "davis_frank --network cifar_resnet14 --input-norm bn --bn-weight 1 --c 1 --seeds 1"
    recipe = "--dataset digits --epochs 1 --precision fp32 --quiet"
    assert exp_bn_init.main([*words.split(), *recipe.split()]) == 0
    words = "--depth 14 --norm none --subset 150"
    assert exp_norms.main([*words.split(), *recipe.split()]) == 0
    Image.new("L", (8, 8)).save("image.png")
    for path in Path("checkpoints").rglob("*.pt"):
        trained = predict.load(path, "cpu")
        found = predict.convolutions(trained)
        assert len(found) == 13
        norms = common.norms(trained.model).values()
        for convolution, norm in found.items():
            assert any(norm is each for each in norms)
            assert len(norm.weight) == convolution.out_channels
        predict.draw_feature_maps([trained], Path("maps.png"), Path("image.png"))
        assert Path("maps.png").stat().st_size > 2000


def test_predict_refuses_what_it_cannot_use(capsys):
    assert run() == 0
    checkpoint = the_checkpoint()
    content = harness_files.read_checkpoint(checkpoint)
    about = content["about"] | {"experiment": "../other"}
    settings = content["settings"] | {"depth": 15}
    harness_files.write_checkpoint(
        Path("other.pt"), content | {"about": about, "script": "other.py"}
    )
    harness_files.write_checkpoint(Path("deep.pt"), content | {"settings": settings})
    harness_files.write_checkpoint(Path("empty.pt"), {})
    Path("short.pt").write_bytes(checkpoint.read_bytes()[:-100])
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
        said = one_line(capsys)
        assert said.startswith("error: ")
        assert expected in said
