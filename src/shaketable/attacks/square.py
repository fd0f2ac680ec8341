"""Square: an attack by random search that needs no gradient (Andriushchenko, Croce, Flammarion, Hein 2020)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.ball import Ball, Norm
from ..core.errors import InputError
from ..core.losses import margin
from ..core.perturb import Perturbation, perturb
from ..core.record import Ascent, Calls, Flags, look_at
from ..core.seeds import generator as make_generator
from .square_masses import Masses
from .square_moves import Moves, Windows, share_of
from .window_passes import WindowPasses


@dataclass(frozen=True)
class SquareAttack:
    """Random search for the largest margin over windows of an image ("Square Attack", ECCV 2020, algorithms 1 to 3).

    A candidate is kept if its margin (the largest other logit minus that of the true class) is larger. In linf balls the
    search starts from vertical stripes, and a candidate has a square window at the edge of the ball, of one sign a channel. In
    l2 balls it starts from a grid of pyramids, and a candidate moves the mass of one window, and what is unused, into
    another. l1 as l2 (Croce & Hein 2021), with steeper pyramids, by the l1 norm, and the projection onto ball and box. Windows
    lie in the rectangle around the ball's mask, where it has one.

    Args:
        queries: how many points are tried, the first included; 5000, AutoAttack's, which does not count the first. The
            paper's is 10000.
        p_init: the share of the pixels in the first windows; .8, AutoAttack's. The paper's is .05 (linf) and .1 (l2) for
            models trained without attacks, and more for robust ones.
        rescale: the schedule, by which this share is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10000
            queries, is compressed to the number of queries, as the paper says. AutoAttack does not.
        stop: drop an image as soon as it is misclassified. `evaluate` switches it on when it measures accuracy.

    Cost: `queries` forward passes an image, no backward pass; with `stop` nothing after it is fooled. No gradients are needed:
    it works on models that are quantised, detached or made of anything. In linf balls, a pass of a convolutional network's
    `quick_twin` (through which `evaluate` attacks on a CPU) computes what the window reaches alone, where that is less: it
    counts as one, and takes about half the time on the package's small CNN (see `WindowPasses`, also for the memory).

    Differences from the paper: a window that would change nothing is given the opposite signs (the authors draw it again);
    every image has windows of its own, as in the paper, where AutoAttack's code shares them in a batch (the paper's code in
    l2 balls alone). In l1 balls AutoAttack's code gives a window of c channels c times the mass, does not scale the first grid
    to the radius, and lets the projection take the excess.

    Raises:
        InputError: images that are not (n, c, h, w); a ball of another norm or not per example; numbers out of range; what
            `perturb` raises for inputs.

    Checked by tests/attacks/test_square.py (a linear model's optimum, counted passes) and tests/attacks/test_contract.py.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    gradients: ClassVar[bool] = False  # it needs none

    queries: int = 5000
    p_init: float = 0.8
    rescale: bool = True
    stop: bool = False

    def __post_init__(self) -> None:
        if type(self.queries) is not int or self.queries < 1:
            raise InputError("queries", "a whole number >= 1", repr(self.queries), "AutoAttack's is 5000.")
        if not 0 < self.p_init <= 1:
            raise InputError("p_init", "a share in (0, 1]", str(self.p_init), "AutoAttack's is .8.")

    def until_fooled(self) -> "SquareAttack":
        """The same attack, with `stop`."""
        return replace(self, stop=True)

    def __call__(
        self,
        model: Any,
        x: Float[Tensor, "n c h w"],
        y: Int[Tensor, " n"],
        within: Ball,
        *,
        generator: torch.Generator,
    ) -> Perturbation:
        """Attack a batch; see `Attack` for the arguments."""
        if not isinstance(x, Tensor) or x.dim() != 4:
            found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            remedy = "Give each example the form of an image; of tables, (1, 1, d) with a model that flattens it."
            raise InputError("x", "images of shape (n, c, h, w)", found, remedy)
        if within.norm not in self.norms or not within.rowwise:
            found = f"norm={within.norm!r}, per={within.per!r}"
            raise InputError("within", "an linf, l2 or l1 ball per example for Square", found, "Choose another attack.")
        by = _Search(self, generator, model)
        return perturb(margin(model, y, stop=self.stop), x, within, by=by, generator=generator)


@dataclass(frozen=True)
class _Search:
    """The ascent: random search with a generator of its own."""

    attack: SquareAttack
    generator: torch.Generator
    model: Any

    def __call__(self, objective: Any, origin: Any, within: Any, start: Any) -> Ascent:
        """Run it; see `perturb`."""
        attack, n = self.attack, len(origin)
        none = torch.zeros(n, dtype=torch.bool, device=origin.device)
        rows, stopped = torch.arange(n, device=origin.device), none.clone()
        moves = self._moves(origin, within)
        first = look_at(objective, moves.begin(), None, n, gradient=False)  # checks what the objective returns
        weird, done, calls = ~torch.isfinite(first.value), first.done, n
        value = torch.where(first.value.isnan(), -torch.inf, first.value.to(origin))
        deltas, values = torch.zeros_like(origin), value.clone()
        for query in range(attack.queries):
            if query:
                share = share_of(query - 1, attack.queries, attack.p_init, rescale=attack.rescale)
                point, calls = moves.tried(share, rows), calls + len(rows)
                logits = moves.logits()
                seen, done = objective.judge(point, rows) if logits is None else objective.judged(logits, rows)
                seen = seen.to(value)
                better = seen > value if done is None else (seen > value) | done
                moves.settle(better)
                value = torch.fmax(seen, value)  # NaN counts as nothing
            if done is None or not bool(done.any()):
                continue
            deltas[rows], values[rows], stopped[rows] = moves.delta(), value, done
            left = torch.nonzero(~done)[:, 0]
            if not len(left):
                break
            rows, value = rows[left], value[left]
            moves.keep(left)
        else:
            deltas[rows], values[rows] = moves.delta(), value
        return Ascent(deltas, values, Calls(calls), Flags(none, weird, stopped))

    def _moves(self, origin: Tensor, within: Ball) -> Moves:
        if within.norm != "linf":
            return Masses(origin, within, self.generator)
        return Windows(origin, within, self.generator, WindowPasses.of(self.model, origin))


def square(
    model: Any,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    *,
    eps: float | Float[Tensor, " n"],
    norm: Norm = "linf",
    queries: int = 5000,
    p_init: float = 0.8,
    box: tuple[float, float] | None = (0.0, 1.0),
    mask: Tensor | None = None,
    seed: int = 0,
) -> Perturbation:
    """Square on a batch, in one line: ``square(model, x, y, eps=8 / 255).point``; images stop once they are misclassified.

    Args:
        model: from images in the box to logits; left as it is. It needs no gradients.
        x, y: images and labels.
        eps: the radius, in the unit of the images; one for all or one for each.
        norm: "linf", "l2" or "l1".
        box: the range of valid images.
        mask: nonzero where an image may change.
        seed: of all that is drawn.
        queries, p_init: see `SquareAttack`, also for cost and errors.
    """
    attack = SquareAttack(queries, p_init, stop=True)
    return attack(model, x, y, Ball(norm, eps, box=box, mask=mask), generator=make_generator(seed, "square"))
