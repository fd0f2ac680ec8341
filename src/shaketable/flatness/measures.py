"""Measures of flatness as values: `Average(xi=0.5)` is called with a model and images, and gives a `Flatness`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, get_args

from torch import Tensor, nn

from ..core import PGD, Ball
from ..core.ball import Law
from .average import average
from .loss_at import ATTACK, INPUTS, Loss, at_least_zero, one_of
from .presets import PRESETS, Nu, Preset
from .result import Flatness
from .worst import worst

Progress = Callable[[int, int], None]


class Measure(Protocol):
    """A measure of flatness: a frozen value that is called.

    Args of a call:
        model: in eval mode; never changed.
        x, y: images and labels.
        seed: of all that is drawn; the same for several models gives them common random numbers.
        within, by: the inputs' ball and how they are attacked; not used by measures of the clean loss.
        batch_size: images a pass; None: the measure's own. Where each batch has its own nu, it is part of the definition.
        progress: called with (done, of all), in draws or restarts.
    """

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int,
        within: Ball = INPUTS,
        by: PGD = ATTACK,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Flatness: ...


@dataclass(frozen=True)
class Average:
    """Average-case flatness of a preset (Stutz et al. 2021); see `average` for what it is, and `Preset` for the presets.

    Args:
        xi: the radius; None: the preset's .5.
        samples: draws of nu; None: the preset's 10.
        loss: "robust", or "clean".
        preset: "paper", "authors" or "equal".
        law, nu, reference_restarts: instead of the preset's.
        antithetic: draw pairs nu, -nu.

    Cost: 432 forward and 400 backward passes an image with the defaults; see `average`.
    Checked by tests/flatness/test_measures.py.
    """

    xi: float | None = None
    samples: int | None = None
    loss: Loss = "robust"
    preset: str = "paper"
    law: Law | None = None
    nu: Nu | None = None
    reference_restarts: int | None = None
    antithetic: bool = False

    def __post_init__(self) -> None:
        _require(self)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int,
        within: Ball = INPUTS,
        by: PGD = ATTACK,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Flatness:
        """Measure; see `Measure` for the arguments."""
        preset = preset_of(self.preset)
        return average(
            model, x, y, seed=seed, within=within, by=by, progress=progress, loss=self.loss, antithetic=self.antithetic,
            xi=given(self.xi, preset.xi), samples=given(self.samples, preset.samples), law=given(self.law, preset.law),
            nu=given(self.nu, preset.nu), batch_size=given(batch_size, preset.batch_size),
            reference_restarts=given(self.reference_restarts, preset.reference_restarts),
        )  # fmt: skip


@dataclass(frozen=True)
class Worst:
    """Worst-case flatness of a preset (Stutz et al. 2021); see `worst` for what it is, and `Preset` for the presets.

    Args:
        xi: the radius; None: the preset's, for the robust (.00075) or the clean loss (.003).
        restarts: None: the preset's 10.
        loss: "robust", or "clean".
        preset: "paper", "authors" or "equal".
        step: of nu, in units of the radius; None: the preset's, .001 or .01 of each layer's norm, over xi.
        nu, law, reference_restarts: instead of the preset's.

    Cost: 422 forward and 400 backward passes an image with the defaults; see `worst`.
    Checked by tests/flatness/test_measures.py.
    """

    xi: float | None = None
    restarts: int | None = None
    loss: Loss = "robust"
    preset: str = "paper"
    step: float | None = None
    nu: Nu | None = None
    law: Law | None = None
    reference_restarts: int | None = None

    def __post_init__(self) -> None:
        _require(self)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int,
        within: Ball = INPUTS,
        by: PGD = ATTACK,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Flatness:
        """Measure; see `Measure` for the arguments."""
        preset = preset_of(self.preset)
        xi = given(self.xi, preset.worst_xi if self.loss == "robust" else preset.worst_xi_clean)
        return worst(
            model, x, y, seed=seed, within=within, by=by, progress=progress, loss=self.loss, xi=xi,
            step=given(self.step, preset.step(xi)), restarts=given(self.restarts, preset.worst_restarts),
            nu=given(self.nu, preset.nu), law=given(self.law, preset.worst_law),
            batch_size=given(batch_size, preset.batch_size),
            reference_restarts=given(self.reference_restarts, preset.worst_reference_restarts),
        )  # fmt: skip


def _require(measure: Average | Worst) -> None:
    preset = preset_of(measure.preset)
    at_least_zero("xi", measure.xi, f"{preset.xi if isinstance(measure, Average) else preset.worst_xi}")
    one_of("loss", measure.loss, get_args(Loss))
    one_of("law", given(measure.law, preset.law), get_args(Law))
    one_of("nu", given(measure.nu, preset.nu), get_args(Nu))


def preset_of(name: str) -> Preset:
    """The preset of a name; raises an `InputError` for an unknown one."""
    one_of("preset", name, tuple(PRESETS))
    return PRESETS[name]


def given(value: Any, default: Any) -> Any:
    """The value, or the default where it is None."""
    return default if value is None else value
