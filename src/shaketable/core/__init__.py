"""What a perturbation is. Imports torch alone."""

from .apgd import APGD
from .ascent import PGD
from .ball import Ball
from .constraint import Constraint, Joint
from .errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GradientError,
    InputError,
    ModelError,
    ShaketableError,
    StorageError,
    UnsafeFileError,
)
from .losses import (
    LogitObjective,
    ce,
    cross_entropy,
    difference_of_logits_ratio,
    divergence,
    dlr,
    kl,
    logit_margin,
    margin,
    scalar,
)
from .perturb import Gaussian, Objective, Perturbation
from .perturb import perturb as perturb  # the verb takes the place of its module's name
from .places import activation, at, bare, from_activation, perturbed, weights
from .record import Ascent, Calls, Flags
from .seeds import generator
from .tree import Tree

__all__ = [
    "APGD",
    "PGD",
    "Ascent",
    "Ball",
    "Calls",
    "CheckpointError",
    "ConfigError",
    "Constraint",
    "DataError",
    "Flags",
    "Gaussian",
    "GradientError",
    "InputError",
    "Joint",
    "LogitObjective",
    "ModelError",
    "Objective",
    "Perturbation",
    "ShaketableError",
    "StorageError",
    "Tree",
    "UnsafeFileError",
    "activation",
    "at",
    "bare",
    "ce",
    "cross_entropy",
    "difference_of_logits_ratio",
    "divergence",
    "dlr",
    "from_activation",
    "generator",
    "kl",
    "logit_margin",
    "margin",
    "perturb",
    "perturbed",
    "scalar",
    "weights",
]
