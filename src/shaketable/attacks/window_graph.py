"""What a window of an image reaches in a convolutional network, node by node of its graph."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from .twin import QuickConv2d, QuickReLU
from .twin_graph import Node
from .window_areas import Area

POINTWISE_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU,
    nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, QuickReLU,
)  # fmt: skip
POINTWISE_FUNCTIONS = {
    torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.softplus,
}  # fmt: skip
POINTWISE_METHODS = {"relu", "sigmoid", "tanh"}
ARITHMETIC = {
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div,
}  # fmt: skip
ADDITIONS = {operator.add, operator.iadd, torch.add}
WRITERS = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


@dataclass(frozen=True)
class Pointwise:
    """A node whose output changes where its first argument does."""


@dataclass(frozen=True)
class Sum:
    """A sum of two maps."""


@dataclass(frozen=True)
class Spread:
    """A convolution or a pooling: of maps of which it reads `padding` lines and columns beyond the edge, filled by `fill`.

    Args:
        run: its value for a map with that padding.
        kernel: the lines and columns that it reads, dilation included.
        products: multiplications for one pixel of the output, over all its channels.
        conv: the convolution, if it reads all channels, so that it is a product of matrices.
    """

    run: Callable[[Tensor], Tensor]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    fill: float = 0.0
    products: int = 0
    conv: nn.Conv2d | None = None

    def reach(self, area: Area) -> Area:
        sides = zip((area.lines, area.columns), self.kernel, self.stride, self.padding, strict=True)
        return Area(*(side.through(*numbers) for side, *numbers in sides))


Kind = Pointwise | Sum | Spread


def kind_of(node: Node, module: Any, shapes: dict[Node, torch.Size], constants: dict[Node, Any]) -> Kind | None:
    """What a node does with a window of its input; None if that is not known, so that it is given whole maps.

    Args:
        module: the one that it calls, if it calls one.
        shapes: of the nodes' values, those that are tensors, for one image.
        constants: values that do not depend on the image.
    """
    maps = [source for source in node.all_input_nodes if source not in constants]
    if not node.args or not maps or node.args[0] not in maps or any(len(shapes.get(m, ())) != 4 for m in maps):
        return None
    if writes(node, module) and (len(maps[0].users) > 1 or maps[0].op == "placeholder"):
        return None
    if len(shapes.get(node, ())) != 4:
        return None
    if node.op == "call_module":
        return _of_module(module, shapes[node]) if len(node.args) == 1 and not node.kwargs else None
    if len(maps) == 2:
        plain = len(node.args) == 2 and not node.kwargs and maps == list(node.args)
        return Sum() if plain and node.target in ADDITIONS and shapes[maps[0]] == shapes[maps[1]] else None
    if node.target in ARITHMETIC and len(node.args) == 2 and shapes[node] == shapes[maps[0]]:
        return Pointwise() if _is_even(constants.get(node.args[1], node.args[1])) else None
    known = node.target in (POINTWISE_METHODS if node.op == "call_method" else POINTWISE_FUNCTIONS)
    return Pointwise() if known and len(maps) == 1 else None


def writes(node: Node, module: Any) -> bool:
    """Whether a node may change its input."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    inside = node.op == "call_module" and getattr(module, "inplace", False)
    called = node.op in ("call_function", "call_method") and (node.target in WRITERS or name.endswith("_"))
    return bool(inside or called or node.kwargs.get("inplace") or "out" in node.kwargs or name == "setitem")


def value_of(node: Node, values: dict[Node, Any], modules: dict[str, nn.Module]) -> Any:
    """What a node computes of the values of others."""
    args = map_arg(node.args, values.__getitem__)
    kwargs = map_arg(node.kwargs, values.__getitem__)
    if node.op == "output":
        return args[0]  # pyright: ignore
    if node.op == "call_module":
        return modules[node.target](*args, **kwargs)  # pyright: ignore
    if node.op == "call_method":
        method = "reshape" if node.target == "view" else node.target  # maps have their channels last
        return getattr(args[0], method)(*args[1:], **kwargs)  # pyright: ignore
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(modules[owner], name)
    return node.target(*args, **kwargs)


def caller(node: Node, constants: dict[Node, Any], modules: dict[str, nn.Module]) -> Callable[[dict[Node, Any]], Any]:
    """The same as a function of the values, ready for many calls; a module is run without hooks, of which it has none."""
    source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
    if node.op == "call_module" and isinstance(source, fx.Node) and source not in constants:
        run = modules[node.target].forward
        return lambda values: run(values[source])
    return lambda values: value_of(node, {**constants, **values}, modules)


def _is_even(constant: Any) -> bool:
    """Whether a constant is the same for all pixels."""
    if isinstance(constant, Tensor):
        return (constant.dim() < 2 and constant.numel() == 1) or constant.shape[-2:] == (1, 1)
    return isinstance(constant, int | float)


def _of_module(module: Any, output: torch.Size) -> Kind | None:
    if type(module) in POINTWISE_MODULES:
        batch = isinstance(module, nn.BatchNorm2d) and (module.running_mean is None or module.running_var is None)
        return None if batch else Pointwise()
    if type(module) in (nn.Conv2d, QuickConv2d):
        return _of_convolution(module, output)
    if type(module) in (nn.MaxPool2d, nn.AvgPool2d):
        return _of_pooling(module)
    return None


def _of_convolution(conv: nn.Conv2d, output: torch.Size) -> Kind | None:
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return None
    reach = tuple(d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.weight.shape[2:], strict=True))

    def run(padded: Tensor) -> Tensor:
        return F.conv2d(padded, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)

    products, whole = conv.weight[0].numel() * output[1], conv if conv.groups == 1 else None
    return Spread(run, reach, conv.stride, conv.padding, 0.0, products, whole)  # pyright: ignore


def _of_pooling(pool: nn.MaxPool2d | nn.AvgPool2d) -> Kind | None:
    kernel, stride, padding = (_pair(value) for value in (pool.kernel_size, pool.stride, pool.padding))
    if pool.ceil_mode:
        return None
    if isinstance(pool, nn.AvgPool2d):
        if any(padding) or pool.divisor_override is not None:
            return None
        return Spread(lambda padded: F.avg_pool2d(padded, kernel, stride), kernel, stride, padding)
    if pool.return_indices or _pair(pool.dilation) != (1, 1):
        return None
    return Spread(lambda padded: F.max_pool2d(padded, kernel, stride), kernel, stride, padding, -torch.inf)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # pyright: ignore
