"""An exported program with the same weights, whose passes take less time on a CPU."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from ..models.foreign import Exported

ATEN = torch.ops.aten
PAD, CONVOLUTION, NORM = ATEN.pad.default, ATEN.conv2d.default, ATEN.batch_norm.default
DEFAULTS = (None, (1, 1), (0, 0), (1, 1), 1)  # of a convolution, after input and weight
Node = Any  # fx.Node, whose arguments are anything


def quick_program(model: Exported) -> Exported:
    """The program of a model, fed with images in channels_last layout, without what its convolutions can do as well.

    - Images in channels_last layout make all convolutions work in it. A program that refuses them (it looks at its tensors
      by `view`) gets them as they are from then on.
    - A padding by nothing is a copy, and goes; one with zeros that only convolutions read is made theirs. Where it is not the
      same on both sides, a grouped convolution gets a kernel with zeros on one side, which it pads alike; others keep it.
      Programs that come from TensorFlow Lite pad before every convolution.
    - A batch normalisation with kept statistics that alone reads a convolution is multiplied into its kernel and bias, anew
      at each pass. A ReLU that only a clamp to [0, c] reads goes.
    - Nothing is touched in a program that writes into tensors.

    Weights are shared with the model. The logits are the same but for rounding.

    Cost: no pass. Forward and backward passes of five ImageNet programs (MobileNets, EfficientNet Lite0) take 1.2 to 1.9
    times less on one thread, with torch 2.13; `benchmarks/run.py` measures it again. Checked by tests/attacks/test_twin.py.
    """
    return _ChannelsLast(_lean(model.program), model.shape, model.batch, writes=model.writes)


class _ChannelsLast(Exported):
    """A program that is given its images in channels_last layout, unless it cannot take them."""

    takes = True

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        if self.takes and x.dim() == 4:
            try:
                return super().forward(x.contiguous(memory_format=torch.channels_last))
            except RuntimeError:  # also one that has nothing to do with it, which is then raised below
                self.takes = False
        return super().forward(x)


def _lean(program: Any) -> Any:
    """The program without what its convolutions can do, if it is a graph that writes into nothing."""
    if not isinstance(program, fx.GraphModule) or any(_writes(node) for node in program.graph.nodes):
        return program
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    graph.set_codegen(program.graph._codegen)  # which packs what goes in and comes out
    for node in list(graph.nodes):
        if node.target is PAD and _with_zeros(node):
            _without_padding(graph, node)
        elif node.target is NORM and _is_kept(node):
            _without_norm(graph, node)
        elif node.target is ATEN.hardtanh.default and _clamps_a_relu(node):
            node.args = (node.args[0].args[0], *node.args[1:])
    for node in reversed(graph.nodes):
        if not node.users and node.target in (PAD, CONVOLUTION, ATEN.relu.default):
            graph.erase_node(node)
    return fx.GraphModule(program, graph)


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _with_zeros(pad: Node) -> bool:
    mode, value = (*pad.args[2:], *("constant", None)[len(pad.args) - 2 :])[:2]
    return not pad.kwargs and mode == "constant" and value in (None, 0)


def _without_padding(graph: fx.Graph, pad: Node) -> None:
    """Let the convolutions that read a padding do it, if they all can and nothing else reads it."""
    source, sides = pad.args[:2]
    if not any(sides):
        pad.replace_all_uses_with(source)
    elif _are_numbers(sides) and len(sides) == 4 and min(sides) >= 0 and all(_takes_padding(n, pad) for n in pad.users):
        left, right, top, bottom = sides
        more = [max(right - left, 0), max(left - right, 0), max(bottom - top, 0), max(top - bottom, 0)]
        for node in list(pad.users):
            bias, stride, _, *rest = _settings(node)
            weight = node.args[1]
            if any(more):
                with graph.inserting_before(node):
                    weight = graph.call_function(PAD, (weight, more))
            node.args = (source, weight, bias, stride, [max(top, bottom), max(left, right)], *rest)


def _are_numbers(values: Any) -> bool:
    """Whether they are known; of images of any size a program may work them out first."""
    return all(isinstance(value, int | float) for value in values)


def _takes_padding(node: Node, pad: Node) -> bool:
    """Whether a node is a convolution of this padding's output that pads nothing itself; uneven for grouped ones alone."""
    if node.target is not CONVOLUTION or node.kwargs or node.args[0] is not pad or pad in node.args[1:]:
        return False
    _, _, padding, dilation, groups = _settings(node)
    left, right, top, bottom = pad.args[1]
    even = left == right and top == bottom
    return not any(padding) and (even or (groups > 1 and set(dilation) == {1}))


def _settings(node: Node) -> tuple[Any, ...]:
    """Bias, stride, padding, dilation and groups of a convolution."""
    given = node.args[2:]
    return (*given, *DEFAULTS[len(given) :])


def _is_kept(norm: Node) -> bool:
    """Whether a batch normalisation uses kept statistics, of a convolution that nothing else reads."""
    if norm.kwargs or len(norm.args) < 8 or norm.args[5] is not False or None in norm.args[3:5]:
        return False
    source = norm.args[0]
    plain = isinstance(source, fx.Node) and source.target is CONVOLUTION and not source.kwargs
    return plain and len(source.users) == 1


def _without_norm(graph: fx.Graph, norm: Node) -> None:
    """Multiply a batch normalisation into its convolution; the graph does it with the weights as they are by then."""
    conv, gain, shift, mean, variance, _, _, epsilon = norm.args[:8]
    image, weight = conv.args[:2]
    bias, *rest = _settings(conv)
    with graph.inserting_before(norm):

        def call(operation: Any, *args: Any) -> Node:
            return graph.call_function(operation, args)

        scale = call(ATEN.rsqrt.default, call(ATEN.add.Scalar, variance, epsilon))
        scale = scale if gain is None else call(ATEN.mul.Tensor, scale, gain)
        offset = call(ATEN.neg.default, mean) if bias is None else call(ATEN.sub.Tensor, bias, mean)
        offset = call(ATEN.mul.Tensor, offset, scale)
        offset = offset if shift is None else call(ATEN.add.Tensor, offset, shift)
        kernel = call(ATEN.mul.Tensor, weight, call(ATEN.view.default, scale, [-1, 1, 1, 1]))
        norm.replace_all_uses_with(call(CONVOLUTION, image, kernel, offset, *rest))
    graph.erase_node(norm)


def _clamps_a_relu(clamp: Node) -> bool:
    """Whether a node is a clamp to [0, c] of a ReLU."""
    ends = clamp.args[1:]
    if clamp.kwargs or len(ends) != 2 or not _are_numbers(ends) or ends[0] != 0 or ends[1] <= 0:
        return False
    source = clamp.args[0]
    return isinstance(source, fx.Node) and source.target is ATEN.relu.default and not source.kwargs
