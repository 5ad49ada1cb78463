"""The six networks of the zoo, each from `(N, 1, 28, 28)` pixels in 0..1 to `(N, 10)` logits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CLASSES = 10
SIDE = 28  # pixels


def mlp(hidden: int = 512) -> nn.Module:
    """Three Gemm layers; dropout vanishes in the export."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(SIDE * SIDE, hidden),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(hidden, CLASSES),
    )


def convolution(
    channels: int, filters: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution that keeps the size (but for its stride), and its batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(filters),
    )


class ResidualBlock(nn.Module):
    """`relu(f(x) + shortcut(x))`, the shortcut a 1x1 projection where the shape changes."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        """`stride` is that of the first of the two 3x3 convolutions."""
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels, filters, 3, stride=stride),
            nn.ReLU(),
            convolution(filters, filters, 3),
        )
        same = channels == filters and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else convolution(channels, filters, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(widths: tuple[int, ...] = (32, 64, 128), blocks: int = 2) -> nn.Module:
    """Residual network (He et al. 2015), `blocks` blocks at each width, half the size at each new width."""
    layers: list[nn.Module] = [convolution(1, widths[0], 3), nn.ReLU()]
    for channels, filters in pairwise((widths[0], *widths)):
        stride = 1 if channels == filters else 2
        layers.append(ResidualBlock(channels, filters, stride))
        layers += [ResidualBlock(filters, filters, 1) for _ in range(blocks - 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))


class SqueezeExcite(nn.Module):
    """Channels scaled by a small network of their means (Hu et al. 2017)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        """The bottleneck has `channels / reduction` channels."""
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        scaled: Tensor = x * self.gate(x)
        return scaled


class InvertedResidual(nn.Module):
    """Expand, filter each channel, squeeze-excite, project (Howard et al. 2019)."""

    def __init__(self, channels: int, filters: int, kernel: int, stride: int, expand: int = 4) -> None:
        """Between the two 1x1 convolutions there are `channels * expand` channels."""
        super().__init__()
        inner = channels * expand
        self.residual = channels == filters and stride == 1
        self.body = nn.Sequential(
            convolution(channels, inner, 1),
            nn.Hardswish(),
            convolution(inner, inner, kernel, stride=stride, groups=inner),
            nn.Hardswish(),
            SqueezeExcite(inner),
            convolution(inner, filters, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


def mobilenet() -> nn.Module:
    """Small MobileNetV3: five inverted residuals at 14x14 and 7x7."""
    return nn.Sequential(
        convolution(1, 32, 3, stride=2),
        nn.Hardswish(),
        InvertedResidual(32, 32, 3, 1, expand=2),
        InvertedResidual(32, 64, 3, 2),
        InvertedResidual(64, 64, 5, 1),
        InvertedResidual(64, 96, 5, 1),
        InvertedResidual(96, 96, 5, 1),
        convolution(96, 256, 1),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, 256),
        nn.Hardswish(),
        nn.Linear(256, CLASSES),
    )


class DenseLayer(nn.Module):
    """The input and `growth` new channels computed from it, concatenated."""

    def __init__(self, channels: int, growth: int) -> None:
        """The 1x1 bottleneck has `4 * growth` channels."""
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            convolution(channels, 4 * growth, 1),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([x, self.body(x)], dim=1)


def densenet(growth: int = 32, layers: int = 4, stages: int = 3) -> nn.Module:
    """Densely connected network (Huang et al. 2016), halved in size and width between stages."""
    channels = 2 * growth
    modules: list[nn.Module] = [convolution(1, channels, 3, stride=2), nn.ReLU()]
    for stage in range(stages):
        for _ in range(layers):
            modules.append(DenseLayer(channels, growth))
            channels += growth
        modules += [nn.BatchNorm2d(channels), nn.ReLU()]
        if stage < stages - 1:
            half = channels // 2
            modules += [nn.Conv2d(channels, half, 1, bias=False), nn.AvgPool2d(2)]
            channels = half
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class Attention(nn.Module):
    """Multi-head self-attention, written out so that it exports as MatMul, Transpose and Softmax."""

    def __init__(self, width: int, heads: int) -> None:
        """Each head sees `width / heads` columns."""
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, tokens, width)` to the same shape."""
        _, tokens, width = map(int, x.shape)
        split = (-1, tokens, self.heads, width // self.heads)
        query, key, value = (
            layer(x).reshape(split).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) * (width // self.heads) ** -0.5
        mixed = torch.softmax(scores, dim=-1) @ value
        projected: Tensor = self.out(mixed.transpose(1, 2).reshape(-1, tokens, width))
        return projected


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, both residual, normalised first."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """`hidden` is the width inside the perceptron."""
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = x + self.attention(x)
        mapped: Tensor = x + self.perceptron(x)
        return mapped


class VisionTransformer(nn.Module):
    """Transformer over square patches (Dosovitskiy et al. 2020), the mean token classified."""

    def __init__(self, width: int = 128, heads: int = 4, depth: int = 3, patch: int = 4) -> None:
        """`(28 / patch) ** 2` tokens of `width` numbers, `depth` blocks."""
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.position = nn.Parameter(torch.randn(1, (SIDE // patch) ** 2, width) / math.sqrt(width))
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, heads, 4 * width) for _ in range(depth)),
            nn.LayerNorm(width),
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.blocks(tokens).mean(dim=1))
        return logits


class RowReader(nn.Module):
    """An LSTM that reads the 28 rows from the top; its last state is classified."""

    def __init__(self, hidden: int = 192, layers: int = 2) -> None:
        """`layers` LSTMs of `hidden` units, one on top of the other."""
        super().__init__()
        self.lstm = nn.LSTM(SIDE, hidden, layers, dropout=0.2)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        rows = x.squeeze(1).transpose(0, 1)
        states, _ = self.lstm(rows)
        logits: Tensor = self.head(states[-1])
        return logits


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "fashion_mlp": mlp,
    "fashion_resnet": resnet,
    "fashion_mobilenet": mobilenet,
    "fashion_densenet": densenet,
    "fashion_vit": VisionTransformer,
    "fashion_lstm": RowReader,
}
