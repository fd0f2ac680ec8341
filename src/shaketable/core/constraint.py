"""What an ascent asks of a constraint set, and the constraint of a joint place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import InputError
from .tree import Tree


class Constraint(Protocol):
    """What an ascent asks of a constraint set. All trees have the origin's shape."""

    @property
    def rowwise(self) -> bool:
        """Whether each example is constrained by itself, so that finished ones can be dropped."""
        ...

    def on(self, origin: Tree) -> "Constraint":
        """The same set, checked and shaped for this origin."""
        ...

    def project(self, delta: Tree, origin: Tree) -> Tree:
        """A feasible delta near this one; a feasible one stays."""
        ...

    def steepest(self, gradient: Tree, origin: Tree, delta: Tree) -> Tree:
        """The direction of unit size along which the linearised objective rises most."""
        ...

    def reach(self, origin: Tree) -> Any:
        """How long one radius is: a tree of numbers or tensors that multiply a direction."""
        ...

    def sample(self, origin: Tree, generator: torch.Generator) -> Tree:
        """A random feasible delta."""
        ...

    def size(self, delta: Tree, origin: Tree) -> Tree:
        """The norm of each group, in the unit of the radius."""
        ...

    def clip(self, point: Tree) -> Tree:
        """The point, inside the box."""
        ...

    def rows(self, index: Tensor) -> "Constraint":
        """The set of some of the examples."""
        ...


@dataclass(frozen=True)
class Joint:
    """The constraint of a joint place: a constraint for each name. A dict given as `within` becomes one."""

    parts: Mapping[str, Constraint]

    @property
    def rowwise(self) -> bool:
        """Whether every part constrains each example by itself."""
        return all(part.rowwise for part in self.parts.values())

    def on(self, origin: Tree) -> "Joint":
        """The parts, each on its own origin."""
        if not isinstance(origin, dict) or set(origin) != set(self.parts):
            found = f"origins {sorted(origin)}" if isinstance(origin, dict) else "one tensor"
            raise InputError(
                "within", f"a constraint for each origin, {sorted(self.parts)}", found, "Use the same names."
            )
        return Joint({name: part.on(origin[name]) for name, part in self.parts.items()})

    def _each(self, method: str, *trees: Any) -> Any:
        return {name: getattr(part, method)(*(tree[name] for tree in trees)) for name, part in self.parts.items()}

    def project(self, delta: Tree, origin: Tree) -> Tree:
        """Each part's projection."""
        return self._each("project", delta, origin)

    def steepest(self, gradient: Tree, origin: Tree, delta: Tree) -> Tree:
        """Each part's steepest direction."""
        return self._each("steepest", gradient, origin, delta)

    def reach(self, origin: Tree) -> Any:
        """Each part's reach."""
        return self._each("reach", origin)

    def sample(self, origin: Tree, generator: torch.Generator) -> Tree:
        """Each part's sample, drawn in the order of the names."""
        return {name: part.sample(origin[name], generator) for name, part in self.parts.items()}  # pyright: ignore

    def size(self, delta: Tree, origin: Tree) -> Tree:
        """Each part's sizes."""
        return self._each("size", delta, origin)

    def clip(self, point: Tree) -> Tree:
        """Each part, inside its box."""
        return self._each("clip", point)

    def rows(self, index: Tensor) -> "Joint":
        """Each part's rows."""
        return Joint({name: part.rows(index) for name, part in self.parts.items()})


def constraint(within: Any) -> Constraint:
    """The constraint that was meant: one as it is, a dict of them as a `Joint`."""
    if isinstance(within, Mapping):
        return Joint({str(name): constraint(part) for name, part in within.items()})  # pyright: ignore
    if not hasattr(within, "project"):
        raise InputError("within", "a Ball, or a dict of them", type(within).__name__, "Use st.Ball(norm, radius).")
    return within
