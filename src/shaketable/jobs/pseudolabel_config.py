"""The options of `shaketable pseudolabel`."""

from pathlib import Path
from typing import Literal

import tyro
from pydantic import Field

from .settings import Settings


class PseudolabelConfig(Settings):
    """Label images by a model, for training with `--unlabelled` (robust self-training)."""

    model: tyro.conf.Positional[str]
    """A run's folder, .safetensors, .pt, .pt2, .onnx, timm:NAME, hf:NAME, or file.py:name."""
    data: str | None = None
    """What to label: as for evaluate; also an .npz, folder or zip of images without labels. Default: the run's own data."""
    part: Literal["all", "train", "test", "rest"] = "all"
    """Which part of it; rest: the training images that the run MODEL neither trained on nor held out."""
    count: int | None = Field(None, ge=1)
    """Label so many of them, drawn at random. Default: all."""
    min_confidence: float = Field(0.0, ge=0, le=1)
    """Keep only images whose label has at least this probability."""
    batch_size: int = Field(100, ge=1)
    """Images a batch."""
    architecture: str | None = None
    """For a bare state dict: which architecture it is of."""
    mean: tuple[float, ...] | None = None
    """Of the channels, where the model does not normalise its inputs itself."""
    std: tuple[float, ...] | None = None
    """Of the channels, where the model does not normalise its inputs itself."""
    size: int | None = Field(None, ge=1)
    """Side in pixels that images are resized and cropped to, also in the file. Default: as they are."""
    labels: Path | None = None
    """A JSON file with the classes' names, in the model's order."""
    trust: bool = False
    """Load a file even though loading it may run code."""
    out: Path = Path("runs/pseudolabelled")
    """Where pseudolabelled.npz and the report go."""
