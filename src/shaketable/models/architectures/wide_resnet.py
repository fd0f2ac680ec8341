"""Wide residual networks."""

import math
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from shaketable.core.errors import ModelError

from .arguments import ACTIVATIONS, choice, probability, whole
from .groups import residual_groups


class WideBlock(nn.Module):
    """BatchNorm-activation-conv, dropout between the two convolutions (Zagoruyko and Komodakis, figure 1d)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = choice("activation", activation, ACTIVATIONS)()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = choice("activation", activation, ACTIVATIONS)()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        active = self.act1(self.bn1(x))
        out = self.conv2(self.dropout(self.act2(self.bn2(self.conv1(active)))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels and three groups of `WideBlock`; see `wide_resnet`."""

    def __init__(
        self, channels: int, classes: int, blocks: int, widths: tuple[int, ...], activation: str, dropout: float
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        # a shortcut is projected where the width changes; with widen = 1 the first group keeps its 16 channels
        block = partial(WideBlock, activation=activation, dropout=dropout)
        for name, group in residual_groups(block, 16, widths, [blocks] * len(widths)):
            self.add_module(name, group)
        self.groups = len(widths)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.act = choice("activation", activation, ACTIVATIONS)()
        self.fc = nn.Linear(widths[-1], classes)
        self._initialise()

    def _initialise(self) -> None:
        if self.fc.weight.is_meta:  # shapes only: there is nothing to fill
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        x = self.conv1(x)
        for group in range(self.groups):
            x = self.get_submodule(f"layer{group + 1}")(x)
        return self.fc(self.act(self.bn(x)).mean((2, 3)))


def wide_resnet(
    *,
    channels: int,
    classes: int,
    size: tuple[int, int],
    depth: int = 28,
    widen: int = 10,
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """WRN-depth-widen: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016.

    Args:
        channels, classes: of the images; `size` does not matter, the last feature map is averaged.
        depth: 6 k + 4; 28. The AWP paper uses WRN-34-10 (46,160,474 parameters for CIFAR-10; WRN-28-10: 36,479,194).
        widen: the groups have 16, 32 and 64 times this many channels; 10.
        activation: "relu", "silu", "gelu", "mish" or "leaky_relu".
        dropout: between a block's convolutions, while training; 0.

    Initialisation: He et al.'s normal law over the fan-out. Checked by tests/models/test_architectures.py (counts).
    """
    if (whole("depth", depth, 10, 1000) - 4) % 6:
        raise ModelError("depth", "6 k + 4, such as 16, 22, 28, 34 or 40", str(depth), "Change the depth.")
    wide = whole("widen", widen, 1, 256)
    choice("activation", activation, ACTIVATIONS)
    dropout = probability("dropout", dropout)
    return WideResNet(channels, classes, (depth - 4) // 6, (16 * wide, 32 * wide, 64 * wide), activation, dropout)
