"""A multilayer perceptron."""

import itertools

from jaxtyping import Float
from torch import Tensor, nn

from .arguments import ACTIVATIONS, choice, probability, whole


class MLP(nn.Module):
    """Linear layers of one width with an activation between; see `mlp`."""

    def __init__(self, widths: list[int], activation: str, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide, next_wide in itertools.pairwise(widths[:-1]):
            layers += [nn.Linear(wide, next_wide), choice("activation", activation, ACTIVATIONS)()]
            layers += [nn.Dropout(dropout)] if dropout else []
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-2], widths[-1])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        return self.head(self.hidden(x.flatten(1)))


def mlp(
    *,
    channels: int,
    classes: int,
    size: tuple[int, int],
    width: int = 256,
    depth: int = 2,
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """Linear layers on the flattened image; no paper.

    Args:
        channels, classes, size: of the images.
        width: of every hidden layer; 256.
        depth: how many hidden layers; 2. With 0 it is a linear model, whose worst case within a ball is known exactly.
        activation: "relu", "silu", "gelu", "mish" or "leaky_relu".
        dropout: after each activation, while training; 0.

    Initialisation: PyTorch's default. Checked by tests/models/test_architectures.py.
    """
    inner = [whole("width", width, 1, 1 << 16)] * whole("depth", depth, 0, 256)
    choice("activation", activation, ACTIVATIONS)
    return MLP([channels * size[0] * size[1], *inner, classes], activation, probability("dropout", dropout))
