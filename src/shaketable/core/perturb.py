"""The one verb: raise an objective within a constraint set around an origin."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from .ascent import PGD
from .constraint import Constraint, constraint
from .errors import InputError
from .record import Ascent, Calls, Flags
from .seeds import own_random_state
from .tree import Tree, add, leaves, map_leaves, ordinary, require_alike


class Objective(Protocol):
    """What is raised: one value for each example that a point holds.

    Called as ``objective(point, rows)``. `rows` are the indices of the point's examples in the whole batch, None for all of
    them in order; an objective indexes its labels with it. Returns shape (k,), or (1,) for a place without examples.

    Two attributes are optional. `start`: what an ascent starts from if its caller does not say. `stops`: True if
    ``objective.judge(point, rows)`` returns (values, finished), after which finished examples are dropped.
    """

    def __call__(self, point: Any, rows: Tensor | None) -> Tensor: ...


@dataclass(frozen=True)
class Gaussian:
    """A start: normal noise of a standard deviation, projected into the constraint set. TRADES starts from .001."""

    deviation: float

    def __post_init__(self) -> None:
        if not 0 <= self.deviation < math.inf:
            raise InputError("deviation", "a number >= 0", str(self.deviation), "TRADES uses .001.")


@dataclass(frozen=True, repr=False)
class Perturbation:
    """What `perturb` found.

    Args:
        origin: where it started from; it shares its memory with the caller's (weights: with the live ones).
        delta: the perturbation, of the origin's shape.
        point: origin + delta, exactly inside the box: this is what is authoritative.
        value: the objective at the point, (n,) or (1,), -inf where it is NaN; None where it was not asked for (see `PGD`).
        size: the norm of delta in each of the ball's groups, in the unit of the radius.
        calls: the passes that were spent, in examples.
        flags: what was suspicious, per example.
    """

    origin: Any
    delta: Any
    point: Any
    value: Tensor | None
    size: Any
    calls: Calls
    flags: Flags

    def __repr__(self) -> str:
        examples, tensors = len(self.flags.stopped), len(leaves(self.delta))
        of = [f"{examples} examples"] if examples != 1 or isinstance(self.delta, Tensor) else []
        of += [f"{tensors} tensors"] if isinstance(self.delta, dict) else []
        sizes = [float(size.max()) for size in leaves(self.size) if size.numel()]
        largest = [f"largest size {max(sizes):.4g}"] if sizes else []
        passes = f"{self.calls.forward} forward and {self.calls.backward} backward passes"
        flagged = [f"{count} {name}" for name, flag in vars(self.flags).items() if (count := int(flag.sum()))]
        return f"{type(self).__name__}({', '.join([*of, *largest, passes, *flagged])})"


class Ascender(Protocol):
    """Anything that looks for the worst point: `PGD`, or a user's own."""

    def __call__(self, objective: Any, origin: Any, within: Constraint, start: Any) -> Ascent: ...


def perturb(
    objective: Objective,
    origin: Any,
    within: Any,
    *,
    by: Ascender | None = None,
    start: Literal["zero", "sample"] | Gaussian | Tensor | Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> Perturbation:
    """Find a point near the origin at which the objective is high.

    Args:
        objective: see `Objective`; `ce`, `margin`, `dlr`, `kl` and `scalar` make one.
        origin: a tensor whose first dimension counts examples, a dict of tensors (weights), or a dict of those.
        within: a `Ball`, another `Constraint`, or for a joint place a dict of them with the origin's names.
        by: the ascent; `PGD()`.
        start: "zero", "sample" (a draw from the constraint set), `Gaussian`, or a delta. None: what the objective asks
            for, else "zero".
        generator: required when the start is drawn. Randomness inside the objective (dropout) is seeded from it too.

    Nothing is changed: not the origin, nor a model's parameters, buffers, mode or `requires_grad`, nor the global random
    state. No gradient flows through the result.

    Raises:
        InputError: an origin that is empty of tensors, not floating, not finite or outside the box; a start of another
            shape; a random start without a generator.
        GradientError: no example has a usable first gradient, so the ascent would have done nothing.

    Cost: that of the ascent. Checked by tests/core/test_perturb.py.
    """
    origin, limits = _place(origin, within)
    if not any(leaf.numel() for leaf in leaves(origin)):
        return _nothing(origin, limits)
    found = _ascend(objective, origin, limits, by, start, generator)
    with torch.inference_mode(False), torch.no_grad():
        point, size = limits.clip(add(origin, found.delta)), limits.size(found.delta, origin)
    return Perturbation(origin, found.delta, point, found.value, size, found.calls, found.flags)


def search(
    objective: Objective,
    origin: Any,
    within: Any,
    *,
    by: Ascender | None = None,
    start: Any = None,
    generator: torch.Generator | None = None,
) -> Ascent:
    """What `perturb` finds, without the point and its size, which cost passes over memory where weights are many.

    Args, errors, cost: see `perturb`. Checked by tests/core/test_perturb.py.
    """
    origin, limits = _place(origin, within)
    return _ascend(objective, origin, limits, by, start, generator)


def _place(origin: Any, within: Any) -> tuple[Any, Constraint]:
    """The origin and the constraint set on it, checked."""
    origin = map_leaves(_own, origin)
    _require_usable(origin)
    limits = constraint(within).on(origin)
    if limits.rowwise and len({leaf.shape[:1] for leaf in leaves(origin)}) > 1:
        found = f"shapes {[tuple(leaf.shape) for leaf in leaves(origin)][:4]}"
        remedy = "For weights give the ball per='tensor', 'filter', 'element' or 'all'."
        raise InputError("origin", "as many examples in every tensor, since the ball is per example", found, remedy)
    return origin, limits


def _ascend(
    objective: Objective, origin: Any, limits: Constraint, by: Ascender | None, start: Any, generator: Any
) -> Ascent:
    """Run the ascent, with the global random state its own."""
    chosen = getattr(objective, "start", None) if start is None else start
    begin = _Start("zero" if chosen is None else chosen, origin, limits, generator)
    with torch.inference_mode(False), torch.no_grad(), own_random_state(leaves(origin), generator):
        return (PGD() if by is None else by)(objective, origin, limits, begin)


def drawn_start(start: Any, origin: Any, within: Any, generator: torch.Generator | None) -> Tree:
    """The delta that `perturb` would start from, so that a batch that is worked on in parts starts as one that is not.

    Args:
        start, origin, within, generator: as `perturb` takes them; the generator is advanced as it advances it.

    Checked by tests/core/test_perturb.py.
    """
    origin = map_leaves(_own, origin)
    return _Start(start, origin, constraint(within).on(origin), generator)()


class _Start:
    """Makes the start of each restart; `zero` says that it is 0."""

    def __init__(self, start: Any, origin: Tree, within: Constraint, generator: torch.Generator | None) -> None:
        self.start, self.origin, self.within, self.generator = start, origin, within, generator
        self.zero = isinstance(start, str) and start == "zero"
        if isinstance(start, str) and start not in ("zero", "sample"):
            raise InputError("start", "'zero', 'sample', Gaussian(...) or a delta", repr(start), "Choose one of them.")
        if (start == "sample" if isinstance(start, str) else isinstance(start, Gaussian)) and generator is None:
            raise InputError(
                "generator", "a torch.Generator, since the start is drawn", "None", "Give st.generator(seed)."
            )
        if not isinstance(start, str | Gaussian):
            require_alike("start", start, origin)
            if not all(bool(torch.isfinite(leaf).all()) for leaf in leaves(start)):
                raise InputError("start", "finite values", "NaN or infinite entries", "Repair it, or start from zero.")

    def __call__(self) -> Tree:
        start, generator = self.start, self.generator
        if isinstance(start, str):
            if start == "zero" or generator is None:
                return map_leaves(torch.zeros_like, self.origin)
            return self.within.sample(self.origin, generator)
        if isinstance(start, Gaussian):
            return self.within.project(map_leaves(self._noise, self.origin), self.origin)
        return self.within.project(map_leaves(lambda o, s: s.detach().to(o), self.origin, start), self.origin)

    def _noise(self, like: Tensor) -> Tensor:
        assert self.generator is not None
        noise = torch.randn(like.shape, generator=self.generator, device=self.generator.device, dtype=like.dtype)
        return self.start.deviation * noise.to(like.device)


def _own(leaf: Any) -> Tensor:
    if not isinstance(leaf, Tensor):
        raise InputError("origin", "a tensor or a dict of tensors", type(leaf).__name__, "Use torch.as_tensor first.")
    return ordinary(leaf)


def _require_usable(origin: Tree) -> None:
    parts = leaves(origin)
    if not parts:
        raise InputError("origin", "at least one tensor", "an empty dict", "Choose tensors that the model has.")
    for leaf in parts:
        if not leaf.is_floating_point():
            raise InputError(
                "origin", "floating point values", str(leaf.dtype), "Convert it: x.float() / 255 for images."
            )
        if leaf.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(leaf))).all()):  # NaN is both ends
            found = f"{int((~torch.isfinite(leaf)).sum())} NaN or infinite entries"
            raise InputError("origin", "finite values", found, "Remove or repair these examples.")


def _nothing(origin: Tree, within: Constraint) -> Perturbation:
    """The perturbation of an empty batch."""
    first, delta = leaves(origin)[0], map_leaves(torch.zeros_like, origin)
    none = torch.zeros(len(first) if within.rowwise else 0, dtype=torch.bool, device=first.device)
    size = within.size(delta, origin)
    return Perturbation(origin, delta, origin, none.to(first.dtype), size, Calls(), Flags(none, none, none))
