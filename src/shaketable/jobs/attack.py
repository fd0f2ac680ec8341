"""`shaketable attack MODEL`: adversarial images, kept as files, with what is left of them once they are saved."""

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..attacks import Evaluation, evaluate
from ..attacks.eight_bit import EightBit, Survival, encoded, on_levels, rounded, saved, surviving
from ..attacks.half import HalfSearch
from ..attacks.regions import mask_of
from ..attacks.vulnerability import Vulnerability, vulnerability
from ..core import Ball, ConfigError, generator
from ..core.perturb import Perturbation
from ..files import write_atomically
from ..report import Report
from ..runs import Progress, Quiet
from .attack_config import AttackConfig
from .evaluate import Subject, prepare_evaluation
from .ground import counted

IMAGES = "images"  # the folder of the files


@dataclass(frozen=True, eq=False)
class Attacked:
    """What was found.

    Args:
        x, y: clean images (on the 256 levels) and labels.
        points: adversarial images on the levels, inside ball and region.
        read: the same as they are read from the files that were written; `points` themselves, but for JPEG.
        how: which of `survival` that is.
        result: the evaluation of the attack as it ended, before its points were brought to the levels.
        survival: success before, and as PNG and JPEG files of `points`.
        weak: the vulnerability map, if it was asked for.
        files: where the images were written, relative to the report.
        within: the ball with its region.
    """

    x: Tensor
    y: Tensor
    points: Tensor
    read: Tensor
    how: str
    result: Evaluation
    survival: Survival
    weak: Vulnerability | None
    files: tuple[str, ...]
    within: Ball

    @property
    def fooled(self) -> Tensor:
        """Which of the files fool the model, of images that it gets right, (n,)."""
        return self.survival.after[self.how] & self.survival.counted


@dataclass(frozen=True)
class InLoop:
    """An attack whose every step lies on the levels of 8 bits."""

    attack: Any

    def until_fooled(self) -> "InLoop":
        """The same, of an attack that drops what is fooled; one that cannot stays as it is."""
        fast = getattr(self.attack, "until_fooled", None)
        return self if fast is None else InLoop(fast())

    def __call__(self, model: Any, x: Tensor, y: Tensor, within: Any, *, generator: torch.Generator) -> Perturbation:
        """Attack within the levels of the ball."""
        return self.attack(model, x, y, EightBit(within), generator=generator)


def run(config: AttackConfig, *, progress: Progress | None = None) -> Report:
    """Attack, save, read again, report.

    Cost: `models.check`, `attacks.evaluate`, 10 forward passes an image for what survives saving, and with --grid
    `attacks.vulnerability`. Checked by tests/end_to_end/test_attack.py.
    """
    from .attack_report import report

    subject = prepare_evaluation(config)
    if not subject.attacked:
        remedy = "Give its PyTorch form, or --attack square."
        raise ConfigError("model", "a model with gradients for this attack", "one without", remedy)
    data = subject.data
    if data.channels not in (1, 3):
        raise ConfigError("data", "grey or RGB images", f"{data.channels} channels", "Use evaluate for others.")
    if config.cells is not None and any(cells > side for cells, side in zip(config.cells, data.size, strict=True)):
        raise ConfigError("grid", f"at most {data.size[0]}x{data.size[1]} cells", config.grid or "", "Make it coarser.")
    found = attacked(subject, config, progress or Quiet())
    return report(subject, config, found)


def attacked(subject: Subject[AttackConfig], config: AttackConfig, progress: Progress) -> Attacked:
    """All that is measured, and the files."""
    model, device = subject.loaded.model, subject.ground.device
    batch = subject.data.batch(range(len(subject.data))).to(device)
    x, y = rounded(batch.x), batch.y
    mask = mask_of(config.region, model, x, y, generator(config.seed, "region"))
    within = replace(subject.within, mask=mask)
    attack: Any = InLoop(subject.attack) if config.rounding == "loop" else subject.attack
    attack = HalfSearch(attack) if config.search == "bfloat16" else attack
    with progress.stage("attack", len(x)) as stage:
        result = evaluate(
            model, x, y, within=within, attack=attack, seed=config.seed, batch_size=config.batch_size, points=True,
            progress=counted(stage),
        )  # fmt: skip
    assert result.points is not None
    points = on_levels(result.points.to(x), x, within)
    survival = surviving(model, x, y, points, quality=tuple(sorted({95, 75, 50, config.quality}, reverse=True)))
    survival = replace(survival, before=~result.robust_correct.to(y.device))
    weak = None
    if config.cells is not None:
        with progress.stage("map", len(x)) as stage:
            weak = vulnerability(
                model, x, y, cells=config.cells, seed=config.seed, batch_size=config.batch_size, progress=counted(stage)
            )
    lossy = config.save == "jpeg"
    read = saved(points, "jpeg", quality=config.quality) if lossy else points
    how = f"jpeg {config.quality}" if lossy else "png"
    return Attacked(x, y, points, read, how, result, survival, weak, _written(config, points, y), within)


def _written(config: AttackConfig, points: Tensor, y: Tensor) -> tuple[str, ...]:
    """The adversarial images as files, named by their place and true class; those of an earlier attack are removed."""
    for old in (config.out / IMAGES).glob(f"{'[0-9]' * 5}_class*.*"):
        if re.fullmatch(r"\d{5}_class\d+\.(png|jpeg)", old.name):
            old.unlink()
    if config.save == "none":
        return ()
    made = []
    for k, (content, label) in enumerate(
        zip(encoded(points, config.save, quality=config.quality), y.tolist(), strict=True)
    ):
        name = f"{IMAGES}/{k:05d}_class{label}.{config.save}"
        write_atomically(config.out / name, content)
        made.append(name)
    return tuple(made)
