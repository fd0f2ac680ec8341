"""Average-case flatness to a stated standard error, as a measure beside the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core import PGD, Ball
from ...flatness.precision import CHEAP, Estimated, estimate
from ...flatness.presets import PRESETS
from ...flatness.result import Flatness

PILOT, PILOTED = 24, 0.3  # draws of the pilot, and the share of the progress that they count for


@dataclass(frozen=True)
class Precise:
    """The average case of a preset, drawn until its standard error is what was asked for; see `flatness.precision.estimate`.

    Args:
        standard_error: over the draws, the images fixed.
        xi, law, reference_restarts: None: the preset's.
        preset: "paper", "authors" or "equal".
    """

    version: ClassVar[int] = 2  # of its numbers, in the ledger

    standard_error: float
    xi: float | None = None
    preset: str = "paper"
    law: Any = None
    reference_restarts: int | None = None

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int, within: Ball, by: PGD, batch_size: int | None = None,
        progress: Any = None,
    ) -> Flatness:  # fmt: skip
        """Measure. No image has a rise of its own, since each draw meets a few of them; `facts` has what precision took."""
        preset = PRESETS[self.preset]
        xi = preset.xi if self.xi is None else self.xi
        restarts = preset.reference_restarts if self.reference_restarts is None else self.reference_restarts
        found = estimate(
            model, x, y, seed=seed, standard_error=self.standard_error, levels=cheaper_than(by), xi=xi, within=within, by=by,
            law=self.law or preset.law, reference_restarts=restarts, batch_size=batch_size or preset.batch_size,
            pilot=PILOT, progress=_paced(progress),
        )  # fmt: skip
        return _flatness(found, xi, _classes(model, x, batch_size or preset.batch_size))


def _flatness(found: Estimated, xi: float, classes: int) -> Flatness:
    low, high = found.independent_passes
    calls, none = found.calls + found.reference_calls, torch.zeros(0)
    facts = {
        "xi": float(xi), "standard_error": found.standard_error, "asked": found.asked, "reached": float(found.reached),
        "dear_draws": float(found.plan.totals[-1]), "passes": float(found.calls.forward + found.calls.backward),
        "independent_passes_low": float(low), "independent_passes_high": float(high),
        "classes": float(classes), "constant": float(classes == 1),
    }  # fmt: skip
    return Flatness(
        "robust average", found.value, found.reference, none.double(), none.bool(), (), found.examples, calls, facts
    )


def cheaper_than(by: PGD) -> tuple[PGD, ...]:
    """The cheap attacks that are cheaper than this one."""
    return tuple(attack for attack in CHEAP if attack.steps < by.steps * by.restarts)


def _paced(progress: Any) -> Callable[[int, int], None] | None:
    """Progress that never goes back: how many draws there are is known only after the pilot."""
    if progress is None:
        return None
    best = 0.0

    def tell(done: int, of: int) -> None:
        nonlocal best
        best = max(best, done / of * (PILOTED if of == PILOT else 1.0))
        progress(round(1000 * best), 1000)

    return tell


def _classes(model: nn.Module, x: Tensor, batch_size: int) -> int:
    """How many classes are predicted."""
    with torch.no_grad():
        return len(torch.cat([model(part).argmax(1) for part in x.split(batch_size)]).unique())
