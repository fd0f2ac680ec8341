"""Forward passes over images that differ in one window from those of the pass before, without computing the rest again."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .twin import QuickTwin
from .twin_graph import Node, Traced
from .window_areas import Area, Reach
from .window_graph import Kind, Spread, Sum, kind_of, value_of, writes
from .window_maps import Plan

LARGEST = 0.6  # share of a map: of a larger one all is computed
WORTH = 0.8  # share of a pass's multiplications
MEMORY = 2**30  # bytes of maps that are kept


class WindowPasses:
    """The logits of images of which one window each has changed: of a convolutional network, what the window reaches.

    The maps of the network are kept for the points as they are, padded and with channels last. A candidate's window is written
    into the image; each convolution reads the lines and columns around what has changed, and writes what it finds into its own
    map, which the next one reads; where more than `LARGEST` of a map may change, and after the last map, everything is
    computed from there on. What was overwritten is written back where the candidate is not taken. Nothing is added up over
    candidates, so the logits are those of a whole pass but for its rounding.

    Only of a `QuickTwin`, whose points are judged again by the model itself. Its graph is `torch.fx`'s (see `graph_of`), and
    must write into nothing that is read again. Convolutions, poolings, sums and what works entry by entry are followed, the
    rest is given whole maps; for each size of windows it is compared with whole passes first, on two images.

    Cost: `begin` a pass at most, `logits` what the windows reach: with those of Square's queries about half the time of a pass
    of the package's small CNN; in 60 queries on eight images, a PreAct ResNet-18 gains nothing that is shown, since each size
    begins anew (`benchmarks/run.py --only "Square through"`). Memory: the maps of all images, at most 1 GiB, else `begin`
    declines.

    Checked by tests/attacks/test_window_passes.py: whole passes, over drawn networks, windows and verdicts.
    """

    def __init__(self, model: QuickTwin, graph: Traced, images: Tensor) -> None:
        self.model, self.nodes, self.modules = model, graph.nodes, graph.modules
        self.shapes: dict[Node, torch.Size] = {}
        self.constants: dict[Node, Any] = {}
        values: dict[Node, Any] = {}
        for node in self.nodes:
            versions = {known: value._version for known, value in values.items() if isinstance(value, Tensor)}
            values[node] = images if node.op == "placeholder" else value_of(node, values, self.modules)
            for known in (known for known, version in versions.items() if values[known]._version != version):
                self._refuse_unless_last(known, node)
            if isinstance(values[node], Tensor):
                self.shapes[node] = values[node].shape
            sources = node.all_input_nodes
            if node.op == "get_attr" or (sources and all(source in self.constants for source in sources)):
                self.constants[node] = values[node]
        self.found: Any = values[self.nodes[-1]]
        self.kinds: dict[Node, Kind | None] = {node: self._kind(node) for node in self.nodes}
        self.plan: Plan | None = None

    @classmethod
    def of(cls, model: Any, x: Float[Tensor, "n c h w"]) -> "WindowPasses | None":
        """Those of a model; None where its graph cannot be had, or computes other logits. Costs two passes of two images."""
        if not isinstance(model, QuickTwin) or x.dtype != torch.float32 or x.device.type != "cpu":
            return None
        graph = model.graph
        if graph is None:
            return None
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                passes = cls(model, graph, x[:2].clone())
                return passes if _agree(passes.found, model(x[:2].clone())) else None
            except Exception:  # a model may look at anything on its way
                return None

    def begin(self, point: Float[Tensor, "n c h w"], size: tuple[int, int]) -> bool:
        """Get ready for windows of a size at these points; False where it is not worth while.

        Costs a pass at most, and four passes of two images, on which it is compared with whole ones.
        """
        self.plan = None
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                areas = self._areas(size)
                if not areas or not self._is_worth(areas):
                    return False
                plan = Plan(self.nodes, self.modules, self.shapes, self.kinds, self.constants, areas)
                if plan.entries() * len(point) * 4 > MEMORY or not self._holds(plan, point[:2], size):
                    return False
                plan.fill(point)
            except Exception:  # what a model does on its way may not work on part of a map
                return False
        self.plan = plan
        return True

    def aim(self, corners: Int[Tensor, "b n 2"]) -> None:
        """Where the windows of the next passes lie: the first line and column of each."""
        assert self.plan is not None
        self.plan.aim(corners[..., 0], corners[..., 1])

    def logits(self, turn: int, window: Float[Tensor, "n c a b"]) -> Tensor:
        """Of the points with these windows, at the places of the turn-th of `corners`. Then `settle`."""
        assert self.plan is not None
        return self.plan.run(turn, window)

    def settle(self, better: Bool[Tensor, " n"]) -> None:
        """Which of the windows stay."""
        assert self.plan is not None
        self.plan.settle(better)

    def keep(self, left: Int[Tensor, " k"]) -> None:
        """Let the other points go; `aim` again."""
        if self.plan is not None:
            self.plan.keep(left)

    def _refuse_unless_last(self, known: Node, writer: Node) -> None:
        """A value may be written into by nodes that are known to, and if nothing reads it afterwards."""
        later = self.nodes[self.nodes.index(writer) + 1 :]
        if known.op == "placeholder" or known in self.constants or any(user in later for user in known.users):
            raise ValueError(f"{writer} writes into {known}, which is read again")
        if not writes(writer, self.modules.get(str(writer.target))):
            raise ValueError(f"{writer} writes into {known}")

    def _holds(self, plan: Plan, point: Tensor, size: tuple[int, int]) -> bool:
        """Whether a plan gives the logits of whole passes: for windows in corners, the first of which one image takes."""
        height, width = size
        ends = point.shape[2] - height, point.shape[3] - width
        plan.fill(point)
        plan.aim(*torch.tensor([[[0, 0], list(ends)], [list(ends), [ends[0], 0]]])[:, : len(point)].unbind(2))
        point = point.clone()
        for turn, corners in enumerate((((0, 0), ends), (ends, (ends[0], 0)))):
            candidate, windows = point.clone(), []
            for image, (top, left) in zip(candidate, corners, strict=False):
                window = image[:, top : top + height, left : left + width]
                windows.append(window.copy_(window.flip(1, 2) + 0.25))
            if not _agree(plan.run(turn, torch.stack(windows)), self.model(candidate.clone())):
                return False
            plan.settle(torch.tensor([True, False])[: len(point)])
            point[0] = candidate[0]
        return True

    def _kind(self, node: Node) -> Kind | None:
        if node.op not in ("call_module", "call_function", "call_method"):
            return None
        return kind_of(node, self.modules.get(str(node.target)), self.shapes, self.constants)

    def _areas(self, size: tuple[int, int]) -> dict[Node, Area]:
        """What a window of a size may change, where that is followed; of maps in the order of the graph."""
        areas: dict[Node, Area] = {}
        edges: dict[Node, float] = {}  # a map has one edge, of zeros or of -inf
        for node in self.nodes:
            kind, area = self.kinds[node], None
            if node.op == "placeholder":
                area = Area(*(Reach.window(*side) for side in zip(size, self.shapes[node][2:], strict=True)))
            elif kind is not None and all(n in areas or n in self.constants for n in node.all_input_nodes):
                area = areas[node.args[0]]
                if isinstance(kind, Spread):
                    padded = any(kind.padding) and edges.setdefault(node.args[0], kind.fill) != kind.fill
                    area = None if padded else kind.reach(area)
                elif isinstance(kind, Sum):
                    area = area.joined(areas[node.args[1]])
            if area is not None and area.share <= LARGEST:
                areas[node] = area
            elif node.op == "placeholder":
                return {}
        return areas

    def _is_worth(self, areas: dict[Node, Area]) -> bool:
        """Whether enough multiplications are saved."""
        whole = part = 0.0
        for node, kind in self.kinds.items():
            module = self.modules.get(str(node.target)) if node.op == "call_module" else None
            products = self.shapes[node][2:].numel() * kind.products if isinstance(kind, Spread) else 0
            if isinstance(module, nn.Linear):
                products = self.shapes[node].numel() * module.in_features
            whole, part = whole + products, part + products * (areas[node].share if node in areas else 1)
        return part < WORTH * whole


def _agree(found: Any, expected: Any) -> bool:
    """Whether logits are the same but for rounding."""
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor) or found.shape != expected.shape:
        return False
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(expected.abs().max())))
