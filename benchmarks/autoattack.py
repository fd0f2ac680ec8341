"""AutoAttack, standard version, against the authors' own: robust accuracy, image by image, and CPU time.

`pyautoattack` is the authors' code (fra31/auto-attack, MIT) as a package. The run that is not measured is on a few images.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from cells import BALL, Comparison
from pyautoattack import AutoAttack as TheirAutoAttack
from subjects import EPS, Subject, subject
from timing import interleave, ratio
from torch import Tensor

from shaketable.attacks import AutoAttack, EnsemblePerturbation, evaluate

BAR = 1.5
WARM = 4  # images
OTHER = "pyautoattack"


@dataclass(frozen=True)
class _Watched:
    """AutoAttack, and what its members did."""

    seen: list[EnsemblePerturbation] = field(default_factory=list)

    def until_fooled(self) -> "_Watched":
        return self

    def __call__(self, *given: Any, **named: Any) -> EnsemblePerturbation:
        self.seen.append(AutoAttack()(*given, **named))
        return self.seen[-1]

    def broken(self) -> dict[str, int]:
        """How many images each attack fooled."""
        names = [member.name for member in self.seen[0].members] if self.seen else []
        return {name: sum(found.members[k].broken for found in self.seen) for k, name in enumerate(names)}


def standard(name: str, count: int, repetitions: int) -> Iterator[Comparison]:
    """The standard version on the first test images: who is robust, and what it takes to know."""
    s = subject(name, min(count, 200))
    few = replace(s, x=s.x[:WARM], y=s.y[:WARM])
    found: dict[str, list[Any]] = {"ours": [], OTHER: []}

    def run(who: str, judge: Callable[[Subject], Any]) -> Callable[[], None]:
        turn = itertools.count()
        return lambda: found[who].append(judge(s if next(turn) else few))

    candidates = {"ours": run("ours", _ours), OTHER: run(OTHER, _theirs)}
    seconds = interleave(candidates, repetitions)
    (evaluation, broken), theirs = found["ours"][-1], found[OTHER][-1]
    ours = evaluation.robust_correct
    facts = {
        "images": len(s.x), "clean accuracy": evaluation.clean.value, "eps": EPS,
        "robust accuracy": {"ours": float(ours.double().mean()), OTHER: float(theirs.double().mean())},
        "agreement": float((ours == theirs).double().mean()),
        "robust for us alone": int((ours & ~theirs).sum()), "robust for them alone": int((theirs & ~ours).sum()),
        "broken by": broken, "forward": evaluation.calls.forward, "backward": evaluation.calls.backward,
        "findings": [f.code for f in evaluation.findings],
    }  # fmt: skip
    if facts["robust accuracy"]["ours"] > facts["robust accuracy"][OTHER] + 0.01:
        raise AssertionError(f"our robust accuracy is above the authors' by more than a point: {facts}")
    against = ratio(seconds[OTHER], seconds["ours"])
    yield Comparison(f"autoattack, {name}", OTHER, against, BAR, False, seconds["ours"], seconds[OTHER], facts)


def _ours(s: Subject) -> tuple[Any, dict[str, int]]:
    watched = _Watched()
    done = evaluate(s.model, s.x, s.y, within=BALL, seed=0, attack=watched)  # pyright: ignore
    return done, watched.broken()


def _theirs(s: Subject) -> Tensor:
    """By a pass of our own over the points that come back."""
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        theirs = TheirAutoAttack(s.model, norm="Linf", eps=s.eps, seed=0, version="standard")
        points, _ = theirs.run_standard_evaluation(s.x, s.y, batch_size=250)
    with torch.no_grad():
        return (s.model(s.x).argmax(1) == s.y) & (s.model(points).argmax(1) == s.y)
