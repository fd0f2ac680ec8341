"""A small vision transformer."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shaketable.core.errors import ModelError

from .arguments import ACTIVATIONS, choice, multiple, probability, whole


class Attention(nn.Module):
    """Multi-head self-attention, written out: softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, equation 1).

    The fused kernels have no second derivative on every device, and curvature needs it.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, d))


class Block(nn.Module):
    """LayerNorm-attention and LayerNorm-MLP, each with its residual (pre-norm)."""

    def __init__(self, dim: int, heads: int, ratio: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.drop1 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        active = choice("activation", activation, ACTIVATIONS)()
        self.mlp = nn.Sequential(nn.Linear(dim, ratio * dim), active, nn.Linear(ratio * dim, dim))
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        x = x + self.drop1(self.attention(self.norm1(x)))
        return x + self.drop2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """Patches, a class token, learned positions, pre-norm blocks; see `vit`."""

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        ratio: int,
        dropout: float,
        activation: str,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        count = (size[0] // patch) * (size[1] // patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, count + 1, dim))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(dim, heads, ratio, dropout, activation) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        self._initialise()

    def _initialise(self) -> None:
        if self.head.weight.is_meta:  # shapes only: there is nothing to fill
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.trunc_normal_(self.token, std=0.02)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(self.drop(x)))[:, 0])


def vit(
    *,
    channels: int,
    classes: int,
    size: tuple[int, int],
    patch: int = 4,
    dim: int = 96,
    depth: int = 6,
    heads: int = 3,
    mlp_ratio: int = 4,
    dropout: float = 0.0,
    activation: str = "gelu",
) -> nn.Module:
    """A vision transformer: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, equations 1 to 4.

    Args:
        channels, classes: of the images.
        size: (h, w), each a multiple of the patch.
        patch: side of a patch; 4, as is usual for 28 x 28 and 32 x 32 images.
        dim: width of a token, a multiple of heads; 96.
        depth: blocks; 6. With heads 3 the defaults have 678,730 parameters on 28 x 28 grey images with 10 classes.
        heads: attention heads; 3.
        mlp_ratio: width of a block's MLP over dim; 4, as in the paper.
        dropout: after the positions, the attention and the MLP, while training; 0.
        activation: of the MLPs: "gelu" (the paper's), "relu", "silu", "mish" or "leaky_relu".

    LayerNorm only: nothing depends on the batch. Initialisation: normal with standard deviation .02 for linear layers,
    positions and token; PyTorch's default for the patches. Checked by tests/models/test_architectures.py
    (count, PyTorch's own attention as reference, second derivatives).
    """
    patch = whole("patch", patch, 1, 1024)
    if size[0] % patch or size[1] % patch:
        raise ModelError("patch", f"a divisor of the size {size[0]} x {size[1]}", str(patch), "Change patch or size.")
    heads = whole("heads", heads, 1, 256)
    width, blocks = multiple("dim", dim, heads, 1 << 16), whole("depth", depth, 1, 256)
    ratio = whole("mlp_ratio", mlp_ratio, 1, 64)
    choice("activation", activation, ACTIVATIONS)
    dropout = probability("dropout", dropout)
    return ViT(channels, classes, size, patch, width, blocks, heads, ratio, dropout, activation)
