"""What is measured: each cell runs our way and others' side by side, and says what bar its ratio must clear."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any

import peers
from subjects import EPS, Subject, subject, untrained_resnet
from timing import Ratio, interleave, ratio
from torch import Tensor

from shaketable.attacks import PGDAttack, SquareAttack, evaluate
from shaketable.attacks.twin import quick_twin
from shaketable.core import PGD, Ball, ce, generator, perturb

BALL = Ball("linf", EPS, box=(0, 1))
SIZES = (64, 100, 256)


@dataclass(frozen=True)
class Comparison:
    """Ours against another way of doing the same, or against the passes that it cannot do without.

    Args:
        cell: what is done, on what.
        other: who else does it; or which passes.
        ratio: their CPU time over ours; of passes, ours over theirs.
        bar: what the ratio is to clear with its whole interval; None where nothing is aimed at.
        must: whether not clearing it fails the run; else it is an aim.
        ours, theirs: CPU seconds of each repetition.
        facts: robust accuracies, passes, batch sizes.
        cost: ours over passes, of which the bar is the most; else theirs over ours, of which it is the least.
    """

    cell: str
    other: str
    ratio: Ratio
    bar: float | None
    must: bool
    ours: list[float]
    theirs: list[float]
    facts: dict[str, Any] = field(default_factory=dict)
    cost: bool = False

    @property
    def cleared(self) -> bool | None:
        """Whether the whole interval is on the bar's good side."""
        if self.bar is None:
            return None
        return self.ratio.high <= self.bar if self.cost else self.ratio.low >= self.bar

    def record(self) -> dict[str, Any]:
        """For the JSON file, which has no infinite numbers."""
        bounds = {name: value if math.isfinite(value) else None for name, value in asdict(self.ratio).items()}
        return asdict(self) | {"ratio": bounds, "cleared": self.cleared}


def _compare(
    cell: str,
    candidates: Mapping[str, Callable[[], object]],
    bars: Mapping[str, float | None],
    repetitions: int,
    facts: Any,
    *,
    must: bool = False,
) -> Iterator[Comparison]:
    seconds = interleave(candidates, repetitions)
    for other, bar in bars.items():
        against = ratio(seconds[other], seconds["ours"])
        yield Comparison(cell, other, against, bar, must, seconds["ours"], seconds[other], facts)


def plain_pgd(count: int, repetitions: int) -> Iterator[Comparison]:
    """PGD that drops nothing, on the model as it is: what the core adds to its passes."""
    s, steps, batch = subject("AT-AWP", count), 10, 64
    pairs = list(zip(s.x.split(batch), s.y.split(batch), strict=True))
    found = perturb(ce(s.model, s.y), s.x, BALL, by=PGD(steps), start="sample", generator=generator(0))
    assert (found.calls.forward, found.calls.backward) == (steps * count, steps * count)

    def ours() -> None:
        for x, y in pairs:
            perturb(ce(s.model, y), x, BALL, by=PGD(steps), start="sample", generator=generator(0))

    def others(attack: Callable[..., Tensor]) -> Callable[[], None]:
        return lambda: [attack(s.model, x, y, EPS, steps) for x, y in pairs] and None

    candidates = {
        "ours": ours, "its passes alone": others(peers.passes_alone), "a hand-written loop": others(peers.by_hand),
        "torchattacks": others(peers.with_torchattacks), "Foolbox": others(peers.with_foolbox),
    }  # fmt: skip
    bars = {"its passes alone": 1 / 1.1, "a hand-written loop": 0.9, "torchattacks": 0.9, "Foolbox": 1.25}
    facts = {"images": count, "batch": batch, "forward": steps * count, "backward": steps * count}
    yield from _compare(f"plain PGD-{steps}", candidates, bars, repetitions, facts)


def passes(count: int, repetitions: int) -> Iterator[Comparison]:
    """A forward pass and an input gradient through the quick twin, against the model itself."""
    s, batch = subject("AT-AWP", count), 64
    twin = quick_twin(s.model)
    pairs = list(zip(s.x.split(batch), s.y.split(batch), strict=True))

    def run(model: Any) -> Callable[[], None]:
        return lambda: [peers.passes_alone(model, x, y, EPS, 10) for x, y in pairs] and None

    candidates = {"ours": run(twin), "the model itself": run(s.model)}
    yield from _compare(
        "10 passes of the quick twin", candidates, {"the model itself": 1.0}, repetitions, {"batch": batch}
    )


def square_windows(repetitions: int) -> Iterator[Comparison]:
    """Square on the quick twin, of which a query computes what its windows reach, against whole passes of the model."""
    settings = [(subject("AT-AWP", 24), 1000), (subject("AT-AWP", 256), 200), (untrained_resnet(8), 60)]
    for s, queries in settings:
        attack, ball = SquareAttack(queries=queries), replace(BALL, radius=s.eps)

        def run(model: Any, s: Subject = s, attack: SquareAttack = attack, ball: Ball = ball) -> Callable[[], None]:
            return lambda: attack(model, s.x, s.y, ball, generator=generator(0)) and None

        candidates, facts = {"ours": run(quick_twin(s.model)), "whole passes": run(s.model)}, {"queries": queries}
        cell = f"Square through windows, {s.name}, {len(s.x)} images"
        yield from _compare(cell, candidates, {"whole passes": 1.0}, repetitions, facts)


def robust_accuracy(name: str, steps: int, count: int, repetitions: int) -> Iterator[Comparison]:
    """Robust accuracy with an exact verdict, everybody at the batch size that suits him better.

    Every run starts from other random points, so the accuracies that are compared are means over the runs.
    """
    s, seeds, found = subject(name, count), itertools.count(), {"ours": [], "torchattacks": [], "Foolbox": []}

    def ours(batch: int) -> None:
        attack = PGDAttack(steps=steps)
        done = evaluate(s.model, s.x, s.y, within=BALL, seed=next(seeds), attack=attack, batch_size=batch)
        found["ours"].append(done)

    def theirs(who: str, judge: Callable[..., Tensor]) -> Callable[[int], None]:
        return lambda batch: found[who].append(float(judge(s.model, s.x, s.y, EPS, steps, batch).double().mean()))

    runs = {
        "ours": ours, "torchattacks": theirs("torchattacks", peers.robust_by_torchattacks),
        "Foolbox": theirs("Foolbox", peers.robust_by_foolbox),
    }  # fmt: skip
    sizes = {who: _better_size(run) for who, run in runs.items()}
    bar = {"AT-AWP": 1.5, "ordinary": 5.0 if steps >= 50 else 1.5}[name]
    compared = list(
        _compare(
            f"robust accuracy, {name}, PGD-{steps}", {who: partial(run, sizes[who]) for who, run in runs.items()},
            {"torchattacks": bar, "Foolbox": bar}, repetitions, {}, must=name == "AT-AWP" and steps >= 20,
        )
    )  # fmt: skip
    last, accuracies = found["ours"][-1], {"ours": fmean(e.robust.value for e in found["ours"])}
    accuracies |= {who: fmean(found[who]) for who in ("torchattacks", "Foolbox")}
    facts = {
        "images": count, "clean accuracy": last.clean.value, "robust accuracy": accuracies, "batch": sizes,
        "forward": last.calls.forward, "backward": last.calls.backward, "findings": [f.code for f in last.findings],
    }  # fmt: skip
    if accuracies["ours"] > min(accuracies.values()) + 0.005:
        raise AssertionError(f"our mean robust accuracy is above a peer's by more than half a point: {accuracies}")
    yield from (replace(c, facts=facts) for c in compared)


def _better_size(run: Callable[[int], Any]) -> int:
    seconds = interleave({str(b): partial(run, b) for b in SIZES}, 2)
    return min(SIZES, key=lambda b: min(seconds[str(b)]))
