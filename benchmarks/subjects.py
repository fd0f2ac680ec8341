"""The networks that are attacked: trained by AT-AWP, by AT, and in the ordinary way, each once and kept in .cache; and a
PreAct ResNet-18 as it is initialised, on random images of CIFAR's shape, for times alone."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shaketable.core import PGD, Ball, generator
from shaketable.data import Batch, open_dataset
from shaketable.models.architectures import preact_resnet18, small_cnn
from shaketable.training import at, awp, train_step

CACHE = Path(__file__).parent / ".cache"
EPS = 0.1
RECIPES = {
    "AT-AWP": {
        "images": 500,
        "epochs": 60,
        "batch": 50,
        "rate": 0.1,
        "gamma": 0.01,
        "warmup": 10,
        "steps": 5,
        "step": 0.5,
    },
    "AT": {"images": 500, "epochs": 60, "batch": 50, "rate": 0.1, "steps": 5, "step": 0.5},
    "ordinary": {"images": 5000, "epochs": 8, "batch": 50, "rate": 0.05},
}


@dataclass(frozen=True)
class Subject:
    """A network in eval mode, and images."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float = EPS


def subject(name: str, count: int) -> Subject:
    """A network of `RECIPES`, from the cache or trained now, with the first test images."""
    recipe = RECIPES[name]
    key = hashlib.sha256(json.dumps([recipe, torch.__version__, 2]).encode()).hexdigest()[:12]
    path, model = CACHE / f"{name}-{key}.safetensors", _network()
    if not path.exists():
        train = _train_robust if "steps" in recipe else _train_ordinary
        train(model, recipe)
        CACHE.mkdir(exist_ok=True)
        save_file(model.state_dict(), path)
    model.load_state_dict(load_file(path))
    batch = open_dataset("fashion-mnist", split="test").batch(range(count))
    return Subject(name, model.eval(), batch.x, batch.y)


def untrained_resnet(count: int) -> Subject:
    """The net of the AWP paper, 11,172,170 parameters; images and labels are drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = preact_resnet18(channels=3, classes=10, size=(32, 32))
    draw = generator(0, "images")
    x, y = torch.rand(count, 3, 32, 32, generator=draw), torch.randint(0, 10, (count,), generator=draw)
    return Subject("PreAct ResNet-18", model.eval(), x, y, eps=8 / 255)


def _network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small_cnn(channels=1, classes=10, size=(28, 28))


def _batches(recipe: dict, epoch: int) -> Iterator[Batch]:
    data = open_dataset("fashion-mnist", split="train")
    order = torch.randperm(recipe["images"], generator=generator(0, "order", epoch))
    return data.batches(recipe["batch"], order)


def _train_robust(model: nn.Module, recipe: dict) -> None:
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), recipe["rate"], momentum=0.9, weight_decay=5e-4)
    ball, by = Ball("linf", EPS, box=(0, 1)), PGD(recipe["steps"], recipe["step"])
    for epoch in range(recipe["epochs"]):
        factor = 0.1 ** sum(epoch >= share * recipe["epochs"] for share in (0.5, 0.75))
        optimiser.param_groups[0]["lr"] = recipe["rate"] * factor
        perturbation = awp(recipe["gamma"]) if "gamma" in recipe and epoch >= recipe["warmup"] else None
        for index, batch in enumerate(_batches(recipe, epoch)):
            train_step(
                model, optimiser, at(), batch.x, batch.y, within=ball, by=by, weights=perturbation,
                generator=generator(0, "attack", epoch, index),
            )  # fmt: skip


def _train_ordinary(model: nn.Module, recipe: dict) -> None:
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), recipe["rate"], momentum=0.9, weight_decay=5e-4)
    for epoch in range(recipe["epochs"]):
        for batch in _batches(recipe, epoch):
            optimiser.zero_grad()
            F.cross_entropy(model(batch.x), batch.y).backward()
            optimiser.step()
