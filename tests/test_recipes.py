"""Optimizers and schedules, and what TensorBoard shows."""

from pathlib import Path

from tests.helpers import run, the_csv, rows, arguments
import numpy as np
import pytest
import torch

import common


def test_schedules():
    def rates(*words):
        args = arguments(*words)
        return [
            0.1 * common.rate(args)(epoch) for epoch in range(args.epochs)
        ]  # --lr 0.1, the default but for ImageNet

    assert rates("--epochs", 160) == pytest.approx([0.1] * 80 + [0.01] * 40 + [0.001] * 40)
    assert rates("--epochs", 3) == pytest.approx([0.1, 0.1, 0.01])
    assert rates("--epochs", 1) == [0.1]
    imagenet = [4 * rate for rate in rates("--dataset", "imagenet", "--epochs", 90)]
    assert len(imagenet) == 90
    assert imagenet[:30] == pytest.approx([0.4] * 30)
    assert imagenet[30] == pytest.approx(0.04)
    assert imagenet[80] == pytest.approx(0.0004)
    assert [
        arguments("--dataset", "imagenet", "--epochs", n).warmup_epochs for n in (90, 18, 1)
    ] == [5, 1, 1]
    for schedule, last in (
        ("cosine", 0.0025),
        ("linear-cosine", 0.0003),
        ("exponential", 0.0016),
        ("constant", 0.1),
    ):
        found = rates("--epochs", 10, "--schedule", schedule)
        assert found == sorted(found, reverse=True) and found[-1] == pytest.approx(last, rel=0.2), (
            schedule
        )
    restarts = rates("--epochs", 14, "--schedule", "restarts")
    assert restarts[0] == restarts[2] == restarts[6] == 0.1
    assert max(restarts[1], restarts[5], restarts[13]) < 0.06


def test_warm_up_rises_step_by_step_from_zero_and_goes_on_after_a_stop():
    args = arguments(
        "--schedule", "cosine", "--warmup-epochs", 2, "--epochs", 4
    )  # three steps an epoch
    data = common.load_data(args)
    model = common.build_model(args, data)
    common.freeze(model, "bn")
    optimizer, scheduler, _ = common.recipe(model, args)
    found = []
    optimizer.step()
    for epoch in range(1, 5):
        common.train_epoch(
            model,
            data,
            optimizer,
            args,
            epoch,
            [50] * 3,
            common.progress_bar(disable=True),
            lambda *_: found.append(optimizer.param_groups[0]["lr"]) or torch.zeros(3),
        )
        scheduler.step()
    cosine = [0.05 * (1 + np.cos(np.pi * epoch / 4)) for epoch in range(4) for _ in range(3)]
    assert found == pytest.approx([rate * min(1, step / 6) for step, rate in enumerate(cosine)])
    assert found[0] == 0
    words = ["--schedule", "cosine", "--warmup-epochs", 2, "--epochs", 4]
    assert run(*words, "--time-limit", 1e-9) == 0
    assert run(*words) == run(*words, "--results", "whole", "--checkpoints", "whole") == 0
    assert rows(the_csv()) == rows(the_csv("whole"))


@pytest.mark.parametrize(
    "words",
    ["--optimizer adam", "--momentum 0", "--schedule cosine --warmup-epochs 1 --train random:2+bn"],
)
def test_other_recipes_resume_to_the_same_digits(words):
    words = ["--epochs", 4, *words.split()]
    for _ in range(3):
        assert run(*words, "--time-limit", 1e-9) == 0
    assert run(*words) == run(*words, "--results", "whole", "--checkpoints", "whole") == 0
    assert rows(the_csv()) == rows(the_csv("whole"))


def test_tensorboard():
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run("--tensorboard") == 0
    found = events.EventAccumulator(
        str(next(Path("results/bn_only/tensorboard").iterdir()))
    ).Reload()
    assert [round(e.value, 2) for e in found.Scalars("test_acc")] == [
        round(float(row["test_acc"]), 2) for row in rows(the_csv())
    ]
    assert found.Tags()["histograms"] == ["gamma"]
    assert len(list(Path("results/bn_only/tensorboard").glob("*/*"))) == 1
