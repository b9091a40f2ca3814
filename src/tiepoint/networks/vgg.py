"""The convolutional pyramid of VGG19 with batch normalisation (Simonyan and Zisserman 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

CONVOLUTIONS = (2, 2, 4, 4)  # in each stage, before its pooling; the fifth stage of VGG19 is left out


class VggPyramid(nn.Module):
    """Images (B, 3, H, W) to maps at strides 1, 2, 4 and 8, each taken before its stage's pooling.

    widths: channels of the four stages; VGG19's are (64, 128, 256, 512). Tensor names are `layers.<n>`, n as
    in torchvision's vgg19_bn.features.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        layers: list[nn.Module] = []
        channels = 3
        for width, count in zip(widths, CONVOLUTIONS, strict=True):
            for _ in range(count):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """{stride: (B, widths, H / stride, W / stride)}, sides rounded down."""
        maps: dict[int, Tensor] = {}
        stride, x = 1, images
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                maps[stride] = x
                stride *= 2
            x = layer(x)
        maps[stride] = x
        return maps
