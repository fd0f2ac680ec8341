"""The graph of a model, where it is all that the model does."""

import copy
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

Node = Any  # fx.Node, whose arguments are anything


@dataclass(frozen=True)
class Traced:
    """The nodes of a model's graph in their order, and the modules that they call."""

    nodes: list[Node]
    modules: dict[str, nn.Module]


def graph_of(model: nn.Module) -> Traced | None:
    """The graph of a model in eval mode, down to PyTorch's modules; None where it cannot be had or would not be everything.

    That is: control flow that depends on the input, hooks, a `forward` put in the place of a module's own, tensors that are
    made or numbers that are drawn on the way. Tracing is done on a copy, in which a model may leave what it likes.
    """
    modules = list(model.modules())
    if nn.modules.module._has_any_global_hook() or any(_is_strange(module) for module in modules):
        return None
    before = _random_state()
    try:
        with torch.random.fork_rng(devices=[]):
            graph = _Tracer().trace(copy.deepcopy(model))
            drawn = not _same(before, _random_state())
    except Exception:  # a model may do anything when it is traced
        return None
    finally:
        random.setstate(before[1])
        np.random.set_state(before[2])
    nodes: list[Node] = list(graph.nodes)
    made = any(node.op == "get_attr" and "_tensor_constant" in str(node.target) for node in nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    if drawn or made or len(inputs) != 1:
        return None
    return Traced(nodes, {**dict(model.named_modules(remove_duplicate=False))})


class _Tracer(fx.Tracer):
    """Goes into all modules but PyTorch's own, and what this package made of them."""

    proxy_buffer_attributes = True  # a buffer that is reshaped on the way is no tensor that is made

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m.__module__.startswith(__package__ or "") or super().is_leaf_module(m, module_qualified_name)


def _is_strange(module: nn.Module) -> bool:
    """Whether a module does more than its class says, or is in train mode."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return module.training or any(map(bool, hooks)) or not vars(module).keys().isdisjoint({"forward", "_conv_forward"})


def _random_state() -> tuple[Any, ...]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    arrays = all(np.array_equal(a, b) for a, b in zip(one[2], other[2], strict=True))
    return torch.equal(one[0], other[0]) and one[1] == other[1] and arrays
