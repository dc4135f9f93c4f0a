"""Networks beside the CIFAR ResNet: VGG, and torchvision's ResNets."""

from __future__ import annotations

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
