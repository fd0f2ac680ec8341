"""The architectures that a `ModelSpec` can name, each written from its paper's description.

Every entry is called as `factory(channels=..., classes=..., size=(h, w), **arguments)` with the spec's own arguments
and returns a network without normalisation that maps (n, channels, h, w) to (n, classes) logits. To add one: a file in
this folder and a line in the dict. Your own needs no edit here: a spec's architecture may be `module:name` or
`file.py:name`. Checked by tests/models/test_architectures.py, which runs over the dict.
"""

from collections.abc import Callable

from torch import nn

from .mlp import mlp as mlp
from .preact_resnet import preact_resnet18 as preact_resnet18
from .resnet import resnet18 as resnet18
from .small_cnn import small_cnn as small_cnn
from .vit import vit as vit
from .wide_resnet import wide_resnet as wide_resnet

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "mlp": mlp,
    "preact_resnet18": preact_resnet18,
    "wide_resnet": wide_resnet,
    "resnet18": resnet18,
    "vit": vit,
}
