"""The path of an attack on one model, and when each of other models is first fooled along it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import GradientError, InputError
from ..core.places import at
from ..core.record import Calls, look_at
from .events import Sighting, part_of


def schedule(steps: int, every: bool) -> list[int]:
    """The iterates at which watched models are asked: each; or gaps that grow by a quarter, 16 at most: 15 of 50, 27 of 250."""
    if every:
        return list(range(steps + 1))
    checks, k = [0], 0
    while k < steps:
        k = min(steps, max(k + 1, min(math.ceil(1.25 * k), k + 16)))
        checks.append(k)
    return checks


class Path:
    """One batch's path: x_{k+1} = clip(x_k - step sign(gradient of the objective's descent) mask), in [0, 1].

    The iterates between two checks are not stored: the last checked point and the signs of the steps since (one byte an
    entry) give them again, bit for bit.
    """

    def __init__(
        self, objective: Any, watched: Mapping[str, Any], x: Tensor, y: Tensor, mask: Tensor | None, *,
        step: float, checks: list[int], drop: bool, keep: bool,
    ) -> None:  # fmt: skip
        self.objective, self.x, self.y, self.mask, self.step = objective, x, y, mask, step
        self.functions = {name: at(model) for name, model in watched.items()}
        self.checks, self.drop, self.calls, self.watching = checks, drop, Calls(), Calls()
        self.left, self.reached = Sighting(x, mask, keep), Sighting(x, mask, keep)
        self.seen = {name: Sighting(x, mask, keep) for name in watched}
        self.margins: dict[str, Tensor] = {}
        self.fixed = {name: torch.zeros(len(x), dtype=torch.bool, device=x.device) for name in watched}
        self.aimed = {name: fixed.clone() for name, fixed in self.fixed.items()}
        self.last = x.clone()
        self.margin = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        self.vanishing = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.saturated = self.vanishing.clone()

    @property
    def target(self) -> Int[Tensor, " n"]:
        """The classes that were led to."""
        return self.objective.target() if self.objective.classes else self.y[:0]

    def run(self) -> None:
        """Walk to the last check."""
        rows = torch.arange(len(self.x), device=self.x.device)
        point, anchor, signs, since = self.x, self.x, [], 0
        for k in range(self.checks[-1] + 1):
            end = k == self.checks[-1]
            look = look_at(self.objective, point, rows, len(rows), gradient=not end)
            self.calls += Calls(len(rows), 0 if end else len(rows))
            self._source(rows, k, point, look.value)
            if k in self.checks:
                self._check(rows, k, point, anchor, signs, since)
                anchor, signs, since = point, [], k
                if self.drop and not end and self.functions:
                    on = torch.stack([sighting.open(rows) for sighting in self.seen.values()]).any(0)
                    if not bool(on.all()):
                        self._leave(rows[~on], point[~on])
                        rows, point, anchor = rows[on], point[on], anchor[on]
                        look = type(look)(look.value[on], None, look.gradient[on])  # pyright: ignore
                        if not len(rows):
                            return
            if not end:
                signs.append(self._signs(look.gradient, rows, first=k == 0))
                point = self._moved(point, signs[-1])
        self._leave(rows, point)

    def _source(self, rows: Tensor, k: int, point: Tensor, value: Tensor) -> None:
        """What the source says to an iterate."""
        logits = self.objective.logits
        given, y = logits.argmax(1), self.y[rows]
        self.left.note(rows, ~torch.isfinite(logits).all(1) | (given != y), k, point)
        self.reached.note(rows, given == self.objective.target(rows), k, point)
        self.saturated[rows] |= value == 0
        if k == 0:
            self.margin = clean_margin(logits, y)

    def _signs(self, gradient: Any, rows: Tensor, *, first: bool) -> Tensor:
        if self.mask is not None:
            gradient = torch.where(part_of(self.mask, rows), gradient, 0.0)
        if first:
            peaks = gradient.abs().reshape(len(gradient), -1).amax(1)
            self.vanishing[rows] = ~(peaks >= 1e-12)
            if not bool((peaks > 0).any()):
                raise GradientError(
                    "model", "a gradient by the region's pixels", "zero or non-finite gradients for every image",
                    "Look for a detached, quantised or saturated output, or a region that the model does not see.",
                )  # fmt: skip
        return gradient.nan_to_num(0.0, 0.0, 0.0).sign().to(torch.int8)

    def _moved(self, point: Tensor, signs: Tensor) -> Tensor:
        return (point + self.step * signs.to(point)).clamp(0, 1)

    def _leave(self, rows: Tensor, point: Tensor) -> None:
        self.last[rows] = point
        for sighting in (self.left, self.reached, *self.seen.values()):
            sighting.done(rows, point)

    def _check(self, rows: Tensor, k: int, point: Tensor, anchor: Tensor, signs: list[Tensor], since: int) -> None:
        """Ask every watched model about an iterate; of what it fooled, look for the first since the last check."""
        last = k == self.checks[-1]
        for name, sighting in self.seen.items():
            ask = torch.ones_like(rows, dtype=torch.bool) if last or k == 0 else sighting.open(rows)
            if not bool(ask.any()):
                continue
            wrong = torch.zeros_like(ask)
            given = self._given(name, point[ask], rows[ask], clean=k == 0)
            wrong[ask] = given != self.y[rows[ask]]
            if last:
                self.fixed[name][rows[ask]] = wrong[ask]
                self.aimed[name][rows[ask]] = given == self.objective.target(rows[ask])
            fresh = wrong & sighting.open(rows)
            self._back_fill(name, fresh, rows, anchor, signs, since)
            sighting.note(rows, wrong, k, point)

    def _back_fill(
        self, name: str, fresh: Tensor, rows: Tensor, anchor: Tensor, signs: list[Tensor], since: int
    ) -> None:
        """Walk again from the last check with what is fooled now, one iterate after another, up to the one before now."""
        part, sighting = torch.nonzero(fresh)[:, 0], self.seen[name]
        point = anchor[part]
        for passed, moves in enumerate(signs[:-1], since + 1):
            if not len(part):
                return
            point = self._moved(point, moves[part])
            wrong = self._given(name, point, rows[part]) != self.y[rows[part]]
            sighting.note(rows[part], wrong, passed, point)
            part, point = part[~wrong], point[~wrong]

    def _given(self, name: str, point: Tensor, rows: Tensor, *, clean: bool = False) -> Tensor:
        """The classes that a watched model gives; -1 where its logits are not finite."""
        with torch.no_grad():
            logits = self.functions[name](point)
        self.watching += Calls(len(point))
        classes = self.objective.classes
        if not isinstance(logits, Tensor) or logits.shape != (len(point), classes):
            found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            remedy = "All models must name the same classes and accept these images; wrap a resize around it."
            raise InputError("watched", f"logits of shape ({len(point)}, {classes}) from {name!r}", found, remedy)
        if clean:
            self.margins[name] = clean_margin(logits, self.y[rows])
        return torch.where(torch.isfinite(logits).all(1), logits.argmax(1), -1)


def clean_margin(logits: Tensor, y: Tensor) -> Float[Tensor, " n"]:
    """The true logit minus the largest other: how far from wrong a model is; float64."""
    others = logits.double().scatter(1, y[:, None], -torch.inf).amax(1)
    return logits.double().gather(1, y[:, None])[:, 0] - others
