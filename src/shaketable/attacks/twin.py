"""A copy of a model on which a CPU finds adversarial points in less time."""

import copy
import inspect
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.foreign import Exported
from .twin_graph import Traced, graph_of
from .twin_of_program import quick_program


def quick_twin(model: Any) -> Any:
    """A frozen copy of a convolutional model whose passes to the input are faster on a CPU.

    What is changed does not change the function that is computed, but for rounding:

    - The weights are in channels_last layout, which convolutions follow. A max pooling then takes a quarter of the time,
      a convolution a little less. A model that refuses what that makes of its tensors (it looks at them by `view`) gets its
      weights back as they were.
    - A convolution's input gradient is computed as what it is, a transposed convolution, in that layout; with one input
      channel as a matrix product and a fold. PyTorch's own takes 1.0 to 2.8 times as long, most for strides and for one
      channel.
    - The gradient of a ReLU is brought to that layout first, without which its backward pass takes 20 times as long.

    Measured with torch 2.13 on one thread of an AMD EPYC with AVX-512: a forward and backward pass of the package's small
    CNN takes 1.2 times less, of a small CNN with max pooling 1.5 times less; `benchmarks/run.py` measures it again. Who
    uses the copy to find points must judge them by the model itself. No parameter of the copy requires a gradient.

    Of an exported program it is no copy: see `quick_program`, whose weights are the model's own and require what they did.

    Returns the model itself where nothing is gained or a copy cannot be made: no module, no convolution in float32, another
    device than the CPU, or a module that refuses to be copied.

    Checked by tests/attacks/test_twin.py: values and gradients against the model's own, over strides, paddings and sizes.
    """
    if not isinstance(model, nn.Module):
        return model
    if isinstance(model, Exported) and all(t.device.type == "cpu" for t in (*model.parameters(), *model.buffers())):
        return quick_program(model)
    tensors = [*model.parameters(), *model.buffers()]
    convolves = any(
        isinstance(module, nn.Conv2d) and module.weight.dtype == torch.float32 for module in model.modules()
    )
    if not convolves or any(t.device.type != "cpu" for t in tensors):
        return model
    try:
        twin = copy.deepcopy(model).requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore
    except Exception:  # a model may hold anything: locks, handles, tensors of a graph
        return model
    for module in twin.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = QuickConv2d  # keeps its hooks, names and state
        elif type(module) is nn.ReLU:
            module.__class__ = QuickReLU
    return QuickTwin(twin)


class QuickTwin(nn.Module):
    """A copy of a model, with its weights in channels_last layout unless it refuses what that makes of its tensors."""

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.copy = twin
        self.training: bool = twin.training
        self.takes = True

    @cached_property
    def graph(self) -> Traced | None:
        """Its graph, if that is everything."""
        return graph_of(self.copy)

    def forward(self, *inputs: Any) -> Any:
        if self.takes:
            try:
                return self.copy(*inputs)
            except RuntimeError:  # from a `view`; anything else is raised again below
                self.takes = False
                self.copy.to(memory_format=torch.contiguous_format)  # pyright: ignore
        return self.copy(*inputs)


def _is_plain(conv: nn.Conv2d) -> bool:
    one = conv.groups == 1 and conv.dilation == (1, 1)
    return one and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


class QuickConv2d(nn.Conv2d):
    """A convolution for passes to its input alone."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weighty = weight.requires_grad or (bias is not None and bias.requires_grad)
        half = torch.is_autocast_enabled(input.device.type)
        if weighty or half or not input.requires_grad or input.dim() != 4:
            return super()._conv_forward(input, weight, bias)
        return _Convolution.apply(input, weight, bias, self.stride, self.padding)  # pyright: ignore


class QuickReLU(nn.ReLU):
    """A ReLU whose gradient arrives in the layout of its output."""

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        if output.requires_grad and output.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last):
            output.register_hook(_channels_last)
        return output


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


class _Convolution(torch.autograd.Function):
    """conv2d with a gradient by its input alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(weight)
        ctx.size = x.shape[2:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        (gradient,) = gradients
        if weight.shape[1] == 1:
            columns = weight.flatten(1).mT @ gradient.flatten(2)
            found = F.fold(columns, ctx.size, weight.shape[2:], padding=ctx.padding, stride=ctx.stride)
        else:
            least = [
                (o - 1) * s - 2 * p + k
                for o, s, p, k in zip(gradient.shape[2:], ctx.stride, ctx.padding, weight.shape[2:], strict=True)
            ]
            rest = [whole - part for whole, part in zip(ctx.size, least, strict=True)]
            found = F.conv_transpose2d(gradient, weight, None, ctx.stride, ctx.padding, rest)
        return found, None, None, None, None


# Function.apply binds arguments by the signature at each call; made once, it need not be worked out a thousand times.
_Convolution.forward.__signature__ = inspect.signature(_Convolution.forward)  # pyright: ignore
