"""The norms of groups of entries: sizes, projections and random draws, on matrices (groups, entries)."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

ORDER: dict[str, float] = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}


def as_groups(leaf: Tensor, per: str) -> Float[Tensor, "g m"]:
    """A tensor as a matrix (groups, entries)."""
    if per == "element":
        return leaf.reshape(-1, 1)
    if per == "tensor" or leaf.dim() == 0:
        return leaf.reshape(1, -1)
    return leaf.unsqueeze(-1).flatten(1)


def broadcast_norm(norm: str, leaf: Tensor, per: str) -> Tensor:
    """The norm (but l0) of each group, in a shape that broadcasts against the tensor; leaves its memory format alone."""
    dims = tuple(range(leaf.dim())) if per == "tensor" else tuple(range(1, leaf.dim()))
    if per == "element" or not dims or not leaf.numel():
        return leaf.abs()
    if norm == "linf":
        return leaf.abs().amax(dims, keepdim=True)
    return torch.linalg.vector_norm(leaf, ORDER[norm], dims, keepdim=True)


def norm(name: str, groups: Float[Tensor, "g m"]) -> Float[Tensor, " g"]:
    """The norm of each row: (groups, entries) -> (groups,)."""
    if groups.shape[1] == 0:
        return groups.new_zeros(len(groups))
    if name == "linf":
        return groups.abs().amax(1)  # several times faster on CPUs
    return torch.linalg.vector_norm(groups, ORDER[name], 1)


def project_l1(groups: Float[Tensor, "g m"], radius: float | Float[Tensor, "g 1"]) -> Float[Tensor, "g m"]:
    """The nearest points of l1 balls, by the sorting algorithm of Duchi et al. 2008.

    Args:
        groups: (g, m).
        radius: a float or (g, 1).
    """
    if not groups.numel():
        return groups
    wide = torch.float32 if groups.device.type == "mps" else torch.float64  # sums of many entries cancel in float32
    ordered = groups.abs().sort(1, descending=True).values.to(wide)
    total = ordered.cumsum(1)
    excess = total - radius
    count = torch.arange(1, groups.shape[1] + 1, device=groups.device, dtype=wide)
    used = (ordered * count > excess).sum(1, keepdim=True).clamp(min=1)
    threshold = (excess.gather(1, used - 1) / used).clamp(min=0)
    shrunk = groups.sign() * (groups.abs().to(wide) - threshold).clamp(min=0).to(groups)
    return torch.where(total[:, -1:] > radius, shrunk, groups)


def project_l0(groups: Float[Tensor, "g m"], radius: float | Float[Tensor, "g 1"]) -> Float[Tensor, "g m"]:
    """Each row's largest entries, as many as the radius says (a float or (g, 1)); the first of equals."""
    order = groups.abs().argsort(dim=1, descending=True, stable=True)
    places = torch.arange(groups.shape[1], device=groups.device).expand_as(order)
    return torch.where(torch.empty_like(order).scatter_(1, order, places) < radius, groups, 0.0)


def peak_sign(groups: Tensor) -> Tensor:
    """The sign of each row's largest entry, the first of equals, at its place; 0 elsewhere."""
    if not groups.numel():
        return groups
    top = groups.abs().argmax(1, keepdim=True)
    return torch.zeros_like(groups).scatter(1, top, groups.gather(1, top).sign())


def _uniform(*size: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(*size, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def draw(
    norm_name: str,
    law: str,
    inside: Float[Tensor, "g m"],
    radius: float | Float[Tensor, "g 1"],
    generator: torch.Generator,
) -> Float[Tensor, "g m"]:
    """Random rows by a law, on the entries where `inside` is 1; float32, or float64 if `inside` is.

    The direction is uniform on the sphere of the norm (the cone measure: a cube scaled to its largest entry, Gaussians to
    their length, exponentials to their sum); the radius is r, r U, or r U^(1/m) for the uniform law of the ball.
    """
    shape, dtype = inside.shape, torch.promote_types(inside.dtype, torch.float32)
    inside, radius = inside.to(dtype), radius.to(dtype) if isinstance(radius, Tensor) else radius
    uniform = partial(_uniform, like=inside, generator=generator)
    if norm_name == "linf" and law == "ball":
        return (2 * uniform(*shape) - 1) * inside * radius
    if norm_name == "l0":
        chosen = project_l0((uniform(*shape) + 1) * inside, radius).sign()
        return chosen * (2 * uniform(*shape) - 1)
    if norm_name == "l2":
        entries = torch.randn(*shape, generator=generator, device=generator.device, dtype=dtype).to(inside.device)
    else:
        entries = 2 * uniform(*shape) - 1
        if norm_name == "l1":  # a draw of exactly -1 must not become infinite
            below_one = 1 - torch.finfo(dtype).eps / 2
            entries = -entries.sign() * torch.log1p(-entries.abs().clamp(max=below_one))
    entries = entries * inside
    size = norm(norm_name, entries)[:, None]
    direction = torch.where(size > 0, entries / size, 0.0)
    if law == "sphere":
        return direction * radius
    fraction = uniform(shape[0], 1)
    if law == "ball":
        fraction = fraction ** (1 / inside.sum(1, keepdim=True).clamp(min=1))
    return direction * fraction * radius
