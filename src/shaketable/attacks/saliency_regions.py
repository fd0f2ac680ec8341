"""Regions that the model itself points at: where its gradient is largest, or where a trial hurts it most."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.ball import Ball
from ..core.errors import GradientError, InputError
from ..core.losses import ce, margin
from ..core.perturb import search
from ..core.record import look_at
from .attack import Attack
from .masks import as_mask, plane, share
from .shapes import grid

BATCH = 100


def by_gradient(
    model: Any,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    area: float,
    *,
    cells: tuple[int, int] | None = None,
) -> Bool[Tensor, "n ..."]:
    """For each image, the pixels by which the model's margin changes fastest.

    Args:
        model: from inputs to logits; left as it is.
        x, y: inputs and labels.
        area: the share of pixels, of each image; exactly the nearest whole number of pixels.
        cells: choose whole cells of a grid of (rows, columns) instead, by their mean; then the nearest that cells give.

    What is ranked is the gradient's absolute value, summed over channels. It is the gradient of the margin (the largest
    other logit minus the true one): that of the cross-entropy has the same zeros at best and, where the model is certain,
    vanishes in float32. Of equals, the first.

    Cost: one forward and one backward pass an image.
    Raises:
        GradientError: no image of a batch has a gradient.

    Checked by tests/attacks/test_regions.py: a linear model, whose gradient is its weights.
    """
    wanted, parts = share(area), []
    for rows in torch.arange(len(x)).split(BATCH):
        point, labels = x[rows], y[rows]
        gradient: Tensor = _look(margin(model, labels), point, gradient=True).gradient
        if not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
            raise GradientError(
                "model", "a gradient by its inputs", "zero or non-finite gradients",
                "Choose the region by_trial, which needs none.",
            )  # fmt: skip
        parts.append(_by_pixel(gradient.abs()))
    height, width = plane(x.shape)
    saliency = torch.cat(parts) if parts else x.new_zeros(0, height, width)
    if cells is None:
        order = saliency.flatten(1).argsort(dim=1, descending=True, stable=True)
        count = max(1, round(wanted * height * width))
        inside = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :count], True)
        return as_mask(inside.reshape(-1, height, width), x.shape)
    masks = _cells(x, cells)
    sums = saliency.double().flatten(1) @ masks.double().mT
    return _chosen(sums / masks.sum(1), masks, wanted, x)


def by_trial(
    model: Any,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    area: float,
    *,
    cells: tuple[int, int] = (8, 8),
    attack: Attack | None = None,
    eps: float = 1.0,
    box: tuple[float, float] | None = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "n ..."]:
    """For each image, the grid cells in which a trial raises the cross-entropy most.

    Args:
        model, x, y, area, cells: as in `by_gradient`.
        attack: the trial is this attack in the cell alone; None: the cell is covered by the image's mean colour
            (occlusion, Zeiler & Fergus 2014).
        eps, box: the attack's linf ball.
        generator: of the attack's draws.

    Cells are ranked by the rise of the loss, and as many are kept as give the area nearest to what was asked, one at least.

    Cost: rows x columns + 1 forward passes an image, and rows x columns attacks if there is one.
    Checked by tests/attacks/test_regions.py: a model that looks at known cells alone.
    """
    wanted, masks = share(area), _cells(x, cells)
    if attack is not None and generator is None:
        raise InputError(
            "generator", "a torch.Generator, since the attack may draw", "None", "Give st.generator(seed)."
        )
    mean = x.mean((2, 3), keepdim=True) if x.dim() == 4 else x.mean(1, keepdim=True)
    rises = x.new_zeros(len(x), len(masks), dtype=torch.float64)
    for rows in torch.arange(len(x)).split(BATCH):
        part, labels = x[rows], y[rows]
        before = _loss(model, part, labels)
        for k, cell in enumerate(masks):
            mask = as_mask(cell.reshape(plane(x.shape)), x.shape).to(x.device)
            if attack is None:
                point = torch.where(mask, mean[rows], part)
            else:
                assert generator is not None
                point = _attacked(attack, model, part, labels, Ball("linf", eps, box=box, mask=mask), generator)
            rises[rows, k] = (
                (_loss(model, point, labels) - before).double().nan_to_num(torch.inf, torch.inf, -torch.inf)
            )
    return _chosen(rises, masks, wanted, x)


def _attacked(attack: Attack, model: Any, x: Tensor, y: Tensor, ball: Ball, drawn: torch.Generator) -> Tensor:
    """The attacked inputs; the inputs themselves where the model has no gradient in the cell."""
    try:
        return attack(model, x, y, ball, generator=drawn).point
    except GradientError:
        return x


def _loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy of each input; one forward pass."""
    return _look(ce(model, y), x, gradient=False).value


def _look(objective: Any, x: Tensor, *, gradient: bool) -> Any:
    """An objective at the inputs, with the checks and the care that `perturb` takes."""

    def once(objective: Any, origin: Any, within: Any, start: Any) -> Any:
        return look_at(objective, origin, None, len(x), gradient=gradient)

    return search(objective, x, Ball("linf", 1.0), by=once)


def _by_pixel(size: Tensor) -> Tensor:
    return size.sum(1) if size.dim() == 4 else size[:, None]


def _cells(x: Tensor, cells: tuple[int, int]) -> Bool[Tensor, "cells pixels"]:
    if not isinstance(cells, tuple) or len(cells) != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError("cells", "(rows, columns)", repr(cells), "Give (8, 8), for example.")
    return grid(x.shape, *cells).flatten(1).to(x.device)


def _chosen(scores: Tensor, masks: Tensor, wanted: float, x: Tensor) -> Tensor:
    """The cells of highest score whose pixels together are nearest to the wanted share; of each image."""
    height, width = plane(x.shape)
    order = scores.argsort(dim=1, descending=True, stable=True)
    sizes = masks.sum(1)[order].cumsum(1)
    last = (sizes - wanted * height * width).abs().argmin(1, keepdim=True) if len(x) else sizes[:, :1]
    kept = torch.arange(len(masks), device=x.device) <= last
    chosen = torch.zeros_like(kept).scatter_(1, order, kept)
    inside = (chosen.double() @ masks.double()) > 0
    return as_mask(inside.reshape(-1, height, width), x.shape)
