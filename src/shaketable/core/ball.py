"""Constraint sets: where a perturbation may lie.

One `Ball` says it for every place: an Linf or L2 attack on inputs (``box=(0, 1)``), a region of an image (``mask``),
AWP's gamma (l2, per tensor, relative), SAM (l2, per all), ASAM (relative, per element), the flatness xi-ball, a weight
backdoor's Linf eps, latent and activation balls. Any object with the methods of a `Constraint` serves in its stead.
"""

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from . import norms
from .errors import InputError
from .tree import Tree, leaves, map_leaves, rebuild

Norm = Literal["linf", "l2", "l1", "l0"]
Per = Literal["example", "element", "filter", "tensor", "all"]
Law = Literal["ball", "sphere", "radius"]


@dataclass(frozen=True)
class Ball:
    """All perturbations of a norm of at most a radius, inside a box, on a mask.

    Args:
        norm: "linf", "l2", "l1", or "l0" (how many entries differ).
        radius: >= 0, in the unit of the place (images: of [0, 1]); a tensor of shape (n,) gives each example its own.
            For l0 a whole number of entries.
        per: which entries share one norm: those of an "example" (the first dimension counts examples), an "element", a
            "filter" (the first dimension counts filters), a "tensor", or "all" tensors of the place.
        relative: the radius is a fraction of the norm of the origin in the same group; a group of norm 0 stays as it is.
        box: (low, high) of the perturbed point, for instance (0, 1).
        mask: nonzero where the point may change; the origin's shape, or one that broadcasts to it (for a dict of
            tensors, a dict).

    The point origin + delta is exactly inside the box, and inside the ball to one unit in the last place. Projecting takes
    the norm first and the box second: the box holds the origin, so clipping only shortens; for linf this is the
    Euclidean projection, for l2, l1 and l0 a feasible point near it (as in every common attack library).

    Checked by tests/core/test_ball.py: projections feasible and idempotent, 10^4 drawn cases inside ball, box and mask;
    test_steepest.py: `steepest` above random feasible directions; test_sample.py: the laws of `sample`.
    """

    norm: Norm
    radius: float | Tensor
    per: Per = "example"
    relative: bool = False
    box: tuple[float, float] | None = None
    mask: Tree | None = None

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise InputError("norm", f"one of {', '.join(get_args(Norm))}", repr(self.norm), "Choose one of them.")
        if self.per not in get_args(Per):
            raise InputError("per", f"one of {', '.join(get_args(Per))}", repr(self.per), "Choose one of them.")
        if not isinstance(self.radius, Real | Tensor):
            found = type(self.radius).__name__
            raise InputError("radius", "a number, or a tensor of one an example", found, "Use torch.as_tensor first.")
        radius = torch.as_tensor(self.radius)
        if not bool(((radius >= 0) & torch.isfinite(radius)).all()):
            raise InputError("radius", "a finite number >= 0", str(self.radius), "Give the size of the perturbation.")
        if radius.dim() > 1 or (radius.dim() == 1 and self.per != "example"):
            shape = tuple(radius.shape)
            raise InputError("radius", "one number, or (n,) with per='example'", f"shape {shape}", "Give one number.")
        if self.norm == "l0" and (self.relative or bool((radius != radius.round()).any())):
            raise InputError("radius", "a whole number of entries for l0", str(self.radius), "Count entries.")
        if self.box is not None and not self.box[0] < self.box[1]:
            raise InputError("box", "(low, high) with low < high", str(self.box), "Give (0, 1) for images.")

    @property
    def rowwise(self) -> bool:
        """Whether each example is constrained by itself."""
        return self.per == "example"

    def on(self, origin: Tree) -> "Ball":
        """The same ball with its mask and radii shaped for an origin, which must lie in the box."""
        for leaf in leaves(origin):
            if self.rowwise and leaf.dim() == 0:
                raise InputError("origin", "a batch, since the ball is per example", "a number", "Add a dimension.")
            if isinstance(self.radius, Tensor) and self.radius.dim() == 1 and len(self.radius) != len(leaf):
                n, m = len(leaf), len(self.radius)
                raise InputError("radius", f"one for each of the {n} examples", f"{m}", "Give as many as examples.")
            if self.box is not None and leaf.numel():
                low, high = (float(end) for end in torch.aminmax(leaf.detach()))
                if low < self.box[0] or high > self.box[1]:
                    remedy = (
                        "Scale the inputs to the box (images: divide 0..255 by 255; leave normalisation to the model)."
                    )
                    raise InputError("origin", f"values in {list(self.box)}", f"[{low:g}, {high:g}]", remedy)
        mask = None if self.mask is None else _shaped_mask(origin, self.mask)
        radius = self.radius
        if isinstance(radius, Tensor):  # once, so that no step waits for a copy between devices
            radius = radius.to(leaves(origin)[0].device) if radius.dim() else float(radius)
        return replace(self, radius=radius, mask=mask)

    def project(self, delta: Tree, origin: Tree) -> Tree:
        """A feasible delta: masked, then within the norm, then within the box. Keeps memory formats."""
        delta = self._masked(delta)
        if self.norm == "linf":
            delta = map_leaves(
                lambda d, r: d.clamp(-r, r) if isinstance(r, float) else d.clamp(min=-r, max=r),
                delta,
                self._radii(origin),
            )
        elif self.norm == "l2":
            size, radii = self._norm(delta), self._radii(origin)
            delta = map_leaves(lambda d, s, r: d * torch.where(s > r, r / s, 1.0), delta, size, radii)
        else:
            shrink = norms.project_l1 if self.norm == "l1" else norms.project_l0
            groups = [shrink(g, r) for g, r in zip(self._groups(delta), self._group_radii(origin), strict=True)]
            delta = self._ungroup(groups, delta)
        if self.box is None:
            return delta
        return map_leaves(lambda d, o: (o + d).clamp(*self.box) - o, delta, origin)  # pyright: ignore

    def steepest(self, gradient: Tree, origin: Tree, delta: Tree) -> Tree:
        """The unit direction of steepest ascent: sign (linf), g/||g|| (l2), one entry (l1), radius many entries (l0).

        A group without gradient gets 0. For l1 and l0, entries that the box already holds are passed over.
        """
        gradient = self._masked(gradient)
        if self.norm == "linf":
            return map_leaves(torch.sign, gradient)
        if self.norm == "l2":
            scaled = map_leaves(_scaled, gradient, self._norm(gradient), self._norm(gradient, "linf"))
            return map_leaves(lambda g, n: g.div_(torch.where(n > 0, n, 1.0)), scaled, self._norm(scaled))
        if self.box is not None:
            low, high = self.box
            free = map_leaves(
                lambda g, o, d: torch.where(((g > 0) & (o + d >= high)) | ((g < 0) & (o + d <= low)), 0.0, g),
                gradient, origin, delta,
            )  # fmt: skip
            gradient = free
        groups = self._groups(gradient)
        if self.norm == "l1":
            tops = [norms.peak_sign(g) for g in groups]
        else:
            tops = [norms.project_l0(g, k).sign() for g, k in zip(groups, self._group_radii(origin), strict=True)]
        return self._ungroup(tops, gradient)

    def reach(self, origin: Tree) -> Any:
        """How far one radius goes: the radius, times the origin's norm if relative; the width of the box for l0."""
        if self.norm == "l0":
            return map_leaves(lambda _: self._width(), origin)  # pyright: ignore
        return self._radii(origin)

    def sample(self, origin: Tree, generator: torch.Generator, law: Law = "ball") -> Tree:
        """A random delta: uniform in the ball, on its sphere, or a uniform radius along a uniform direction.

        In high dimension the laws differ much: a point of the ball has nearly the full radius, one of law "radius" half
        of it on average. Drawn on the generator's device and moved. The box is applied last.
        """
        radii = self._group_radii(origin)
        inside = [torch.ones_like(g) for g in self._groups(origin)]
        if self.mask is not None:
            inside = self._groups(map_leaves(lambda o, m: m.expand_as(o).to(o), origin, self.mask))
        drawn = [norms.draw(self.norm, law, m, r, generator) for m, r in zip(inside, radii, strict=True)]
        if self.norm == "l0":
            drawn = [self._width() * entries for entries in drawn]
        delta = self._ungroup(drawn, origin)
        return delta if self.box is None else self.project(delta, origin)

    def size(self, delta: Tree, origin: Tree) -> Tree:
        """The norm of each group, in the unit of the radius: shape (groups,) a tensor; per="all" gives (1,)."""
        sizes = [norms.norm(self.norm, g) for g in self._groups(delta)]
        if self.relative:
            lengths = [norms.norm(self.norm, g) for g in self._groups(origin)]
            sizes = [torch.where(s > 0, s / n, 0.0) for s, n in zip(sizes, lengths, strict=True)]
        return sizes[0] if self.per == "all" else rebuild(delta, sizes)

    def clip(self, point: Tree) -> Tree:
        """The point inside the box, which the rounding of origin + delta may leave by one unit in the last place."""
        return point if self.box is None else map_leaves(lambda p: p.clamp(*self.box), point)  # pyright: ignore

    def rows(self, index: Tensor) -> "Ball":
        """The ball of some of the examples: their radii and their masks."""
        radius, mask = self.radius, self.mask
        if mask is None and not (isinstance(radius, Tensor) and radius.dim() == 1):
            return self
        if isinstance(radius, Tensor) and radius.dim() == 1:
            radius = radius[index.to(radius.device)]
        if mask is not None:
            mask = map_leaves(lambda m: m if m.shape[0] == 1 else m[index.to(m.device)], mask)
        return replace(self, radius=radius, mask=mask)

    def _masked(self, tree: Tree) -> Tree:
        return tree if self.mask is None else map_leaves(lambda t, m: torch.where(m, t, 0.0), tree, self.mask)

    def _norm(self, tree: Tree, norm: Norm | None = None) -> Tree:
        """Each leaf's group norms, in a shape that broadcasts against the leaf."""
        norm = norm or self.norm
        if self.per != "all":
            return map_leaves(lambda t: norms.broadcast_norm(norm, t, self.per), tree)
        total = norms.norm(norm, torch.stack([norms.norm(norm, t.reshape(1, -1))[0] for t in leaves(tree)])[None])
        return map_leaves(lambda t: total[0].to(t), tree)

    def _radii(self, origin: Tree) -> Any:
        """The radius for each leaf: a float, or a tensor that broadcasts against it."""
        radius: Any = map_leaves(self._radius, origin)
        return map_leaves(lambda n, r: n * r, self._norm(origin), radius) if self.relative else radius

    def _radius(self, like: Tensor) -> Any:
        """The radius as it was given: a float, or each example's in a shape that broadcasts against the tensor."""
        if isinstance(self.radius, Tensor) and self.radius.dim() == 1:
            return self.radius.to(like).reshape(-1, *[1] * (like.dim() - 1))
        return float(self.radius)

    def _width(self) -> float:
        """The width of the box, where it has one; 1 else."""
        width = 1.0 if self.box is None else float(self.box[1] - self.box[0])
        return width if math.isfinite(width) else 1.0

    def _groups(self, tree: Tree) -> list[Tensor]:
        """The entries as matrices (groups, entries), one a leaf; one for all leaves with per="all"."""
        if self.per == "all":
            return [torch.cat([t.reshape(1, -1) for t in leaves(tree)], 1)]
        return [norms.as_groups(t, self.per) for t in leaves(tree)]

    def _ungroup(self, groups: list[Tensor], like: Tree) -> Tree:
        parts = leaves(like)
        if self.per == "all":
            groups = list(groups[0][0].split([t.numel() for t in parts]))
        return rebuild(like, [g.reshape(t.shape).to(t.dtype) for g, t in zip(groups, parts, strict=True)])

    def _group_radii(self, origin: Tree) -> list[Any]:
        """The radius of each matrix of `_groups`: a float, or (groups, 1)."""
        groups = self._groups(origin)
        radii = [self._radius(g) for g in groups]
        if self.relative:
            return [norms.norm(self.norm, g)[:, None] * r for g, r in zip(groups, radii, strict=True)]
        return radii


def _scaled(gradient: Tensor, size: Tensor, peak: Tensor) -> Tensor:
    """The gradient, by its largest entry where its length underflows or overflows; a new tensor."""
    plain = (size > 1e-15) & torch.isfinite(size)
    return gradient / torch.where(plain | (peak == 0), 1.0, peak)


def _shaped_mask(origin: Tree, mask: Any) -> Tree:
    if isinstance(origin, dict) or isinstance(mask, dict):
        names = sorted(origin) if isinstance(origin, dict) else None
        if not isinstance(origin, dict) or not isinstance(mask, dict) or set(mask) != set(origin):
            wanted = "one tensor" if names is None else f"a dict with the names {names[:5]}"
            raise InputError("mask", wanted, type(mask).__name__, "Give the mask the origin's form.")
        return {name: _shaped_mask(part, mask[name]) for name, part in origin.items()}
    mask = torch.as_tensor(mask, device=origin.device)
    try:
        mask.expand(origin.shape)
    except RuntimeError:
        wanted, found = f"a shape that broadcasts to {tuple(origin.shape)}", f"shape {tuple(mask.shape)}"
        raise InputError("mask", wanted, found, "Give the region's mask.") from None
    return (mask != 0).reshape(*[1] * (origin.dim() - mask.dim()), *mask.shape)
