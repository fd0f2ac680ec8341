"""Rescaling layers without changing the function, to see which measures of flatness notice (Dinh et al. 2017)."""

import copy
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..core import InputError, ModelError, at, bare

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_BATCHNORM = nn.modules.batchnorm._BatchNorm
_PASSED = (nn.Identity, nn.modules.dropout._DropoutNd)
_HOMOGENEOUS = (
    *_PASSED, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Flatten, nn.Unflatten, nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
)  # fmt: skip
_FUNCTIONS = {
    F.relu, torch.relu, torch.relu_, F.leaky_relu, F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d,
    F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.flatten, torch.mean, torch.reshape,
}  # fmt: skip
_METHODS = {"relu", "relu_", "flatten", "view", "reshape", "mean", "contiguous", "squeeze"}


@dataclass(frozen=True)
class Link:
    """Two modules of which the first can be scaled by any factor > 0 if the second takes it back.

    Args:
        layer: the name of a convolution or linear layer, whose output goes nowhere else.
        follower: of the BatchNorm that it feeds, or of the layer that it feeds through ReLUs and poolings.
    """

    layer: str
    follower: str


def links(model: nn.Module) -> tuple[Link, ...]:
    """Which layers `rescale` scales, and what takes their scale back: BatchNorms where there are any, else ReLU pairs.

    Found in the graph of `torch.fx`. A layer is left out if it runs more than once, shares its weights, has a weight that is
    made of others (weight normalisation), or feeds anything else as well (a shortcut that adds).

    Raises:
        ModelError: a model that `torch.fx` cannot trace.

    Checked by tests/flatness/test_rescale.py.
    """
    model = bare(model)
    graph = _Tracer.of(model)
    runs = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    modules = dict(model.named_modules())
    counts: dict[int, int] = {}
    for _, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        counts[id(tensor)] = counts.get(id(tensor), 0) + 1

    def alone(name: str) -> bool:
        module = modules[name]
        tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
        own = isinstance(module, _BATCHNORM) or isinstance(module._parameters.get("weight"), nn.Parameter)
        return own and runs.count(name) == 1 and all(counts[id(t)] == 1 for t in tensors)

    normalised: list[Link] = []
    paired: list[Link] = []
    for node in graph.nodes:
        name = str(node.target)
        if node.op != "call_module" or not isinstance(modules[name], _LAYERS) or not alone(name):
            continue
        after = _following(node, modules, _PASSED)
        if after in modules and alone(after) and _has_statistics(modules[after]):
            normalised.append(Link(name, after))
        after = _following(node, modules, _HOMOGENEOUS)
        used = {part for link in paired for part in (link.layer, link.follower)}
        if after in modules and isinstance(modules[after], _LAYERS) and alone(after) and not {name, after} & used:
            paired.append(Link(name, after))
    return tuple(normalised or paired)


def rescale(model: nn.Module, factor: float, *, check: Tensor | None = None) -> nn.Module:
    """A copy of the model with layers scaled by a factor, that computes the same function.

    With BatchNorm (Stutz et al. 2021, supplement, section C): weights and biases of each layer that only feeds a BatchNorm are
    multiplied by the factor, its running mean as well, and its running variance becomes factor^2 (variance + eps) - eps.
    Without (Dinh et al. 2017): layers are paired along the network, each through ReLUs and poolings alone; the first's weights
    and biases are multiplied by the factor, the second's weights divided by it. `links` says which layers these are.

    Args:
        model: in eval mode; it is not changed, and the copy shares nothing with it.
        factor: > 0; the paper takes .5 and 2.
        check: inputs on which the copy's logits are compared with the model's.

    Differences from the authors' code: they scale the running variance without its eps, which changes the function by a
    little where variances are small; with it the function is the same but for rounding (a variance may become negative, by
    less than eps). In train mode a BatchNorm takes the batch's variance, and the eps stays noticeable.

    Raises:
        ModelError: no layer that can be scaled so, a model that cannot be traced, or (with `check`) another function.
        InputError: a factor that is not > 0, a model in train mode.

    Cost: a copy; with `check` two forward passes. Checked by tests/flatness/test_rescale.py.
    """
    if not isinstance(factor, Real) or not 0 < float(factor) < math.inf:
        raise InputError("factor", "a finite number > 0", repr(factor), "The paper uses .5 and 2.")
    if any(module.training for module in model.modules()):
        raise InputError("model", "a model in eval mode", "train mode", "Call model.eval() first.")
    found = links(model)
    if not found:
        raise ModelError(
            "model", "a layer that only feeds a BatchNorm with running statistics, or another one through ReLUs", "none",
            "Shortcuts, GELU or SiLU, LayerNorm, GroupNorm and tied weights cannot be rescaled so.",
        )  # fmt: skip
    scaled = copy.deepcopy(bare(model))
    modules = dict(scaled.named_modules())
    with torch.no_grad():
        for link in found:
            _scale(modules[link.layer], modules[link.follower], float(factor))
    if check is not None:
        _require_same(model, scaled, check)
    return scaled


def _scale(layer: Any, follower: Any, factor: float) -> None:
    """Scale a layer, and take it back in what follows it."""
    for part in (layer.weight, layer.bias):
        if part is not None:
            part.mul_(factor)
    if _has_statistics(follower):
        follower.running_mean.mul_(factor)
        follower.running_var.copy_(factor**2 * (follower.running_var.double() + follower.eps) - follower.eps)
    else:
        follower.weight.div_(factor)


def _require_same(model: nn.Module, scaled: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        before, after = at(model)(x), at(scaled)(x)
    apart = float((before - after).abs().max()) / max(1.0, float(before.abs().max()))
    bound = torch.finfo(before.dtype).eps ** 0.6  # 7e-5 in float32
    if not apart <= bound:
        found = f"logits that differ by {apart:.1e} of their size"
        raise ModelError("model", f"the same logits to {bound:.0e}", found, "Use float64, or a factor nearer to 1.")


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BATCHNORM) and module.running_mean is not None and module.running_var is not None


def _following(node: fx.Node, modules: dict[str, nn.Module], passed: tuple[type, ...]) -> str | None:
    """The module that alone uses a node's value, looking through modules (and functions) that commute with a scale."""
    while True:
        users = [user for user in node.users if not _asks_shape(user)]
        if len(users) != 1 or users[0].all_input_nodes[0] is not node:
            return None
        node = users[0]
        if node.op == "call_module" and not isinstance(modules[str(node.target)], passed):
            return str(node.target)
        function = passed is _HOMOGENEOUS and (node.target in _FUNCTIONS or node.target in _METHODS)
        if node.op != "call_module" and not (node.op in ("call_function", "call_method") and function):
            return None


def _asks_shape(node: fx.Node) -> bool:
    asked = node.target is getattr and len(node.args) > 1 and node.args[1] in ("shape", "ndim")
    return asked or (node.op == "call_method" and node.target in ("size", "dim"))


class _Tracer(fx.Tracer):
    """Goes into modules with children, and takes the others, a user's own as well, as one step."""

    @classmethod
    def of(cls, model: nn.Module) -> fx.Graph:
        try:
            return cls().trace(model)
        except Exception as error:
            found = f"{type(error).__name__}: {str(error)[:150]}"
            remedy = "Rescale its layers by hand; control flow that depends on the input cannot be followed."
            raise ModelError("model", "a model that torch.fx can trace", found, remedy) from error

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children()) or super().is_leaf_module(m, module_qualified_name)
