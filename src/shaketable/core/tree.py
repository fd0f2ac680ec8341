"""Arithmetic on places: a `Tree` is a tensor, or a dict of trees by name.

Inputs, activations and latent codes are tensors; a network's weights are a dict of tensors; a joint place (weights and
inputs together) is a dict of those. The functions here are the only ones that look inside.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .errors import InputError

Tree: TypeAlias = Tensor | dict[str, Any]


def map_leaves(function: Callable[..., Tensor], tree: Tree, *others: Any) -> Tree:
    """Apply a function to the tensors of trees of one shape, leaf by leaf."""
    if isinstance(tree, dict):
        return {name: map_leaves(function, part, *(other[name] for other in others)) for name, part in tree.items()}
    return function(tree, *others)


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a tree, in order."""
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in leaves(part)]
    return [tree]


def rebuild(tree: Tree, values: list[Tensor]) -> Tree:
    """A tree of the same shape with other tensors; the inverse of `leaves`."""
    rest = iter(values)
    return map_leaves(lambda _: next(rest), tree)


def take(tree: Tree, rows: Tensor) -> Tree:
    """Some of the examples of a tree whose leaves all have the batch as their first dimension."""
    return map_leaves(lambda leaf: leaf[rows], tree)


def add(a: Tree, b: Tree) -> Tree:
    """a + b, leaf by leaf."""
    return map_leaves(torch.add, a, b)


def ordinary(leaf: Tensor) -> Tensor:
    """The tensor, detached; a copy of one that was made under inference mode, which autograd could not save."""
    with torch.inference_mode(False):
        return leaf.clone() if leaf.is_inference() else leaf.detach()


def require_alike(argument: str, tree: Any, model: Tree) -> None:
    """Raise an `InputError` unless a tree has the names and shapes of another."""
    if isinstance(model, dict):
        if not isinstance(tree, dict) or set(tree) != set(model):
            found = f"the names {sorted(map(str, tree))[:5]}" if isinstance(tree, dict) else type(tree).__name__
            raise InputError(argument, f"a dict with the names {sorted(model)[:5]}", found, "Give one entry a name.")
        for name, part in model.items():
            require_alike(f"{argument}[{name!r}]", tree[name], part)
    elif not isinstance(tree, Tensor) or tree.shape != model.shape:
        found = f"shape {tuple(tree.shape)}" if isinstance(tree, Tensor) else type(tree).__name__
        raise InputError(argument, f"a tensor of shape {tuple(model.shape)}", found, "Give it the origin's shape.")
