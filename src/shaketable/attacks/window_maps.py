"""The maps of a convolutional network that are kept while windows of its images are tried, and what is done with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .twin_graph import Node
from .window_areas import Area
from .window_graph import Kind, Spread, Sum, caller, value_of, writes

PRODUCT = 2**18  # entries of a matrix up to which a convolution is a product


class _Map:
    """A map of all images: pixels with their channels, one image after the other, each with an edge."""

    def __init__(self, shape: torch.Size, edge: tuple[int, int], fill: float) -> None:
        self.shape, self.edge, self.fill = shape[1:], edge, fill
        self.size = shape[2] + 2 * edge[0], shape[3] + 2 * edge[1]
        self.pixels = torch.zeros(0)

    def put(self, values: Tensor) -> None:
        down, across = self.edge
        padded = F.pad(values, (across, across, down, down), value=self.fill)
        self.pixels = padded.permute(0, 2, 3, 1).reshape(-1, self.shape[0]).clone()

    def images(self) -> Tensor:
        """As (n, h, w, c), without the edge."""
        (c, h, w), (down, across) = self.shape, self.edge
        return self.pixels.view(-1, *self.size, c)[:, down : down + h, across : across + w]

    def keep(self, left: Tensor) -> None:
        pixels = self.size[0] * self.size[1]
        self.pixels = self.pixels.view(-1, pixels, self.shape[0])[left].flatten(0, 1)


class _Place:
    """Pixels of a map: from a first one, which each window has of its own, those at some offsets."""

    def __init__(self, of: _Map, lines: Tensor, columns: Tensor, size: tuple[int, int]) -> None:
        self.map, self.size = of, size
        self.lines, self.columns = (lines + of.edge[0]) * of.size[1], columns + of.edge[1]
        self.offsets = self.grid(size).flatten()
        self.first = self.index = torch.zeros(0, dtype=torch.long)
        self.old = self.new = torch.zeros(0)

    def grid(self, size: tuple[int, int], step: tuple[int, int] = (1, 1)) -> Tensor:
        """The offsets of every step-th line and column."""
        down, across = (torch.arange(count) * apart for count, apart in zip(size, step, strict=True))
        return down[:, None] * self.map.size[1] + across

    def aim(self, top: Tensor, left: Tensor) -> None:
        image = torch.arange(top.shape[1]) * (self.map.size[0] * self.map.size[1])
        self.first = (self.lines[top] + self.columns[left] + image).unsqueeze(2)

    def take(self, turn: int, offsets: Tensor) -> Tensor:
        """The pixels at these offsets: (n offsets, c)."""
        return self.map.pixels.index_select(0, (self.first[turn] + offsets).view(-1))

    def read(self, turn: int) -> Tensor:
        """As images (n, c, a, b)."""
        return _images(self.take(turn, self.offsets), self.size)

    def write(self, turn: int, values: Tensor) -> None:
        """Put images there."""
        self.index = (self.first[turn] + self.offsets).view(-1)
        self.old = self.map.pixels.index_select(0, self.index)
        self.new = values.permute(0, 2, 3, 1).reshape(-1, self.map.shape[0])
        self.map.pixels.index_copy_(0, self.index, self.new)

    def settle(self, better: Tensor | None) -> None:
        """Write back what was there; not where a window is better."""
        kept = self.old
        if better is not None:
            parts = (part.reshape(better.shape[0], -1) for part in (self.new, self.old))
            kept = torch.where(better[:, None], *parts).view_as(self.old)
        self.map.pixels.index_copy_(0, self.index, kept)


class _Product:
    """A convolution around windows: for few pixels a product of matrices, which a library's convolution is slower than."""

    def __init__(self, kind: Spread, conv: nn.Conv2d, place: _Place, size: tuple[int, int]) -> None:
        self.run, self.place, self.size, self.bias = kind.run, place, size, conv.bias
        self.matrix = conv.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        pixels = place.grid(size, conv.stride).view(-1, 1)  # pyright: ignore
        self.taps = (pixels + place.grid(conv.weight.shape[2:], conv.dilation).view(1, -1)).flatten()  # pyright: ignore

    def __call__(self, turn: int) -> Tensor:
        entries = self.place.first.shape[1] * self.taps.shape[0] * self.place.map.shape[0]
        if entries > PRODUCT:
            return self.run(self.place.read(turn))
        read = self.place.take(turn, self.taps).view(-1, self.matrix.shape[0])
        found = read @ self.matrix if self.bias is None else torch.addmm(self.bias, read, self.matrix)
        return _images(found, self.size)


def _images(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels (n a b, c) as (n, c, a, b)."""
    return pixels.view(-1, *size, pixels.shape[1]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Step:
    """A node that is followed: what it does with what changes, and where that is written, if it is."""

    node: Node
    run: Callable[[int, dict[Node, Tensor]], Tensor] | None  # of the image itself none
    place: _Place | None


class Plan:
    """What is computed for windows of one size: `steps` follow what changes, `rest` are given whole maps.

    Args:
        nodes, modules, shapes, kinds, constants, areas: those of `WindowPasses`, for this size.
    """

    def __init__(
        self,
        nodes: list[Node],
        modules: dict[str, nn.Module],
        shapes: dict[Node, torch.Size],
        kinds: dict[Node, Kind | None],
        constants: dict[Node, Any],
        areas: dict[Node, Area],
    ) -> None:
        self.modules, self.shapes, self.kinds, self.constants, self.areas = modules, shapes, kinds, constants, areas
        self.rest = [node for node in nodes if node not in areas and node not in constants]
        self.calls = {node: caller(node, constants, modules) for node in self.rest}
        self.maps = {node: _Map(shapes[node], *self._edge(node)) for node in areas if self._is_kept(node)}
        self.whole = [node for node in self.maps if any(user not in areas for user in node.users)]
        self.copied: bool = any(writes(node, modules.get(str(node.target))) for node in self.rest)
        self.linears: dict[Node, Tensor] = {}
        self.flat: dict[Node, Node] = {}
        for node in self.rest:
            self._flatten(node)
        self.places: list[_Place] = []
        self.steps = [self._step(node) for node in areas]

    def entries(self) -> int:
        """How many numbers are kept for an image."""
        return sum(kept.shape[0] * kept.size[0] * kept.size[1] for kept in self.maps.values())

    def fill(self, point: Tensor) -> None:
        """Compute the maps of these images."""
        values = dict(self.constants)
        readers = {node: sum(user in self.areas for user in node.users) for node in self.areas}
        for node in self.areas:
            values[node] = point if node.op == "placeholder" else value_of(node, values, self.modules)
            if node in self.maps:
                self.maps[node].put(values[node])
            for source in node.all_input_nodes:
                if source in readers:
                    readers[source] -= 1
            for spent in [source for source in (node, *node.all_input_nodes) if readers.get(source) == 0]:
                values.pop(spent, None)

    def aim(self, top: Tensor, left: Tensor) -> None:
        for place in self.places:
            place.aim(top, left)

    def run(self, turn: int, window: Tensor) -> Tensor:
        changed: dict[Node, Tensor] = {}
        for step in self.steps:
            changed[step.node] = window if step.run is None else step.run(turn, changed)
            if step.place is not None:
                step.place.write(turn, changed[step.node])
        values: dict[Node, Any] = {}
        for node in self.whole:
            images = self.maps[node].images().permute(0, 3, 1, 2)
            values[node] = images.clone() if self.copied else images
        for node in self.rest:
            if node in self.flat:
                values[node] = self.maps[self.flat[node]].pixels.view(window.shape[0], -1)
            elif node in self.linears:
                module: Any = self.modules[node.target]
                values[node] = F.linear(values[node.args[0]], self.linears[node], module.bias)
            else:
                values[node] = self.calls[node](values)
        return values[self.rest[-1]]

    def settle(self, better: Tensor) -> None:
        some = better if bool(better.any()) else None
        for step in self.steps:
            if step.place is not None:
                step.place.settle(some)

    def keep(self, left: Tensor) -> None:
        for kept in self.maps.values():
            kept.keep(left)

    def _is_kept(self, node: Node) -> bool:
        """Whether more of a map is read than what has changed in it."""
        for user in node.users:
            if user not in self.areas or isinstance(self.kinds[user], Spread):
                return True
            if isinstance(self.kinds[user], Sum) and not self.areas[user].same(self.areas[node]):
                return True
        return False

    def _edge(self, node: Node) -> tuple[tuple[int, int], float]:
        """What convolutions and poolings read around a map: how much, and its value."""
        readers = [kind for user in node.users if user in self.areas and isinstance(kind := self.kinds[user], Spread)]
        down, across = (max((kind.padding[side] for kind in readers), default=0) for side in range(2))
        return (down, across), next((kind.fill for kind in readers if any(kind.padding)), 0.0)

    def _flatten(self, node: Node) -> None:
        """Let linear layers read a map as it lies, with their weights in that order."""
        source, kept = (node.args[0], self.maps.get(node.args[0])) if node.args else (None, None)
        flattens = node.target in (torch.flatten, "flatten", "view", "reshape") or (
            node.op == "call_module" and isinstance(self.modules[node.target], nn.Flatten)
        )
        if not flattens or kept is None or any(kept.edge) or self.copied:
            return
        linear = all(
            user.op == "call_module" and type(self.modules[user.target]) is nn.Linear and user.args == (node,)
            for user in node.users
        )
        if linear and self.shapes[node][1:] == (kept.shape.numel(),):
            self.flat[node] = source
            for user in node.users:
                weight: Tensor = self.modules[user.target].weight  # pyright: ignore
                self.linears[user] = weight.unflatten(1, kept.shape).permute(0, 2, 3, 1).flatten(1).contiguous()

    def _place(self, node: Node, area: Area, reader: Spread | None = None) -> _Place:
        """The pixels of a node's map in an area, or what a convolution reads for its output there."""
        sides, size = (area.lines.first, area.columns.first), area.size
        if reader is not None:
            numbers = list(zip(reader.stride, reader.padding, reader.kernel, strict=True))
            sides = [first * stride - padding for first, (stride, padding, _) in zip(sides, numbers, strict=True)]
            size = tuple((part - 1) * stride + kernel for part, (stride, _, kernel) in zip(size, numbers, strict=True))
        self.places.append(_Place(self.maps[node], sides[0], sides[1], size))  # pyright: ignore
        return self.places[-1]

    def _step(self, node: Node) -> "_Step":
        kind, area = self.kinds[node], self.areas[node]
        place = self._place(node, area) if node in self.maps else None
        if node.op == "placeholder":
            return _Step(node, None, place)
        sources = [source for source in node.all_input_nodes if source not in self.constants]
        if isinstance(kind, Spread):
            read = self._place(sources[0], area, kind)
            if kind.conv is not None:
                product = _Product(kind, kind.conv, read, area.size)
                return _Step(node, lambda turn, changed: product(turn), place)
            return _Step(node, lambda turn, changed: kind.run(read.read(turn)), place)
        others = {s: self._place(s, area) for s in sources if not self.areas[s].same(area)}
        call = caller(node, self.constants, self.modules)

        def run(turn: int, changed: dict[Node, Tensor]) -> Tensor:
            return call({**changed, **{source: read.read(turn) for source, read in others.items()}})

        return _Step(node, run if others else lambda turn, changed: call(changed), place)
