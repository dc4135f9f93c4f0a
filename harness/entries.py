"""Single entries of frozen weights that are trained in their place: --train random:K."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize


class PutEntries(torch.autograd.Function):
    """`weight` (channels, entries) with `values` (channels, k) at `index`, whatever stood there.

    Each entry has one source, so that both directions only gather: in deterministic mode a scatter
    on CUDA sorts."""

    @staticmethod
    def forward(weight, values, index, source):
        return torch.cat([weight, values], 1).gather(1, source)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient.gather(1, ctx.saved_tensors[0]), None, None


class RandomEntries(nn.Module):
    """Parametrises a frozen weight: `values` (channels, k) stand in it at `index` (channels, k),
    whatever stood there, and are all that the optimizer sees, so that weight decay and momentum
    concern exactly these."""

    def __init__(self, weight: torch.Tensor, index: torch.Tensor, per_channel: str):
        super().__init__()
        self.per_channel = per_channel
        weight = weight.detach().flatten(1)
        (channels, entries), k = weight.shape, index.shape[1]
        # each entry's source: itself, or from behind the last entry one of the values
        source = torch.arange(entries, device=index.device).repeat(channels, 1)
        values = torch.arange(entries, entries + k, device=index.device).expand_as(index)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("source", source.scatter_(1, index, values), persistent=False)
        self.values = nn.Parameter(weight.gather(1, index))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        flat = weight.flatten(1)
        return PutEntries.apply(flat, self.values, self.index, self.source).view_as(weight)


def put_random_entries(layers, per_channel: str, draw: torch.Generator) -> None:
    """Makes `per_channel` entries of each output channel of each of `layers` trainable, all where a
    channel has fewer. They are the first of a random order, so that 2 of them are among 4."""
    for layer in layers:
        channels, entries = layer.weight.flatten(1).shape
        order = torch.rand(channels, entries, generator=draw).argsort(1)
        k = entries if per_channel == "all" else int(per_channel)
        index = order[:, :k].sort(1).values.to(layer.weight.device)
        chosen = RandomEntries(layer.weight, index, per_channel)
        parametrize.register_parametrization(layer, "weight", chosen)


def put_weight(layer: nn.Module, weight: torch.Tensor) -> None:
    """Gives a layer, whose weight is computed, that weight. What has no inverse, as LoRA's sum with
    a product that starts at zero, starts from it."""
    computed = layer.parametrizations.weight
    if all(hasattr(step, "right_inverse") for step in computed):
        layer.weight = weight
    else:
        computed.original.copy_(weight)
