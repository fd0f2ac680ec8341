"""How robust a model is, beside how flat: its losses and errors on test and on training images, as cells of the ledger."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...attacks import PGDAttack, evaluate
from ...core import Ball
from ...data import Dataset
from ...runs import Cell, Task
from ..finals import attack_of
from ..flatness.cells import ImagePlace, ModelPlace, images_at, model_at
from ..flatness.config import FlatnessConfig
from ..flatness.measures import attack_of as ascent_of

RUN = "shaketable.jobs.flatness_study.standing:measure"
VERSION = 1


@dataclass(frozen=True)
class Standing:
    """How a model stands on some images.

    Args:
        robust_loss: the mean cross-entropy at the attacked images.
        robust_error, clean_error: shares of images.
        clean_loss: the mean cross-entropy.
        confidence: the mean of the largest probability, of clean images.
        constant: whether it predicts one class for all of them.
        n: how many images.
    """

    robust_loss: float
    robust_error: float
    clean_loss: float
    clean_error: float
    confidence: float
    constant: bool
    n: int


def task_of(
    model: ModelPlace, model_sha: str, images: ImagePlace, data_sha: str, config: FlatnessConfig, *, passes: float
) -> Task:
    """The task that finds a model's standing.

    Args:
        config: whose norm, eps, attack, seed, device and threads are used.
        passes: an image, for the progress; see `passes_of`.
    """
    attack = vars(attack_for(config)) | {"batch_size": config.batch_size or 128}
    settings = {
        "norm": config.norm,
        "eps": config.eps,
        "attack": attack,
        "device": config.device,
        "threads": config.threads,
    }
    cell = Cell(model_sha, data_sha, "standing", VERSION, settings, config.seed)
    arguments = {
        "model": vars(model), "model_sha": model_sha, "images": vars(images), "data_sha": data_sha, "seed": config.seed,
        **settings,
    }  # fmt: skip
    return Task(cell, RUN, arguments, cost=max(1.0, passes * len(images.rows)))


def attack_for(config: FlatnessConfig) -> PGDAttack:
    """The attack on the images, each attacked to the end."""
    return attack_of(ascent_of(config.attack))


def passes_of(config: FlatnessConfig) -> float:
    """Forward and backward passes that an image's standing takes."""
    attack = attack_for(config)
    return 2.0 * attack.steps * attack.restarts + 3


def measure(arguments: Mapping[str, Any], progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Do what a task says; called in a worker.

    Raises:
        ModelError, DataError: the file is no longer the one of which the cell's hash was taken.

    Cost: see `attacks.evaluate`, with every image attacked to the end, and a forward pass.
    """
    data, _, _ = images_at(arguments["images"], arguments["data_sha"], arguments["device"])
    loaded = model_at(arguments["model"], arguments["model_sha"], arguments["device"], data)
    attack, done = dict(arguments["attack"]), 0
    batch_size = attack.pop("batch_size")

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, len(data))

    found = evaluate(
        loaded.model, data, within=Ball(arguments["norm"], arguments["eps"], box=(0.0, 1.0)), attack=PGDAttack(**attack),
        seed=arguments["seed"], measure="loss", batch_size=batch_size, progress=advance,
    )  # fmt: skip
    confidence, constant = _certainty(loaded.model, data, arguments["device"])
    return vars(
        Standing(
            robust_loss=found.adversarial_loss.value, robust_error=1 - found.robust.value, clean_loss=found.clean_loss.value,
            clean_error=1 - found.clean.value, confidence=confidence, constant=constant, n=len(data),
        )
    ) | {"forward": found.calls.forward, "backward": found.calls.backward}  # fmt: skip


def standing_of(result: Mapping[str, Any]) -> Standing:
    """What `measure` found, from a ledger's file."""
    return Standing(**{name: result[name] for name in Standing.__dataclass_fields__})


def _certainty(model: nn.Module, data: Dataset, device: str) -> tuple[float, bool]:
    """The mean largest probability on clean images, and whether one class is predicted for all."""
    total, classes = 0.0, set[int]()
    with torch.no_grad():
        for k in range(0, len(data), 128):
            x = data.batch(range(k, min(k + 128, len(data)))).to(torch.device(device)).x
            highest = model(x).double().softmax(1).max(1)
            total += float(highest.values.sum())
            classes |= {int(c) for c in highest.indices.unique()}
    return total / len(data), len(classes) == 1
