"""Flatness of the robust loss in the weights: measured, drawn, and correlated with robustness (Stutz et al. 2021)."""

from collections.abc import Callable

from .average import XI_AVERAGE, AverageFlatness, average, profile
from .correlation import correlate
from .curvature import Hessian
from .directions import DIRECTIONS, Adversarial, Eigenvectors, Random
from .eigenpairs import Eigenpairs, eigenpairs
from .hessian import LossHessian, loss_hessian
from .landscape import Landscape, Point, landscape, landscape_point
from .layers import layer_weights, layers_ball
from .measures import Average, Measure, Worst
from .models_table import Models
from .precision import Estimated, difference, estimate
from .presets import AUTHORS, EQUAL, PAPER, PRESETS, Preset
from .rescale import rescale
from .result import Flatness, Profile
from .sharpness import AdaptiveSharpness, FilterNormalised, SAMSharpness
from .spectrum import Density, Trace, density, trace
from .trajectory import Trajectory, trajectory
from .worst import WorstFlatness, worst

MEASURES: dict[str, Callable[..., Measure]] = {
    "average": Average,
    "worst": Worst,
    "adaptive": AdaptiveSharpness,
    "sam": SAMSharpness,
    "filter": FilterNormalised,
    "hessian": Hessian,
}
"""Name -> a measure, a frozen value that is called with a model and images. To add one: a file, and a line here."""

__all__ = [
    "AUTHORS",
    "DIRECTIONS",
    "EQUAL",
    "MEASURES",
    "PAPER",
    "PRESETS",
    "XI_AVERAGE",
    "AdaptiveSharpness",
    "Adversarial",
    "Average",
    "AverageFlatness",
    "Density",
    "Eigenpairs",
    "Eigenvectors",
    "Estimated",
    "FilterNormalised",
    "Flatness",
    "Hessian",
    "Landscape",
    "LossHessian",
    "Measure",
    "Models",
    "Point",
    "Preset",
    "Profile",
    "Random",
    "SAMSharpness",
    "Trace",
    "Trajectory",
    "Worst",
    "WorstFlatness",
    "average",
    "correlate",
    "density",
    "difference",
    "eigenpairs",
    "estimate",
    "landscape",
    "landscape_point",
    "layer_weights",
    "layers_ball",
    "loss_hessian",
    "profile",
    "rescale",
    "trace",
    "trajectory",
    "worst",
]
