"""Training steps: what they cost over their passes alone, and what others' way of making them costs.

F is a forward pass of a batch, Bx a backward pass to the images, Bw the part of a backward pass that goes to the weights; F +
Bw is a forward-backward pass by the weights at given images. N is the attack's steps. All are passes of the same network in
train mode, by `torch.autograd.grad`, a few in a row, as in a step.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import peers
import torch
import torch.nn.functional as F
from cells import Comparison
from subjects import Subject
from timing import Took, interleave, ratio
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shaketable.core import PGD, Ball, Calls, generator
from shaketable.training import WeightPerturbation, at, awp, train_step

GAMMA, STEP = 0.01, 0.25
PASSES = ("F + Bx", "F + Bw", "F + Bx + Bw", "Bw")
KERNELS = {
    "convolution", "convolution_backward", "native_batch_norm", "native_batch_norm_backward", "relu", "relu_",
    "threshold_backward", "mm", "addmm",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A network that is trained on batches of some size, by PGD with some steps; passes are timed a few in a row."""

    subject: Subject
    batch: int
    steps: int
    passes: int

    def __str__(self) -> str:
        return f"{self.subject.name}, batch {self.batch}, PGD-{self.steps}"

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole batches, over and over."""
        x, y = (t.split(self.batch) for t in (self.subject.x, self.subject.y))
        return itertools.cycle([pair for pair in zip(x, y, strict=True) if len(pair[1]) == self.batch])

    def network(self) -> nn.Module:
        """A copy of the network, in train mode."""
        return copy.deepcopy(self.subject.model).train()


def whole_steps(setting: Setting, repetitions: int) -> Iterator[Comparison]:
    """Steps of AT and AT-AWP over their passes alone, and the `backward()` style over them.

    A step's limit is N (F + Bx), and F + Bx + Bw for each pass by the weights. At given images such a pass needs no Bx to
    the images, F + Bw, so a tighter limit is said beside it.
    """
    run = _passes(setting)
    candidates = {
        "AT": _ours(setting, None),
        "AT-AWP": _ours(setting, awp(GAMMA)),
        "AT-AWP, shared": _ours(setting, awp(GAMMA, shared=True)),
        "backward() style": _theirs(peers.ByBackward, setting, None),
        "backward() style, proxy network": _theirs(peers.ByBackward, setting, GAMMA),
        **{name: run[name] for name in PASSES},
    }
    s = _seconds(setting, candidates, repetitions)
    attack, say = setting.steps * s["F + Bx"], _Say(setting, s)
    for passes, bar in (("F + Bx + Bw", 1.1), ("F + Bw", None)):
        one = s[passes]
        yield say.cost("AT step", s["AT"], f"N (F + Bx) + {passes}", attack + one, bar)
        yield say.cost("AT-AWP step", s["AT-AWP"], f"N (F + Bx) + 2 ({passes})", attack + 2 * one, bar)
        shared = attack + s["Bw"] + one
        yield say.cost("AT-AWP step, shared", s["AT-AWP, shared"], f"N (F + Bx) + Bw + {passes}", shared, bar)
    for ours in ("AT-AWP", "AT-AWP, shared"):
        yield say.cost(ours.replace("AWP", "AWP step"), s[ours], "our AT step", s["AT"], None)
    for ours, theirs in (("AT", "backward() style"), ("AT-AWP", "backward() style, proxy network")):
        yield say.against(ours, theirs, 1.3)


def additions(setting: Setting, repetitions: int) -> Iterator[Comparison]:
    """What AWP adds to the same AT step, over the passes it adds; few attack steps do, since they are no part of it.

    By hand is how near to its passes AWP comes with nothing but what it needs: its norms and its sums go over all weights,
    which counts where a batch is small.
    """
    run = _passes(setting)
    candidates = {
        "AT": _ours(setting, None),
        "AT-AWP": _ours(setting, awp(GAMMA)),
        "AT-AWP, shared": _ours(setting, awp(GAMMA, shared=True)),
        "AT by hand": _theirs(peers.ByHand, setting, None),
        "AT-AWP by hand": _theirs(peers.ByHand, setting, GAMMA),
        "F + Bx + Bw": run["F + Bx + Bw"],
        "F + Bw": run["F + Bw"],
        "Bw": run["Bw"],
    }
    s = _seconds(setting, candidates, repetitions)
    say = _Say(setting, s)
    for over, bar in (("F + Bx + Bw", 1.1), ("F + Bw", None)):
        yield say.cost("what AWP adds", s["AT-AWP"] - s["AT"], over, s[over], bar)
    by_hand = s["AT-AWP by hand"] - s["AT by hand"]
    yield say.cost("what AWP adds, by hand", by_hand, "F + Bw", s["F + Bw"], None)
    yield say.cost("what shared AWP adds", s["AT-AWP, shared"] - s["AT"], "Bw", s["Bw"], 1.1)


def besides(setting: Setting, repetitions: int) -> Iterator[Comparison]:
    """What AWP adds beside its passes: moving and restoring weights, norms, Python; over the passes it adds.

    The difference of two whole steps drowns in the noise of their passes. Here the time in the passes' own kernels
    (convolutions, normalisations, rectifiers, matrix products and their gradients) is taken out of each step, operation by
    operation, and the rest compared. Looking at every operation takes time too, which counts as ours.
    """
    run = _passes(setting)
    rest = {name: _Apart(_ours(setting, weights)) for name, weights in (
        ("AT", None), ("AT-AWP", awp(GAMMA)), ("AT-AWP, shared", awp(GAMMA, shared=True)),
    )}  # fmt: skip
    s = _seconds(setting, {**rest, "F + Bx + Bw": run["F + Bx + Bw"], "Bw": run["Bw"]}, repetitions)
    say = _Say(setting, s)
    yield say.cost("beside its passes AWP adds", s["AT-AWP"] - s["AT"], "F + Bx + Bw", s["F + Bx + Bw"], 0.1)
    yield say.cost("beside its passes shared AWP adds", s["AT-AWP, shared"] - s["AT"], "Bw", s["Bw"], 0.1)


class _Apart(TorchDispatchMode):
    """A step, run: returns the CPU seconds that were not spent in the kernels of passes."""

    def __init__(self, step: Callable[[], object]) -> None:
        super().__init__()
        self.step, self.kernels = step, 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.process_time()
        result = function(*args, **(kwargs or {}))
        if str(function).split(".")[1] in KERNELS:
            self.kernels += time.process_time() - began
        return result

    def __call__(self) -> Took:
        self.kernels, began = 0.0, time.process_time()
        with self:
            self.step()
        return Took(time.process_time() - began - self.kernels)


@dataclass(frozen=True)
class _Say:
    """Makes the comparisons of one setting; `seconds` of all that was run are in each one's facts, as medians."""

    setting: Setting
    seconds: dict[str, np.ndarray]

    def cost(self, ours: str, a: np.ndarray, over: str, b: np.ndarray, bar: float | None) -> Comparison:
        """Ours over passes."""
        cell = f"{ours}; {self.setting}"
        return Comparison(cell, over, ratio(a, b), bar, False, a.tolist(), b.tolist(), self._facts(), cost=True)

    def against(self, ours: str, theirs: str, bar: float) -> Comparison:
        """Theirs over ours."""
        a, b = self.seconds[ours], self.seconds[theirs]
        cell = f"{ours} step; {self.setting}"
        return Comparison(cell, theirs, ratio(b, a), bar, False, a.tolist(), b.tolist(), self._facts())

    def _facts(self) -> dict[str, Any]:
        medians = {name: float(np.median(seconds)) for name, seconds in self.seconds.items()}
        return {"batch": self.setting.batch, "steps": self.setting.steps, "median seconds": medians}


def _seconds(setting: Setting, candidates: dict[str, Callable[[], object]], repetitions: int) -> dict[str, np.ndarray]:
    """CPU seconds of one step, or of one pass."""
    found = {name: np.array(seconds) for name, seconds in interleave(candidates, repetitions).items()}
    return {name: s / setting.passes if name in PASSES else s for name, s in found.items()}


def _ours(setting: Setting, weights: WeightPerturbation | None) -> Callable[[], None]:
    model, batches, by = setting.network(), setting.batches(), PGD(setting.steps, STEP)
    optimiser, ball = _optimiser(model), Ball("linf", setting.subject.eps, box=(0, 1))
    more = 0 if weights is None or weights.shared else 1
    passes = Calls(*[(setting.steps + more) * setting.batch] * 2)

    def run() -> None:
        x, y = next(batches)
        done = train_step(model, optimiser, at(), x, y, within=ball, by=by, weights=weights, generator=generator(0))
        if done.calls != passes:
            raise AssertionError(f"{done.calls}, not {passes}")

    return run


def _theirs(way: Callable[..., Callable[..., object]], setting: Setting, gamma: float | None) -> Callable[[], object]:
    model, batches = setting.network(), setting.batches()
    budget = {"eps": setting.subject.eps, "steps": setting.steps, "step": STEP, "gamma": gamma}
    step = way(model, _optimiser(model), **budget)
    return lambda: step(*next(batches))


def _optimiser(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.001, momentum=0.9, weight_decay=5e-4)


def _passes(setting: Setting) -> dict[str, Callable[[], object]]:
    """Some passes of each kind in a row."""
    model, batches, times, turns = setting.network(), setting.batches(), setting.passes, itertools.count()
    parameters = list(model.parameters())

    def to_images() -> None:
        x, y = next(batches)
        peers.passes_alone(model, x, y, setting.subject.eps, times)

    def to_weights(images: bool) -> None:
        x, y = next(batches)
        for _ in range(times):
            point = x.detach().requires_grad_(images)
            torch.autograd.grad(F.cross_entropy(model(point), y), [point, *parameters] if images else parameters)

    def weights_alone() -> Took:
        """From one forward pass, backward to images and weights minus backward to images; in turns, either first."""
        (x, y), seconds = next(batches), 0.0
        for turn in itertools.islice(turns, times):
            point = x.detach().requires_grad_()
            loss = F.cross_entropy(model(point), y)
            for last in (False, True):
                both = last != bool(turn % 2)
                began = time.process_time()
                torch.autograd.grad(loss, [point, *parameters] if both else [point], retain_graph=not last)
                seconds += (1 if both else -1) * (time.process_time() - began)
        return Took(seconds)

    return {
        "F + Bx": to_images,
        "F + Bw": lambda: to_weights(False),
        "F + Bx + Bw": lambda: to_weights(True),
        "Bw": weights_alone,
    }
