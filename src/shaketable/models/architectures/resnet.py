"""The ResNet-18 of the robust-flatness paper."""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from .arguments import ACTIVATIONS, choice, probability, whole
from .groups import residual_groups


class BasicBlock(nn.Module):
    """conv-BatchNorm-activation-conv-BatchNorm, the shortcut added, activation (He et al. 2016a, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = choice("activation", activation, ACTIVATIONS)()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = choice("activation", activation, ACTIVATIONS)()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(out + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem and four groups of `BasicBlock`; see `resnet18`."""

    def __init__(
        self, channels: int, classes: int, width: int, blocks: tuple[int, ...], activation: str, dropout: float
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = choice("activation", activation, ACTIVATIONS)()
        widths = [width * 2**group for group in range(len(blocks))]
        for name, group in residual_groups(partial(BasicBlock, activation=activation), width, widths, blocks):
            self.add_module(name, group)
        self.groups = len(blocks)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        x = self.act1(self.bn1(self.conv1(x)))
        for group in range(self.groups):
            x = self.get_submodule(f"layer{group + 1}")(x)
        return self.fc(self.dropout(x.mean((2, 3))))


def resnet18(
    *,
    channels: int,
    classes: int,
    size: tuple[int, int],
    width: int = 64,
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """ResNet-18 for small images: Stutz, Hein, Schiele, ICCV 2021, section 4; blocks of He et al., CVPR 2016.

    Args:
        channels, classes: of the images; `size` does not matter, the last feature map is averaged.
        width: channels of the stem; 64 is the paper's net (11,173,962 parameters for CIFAR-10).
        activation: "relu"; "silu", "gelu" and "mish" are the flatness paper's variants; "leaky_relu".
        dropout: on the averaged features, while training; 0.

    As is usual for 32 x 32 images, the stem is a 3x3 convolution of stride 1 without max-pooling. The stages are
    `layer1` to `layer4`. Initialisation: PyTorch's default. Checked by tests/models/test_architectures.py (count).
    """
    choice("activation", activation, ACTIVATIONS)
    return ResNet(
        channels, classes, whole("width", width, 1, 4096), (2, 2, 2, 2), activation, probability("dropout", dropout)
    )
