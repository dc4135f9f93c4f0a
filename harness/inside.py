"""What is inside a trained network: γ and β of every channel, how often its ReLUs are active, and
what the small γ are worth."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from harness.parts import LAYERS, is_shortcut

CHANNELS = "layer channel gamma beta gamma_init beta_init running_mean running_var active".split()
PRUNING = "threshold zeroed gammas test_loss test_acc".split()
THRESHOLDS = (0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def channels(norms: dict[str, nn.Module], start: dict[str, tuple], active: dict) -> list[list]:
    """A row of CHANNELS for each channel of each normalisation that has a γ and a β.

    start: their values before training; active: what `activity` found. A normalisation without
    running statistics has empty cells there."""
    rows = []
    for name, norm in norms.items():
        columns = [norm.weight, norm.bias, *start[name]]
        columns += [getattr(norm, "running_mean", None), getattr(norm, "running_var", None)]
        columns.append(active.get(name))
        lists = [column_of(column, norm.weight.numel()) for column in columns]
        rows += [[name, channel, *row] for channel, row in enumerate(zip(*lists, strict=True))]
    return rows


def column_of(values: torch.Tensor | None, n: int) -> list:
    if values is None or values.numel() != n:
        return [""] * n
    return values.detach().float().reshape(-1).tolist()


def activity(model: nn.Module, norms: dict[str, nn.Module], evaluate) -> dict:
    """How often each feature is active: for each normalisation but the shortcuts', (channels,), the
    share of test activations above zero behind the next ReLU, for a block's second the one behind
    the addition. Where a convolution or a linear layer comes first, as with BatchNorm after the
    activation, there is none. evaluate: passes the test images through the model."""
    above, passed, hooks = {}, Counter(), []
    waiting = []  # the normalisations whose ReLU has not come yet

    def remember(name: str):
        return lambda *_: waiting.append(name)

    def forget(*_):
        waiting.clear()

    def count(relu, inputs, output):
        if waiting:
            name = waiting.pop()
            others = set(range(output.dim())) - {channel_of(norms[name]) % output.dim()}
            share = (output > 0).float().mean(tuple(others))
            above[name] = above.get(name, 0) + share * len(output)
            passed[name] += len(output)  # more than once, where a network repeats a layer

    for name, layer in model.named_modules():
        if is_shortcut(name):
            continue
        if name in norms:
            hooks.append(layer.register_forward_hook(remember(name)))
        elif isinstance(layer, LAYERS):
            hooks.append(layer.register_forward_hook(forget))
        elif isinstance(layer, nn.ReLU):
            hooks.append(layer.register_forward_hook(count))
    evaluate()
    for hook in hooks:
        hook.remove()
    return {name: total / passed[name] for name, total in above.items()}


def channel_of(norm: nn.Module) -> int:
    """The dimension of the channels behind a normalisation: PyTorch's own over the last ones have
    them at the end."""
    return -1 if isinstance(norm, nn.LayerNorm | nn.RMSNorm) else 1


@torch.no_grad()
def pruned(gammas: list[torch.Tensor], evaluate):
    """A row of PRUNING for each of THRESHOLDS: how many of all γ are smaller, and the test loss and
    accuracy with these at zero and every β kept (Frankle et al.)."""
    learned = [gamma.clone() for gamma in gammas]
    for threshold in THRESHOLDS:
        small = [gamma.abs() < threshold for gamma in learned]
        for gamma, value, mask in zip(gammas, learned, small, strict=True):
            gamma.copy_(value.masked_fill(mask, 0))
        result = evaluate()
        zeroed = sum(int(mask.sum()) for mask in small)
        yield [threshold, zeroed, sum(map(torch.numel, gammas)), result["loss"], result["acc"]]
    for gamma, value in zip(gammas, learned, strict=True):
        gamma.copy_(value)
