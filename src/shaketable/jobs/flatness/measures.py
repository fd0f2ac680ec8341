"""Measures of flatness as text: `average`, `worst(xi=(0.00075, 0.003))`, `file.py:mine`; and what is set for all of them."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...core import PGD, Ball, ConfigError
from ...files import sha256_of
from ...flatness import MEASURES, Average, Flatness
from ...plugins import names_code
from ...runs import canonical
from ..choices import choose, parse
from ..train_plan import ASCENTS
from .config import FlatnessConfig
from .precise import Precise

RADII = ("xi", "rho")  # the options that are a radius


@dataclass(frozen=True)
class Chosen:
    """A measure with all of its options, as JSON values.

    Args:
        text: as `choose` takes it.
        preset: of Stutz et al., where the measure has presets and the text names none.
        within: the inputs' ball: its norm and radius.
        attack: the inputs' attack, as `choose` takes it.
        batch_size: images a pass; None: the measure's own.
        standard_error: to which the robust average case is measured, instead of with a number of draws.
    """

    text: str
    preset: str
    norm: Any
    eps: float
    attack: str
    batch_size: int | None
    standard_error: float | None = None

    @property
    def measure(self) -> Any:
        """What is called with a model and images."""
        made = choose(self.text, MEASURES, "measures")
        if not callable(made):
            remedy = "See shaketable.flatness.Measure."
            raise ConfigError("measures", "a measure of flatness", f"{self.text}: {type(made).__name__}", remedy)
        names = {f.name for f in dataclasses.fields(made)} if dataclasses.is_dataclass(made) else set[str]()
        if "preset" in names and "preset" not in parse(self.text, "measures")[1]:
            made = replace(made, preset=self.preset)  # pyright: ignore[reportArgumentType]
        if isinstance(made, Average) and made.loss == "robust" and self.standard_error is not None:
            return self._precise(made)
        return made

    def _precise(self, made: Average) -> Precise:
        given = [name for name in ("samples", "nu") if getattr(made, name) is not None]
        if given or made.antithetic:
            found, remedy = ", ".join(given) or "antithetic", "Leave it out: --standard-error decides on the draws."
            raise ConfigError("standard_error", "average without what it decides", found, remedy)
        return Precise(self.standard_error or 0.0, made.xi, made.preset, made.law, made.reference_restarts)

    @property
    def options(self) -> dict[str, Any]:
        """The measure's own options."""
        made = self.measure
        return dataclasses.asdict(made) if dataclasses.is_dataclass(made) else {}  # pyright: ignore[reportArgumentType]

    @property
    def within(self) -> Ball:
        """The inputs' ball."""
        return Ball(self.norm, self.eps, box=(0.0, 1.0))

    @property
    def by(self) -> PGD:
        """The inputs' attack."""
        return attack_of(self.attack)

    @property
    def name(self) -> str:
        """Under which it is in the ledger."""
        return parse(self.text, "measures")[0]

    @property
    def version(self) -> int:
        """Of its numbers."""
        return int(getattr(self.measure, "version", 1))

    @property
    def settings(self) -> dict[str, Any]:
        """All that the cell's key depends on, beside the model, the images and the seed."""
        found = {"options": self.options or self.text, "norm": self.norm, "eps": float(self.eps)}
        found |= {"attack": dataclasses.asdict(self.by), "batch_size": self.batch_size}
        file = Path(self.name.rpartition(":")[0])
        return found | ({"code": sha256_of(file)} if names_code(self.name) and file.is_file() else {})

    @property
    def passes(self) -> float:
        """Forward and backward passes an image."""
        return _passes(self)

    def __call__(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, seed: int, progress: Any = None
    ) -> Flatness:
        """Measure."""
        found = self.measure(
            model, x, y, seed=seed, within=self.within, by=self.by, batch_size=self.batch_size, progress=progress
        )
        if not isinstance(found, Flatness):
            raise ConfigError("measures", f"{self.text} to return a Flatness", type(found).__name__, "Return one.")
        return found


def chosen_of(config: FlatnessConfig) -> tuple[Chosen, ...]:
    """The measures that a config names, one for each radius, none twice.

    Raises:
        ConfigError: one that is unknown, with arguments that it does not take, or an attack that is no pgd(...).
    """
    attack_of(config.attack)
    texts = [one for text in config.measures for one in _with_radii(text, config)]
    found = [
        Chosen(
            text, config.preset, config.norm, float(config.eps), config.attack, config.batch_size, config.standard_error
        )
        for text in dict.fromkeys(texts)
    ]
    for one in found:
        _ = one.measure  # or it is refused
    return tuple(found)


def attack_of(text: str) -> PGD:
    """The ascent that a text names."""
    found = choose(text, ASCENTS, "attack")
    if not isinstance(found, PGD):
        remedy = "Flatness is measured with pgd(...), since the weights move at every step."
        raise ConfigError("attack", "pgd(...)", type(found).__name__, remedy)
    return found


def _with_radii(text: str, config: FlatnessConfig) -> Iterator[str]:
    """The text for each of its radii: of its own list, or of --xi and --worst-xi where it states none."""
    name, arguments = parse(text, "measures")
    key = next((key for key in RADII if key in arguments), "xi")
    shortcut = {"average": config.xi, "worst": config.worst_xi}.get(name, ())
    radii = arguments.get(key, shortcut)
    if not isinstance(radii, tuple | list):
        yield _text(name, arguments)
        return
    for radius in radii or [None]:
        yield _text(name, arguments | ({} if radius is None else {key: _number(radius)}))


def _number(radius: Any) -> Any:
    return float(radius) if isinstance(radius, int) and not isinstance(radius, bool) else radius


def _text(name: str, arguments: Mapping[str, Any]) -> str:
    """A measure as text, always the same for the same arguments."""
    inside = ", ".join(f"{key}={value!r}" for key, value in sorted(arguments.items()))
    return f"{name}({inside})" if inside else name


@lru_cache(maxsize=64)
def _passes(chosen: Chosen) -> float:
    """Passes an image, counted on a net and two images that cost nothing: they do not depend on the model's size.

    They grow linearly with the attack's steps, so that they are counted for one step and for two.
    """
    chosen = replace(chosen, standard_error=None)  # how many draws that takes is not known before
    try:
        one, two = (_counted(chosen, replace(chosen.by, steps=steps)) for steps in (1, 2))
    except Exception:  # a measure that needs more than that
        return 1.0
    return one + (chosen.by.steps - 1) * (two - one)


def _counted(chosen: Chosen, by: PGD) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    x, y = torch.tensor([0.2, 0.8]).repeat_interleave(4).reshape(2, 1, 2, 2), torch.tensor([0, 1])
    calls = chosen.measure(model, x, y, seed=0, within=chosen.within, by=by, batch_size=chosen.batch_size).calls
    return (calls.forward + calls.backward) / len(x)


def to_json(chosen: Chosen) -> dict[str, Any]:
    """A choice as JSON values; `Chosen(**value)` is the inverse."""
    return canonical.plain(dataclasses.asdict(chosen), "measures")
