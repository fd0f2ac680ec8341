"""Shaketable: perturb a neural network wherever it can be perturbed, measure what gives way, train models that hold.

    import shaketable as st

    found = st.perturb(st.ce(model, y), x, st.Ball("linf", 8 / 255, box=(0, 1)), by=st.PGD(steps=20))
    found.point  # the adversarial inputs

The core is here; the rooms (`st.attacks`, `st.training`, `st.flatness`, `st.models`, `st.data`, `st.stats`) are imported
when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .core import (
    APGD,
    PGD,
    Ball,
    Calls,
    CheckpointError,
    ConfigError,
    DataError,
    Flags,
    Gaussian,
    GradientError,
    InputError,
    ModelError,
    Perturbation,
    ShaketableError,
    StorageError,
    UnsafeFileError,
    activation,
    at,
    ce,
    dlr,
    from_activation,
    generator,
    kl,
    margin,
    perturbed,
    scalar,
    weights,
)
from .core import perturb as perturb
from .version import __version__

if TYPE_CHECKING:
    from . import attacks, data, flatness, models, report, runs, stats, training

_ROOMS = ("attacks", "data", "flatness", "models", "report", "runs", "stats", "training")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})


__all__ = [
    "APGD",
    "PGD",
    "Ball",
    "Calls",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Flags",
    "Gaussian",
    "GradientError",
    "InputError",
    "ModelError",
    "Perturbation",
    "ShaketableError",
    "StorageError",
    "UnsafeFileError",
    "__version__",
    "activation",
    "at",
    "attacks",
    "ce",
    "data",
    "dlr",
    "flatness",
    "from_activation",
    "generator",
    "kl",
    "margin",
    "models",
    "perturb",
    "perturbed",
    "report",
    "runs",
    "scalar",
    "stats",
    "training",
    "weights",
]
