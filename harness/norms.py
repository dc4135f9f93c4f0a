"""What counts as a normalisation, and those that PyTorch does not have: a γ and a β for each
channel, behind something else than the statistics of a batch or a layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ScaleShift(nn.Module):
    """γx + β for each channel, (N, channels, …): BatchNorm's scale and shift, and no normalisation.

    PyTorch's batch_norm calculates it, by constants in place of statistics: in one pass, with γ and
    β in fp32 whatever x is in."""

    eps = 1e-12  # batch_norm takes no zero in some versions of PyTorch; 1 + 1e-12 is 1 in fp32

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels), persistent=False)
        self.register_buffer("variance", torch.ones(channels), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        constants = self.mean, self.variance, self.weight, self.bias
        if x.is_mkldnn:
            return ByConstants.apply(x, *constants, self.eps)
        return F.batch_norm(x, *constants, training=False, eps=self.eps)


class ByConstants(torch.autograd.Function):
    """batch_norm by constants in oneDNN's layout, where PyTorch knows its gradient only behind the
    statistics of a batch. That of x is g γ / √(variance + ε); those of γ and β are the same sums,
    over g (x − mean) / √(variance + ε) and over g."""

    @staticmethod
    def forward(ctx, x, mean, variance, weight, bias, eps):
        ctx.save_for_backward(x, mean, variance, weight)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx, g):
        x, mean, variance, weight = ctx.saved_tensors
        zeros = torch.zeros_like(mean)
        gradient = F.batch_norm(g, zeros, variance, weight, zeros, training=False, eps=ctx.eps)
        constants = mean.to_mkldnn(), variance.to_mkldnn()
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            g, x, weight, None, None, *constants, True, ctx.eps, [True] * 3
        )
        return gradient, None, None, *sums, None


class Calibrated(ScaleShift):
    """BatchNorm whose mean and variance were measured once, by `calibrate`, and are constants."""

    eps = 1e-5

    def __init__(self, channels: int):
        super().__init__(channels)
        self.register_buffer("mean", torch.zeros(channels))  # kept in checkpoints
        self.register_buffer("variance", torch.ones(channels))

    def measure(self, inputs: tuple) -> None:
        others = [dimension for dimension in range(inputs[0].dim()) if dimension != 1]
        variance, mean = torch.var_mean(inputs[0].float(), others, correction=0)
        self.mean.copy_(mean)
        self.variance.copy_(variance)


@torch.no_grad()
def calibrate(model: nn.Module, forward) -> None:
    """Measures, in one pass `forward()` over a batch, the constants of each `Calibrated`: those of
    its input behind the ones before it, which are measured first."""
    layers = [layer for layer in model.modules() if isinstance(layer, Calibrated)]
    hooks = [layer.register_forward_pre_hook(Calibrated.measure) for layer in layers]
    forward()
    for hook in hooks:
        hook.remove()


class GroupNorm(nn.GroupNorm):
    """PyTorch's, always in NCHW: in channels_last, with few channels in a group, it takes up to
    twenty times as long on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.contiguous())


class RMSNorm(ScaleShift):
    """x divided by its root mean square over all but the first dimension, then γx + β for each
    channel. (PyTorch's has a γ for each value, and no β.)"""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.rms_norm(x, x.shape[1:], eps=1e-5))


BATCHNORM = nn.modules.batchnorm._BatchNorm
INSTANCENORM = nn.modules.instancenorm._InstanceNorm
NORMS = (BATCHNORM, INSTANCENORM, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, ScaleShift)


def crashes_without_input_gradient(model: nn.Module) -> bool:
    """Whether the backward pass ends the process unless the images need a gradient, too: before
    PyTorch 2.15 GroupNorm's on a CPU does (2.11 and 2.13, tried), where x is channels_last and
    nothing before it is trained."""
    return torch.__version__ < (2, 15) and any(
        isinstance(layer, nn.GroupNorm) for layer in model.modules()
    )
