"""The options of `shaketable train`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from .settings import Fraction, Norm, Settings


class TrainConfig(Settings):
    """Train a model that holds: adversarial training, with or without adversarial weight perturbation."""

    data: str = "fashion-mnist"
    """An embedded data set's name, or a path: idx, CIFAR, SVHN, image folder or zip, .npz."""
    train_count: Annotated[int | None, Field(ge=2)] = None
    """Images to train on, drawn by class. Default: all but the validation images."""
    validation_count: Annotated[int, Field(ge=0)] = 500
    """Images held out of the training set, on which the best epoch is chosen."""
    test_count: Annotated[int | None, Field(ge=1)] = None
    """Images of the test set to report on. Default: all."""
    unlabelled: Path | None = None
    """Pseudo-labelled images (see `shaketable pseudolabel`), or the published 500k file: a share of each batch."""
    unlabelled_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The share of them in each batch."""
    architecture: str = "small_cnn"
    """small_cnn, mlp, preact_resnet18, wide_resnet(depth=34, widen=10), resnet18, vit, or your own file.py:name."""
    init: str | None = None
    """Fine-tune: a model to begin with, as `shaketable evaluate` takes it; another head is made for other classes."""
    trust: bool = False
    """Load --init even though loading it may run code."""
    mean: tuple[float, ...] | None = None
    """Of the channels, for the model's first layer. Default: measured on the training images."""
    std: tuple[float, ...] | None = None
    """Of the channels, for the model's first layer. Default: measured on the training images."""
    loss: str = "at"
    """at, trades(beta=6), mart(beta=5), rst(beta=6), rotation(weight=0.5), or your own file.py:name."""
    weights: str = "none"
    """Weight perturbation: none, awp(gamma=0.01, warmup=0), sam(rho=0.05), asam(rho=0.5), rwp(gamma=0.01)."""
    preset: Literal["paper", "authors"] = "paper"
    """Of AWP: as the paper has it, or as its authors' code runs (BatchNorm's statistics mix the attack's passes)."""
    batch_norm: Literal["once", "authors", "frozen"] | None = None
    """What moves BatchNorm's running statistics. Default: the preset's."""
    decay_at: Literal["perturbed", "restored"] | None = None
    """Where weight decay and the step act: at w + v, or at w with the gradients of w + v. Default: the preset's."""
    norm: Norm = "linf"
    """Of the perturbation of the inputs."""
    eps: Annotated[Fraction, Field(ge=0)] = 8 / 255
    """Its radius, for inputs in [0, 1]."""
    attack: str = "pgd(steps=10)"
    """While training; step is in units of eps. pgd_tau(steps=10, tau=1) is friendly adversarial training's."""
    attack_labels: Literal["true", "predicted"] = "true"
    """What the attack moves away from; "predicted" prevents label leaking."""
    ignore_incorrect: bool = False
    """Leave images that the model already gets wrong unperturbed."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the labels that the optimiser learns from."""
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of the labels that are redrawn at each step."""
    epochs: Annotated[int, Field(ge=1)] = 200
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images a step, over all processes."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Micro-batches that each batch is worked on in; AWP's perturbation is that of the whole batch."""
    optimiser: str = "sgd(momentum=0.9)"
    """sgd(momentum=0.9, nesterov=False), adam, entropy_sgd(steps=5), or your own file.py:name."""
    rate: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """On all parameters."""
    schedule: str = "multistep"
    """multistep(at=(0.5, 0.75), factor=0.1), late, constant, cyclic(cycles=1), cosine, or your own file.py:name."""
    average: str = "none"
    """Of the weights: none, ema(decay=0.995), swa(start=0.75). BatchNorm is re-estimated on adversarial inputs."""
    clip_gradient: Annotated[float | None, Field(gt=0)] = None
    """The largest l2 norm of the gradients together."""
    clip_weights: Annotated[float | None, Field(gt=0)] = None
    """Keep every weight within this distance of 0."""
    augment: str = "none"
    """none, crop_flip(pad=4), cutout(size=8), autoaugment, joined by +, or your own file.py:name."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of forward passes; float16 is for GPUs, and untested."""
    channels_last: bool = False
    """The memory format of images and convolutions."""
    compile: bool = False
    """Run the model through torch.compile."""
    awp_sync: Literal["global", "local"] = "global"
    """In several processes: one weight perturbation of the whole batch, or each process its own."""
    evaluate_every: Annotated[int, Field(ge=1)] = 5
    """Epochs between two evaluations of the learning curves."""
    evaluation: str = "pgd(steps=20)"
    """The attack of the learning curves and of the final numbers."""
    curve_count: Annotated[int, Field(ge=1)] = 500
    """At most so many images of each split for the learning curves; the final numbers use all."""
    select: Literal["validation", "test", "last"] = "validation"
    """Which split decides the best epoch; "test" is the papers' way, and is marked in the report."""
    stop_after: Annotated[int | None, Field(ge=1)] = None
    """Early stopping: end after so many evaluations without a new best."""
    save_every: Annotated[float, Field(ge=0)] = 30.0
    """Seconds between two checkpoints."""
    keep_every: Annotated[int | None, Field(ge=1)] = None
    """Keep the weights of every so many epochs, in the run's folder epochs. Default: only the best and the last."""
    out: Path = Path("runs/train")
    """The run's folder."""
    resume: bool = False
    """Go on with the run in --out, if there is one."""
