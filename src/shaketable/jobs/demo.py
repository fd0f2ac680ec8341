"""`shaketable demo`: robust overfitting, the gap that AWP closes, and the flatness of both nets, on embedded images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacks import Evaluation, PGDAttack, evaluate
from ..core import PGD, Ball
from ..flatness import AverageFlatness, average
from ..models import fingerprint
from ..report import Report
from ..runs import Progress, Quiet
from .config import DemoConfig, TrainConfig
from .ground import counted
from .train import Trained, final_models, train

MODELS = {"AT": "none", "AT-AWP": "awp(gamma={gamma!r}, warmup={warmup})"}
"""The trainings that are compared: what is perturbed in the weights."""


@dataclass(frozen=True)
class Shown:
    """One training of the demo and what was measured of it.

    Args:
        last, best: the evaluation on the test images of the last epoch and of the best on the validation split; every
            image is attacked to the end, so that robust losses are losses.
        train: the same of the last epoch on the training images.
        flatness: of the last epoch, on test images.
    """

    name: str
    trained: Trained
    last: Evaluation
    best: Evaluation
    train: Evaluation
    flatness: AverageFlatness
    hashes: dict[str, str]


def training_config(config: DemoConfig, name: str) -> TrainConfig:
    """The training of one of `MODELS`: SGD on few images, batches of 50, PGD-5 while training, PGD-20 to measure."""
    return TrainConfig(
        seed=config.seed,
        device=config.device,
        threads=config.threads,
        data="fashion-mnist",
        train_count=config.train_count,
        validation_count=500,
        test_count=config.test_count,
        weights=MODELS[name].format(gamma=config.gamma, warmup=config.warmup),
        eps=config.eps,
        attack="pgd(steps=5, step=0.5)",
        epochs=config.epochs,
        batch_size=min(50, config.train_count),
        evaluate_every=max(1, config.epochs // 12),
        evaluation="pgd(steps=20)",
        curve_count=min(300, config.test_count),
        out=config.out / name.lower(),
        resume=config.resume,
    )


def run(config: DemoConfig, *, progress: Progress | None = None) -> Report:
    """Train AT and AT-AWP from the same start on the same batches, measure both, and compare them.

    Checked by tests/end_to_end/test_demo.py.
    """
    from .demo_report import report

    progress = progress or Quiet()
    shown = [_show(config, name, progress) for name in MODELS]
    return report(config, shown)


def _show(config: DemoConfig, name: str, progress: Progress) -> Shown:
    trained = train(training_config(config, name), progress=progress, label=f"{name}: train")
    splits, ball = trained.prepared.splits, Ball("linf", config.eps, box=(0.0, 1.0))
    found: dict[str, Evaluation] = {}
    hashes: dict[str, str] = {}
    attack, total = PGDAttack(steps=20), 2 * len(splits.test) + len(splits.train)
    with progress.stage(f"{name}: attack", total) as stage:
        advance = counted(stage)
        for which, model in final_models(trained):
            parts = {which: splits.test, "train": splits.train} if which == "last" else {which: splits.test}
            for part, data in parts.items():
                found[part] = evaluate(
                    model, data, within=ball, attack=attack, seed=config.seed, measure="loss", progress=advance
                )  # fmt: skip
            hashes[f"{name} {which}"] = fingerprint(model)
    x, y = _images(trained, config.flatness_count)
    with progress.stage(f"{name}: flatness", config.flatness_samples) as stage:
        flatness = average(
            trained.state.model.eval(), x, y, seed=config.seed, within=ball, by=PGD(20),
            samples=config.flatness_samples, reference_restarts=1, progress=lambda k, _n: stage.update(k),
        )  # fmt: skip
    return Shown(name, trained, found["last"], found.get("best", found["last"]), found["train"], flatness, hashes)


def _images(trained: Trained, count: int) -> tuple[Tensor, Tensor]:
    """The first test images, as the flatness paper takes them."""
    data = trained.prepared.splits.test
    batch = data.batch(torch.arange(min(count, len(data)))).to(trained.prepared.ground.device)
    return batch.x, batch.y
