"""What each verb is told: frozen configs, the same from the command line, from a file and from Python."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..core.errors import ConfigError


def number(text: Any) -> float:
    """A number, also as a fraction: "8/255"."""
    if not isinstance(text, str):
        return text
    try:
        above, _, below = text.partition("/")
        return float(above) / float(below) if below else float(above)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError("number", "a number or a fraction such as 8/255", repr(text), "Write it so.") from error


Fraction = Annotated[
    float, BeforeValidator(number), tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="FLOAT|FRACTION", instance_from_str=lambda texts: number(texts[0]),
        is_instance=lambda value: isinstance(value, int | float), str_from_instance=lambda value: [f"{value:g}"],
    )
]  # fmt: skip
"""A float that may be written as a fraction."""

Norm = Literal["linf", "l2", "l1", "l0"]


class Settings(BaseModel):
    """What all verbs take."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seed: int = 0
    """Of everything that is drawn."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto: the first accelerator there is, else cpu."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; numbers are bit-identical only with equal threads. Default: PyTorch's choice."""


class TrainConfig(Settings):
    """Train a model that holds: adversarial training, with or without adversarial weight perturbation."""

    data: str = "fashion-mnist"
    """An embedded data set's name, or a path: idx, CIFAR, SVHN, image folder or zip, .npz."""
    train_count: int | None = Field(None, ge=2)
    """Images to train on, drawn by class. Default: all but the validation images."""
    validation_count: int = Field(500, ge=0)
    """Images held out of the training set, on which the best epoch is chosen."""
    test_count: int | None = Field(None, ge=1)
    """Images of the test set to report on. Default: all."""
    architecture: str = "small_cnn"
    """small_cnn, mlp, preact_resnet18, wide_resnet(depth=34, widen=10), resnet18, vit, or your own file.py:name."""
    mean: tuple[float, ...] | None = None
    """Of the channels, for the model's first layer. Default: measured on the training images."""
    std: tuple[float, ...] | None = None
    """Of the channels, for the model's first layer. Default: measured on the training images."""
    loss: str = "at"
    """at, trades(beta=6), or your own file.py:name."""
    weights: str = "none"
    """Weight perturbation: none, awp(gamma=0.01, warmup=0)."""
    norm: Norm = "linf"
    """Of the perturbation of the inputs."""
    eps: Fraction = Field(8 / 255, ge=0)
    """Its radius, for inputs in [0, 1]."""
    attack: str = "pgd(steps=10)"
    """While training; step is in units of eps."""
    epochs: int = Field(200, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(128, ge=1)
    """Images a step."""
    rate: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of SGD."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Of SGD, on all parameters."""
    schedule: str = "multistep"
    """multistep(at=(0.5, 0.75), factor=0.1), constant, or your own file.py:name."""
    augment: str = "none"
    """none, crop_flip(pad=4), or your own file.py:name."""
    evaluate_every: int = Field(5, ge=1)
    """Epochs between two evaluations of the learning curves."""
    evaluation: str = "pgd(steps=20)"
    """The attack of the learning curves and of the final numbers."""
    curve_count: int = Field(500, ge=1)
    """At most so many images of each split for the learning curves; the final numbers use all."""
    select: Literal["validation", "test", "last"] = "validation"
    """Which split decides the best epoch; "test" is the papers' way, and is marked in the report."""
    save_every: Annotated[float, Field(ge=0)] = 30.0
    """Seconds between two checkpoints."""
    out: Path = Path("runs/train")
    """The run's folder."""
    resume: bool = False
    """Go on with the run in --out, if there is one."""


class EvaluateConfig(Settings):
    """Measure a model's clean and robust accuracy."""

    model: tyro.conf.Positional[str]
    """A run's folder, .safetensors, .pt, .pt2, .onnx, timm:NAME, hf:NAME, or file.py:name."""
    data: str = "fashion-mnist"
    """An embedded data set's name, or a path: idx, CIFAR, SVHN, image folder or zip, .npz."""
    split: Literal["train", "test", "all"] = "test"
    """Which part of it."""
    count: int | None = Field(None, ge=1)
    """Evaluate so many images, drawn by class. Default: all."""
    attack: str = "pgd(steps=20)"
    """fgsm, pgd(steps=50, restarts=5), or your own file.py:name."""
    norm: Norm = "linf"
    """Of the perturbation of the inputs."""
    eps: Fraction = Field(8 / 255, ge=0)
    """Its radius, for inputs in [0, 1]."""
    batch_size: int = Field(100, ge=1)
    """Images a batch."""
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
    out: Path = Path("runs/evaluate")
    """Where the report goes."""


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
