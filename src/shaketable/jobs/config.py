"""The configs of the verbs: frozen, checked, and the source of the command line's flags."""

from pathlib import Path
from typing import Literal

import tyro
from pydantic import Field

from .settings import Fraction, Fractions, Norm, Settings
from .train_config import TrainConfig

__all__ = ["DemoConfig", "EvaluateConfig", "SubjectConfig", "TrainConfig"]


class SubjectConfig(Settings):
    """A model, images, and an attack: what `evaluate` and `attack` share."""

    model: tyro.conf.Positional[str]
    """A run's folder, .safetensors, .pt, .pt2, .onnx, timm:NAME, hf:NAME, or file.py:name."""
    data: str = "fashion-mnist"
    """An embedded data set's name, or a path: idx, CIFAR, SVHN, image folder or zip, .npz."""
    split: Literal["train", "test", "all"] = "test"
    """Which part of it; of data without a test part, the test or training images that the run of MODEL drew from it."""
    count: int | None = Field(None, ge=1)
    """Evaluate so many images, drawn at random. Default: all."""
    attack: str = "pgd(steps=20)"
    """autoattack, apgd, square, pgd(steps=50, restarts=5), ..., or your own file.py:name."""
    norm: Norm = "linf"
    """Of the perturbation of the inputs."""
    eps: Fractions = (8 / 255,)
    """Its radius, for inputs in [0, 1]; several, 0,2/255,4/255, give a curve."""
    region: str | None = None
    """Where images may change: centre:0.16, frame:0.28, box:8,8,20,20, ... Default: everywhere."""
    search: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 may be faster; what it finds is confirmed in float32, and the difference measured on 100 images."""
    batch_size: int | None = Field(None, ge=1)
    """Images a batch. Default: 256 where they are small, as CIFAR-10's, else 100."""
    architecture: str | None = None
    """For a bare state dict: which architecture it is of."""
    mean: tuple[float, ...] | None = None
    """Of the channels, where the model does not normalise its inputs itself."""
    std: tuple[float, ...] | None = None
    """Of the channels, where the model does not normalise its inputs itself."""
    size: int | None = Field(None, ge=1)
    """Side in pixels that images are resized and cropped to. Default: as they are."""
    labels: Path | None = None
    """A JSON file with the classes' names, in the model's order."""
    trust: bool = False
    """Load a file even though loading it may run code."""


class EvaluateConfig(SubjectConfig):
    """Measure a model's clean and robust accuracy."""

    lints: bool = True
    """Look for signs that the attack, and not the model, is what failed."""
    selftest: bool = False
    """Plant adversarial examples that are there for certain, and see if the attack finds them."""
    out: Path = Path("runs/evaluate")
    """Where the report goes, and every finished batch: the same command goes on where it was stopped."""


class DemoConfig(Settings):
    """Show the whole of it on embedded images: AT and AT-AWP, robust overfitting, the gap that AWP closes, flatness."""

    threads: int | None = Field(1, ge=1)
    """CPU threads; one is nearly as fast as two for nets this small, and does not mind a busy machine."""
    epochs: int = Field(60, ge=1)
    """Of each training."""
    train_count: int = Field(500, ge=2)
    """Images to train on: few, so that robust overfitting shows within minutes."""
    test_count: int = Field(2000, ge=1)
    """Images to report on."""
    flatness_count: int = Field(250, ge=1)
    """Images to measure flatness on."""
    flatness_samples: int = Field(24, ge=2)
    """Draws of the weights."""
    eps: Fraction = Field(0.1, ge=0)
    """Linf radius."""
    gamma: Fraction = Field(0.01, ge=0)
    """AWP's radius, relative to each weight tensor's norm."""
    warmup: int = Field(10, ge=0)
    """Epochs before AWP begins."""
    out: Path = Path("out/demo")
    """Where the two runs and the report go."""
    resume: bool = True
    """Go on with trainings that were stopped; finished ones are not repeated."""
