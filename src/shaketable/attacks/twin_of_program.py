"""An exported program with the same weights, whose passes take less time on a CPU."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from ..models.foreign import Exported

PAD, CONVOLUTION = torch.ops.aten.pad.default, torch.ops.aten.conv2d.default
DEFAULTS = (None, (1, 1), (0, 0), (1, 1), 1)  # of a convolution, after input and weight


def quick_program(model: Exported) -> Exported:
    """The program of a model, fed with images in channels_last layout, and without the paddings that do nothing by themselves.

    - Images in channels_last layout make all convolutions work in it. A program that refuses them (it looks at its tensors
      by `view`) gets them as they are from then on.
    - A padding by nothing is a copy, and goes; one with zeros, the same on both sides, that only convolutions read is made
      theirs. Programs that come from TensorFlow Lite pad before every convolution. Nothing is touched in a program that
      writes into tensors.

    Weights are shared with the model. The logits are the same but for rounding.

    Cost: no pass. Forward and backward passes of five ImageNet programs (MobileNets, EfficientNet Lite0) take 1.2 to 1.4 times
    less on one thread, with torch 2.13; `benchmarks/run.py` measures it again. Checked by tests/attacks/test_twin.py.
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
    """The program without its idle paddings, if it is a graph that writes into nothing."""
    if not isinstance(program, fx.GraphModule) or any(_writes(node) for node in program.graph.nodes):
        return program
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    graph.set_codegen(program.graph._codegen)  # which packs what goes in and comes out
    pads = [node for node in graph.nodes if node.target is PAD and _with_zeros(node)]
    for pad in pads:
        source, sides = pad.args[:2]
        if not any(sides):
            pad.replace_all_uses_with(source)
        elif len(sides) == 4 and sides[0] == sides[1] >= 0 and sides[2] == sides[3] >= 0:
            readers = [node for node in pad.users if _takes_padding(node, pad)]
            for node in readers if len(readers) == len(pad.users) else ():
                node.args = _padded(node, source, sides)
        if not pad.users:
            graph.erase_node(pad)
    return fx.GraphModule(program, graph)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _with_zeros(pad: fx.Node) -> bool:
    mode, value = (*pad.args[2:], *("constant", None)[len(pad.args) - 2 :])[:2]
    return not pad.kwargs and mode == "constant" and value in (None, 0)


def _takes_padding(node: fx.Node, pad: fx.Node) -> bool:
    """Whether a node is a convolution of this padding's output, and pads nothing itself."""
    plain = node.target is CONVOLUTION and not node.kwargs and node.args[0] is pad and pad not in node.args[1:]
    return plain and not any(_settings(node)[2])


def _settings(node: fx.Node) -> tuple[Any, ...]:
    """Bias, stride, padding, dilation and groups."""
    given = node.args[2:]
    return (*given, *DEFAULTS[len(given) :])


def _padded(node: fx.Node, source: Any, sides: Any) -> tuple[Any, ...]:
    bias, stride, _, *rest = _settings(node)
    return (source, node.args[1], bias, stride, [sides[2], sides[0]], *rest)
