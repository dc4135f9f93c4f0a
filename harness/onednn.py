"""Activations in the layout that oneDNN, PyTorch's library on Intel's and AMD's processors, chooses
by itself ("mkldnn" tensors): its BatchNorm, ReLU and addition there take a third to a sixth of the
time of PyTorch's on channels_last, and its convolutions three quarters.

Only some operators know this layout, so it is for networks of which we know what they do."""

from __future__ import annotations

import inspect
import platform
from contextlib import contextmanager
from pathlib import Path
from types import MethodType

import torch
from torch import nn

from harness.norms import GroupNorm, RMSNorm, ScaleShift
from harness.source import ours, source_digest
from harness.speed import has_bf16, stand_ins

OTHER_NORMS = (GroupNorm, nn.InstanceNorm2d, RMSNorm)  # for which activations are as usual
KNOWN = (nn.Conv2d, nn.BatchNorm2d, ScaleShift, nn.ReLU, nn.Linear, nn.Sequential, nn.Identity)


def here(args, threads: int) -> bool:
    """Whether the processor has it, in the run's precision, and one thread is to calculate: several
    wait for each other within oneDNN's BatchNorm, and beside other programs that costs more than
    the layout gains."""
    return (
        args.device.type == "cpu"
        and threads == 1
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and (args.precision == "fp32" or has_bf16(args.device))
        and not args.compile
    )


def suits(model: nn.Module, network: type, block: type) -> bool:
    """Whether `model` is a `network`, of `block`s and of layers that know the layout, as this
    collection has them. A class that inherits from these, and does something else, is another."""
    known = {kind.forward for kind in (*KNOWN, *OTHER_NORMS, network, block)}
    layers = [layer for name, layer in model.named_modules() if "parametrizations" not in name]
    if any({"forward", "features"} & vars(layer).keys() for layer in layers):
        return False  # a script has given this one layer a method of its own
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    if any(norm.weight is None or norm.running_mean is None for norm in norms):
        return False  # oneDNN's BatchNorm has γ, β and running statistics
    if any(getattr(layer, "padding_mode", "zeros") != "zeros" for layer in layers):
        return False  # others than black are copied around an image before its convolution
    written = Path(inspect.getfile(network))
    if ours().get(written.name) != source_digest(written):
        return False  # who edits a network may make it calculate what the layout does not know
    return type(model) is network and all(type(layer).forward in known for layer in layers)


@contextmanager
def layout(model: nn.Module, dtype: torch.dtype):
    """Within it `model.features` calculates in oneDNN's layout and in `dtype`. Weights stay in
    fp32: oneDNN casts them. Frozen ones are laid out once as PyTorch would copy them for every
    convolution. Where hooks are to see activations, these are as usual."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        if any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.modules()):
            return type(self).features(self, x)
        with torch.autocast("cpu", enabled=False):
            x = x.to(dtype, memory_format=torch.contiguous_format).to_mkldnn()
            return type(self).features(self, x).to_dense()

    changed = [layer for layer in model.modules() if isinstance(layer, OTHER_NORMS)]
    # methods, which a copy of the network has of itself
    model.features = MethodType(features, model)
    for layer in changed:
        layer.forward = MethodType(as_usual, layer)
    try:
        with stand_ins(frozen, torch.Tensor.contiguous):
            yield
    finally:
        del model.features
        for layer in changed:
            del layer.forward


def as_usual(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = type(layer).forward(layer, x.to_dense() if x.is_mkldnn else x)
    return y.to_mkldnn() if x.is_mkldnn else y
