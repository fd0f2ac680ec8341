"""A small convolutional network that a CPU trains adversarially in seconds."""

from jaxtyping import Float
from torch import Tensor, nn

from .arguments import ACTIVATIONS, NORMS, choice, probability, whole


class SmallCNN(nn.Module):
    """Two strided 3x3 convolutions and two linear layers; see `small_cnn`."""

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        width: int,
        hidden: int,
        norm: str,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        layer, active = choice("norm", norm, NORMS), choice("activation", activation, ACTIVATIONS)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.norm1 = layer(width)
        self.act1 = active()
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.norm2 = layer(2 * width)
        self.act2 = active()
        cells = -(-size[0] // 4) * -(-size[1] // 4)
        self.fc1 = nn.Linear(2 * width * cells, hidden)
        self.act3 = active()
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        x = self.act1(self.norm1(self.conv1(x)))
        x = self.act2(self.norm2(self.conv2(x)))
        return self.fc2(self.dropout(self.act3(self.fc1(x.flatten(1)))))


def small_cnn(
    *,
    channels: int,
    classes: int,
    size: tuple[int, int],
    width: int = 32,
    hidden: int = 60,
    norm: str = "none",
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """Conv 3x3/2 (width), conv 3x3/2 (2 width), linear (hidden), linear (classes), activations between; no paper.

    Args:
        channels, classes, size: of the images, h and w from 4 on.
        width: channels of the first convolution; 32.
        hidden: 60, which gives 207,646 parameters on 28 x 28 grey images with 10 classes.
        norm: "none" (nothing that depends on the batch or differs between training and evaluation), "batch" or "group"
            (8 groups, fewer where 8 does not divide the width), after each convolution.
        activation: "relu", "silu", "gelu", "mish" or "leaky_relu".
        dropout: before the last layer, while training; 0.

    Striding instead of pooling keeps it cheap: a pass forwards and backwards of 128 images of 28 x 28 takes about 11 ms
    on one thread of a server CPU, and adversarial training on 500 images shows robust overfitting within a minute.
    Initialisation: PyTorch's default. Checked by tests/models/test_architectures.py (count, learning, both norms).
    """
    choice("norm", norm, NORMS)
    whole("size", min(size), 4, 1 << 16)
    choice("activation", activation, ACTIVATIONS)
    wide, inner = whole("width", width, 1, 4096), whole("hidden", hidden, 1, 1 << 16)
    return SmallCNN(channels, classes, size, wide, inner, norm, activation, probability("dropout", dropout))
