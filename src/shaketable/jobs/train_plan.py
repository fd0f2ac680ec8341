"""From the options of `shaketable train` to the plan of a training: every choice resolved, or refused by name."""

from dataclasses import replace
from typing import Any

from ..core import PGD, Ball, ConfigError
from ..data import AutoAugment, Chain, CropFlip, Cutout
from ..training import AVERAGES, LOSSES, OPTIMISERS, PRESETS, SCHEDULES, WEIGHTS, Friendly, Labels, Plan, Update
from .choices import choose
from .train_config import TrainConfig

ASCENTS = {"pgd": PGD}
TRAINING_ASCENTS: dict[str, Any] = {"pgd": PGD, "pgd_tau": Friendly}
AUGMENTS: dict[str, Any] = {"crop_flip": CropFlip, "cutout": Cutout, "autoaugment": AutoAugment}


def plan_of(config: TrainConfig) -> Plan:
    """The plan that a config describes.

    Raises:
        ConfigError: a choice that is unknown, or that has another form than its place asks for.
    """
    loss, evaluation = choose(config.loss, LOSSES, "loss"), choose(config.evaluation, ASCENTS, "evaluation")
    missing = [name for name in ("start", "attack_mode", "inner", "outer", "weights") if not hasattr(loss, name)]
    if missing:
        found = f"{type(loss).__name__} without {', '.join(missing)}"
        raise ConfigError("loss", "what shaketable.training.RobustLoss describes", found, "Give it these, as AT does.")
    if not isinstance(evaluation, PGD):
        remedy = "Evaluate with pgd(...); another attack is for `shaketable evaluate --attack`."
        raise ConfigError("evaluation", "pgd(...)", type(evaluation).__name__, remedy)
    weights = choose(config.weights, WEIGHTS, "weights")
    if weights is not None and weights.direction == "gradient" and config.awp_sync != weights.sync:
        weights = replace(weights, sync=config.awp_sync)
    return Plan(
        loss=loss,
        weights=weights,
        within=Ball(config.norm, config.eps, box=(0.0, 1.0)),
        attack=choose(config.attack, TRAINING_ASCENTS, "attack"),
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimiser=choose(config.optimiser, OPTIMISERS, "optimiser"),
        rate=config.rate,
        weight_decay=config.weight_decay,
        schedule=choose(config.schedule, SCHEDULES, "schedule"),
        augment=_augment(config.augment),
        update=_update(config),
        labels=Labels(config.label_smoothing, config.label_noise, config.attack_labels, config.ignore_incorrect),
        average=choose(config.average, AVERAGES, "average"),
        share=config.unlabelled_share,
        compile=config.compile,
        evaluate_every=config.evaluate_every,
        evaluation=evaluation,
        select=None if config.select == "last" else config.select,
        stop_after=config.stop_after,
        seed=config.seed,
    )


def _update(config: TrainConfig) -> Update:
    """The preset, with what was asked for instead of it."""
    given = {name: getattr(config, name) for name in ("batch_norm", "decay_at") if getattr(config, name) is not None}
    return replace(
        PRESETS[config.preset], accumulate=config.accumulate, clip_gradient=config.clip_gradient,
        clip_weights=config.clip_weights, precision=config.precision, channels_last=config.channels_last, **given,
    )  # fmt: skip


def _augment(text: str) -> Any:
    """What "crop_flip(pad=4)+cutout" names, one after the other; None for "none"."""
    if text.strip() == "none":
        return None
    parts = tuple(choose(part, AUGMENTS, "augment") for part in text.split("+"))
    return parts[0] if len(parts) == 1 else Chain(parts)
