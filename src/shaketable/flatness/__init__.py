"""Flatness of the robust loss in the weights: average case."""

from .average import XI_AVERAGE, AverageFlatness, average

__all__ = ["XI_AVERAGE", "AverageFlatness", "average"]
