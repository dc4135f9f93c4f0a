"""What needs a GPU: that nothing depends on the device but rounding, and that the fast forms of a
step, a CUDA graph and compiled blocks, make the steps that the plain form makes. Skipped elsewhere;
`pytest tests/test_cuda.py -n 0` on a machine with CUDA."""

from pathlib import Path

from tests.helpers import SMALL, rows
import pytest
import torch

import common
import exp_bn_only
import exp_norms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")

ON_GPU = [word for word in SMALL if word not in ("--device", "cpu")] + ["--device", "cuda"]


def made(name: str, *words, script=exp_bn_only) -> list[dict]:
    """The rows of a run on the GPU."""
    places = ["--results", name, "--checkpoints", name]
    assert script.main([*ON_GPU, "--quiet", *map(str, words), *places]) == 0
    (path,) = Path(name).rglob("*[0-9a-f].csv")
    return rows(path)


def losses(table: list[dict]) -> list[float]:
    return [float(row["train_loss"]) for row in table]


def test_the_same_command_twice_gives_the_same_digits():
    assert made("one", "--epochs", 3) == made("two", "--epochs", 3)


def test_a_gpu_calculates_what_the_cpu_does():
    gpu = made("gpu", "--epochs", 2)
    assert exp_bn_only.main([*SMALL, "--quiet", "--epochs", "2", "--results", "cpu"]) == 0
    (path,) = Path("cpu").rglob("*[0-9a-f].csv")
    assert losses(gpu) == pytest.approx(losses(rows(path)), rel=1e-3)


@pytest.mark.parametrize("words", ["--graph", "--compile", "--graph --compile"])
@pytest.mark.parametrize("train", ["bn", "all", "random:2"])
def test_graphs_and_compiled_blocks_make_the_steps_that_eager_ones_make(words, train):
    """With a schedule that changes the rate in every epoch, which a graph must not freeze."""
    shared = ["--train", train, "--epochs", 4, "--schedule", "cosine"]
    fast = made("fast", *shared, *words.split())
    assert losses(fast) == pytest.approx(losses(made("eager", *shared)), rel=1e-3)


def test_a_run_with_a_graph_goes_on_to_the_same_digits():
    whole = made("whole", "--graph", "--epochs", 4)
    made("stopped", "--graph", "--epochs", 4, "--time-limit", 1e-9)
    assert made("stopped", "--graph", "--epochs", 4) == whole


def test_what_is_frozen_stays_frozen_in_a_graph():
    args = settings_on_gpu("--graph", "--epochs", 2)
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "bn")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert common.fit(model, data, args).code == 0
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name


def settings_on_gpu(*words):
    from harness.config import Process, parse

    line = [*ON_GPU, "--quiet", *map(str, words)]
    return common.resolved(parse(common.Settings, line, "", Process(Path("exp_test.py"))))


def test_bf16_learns_what_fp32_does():
    words = [word for word in ON_GPU if word not in ("--precision", "fp32")]
    accuracies = {}
    for precision in ("fp32", "bf16"):
        line = [*words, "--subset", "1000", "--epochs", "20", "--precision", precision]
        assert exp_bn_only.main([*line, "--quiet", "--results", precision]) == 0
        (path,) = Path(precision).rglob("*[0-9a-f].csv")
        accuracies[precision] = float(rows(path)[-1]["test_acc"])
    assert abs(accuracies["bf16"] - accuracies["fp32"]) < 6


def test_normalisations_and_the_transformer_train_on_a_gpu():
    for i, words in enumerate((["--norm", "calibrated"], ["--norm", "none"])):
        assert losses(made(f"norm{i}", *words, script=exp_norms))
    small = ["--arch", "vit", "--depth", 2, "--train", "norm"]
    words = [word for word in ON_GPU if word not in ("--depth", "8")]
    assert exp_norms.main([*words, "--quiet", *map(str, small)]) == 0
