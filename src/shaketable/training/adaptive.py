"""The ellipsoid of ASAM: a perturbation of each weight measured in units of that weight (Kwon et al. 2021)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Ball, InputError, Tree
from ..core.ball import Law
from ..core.tree import leaves, map_leaves
from .awp import finite


@dataclass(frozen=True)
class AdaptiveBall:
    """All v with ||T^-1 v||_2 <= radius, T = diag(|w_i| + eta), over all tensors as one vector (Kwon et al. 2021).

    Args:
        radius: rho; .5 for CIFAR-10 and 1 for CIFAR-100 are the authors'.
        eta: added to each |w_i|, >= 0, so that weights near 0 can move, too; .01. With 0, weights that are 0 stay.
        biases: whether biases are scaled, too; False leaves their T = 1, as the authors' code does.

    The constraint set of `asam`; like a `Ball` it goes wherever `perturb` takes one. The origin is a dict of tensors by
    name; a tensor is a bias if its name says so ("bias", "in_proj_bias", "parametrizations.bias.original0"). On a place
    without names everything is scaled.

    The ellipsoid is a ball in the coordinates u = T^-1 v, and what depends on a metric is meant there: `project` shortens
    v along its own direction, which is the nearest feasible point in the norm ||T^-1 .||; `sample` is uniform in the
    ellipsoid's volume (or the image of the law asked for); `size` is ||T^-1 v||, of shape (1,), and infinite where v moves
    what T = 0 holds.

    Difference from the authors' code: they scale what has "weight" in its name and nothing else, which is the same but for
    parameters called neither (a ViT's token and positions, scaled here). A gradient of 0 gives v = 0, with no 1e-16.
    Lengths are computed in float32 or wider. Checked by tests/training/test_adaptive.py.
    """

    radius: float
    eta: float = 0.01
    biases: bool = False

    def __post_init__(self) -> None:
        finite("radius", self.radius, "ASAM's authors take .5 for CIFAR-10.")
        finite("eta", self.eta, "ASAM's authors take .01.")
        if not isinstance(self.biases, bool):
            raise InputError("biases", "True or False", repr(self.biases), "Use False.")

    @property
    def rowwise(self) -> bool:
        """Never: all entries share one norm."""
        return False

    def on(self, origin: Tree) -> "AdaptiveBall":
        """Itself: it fits any origin."""
        return self

    def project(self, delta: Tree, origin: Tree) -> Tree:
        """The nearest feasible delta in the norm ||T^-1 .||: a shorter one of the same direction, 0 where T is 0."""
        scale = self._scale(origin)
        size = _length(map_leaves(_over, delta, scale))
        factor = torch.where(size > self.radius, self.radius / size, 1.0)
        return map_leaves(lambda d, t: torch.where(t > 0, _wide(d) * factor.to(t), 0.0).to(d.dtype), delta, scale)

    def steepest(self, gradient: Tree, origin: Tree, delta: Tree) -> Tree:
        """T^2 g / ||T g||, along which g.v rises most for ||T^-1 v|| = 1; 0 if there is no gradient."""
        scale = self._scale(origin)
        lifted = _level(map_leaves(lambda g, t: _wide(g) * t, gradient, scale))
        length = _length(lifted)
        return map_leaves(
            lambda u, t, g: torch.where(u != 0, t * (u / length.to(u)), 0.0).to(g.dtype), lifted, scale, gradient
        )

    def reach(self, origin: Tree) -> Any:
        """The radius, for each tensor."""
        radius: Any = float(self.radius)
        return map_leaves(lambda _: radius, origin)

    def sample(self, origin: Tree, generator: torch.Generator, law: Law = "ball") -> Tree:
        """T u for a random u of the l2 ball of this radius; entries where T is 0 stay."""
        scale = self._scale(origin)
        ball = Ball("l2", self.radius, per="all", mask=map_leaves(lambda t: t > 0, scale))
        drawn = ball.sample(scale, generator, law)
        return map_leaves(lambda u, t, o: (u * t).to(o.dtype), drawn, scale, origin)

    def size(self, delta: Tree, origin: Tree) -> Tree:
        """||T^-1 v||, in the unit of the radius: shape (1,)."""
        scale = self._scale(origin)
        held = map_leaves(lambda d, t: torch.where((t == 0) & (d != 0), torch.inf, _over(d, t)), delta, scale)
        return _length(held).reshape(1)

    def clip(self, point: Tree) -> Tree:
        """The point itself: there is no box."""
        return point

    def rows(self, index: Tensor) -> "AdaptiveBall":
        """Itself: it has nothing for each example."""
        return self

    def _scale(self, origin: Tree, name: str = "") -> Tree:
        """The diagonal of T, in the origin's form, float32 or wider."""
        if isinstance(origin, dict):
            return {key: self._scale(part, key) for key, part in origin.items()}
        size = _wide(origin.detach()).abs()
        return torch.ones_like(size) if not self.biases and _is_bias(name) else size + self.eta


def _is_bias(name: str) -> bool:
    """Whether a parameter's name says that it is a bias, also behind a parametrization."""
    _, parametrized, rest = name.rpartition("parametrizations.")
    own = rest.split(".")[0] if parametrized else name.rpartition(".")[2]
    return "bias" in own


def _wide(leaf: Tensor) -> Tensor:
    return leaf.to(torch.promote_types(leaf.dtype, torch.float32))


def _over(delta: Tensor, scale: Tensor) -> Tensor:
    """delta / T, and 0 where T is 0."""
    return torch.where(scale > 0, _wide(delta) / scale, 0.0)


def _length(tree: Tree) -> Tensor:
    """The l2 norm of all tensors as one vector, a tensor without dimensions on the first one's device."""
    parts = leaves(tree)
    norms = [torch.linalg.vector_norm(part).to(parts[0]) for part in parts]
    return torch.linalg.vector_norm(torch.stack(norms))


def _level(tree: Tree) -> Tree:
    """A tree over its largest entry, so that squares neither underflow nor overflow; zeros stay."""
    parts = leaves(tree)
    peaks = [part.abs().amax().to(parts[0]) for part in parts if part.numel()]
    peak = torch.stack(peaks).amax() if peaks else parts[0].new_zeros(())
    return map_leaves(lambda part: torch.where(peak.to(part) > 0, part / peak.to(part), 0.0), tree)
