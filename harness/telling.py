"""What a run says: the summary at its end, and what TensorBoard shows of it."""

from __future__ import annotations

import sys

import torch
from torch import nn

from harness.config import Settings
from harness.errors import warn
from harness.parts import origin
from harness.runs import Outcome, Run, goes_on


def summarise(outcome: Outcome, args: Settings) -> None:
    """Prints what was trained, how well, and where the records are."""
    rows, epochs = outcome.rows, args.epochs
    if outcome.diverged:
        hint = "--force makes it again" if outcome.again else f"try a --lr below {args.lr:g}"
        told = f"the loss is not finite in epoch {len(rows)} of {epochs} of {outcome.csv}: {hint}"
        print(f"diverged: {told}", file=sys.stderr)
        return
    if args.quiet:
        return
    last = rows[-1]
    trained, total = int(last["params_trained"]), int(last["params_total"])
    accuracy, chance = float(last["test_acc"]), 100 / int(last["classes"])
    again = " was finished before (--force makes it again)" if outcome.again else ""
    print(f"\n{outcome.csv.stem}{again}")
    print(
        f"  trained        {args.train}: {trained:,} of {total:,} parameters "
        f"({100 * trained / total:.2f} %)"
    )
    print(f"  test accuracy  {accuracy:.2f} % after epoch {len(rows)} (chance: {chance:.2f} %)")
    if last["val_acc"] != "":
        print(f"  validation     {float(last['val_acc']):.2f} %")
    print(f"  records        {outcome.csv}")
    if not outcome.finished:
        print(f"  not finished   {len(rows)} of {epochs} epochs: {goes_on(args)}")


OF_NETWORKS = "arch depth width".split()
OF_RECIPES = "optimizer lr momentum weight_decay schedule".split()


def warn_of_unused(asked: Settings, model: nn.Module, trained: str, read: dict | None) -> None:
    """Names the flags that were given and have no part in what a script makes of its own: what it
    freezes, its network, its recipe, of which settings are `read` (None where none is)."""
    known, unused = origin(model), []
    if "train" in asked.given and asked.train != known.called:
        warn(f"--train {asked.train} has no part in this script, which trains {trained}")
    if known.name and known.read is not None:
        unused += [name for name in OF_NETWORKS if name not in known.read]
    if read is not None:
        unused += [name for name in OF_RECIPES if name not in read]
    for name in unused:
        if name in asked.given:
            warn(f"--{name.replace('_', '-')} has no part in this script's network and recipe")


def open_board(run: Run, epoch: int):
    """TensorBoard's writer of one start of a run, from `epoch` on, in
    results/EXPERIMENT/tensorboard/RUN; what an earlier start wrote of later epochs is void."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run.csv.parent / "tensorboard" / run.name, purge_step=epoch)


def show(board, epoch: int, measured: dict[str, float], gammas: list[torch.Tensor]) -> None:
    """Losses, accuracies and γ's histogram."""
    for key, value in measured.items():
        board.add_scalar(key, value, epoch)
    values = [gamma.detach().float().reshape(-1).cpu() for gamma in gammas]
    if values and torch.cat(values).abs().max() < 1e20:  # TensorBoard's histograms end there
        board.add_histogram("gamma", torch.cat(values), epoch)
    board.flush()
