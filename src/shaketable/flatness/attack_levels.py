"""A draw of the weights at several levels of attack: few images, pairs nu and -nu, the same draws for several models."""

from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import PGD, Calls, InputError, generator
from ..core.ball import Law
from ..stats import Mean, mean
from .loss_at import LossAt, one_of, origin_and_ball, reference, require_finite

KEPT = 4096
"""From so many draws, at most, is found how much a single independent draw varies."""


@dataclass(frozen=True)
class Settings:
    """What is drawn; `attacks` are the levels, the dear one last."""

    seed: int
    xi: Any
    law: Law
    attacks: tuple[PGD, ...]
    images: int
    antithetic: bool
    reference_restarts: int

    def __post_init__(self) -> None:
        one_of("law", self.law, get_args(Law))
        costs = [cost(attack) for attack in self.attacks]
        if costs != sorted(set(costs)):
            steps = [attack.steps * attack.restarts for attack in self.attacks]
            remedy = "Give the cheapest first, all of them cheaper than `by`."
            raise InputError("levels", "attacks of more and more steps", f"{steps} steps, `by` included", remedy)
        if not isinstance(self.images, int) or self.images < 2:
            raise InputError("images", "a whole number >= 2", str(self.images), "Use 16; 64 on an accelerator.")
        if self.antithetic and getattr(self.xi, "box", None) is not None:
            remedy = "Leave the box out, or set antithetic=False."
            raise InputError("xi", "a ball without a box, since -nu must be as likely as nu", "one with a box", remedy)
        if isinstance(self.xi, int | float) and not self.xi >= 0:
            raise InputError("xi", "a number >= 0", str(self.xi), "The paper uses 0.5.")


class Side:
    """One model: its weights, their ball, and each image's loss at w at every level (levels, n)."""

    def __init__(self, of: LossAt, settings: Settings) -> None:
        self.of = of
        self.origin, self.ball = origin_and_ball(of.model, settings.xi, None)
        top, _ = reference(of, settings.seed, settings.reference_restarts)
        self.calls, losses = top.calls, []
        for attack in settings.attacks[:-1]:
            found = replace(of, by=attack)(None, generator(settings.seed, "flatness starts", -1))
            require_finite(found.robust_loss, "at the weights themselves")
            self.calls += found.calls
            losses.append(found.robust_loss)
        self.at_w = torch.stack([*losses, top.robust_loss]).double().cpu()


class Draws:
    """Called with (k, depth), it gives the rise at the cheapest level, and what each further level adds, of draw k."""

    def __init__(self, sides: list[Side], settings: Settings) -> None:
        self.sides, self.settings, self.calls = sides, settings, Calls()
        order = sum(side.at_w[-1] for side in sides).argsort()  # pyright: ignore[reportAttributeAccessIssue]
        self.blocks = order.tensor_split(min(settings.images, len(order)))
        self.sizes = torch.tensor([len(block) for block in self.blocks])
        self.share = self.sizes.double() / len(order)
        self.kept: list[Tensor] = []

    def __call__(self, k: int, depth: int) -> list[float]:
        seed, top = self.settings.seed, len(self.settings.attacks) - 1
        random = torch.rand(len(self.blocks), generator=generator(seed, "flatness images", k))
        places = (random.double() * self.sizes).long()
        picked = torch.stack([block[place] for block, place in zip(self.blocks, places, strict=True)])
        rows, turn = picked.sort()
        share = self.share[turn]
        totals, dear = torch.zeros(depth + 1, dtype=torch.float64), []
        for index, side in enumerate(self.sides):
            rises = self._rises(side, rows, k, depth)
            totals += (1 - 2 * index) * (rises.mean(0) * share).sum(1)
            dear.append((rises[:, -1] * share)[:, turn.argsort()])
        if depth == top and len(self.kept) < KEPT:
            self.kept.append(torch.stack(dear))
        return torch.cat([totals[:1], totals.diff()]).tolist()

    def _rises(self, side: Side, rows: Tensor, k: int, depth: int) -> Float[Tensor, "signs levels m"]:
        """Of each image's loss, at w + nu and, in a pair, at w - nu."""
        seed, of = self.settings.seed, side.of
        there = rows.to(of.x.device)
        part = replace(of, x=of.x[there], y=of.y[there])
        nu = side.ball.sample(side.origin, generator(seed, "flatness", k), self.settings.law)
        signs = []
        for sign in (1, -1) if self.settings.antithetic else (1,):
            moved = {name: w + sign * nu[name] for name, w in side.origin.items()}
            losses = []
            for attack in self.settings.attacks[: depth + 1]:
                found = replace(part, by=attack)(moved, generator(seed, "flatness starts", k))
                require_finite(found.robust_loss, "at moved weights")
                self.calls += found.calls
                losses.append(found.robust_loss)
            signs.append(torch.stack(losses).double().cpu() - side.at_w[: depth + 1, rows])
        return torch.stack(signs)

    def single(self) -> Mean:
        """The variance of one independent draw for all images: from the covariance of different images at the same nu."""
        n = int(self.sizes.sum())
        apart = torch.stack(self.kept)  # draws, sides, signs, images
        apart = apart - apart.mean(0)
        own, all_pairs = (apart**2).sum(-1), apart.sum(-1) ** 2
        alike = float((self.share**2).sum())
        between = (1 - 1 / n) / (1 - alike) if n > 1 else 0.0
        each = (own / alike / n + (all_pairs - own) * between).mean(2).sum(1) * len(apart) / (len(apart) - 1)
        return mean(each.tolist())


def cost(attack: PGD) -> int:
    """Forward and backward passes of an image that is measured under an attack."""
    valued = attack.keep == "best" or attack.restarts > 1
    return attack.restarts * (2 * attack.steps + valued) + 2
