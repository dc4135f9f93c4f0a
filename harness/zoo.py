"""Networks beside the CIFAR ResNet: VGG, torchvision's ResNets, and a transformer."""

from __future__ import annotations

import torch
from torch import nn

from harness.errors import UserError

VGG_STAGES = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
DEPTHS = {  # --arch: its depths, and the usual one
    "resnet": (range(8, 1203, 6), 14),
    "vgg": (tuple(VGG_STAGES), 16),
    "imagenet_resnet": ((18, 34, 50, 101, 152, 200), 18),
}


def vgg(depth: int, width: int, channels: int, classes: int) -> nn.Sequential:
    """The CIFAR VGG of open_lth: convolutions with bias and BatchNorm in five stages of 64 to 512
    channels times `width`, max-pooling between them, the global average, and one linear layer."""
    layers, c_in = [], channels
    for stage, convolutions in enumerate(VGG_STAGES[depth]):
        c = width * min(64 << stage, 512)
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convolutions):
            layers += [nn.Conv2d(c_in, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU(inplace=True)]
            c_in = c
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes)]
    return nn.Sequential(*layers, *head)


def imagenet_resnet(depth: int, size: tuple[int, int, int], classes: int) -> nn.Module:
    """torchvision's ResNet; below 64 pixels its first convolution is 3x3 with stride 1, and its
    max-pooling is left out."""
    from torchvision.models import resnet  # two seconds that only these networks cost

    if depth == 200:  # He et al., "Identity Mappings in Deep Residual Networks"; not torchvision's
        model = resnet.ResNet(resnet.Bottleneck, [3, 24, 36, 3], num_classes=classes)
    else:
        model = getattr(resnet, f"resnet{depth}")(num_classes=classes)
    if min(size[:2]) < 64:
        model.conv1 = nn.Conv2d(size[2], 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif size[2] != 3:
        model.conv1 = nn.Conv2d(size[2], 64, 7, 2, padding=3, bias=False)
    return model


class VisionTransformer(nn.Module):
    """A transformer for small images (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929): patches of
    2x2 pixels, of 4x4 from 28 pixels on; `depth` pre-norm layers of PyTorch's, 128 `width` channels
    in four heads, GELU; the mean over the patches, and one linear layer. No dropout."""

    def __init__(self, depth: int, width: int, size: tuple[int, int, int], classes: int):
        super().__init__()
        height, breadth, channels = size
        patch = 2 if min(height, breadth) < 28 else 4
        dim, patches = 128 * width, (height // patch) * (breadth // patch)
        self.input = nn.Conv2d(channels, dim, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, patches, dim))
        layer = nn.TransformerEncoderLayer(
            dim, 4, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(dim)
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        for layer in self.encoder.layers:  # which PyTorch has made as copies of one
            nn.init.xavier_uniform_(layer.self_attn.in_proj_weight)
        self.output = nn.Linear(dim, classes)

    @property
    def inner_layers(self) -> list[nn.Module]:
        """Those that write what the LayerNorms read: two random entries of each of their channels
        are exactly as many as the LayerNorms have parameters."""
        written = [self.input]
        for layer in self.encoder.layers:
            written += [layer.self_attn.out_proj, layer.linear2]
        return written

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to logits (N, classes)."""
        patches = self.input(x).flatten(2).transpose(1, 2)
        return self.output(self.encoder(patches + self.position).mean(1))


def check_depth(arch: str, depth: int, width: int) -> None:
    """Raises UserError for a network that does not exist, and names the nearest that do."""
    depths, _ = DEPTHS[arch]
    if depth not in depths:
        near = sorted(sorted(depths, key=lambda other: abs(other - depth))[:2])
        have = "6n + 2, up to 1202" if arch == "resnet" else ", ".join(map(str, depths))
        nearest = f"the nearest are {near[0]} and {near[1]}"
        raise UserError(f"--depth {depth}: {arch} has the depths {have}; {nearest}")
    if arch == "imagenet_resnet" and width != 1:
        raise UserError(f"--width {width}: imagenet_resnet has width 1; resnet and vgg take others")
