"""The training loop's speed changes no result; bench.py."""

import contextlib
import copy
import functools
import os
import time
from argparse import Namespace
from pathlib import Path

from tests.helpers import GRID, HERE, Forked, arguments, rows, run, the_csv
import pandas as pd
import pytest
import torch

import bench
import common
from harness import checkpoints, onednn, speed
from harness.norms import calibrate
import exp_depth_width
import exp_norms
import plots


@pytest.mark.skipif(not speed.has_bf16(torch.device("cpu")), reason="this processor has no bf16")
def test_bf16_agrees_with_fp32():
    losses, gradients = {}, []
    for precision in ("fp32", "bf16"):
        args = arguments("--precision", precision, "--depth", 14)
        data = common.load_data(args)
        model = common.build_model(args, data)
        common.freeze(model, "bn")
        x, y = next(data.training_batches(0, 1, 100, "none"))
        loss = torch.nn.functional.cross_entropy(common.forward(model, x, args), y)
        loss.backward()
        losses[precision] = loss.item()
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients.append(torch.cat([p.grad for p in trained]))
        assert run("--precision", precision, "--epochs", 30) == 0
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    # 8 bits of mantissa through 14 layers: 0.975 to 0.985, by seed and number of threads
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.95
    final = [float(rows(path)[-1]["test_acc"]) for path in Path("results").glob("*/*.csv")]
    assert len(final) == 2
    assert min(final) > 30
    assert abs(final[0] - final[1]) < 15


@pytest.fixture
def quickly_compiled(monkeypatch):
    """torch.compile without its code generator, which takes minutes: traced, differentiated and
    functionalised like any, and run by PyTorch's operators."""
    compiled = []

    def quickly(function, *, compile=torch.compile, **options):
        compiled.append(function)
        return compile(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", quickly)
    yield compiled
    torch.compiler.reset()


def bench_arguments(*words) -> Namespace:
    """What bench.py is asked for by these words."""
    found = []

    def compare(args, threads):
        found.append(args)
        return []

    small = "--images 100 --device cpu --precision fp32 --batch-size 50 --image-size 8"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "compare", compare)
        assert bench.main([*small.split(), *map(str, words)]) == 0
    return found[0]


@pytest.mark.parametrize("train", ["bn", "all"])
def test_a_step_of_every_variant_of_the_bench_equals_the_plain_ones(train, quickly_compiled):
    args = bench_arguments("--depths", 8, "--train", train, "--compile")
    other = ("bf16", "frozen weights cast once", "CUDA graph")  # in arithmetic, or on a GPU
    for n, last in enumerate(bench.PARTS, 1):
        plain = bench.build(args, None)
        ours = bench.build(args, tuple(part for part in bench.PARTS[:n] if part not in other))
        x, y = next(ours.data.training_batches(0, 1, 50, "crop+flip"))
        expected, *_ = plain.step(x.contiguous(), y)
        loss, *_ = ours.step(ours.model.train(), x, y, ours.optimizer, ours.args)
        assert float(loss) / 50 == pytest.approx(expected, rel=1e-5), last
        for name, p in plain.model.named_parameters():
            found = ours.model.get_parameter(name)
            assert torch.allclose(p, found, rtol=1e-4, atol=1e-5), (last, name)


def test_memory_is_kept_by_runs_and_not_by_the_plain_loop(monkeypatch):
    """build_model kept it for both, and the plain loop was the faster for it."""
    kept = []
    monkeypatch.setattr(speed, "keep_memory", kept.append)
    args, before = bench_arguments("--depths", 8), bench.EAGER[: bench.EAGER.index("memory kept")]
    bench.build(args, None)
    bench.build(args, before)
    assert not kept
    bench.build(args, (*before, "memory kept"))
    assert len(kept) == 1
    run("--depth", 8, "--epochs", 1)
    assert len(kept) == 2


def test_the_bench_measures_every_variant(monkeypatch, capsys):
    def here(n, threads, measure, *arguments):
        return [measure(*arguments) for _ in range(n)]

    monkeypatch.setattr(bench, "in_processes", here)
    monkeypatch.setattr(bench, "WINDOW", 0.1)
    words = "--depths 8 --images 100 --turns 1 --device cpu --batch-size 50 --image-size 8".split()
    assert bench.main(words) == bench.main([*words, "--grid"]) == 0
    grid = pd.read_csv(*Path("results/bench").glob("*grid.csv"))
    table = pd.read_csv(*Path("results/bench").glob("*[!d].csv"))
    loops = table[table.epoch_s.notna()]
    assert list(loops.variant[:3]) == ["plain", "data on the device", "channels_last"]
    rates = ["train_images_per_s", "test_images_per_s", "peak_mb", "limit_s", "share_of_limit"]
    assert (loops[rates] > 0).all(axis=None)
    plain = loops.iloc[0]
    speedups = plain.epoch_s / loops.epoch_s.to_numpy()
    assert loops.speedup.to_numpy() == pytest.approx(speedups, rel=1e-4)
    seconds = 50_000 / plain.train_images_per_s + 10_000 / plain.test_images_per_s
    assert plain.epoch_s == pytest.approx(seconds, rel=0.5)
    assert table.start_s.count() == 1
    assert table.share_of_step.sum() == pytest.approx(1, abs=0.05)
    threads = torch.get_num_threads()
    assert list(grid.processes) == [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= threads]
    (precision,) = loops.precision.unique()
    assert precision == ("bf16" if speed.has_bf16(torch.device("cpu")) else "fp32")
    assert plots.main(["--only", "speed"]) == 0
    shown = Path("tables/speed.md").read_text()
    assert f"| plain | {plain.train_images_per_s:,.0f} |" in shown
    assert f"batches of 50, {precision}, {threads} threads" in shown
    for wrong, says in (
        ("--epochs 3", "unrecognized arguments: --epochs"),
        ("--dry-run", "unrecognized arguments: --dry-run"),
        ("--train none", "trains nothing"),
        ("--depths 15", "14 and 20"),
        ("--images 1", "from 100"),
    ):
        assert bench.main([*words, *wrong.split()]) == 2
        assert says in capsys.readouterr().err
    assert bench.main([*words, "--results", "/dev/null/x"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_bench_counts_work_as_its_formula_does():
    """ResNet-8 on 8x8 pixels by hand: convolutions of 3x3 and 1x1, then the output layer."""
    # channels in and out, height and width after, of every 3x3 convolution
    layers = [(3, 16, 8), (16, 16, 8), (16, 16, 8)]
    layers += [(16, 32, 4), (32, 32, 4), (32, 64, 2), (64, 64, 2)]
    first, *others = (2 * 9 * c_in * c_out * size**2 for c_in, c_out, size in layers)
    shortcuts, output = 2 * 16 * 32 * 16 + 2 * 32 * 64 * 4, 2 * 64 * 10
    forward = first + sum(others) + shortcuts + output
    elements = 3 * 16 * 64 + 3 * 32 * 16 + 3 * 64 * 4
    found = bench.work(bench_arguments("--depths", 8))
    assert found["test"] == (forward, 4 * elements)
    # nothing before the first convolution is trained, and nothing before the first BatchNorm
    assert found["train"] == (2 * forward - first, 14 * elements - 5 * 16 * 64)
    everything = bench.work(bench_arguments("--depths", 8, "--train", "all"))
    assert everything["train"] == (3 * forward - first, 14 * elements)


def test_a_measurement_has_a_process_of_its_own():
    args = bench_arguments("--depths", 8)
    found = bench.in_processes(2, 1, bench.speed, args, bench.PARTS[:2], 0)
    assert len(found) == 2
    assert all(one["train_images_per_s"] > 0 and one["peak_mb"] > 100 for one in found)
    (one,) = bench.in_processes(1, 1, bench.start, args, bench.PARTS[:2], time.time())
    assert 0.5 < one["start_s"] < 60


def test_frozen_weights_are_cast_once_and_come_back_bit_for_bit():
    args = arguments("--train", "gamma+output")
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, args.train)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    frozen = {name for name in before if "conv" in name or "shortcut.0" in name}
    x, _ = next(data.training_batches(0, 1, 20, "none"))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        usual = model.eval()(x)
        with common.frozen_in(torch.bfloat16, model):
            kinds = {name: p.dtype for name, p in model.named_parameters()}
            assert {name for name in kinds if kinds[name] == torch.bfloat16} == frozen
            assert torch.equal(model(x), usual)
    for name, p in model.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, before[name])


LARGER = ("--image-size", 16)  # than 8x8, for which oneDNN's layout is not used
onednn_only = pytest.mark.skipif(
    not onednn.here(arguments(), 1), reason="this processor has not oneDNN's layout"
)


def one_step(norm: str, train: str, arithmetic) -> dict[str, torch.Tensor]:
    """What a forward and a backward pass of a ResNet-8 make, and the test of the same batch."""
    args = arguments(*LARGER)
    data = common.load_data(args)
    model = exp_norms.with_norm(common.build_model(args, data), norm)
    x, y = next(data.training_batches(0, 1, 50, "none"))
    calibrate(model, functools.partial(common.forward, model, x, args))
    common.freeze(model, train)
    with arithmetic(model, args, data.size):
        logits = common.forward(model.train(), x, args)
        common.cross_entropy(logits, y).backward()
        found = {"logits": logits.detach()}
        with torch.inference_mode():
            found["tested"] = common.forward(model.eval(), x, args)
    found |= dict(model.named_buffers())
    return found | {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@onednn_only
@pytest.mark.parametrize(
    ("norm", "train"),
    [
        *((norm, "norm") for norm in exp_norms.Settings.lists["norm"]),
        ("bn", "all"),
        ("bn", "random:2"),
    ],
)
def test_onednns_layout_changes_no_result(norm, train, monkeypatch):
    used, layout = [], onednn.layout
    monkeypatch.setattr(onednn, "layout", lambda *of: used.append(of) or layout(*of))
    usual = one_step(norm, train, lambda *_: contextlib.nullcontext())
    assert not used
    ours = one_step(norm, train, common.arithmetic)
    assert used
    assert ours.keys() == usual.keys()
    for name, value in usual.items():
        # a ReLU's input that is zero but for rounding has a gradient or none
        error = torch.linalg.norm((ours[name] - value).float())
        assert error <= 0.01 * (torch.linalg.norm(value.float()) + 1e-6), name
    assert torch.allclose(ours["tested"], usual["tested"], rtol=1e-4, atol=1e-4)


@onednn_only
def test_onednns_layout_is_for_networks_that_it_knows():
    class Swish(common.Block):
        def forward(self, x):
            return torch.nn.functional.silu(super().forward(x))  # which has no such layout

    args = arguments(*LARGER)
    data = common.load_data(args)
    model = common.build_model(args, data)
    assert onednn.suits(model, common.ResNet, common.Block)
    x, _ = next(data.batches("test"))
    seen = []
    with common.arithmetic(model, args, data.size):
        hook = model.stage1[0].relu.register_forward_hook(lambda *of: seen.append(of[-1].layout))
        common.forward(model, x, args)
        hook.remove()
    assert seen == 2 * [torch.strided]
    for layer, name in ((Swish(16, 16, 1), "stage1"), (torch.nn.GELU(), "relu")):
        changed = copy.deepcopy(model)
        setattr(changed, name, torch.nn.Sequential(layer))
        assert not onednn.suits(changed, common.ResNet, common.Block)
        with common.arithmetic(changed, args, data.size):
            common.forward(changed, x, args)


@onednn_only
def test_a_run_in_onednns_layout_goes_on_where_it_was_stopped():
    assert run(*LARGER, "--results", "whole") == 0
    assert run(*LARGER, "--time-limit", 1e-9) == run(*LARGER) == 0
    assert rows(the_csv()) == rows(the_csv("whole"))


def test_compiled_blocks_calculate_what_eager_ones_do(quickly_compiled):
    assert run("--results", "eager") == 0
    assert not quickly_compiled
    assert run("--compile") == 0
    assert len(quickly_compiled) == 3  # the blocks of a ResNet-8
    eager, compiled = pd.read_csv(the_csv("eager")), pd.read_csv(the_csv())
    assert compiled.compile.all()
    assert compiled.run[0] != eager.run[0]
    for column in ("train_loss", "test_loss", "test_acc"):
        close = pytest.approx(eager[column].to_numpy(), rel=1e-3)
        assert compiled[column].to_numpy() == close, column
    assert run("--compile", "--force", "--time-limit", 1e-9) == run("--compile") == 0
    assert pd.read_csv(the_csv()).drop(columns="seconds").equals(compiled.drop(columns="seconds"))


@pytest.mark.parametrize(
    "amx, avx, ends", [(1, 1, " with AMX)"), (0, 1, " with AVX-512 bf16)"), (0, 0, "")]
)
def test_a_processor_says_what_it_multiplies_bf16_with(amx, avx, ends, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx))
    name = speed.device_name(torch.device("cpu"))
    assert name == f"cpu ({speed.processor()}{ends or ')'}"
    assert speed.has_bf16(torch.device("cpu")) == bool(ends)


@pytest.mark.parametrize(
    "given, words, threads", [(None, [], 1), (None, ["--image-size", "16"], 2), ("2", [], 2)]
)
def test_small_images_take_one_thread_unless_told_otherwise(given, words, threads):
    def first():  # what PyTorch reads when it is loaded
        os.environ.pop("OMP_NUM_THREADS")
        speed.ALL_THREADS = 2
        if given:
            os.environ["OMP_NUM_THREADS"] = given
            torch.set_num_threads(int(given))

    process = Forked(HERE / "exp_bn_only.py", *GRID, *words, first=first)
    assert process.wait() == 0, process.err
    assert {row["threads"] for row in rows(the_csv())} == {str(threads)}


def test_every_run_has_the_whole_budget_of_compiled_graphs(quickly_compiled, monkeypatch, capsys):
    monkeypatch.setattr(speed, "COMPILED_KINDS", 5)
    three_kinds_of_block_each = "--depths 8 --widths 1 2 3 --grid --compile"
    assert exp_depth_width.main([*GRID, *three_kinds_of_block_each.split()]) == 0
    assert run("--compile", "--depth", 14, "--epochs", 1) == 0
    nine_blocks_each_of_its_own_kind = "--depth 20 --train random:2"
    assert run("--compile", "--epochs", 1, *nine_blocks_each_of_its_own_kind.split()) == 1
    assert compiling_failed(capsys)


def compiling_failed(capsys) -> bool:
    """Whether the last line of stderr says so."""
    last = capsys.readouterr().err.splitlines()[-1]
    return last.startswith("error: --compile failed, leave it out (")


def test_no_compiler_is_one_line(monkeypatch, capsys):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/nowhere"))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    assert run("--compile") == 1
    assert compiling_failed(capsys)
    torch.compiler.reset()


class RecordedStep:
    """What stands in for a CUDA graph where there is no GPU: it remembers the step that was
    captured, which is taken back, and makes it again at each replay, with what was read from memory
    at the capture, the rates among it, as it is by then."""

    def __init__(self, monkeypatch, model, optimizer):
        self.model, self.optimizer, self.captures = model, optimizer, 0
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream, capture_error_mode: self)

    def __enter__(self):
        self.captures += 1
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.before = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def __exit__(self, *_):
        self.model.load_state_dict(self.before[0])
        self.optimizer.load_state_dict(self.before[1])
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate

    def replay(self):
        now = [group["lr"] for group in self.optimizer.param_groups]
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = float(rate)
        batch = self.step.x, self.step.y
        tally = common.train_step(self.model, *batch, self.optimizer, self.args)
        self.step.tally.copy_(tally)
        for group, rate in zip(self.optimizer.param_groups, now, strict=True):
            group["lr"] = rate


@pytest.mark.parametrize("words", ["--schedule step", "--schedule cosine --warmup-epochs 2"])
def test_a_graphed_step_makes_every_step_once_at_its_rate(monkeypatch, words):
    """All of it but CUDA: which steps are captured and replayed, on which batches, at which
    learning rate; and that one capture is enough."""
    args, found = arguments("--subset", 120, "--batch-size", 20, "--epochs", 4, *words.split()), []
    data = common.load_data(args)
    for graphed in (False, True):
        model = common.build_model(args, data)
        common.freeze(model, "bn")
        optimizer, scheduler, _ = common.recipe(model, args)
        step = common.train_step
        if graphed:
            recorded = RecordedStep(monkeypatch, model, optimizer)
            step = recorded.step = speed.GraphedStep(common.train_step, 20)
            recorded.args = args
        for epoch in range(1, 5):
            common.train_epoch(
                model,
                data,
                optimizer,
                args,
                epoch,
                [20, 20, 20, 20, 20, 20],
                common.progress_bar(disable=True),
                step,
            )
            step(
                model,
                *(x[:7] for x in next(data.training_batches(0, 9, 20, "none"))),
                optimizer,
                args,
            )
            scheduler.step()
        found.append(
            [p.detach().clone() for p in model.parameters()]
            + list(checkpoints.buffers(model).values())
        )
    assert recorded.captures == 1
    assert all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True)
    )  # a rate is a float32 there, and rounded


def test_a_busy_machine_is_compared_with_a_quiet_one(monkeypatch):
    """With measurements that are given: the neighbours are started, and stopped."""
    seconds = iter((2.0, 4.0, 8.0))
    monkeypatch.setattr(bench, "in_processes", lambda *how: [{"epoch_s": next(seconds)}])
    monkeypatch.setattr(bench.time, "sleep", lambda seconds: None)
    words = ["--busy", "--turns", "1", "--images", "100", "--image-size", "8", "--device", "cpu"]
    assert bench.main(words) == 0
    (path,) = Path("results/bench").glob("*-busy.csv")
    table = pd.read_csv(path).set_index("variant")
    assert table.speedup.to_dict() == {
        "beside nothing": 1.0,
        "beside two loops": 0.5,
        "beside two trainings of two threads": 0.25,
    }
