"""The PreAct ResNet-18 of the AWP paper."""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from .arguments import ACTIVATIONS, choice, probability, whole
from .groups import residual_groups


class PreActBlock(nn.Module):
    """BatchNorm-activation-conv twice, dropout before the second; the shortcut is projected from the activated input.

    He et al. 2016b, figure 4e; the dropout is where wide residual networks have theirs.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = choice("activation", activation, ACTIVATIONS)()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = choice("activation", activation, ACTIVATIONS)()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        active = self.act1(self.bn1(x))
        out = self.conv2(self.dropout(self.act2(self.bn2(self.conv1(active)))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class PreActResNet(nn.Module):
    """A 3x3 stem, four groups of `PreActBlock`, a last BatchNorm and activation; see `preact_resnet18`."""

    def __init__(
        self, channels: int, classes: int, width: int, blocks: tuple[int, ...], activation: str, dropout: float
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        widths = [width * 2**group for group in range(len(blocks))]
        block = partial(PreActBlock, activation=activation, dropout=dropout)
        for name, group in residual_groups(block, width, widths, blocks):
            self.add_module(name, group)
        self.groups = len(blocks)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.act = choice("activation", activation, ACTIVATIONS)()
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        x = self.conv1(x)
        for group in range(self.groups):
            x = self.get_submodule(f"layer{group + 1}")(x)
        return self.fc(self.act(self.bn(x)).mean((2, 3)))


def preact_resnet18(
    *,
    channels: int,
    classes: int,
    size: tuple[int, int],
    width: int = 64,
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """PreAct ResNet-18: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016; the net of AWP (2020).

    Args:
        channels, classes: of the images; `size` does not matter, the last feature map is averaged.
        width: channels of the stem; 64 is the paper's net (11,172,170 parameters for CIFAR-10).
        activation: "relu", "silu", "gelu", "mish" or "leaky_relu".
        dropout: between a block's convolutions, while training, as in wide residual networks; 0.

    As in He et al. a BatchNorm and an activation follow the last block. Some public versions leave them out: these have
    16 x width parameters fewer (11,171,146 for CIFAR-10). Initialisation: PyTorch's default. Checked by
    tests/models/test_architectures.py (count).
    """
    choice("activation", activation, ACTIVATIONS)
    return PreActResNet(
        channels, classes, whole("width", width, 1, 4096), (2, 2, 2, 2), activation, probability("dropout", dropout)
    )
