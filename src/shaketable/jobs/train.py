"""`shaketable train`: train a model that holds, and say how it holds."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core import PGD, Ball, ConfigError
from ..data import CropFlip, Dataset, Splits, open_parts, split
from ..files import write_atomically
from ..models import ModelSpec, build
from ..models import save as save_model
from ..report import Report, environment
from ..runs import Driven, Progress, Quiet, drive
from ..training import LOSSES, SCHEDULES, WEIGHTS, Epoch, Plan, State, Step, begin, steps_of
from .choices import choose, spec_for
from .config import TrainConfig
from .ground import Ground, begins, config_of, prepare

ASCENTS = {"pgd": PGD}
AUGMENTS: dict[str, Any] = {"none": lambda: None, "crop_flip": CropFlip}


@dataclass(frozen=True)
class Prepared:
    """A training before its first step."""

    config: TrainConfig
    ground: Ground
    splits: Splits
    spec: ModelSpec
    plan: Plan
    state: State
    slices: dict[str, Dataset]

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one it goes on with; device and threads are the machine's."""
        config = {key: value for key, value in config_of(self.config).items() if key not in ("device", "threads")}
        return {"config": config, "data": self.splits.hashes}

    @property
    def machine(self) -> dict[str, Any]:
        """What it should have in common for the same bits."""
        facts = environment(device=str(self.ground.device))
        return {key: facts[key] for key in ("shaketable", "torch", "machine", "cpu capability", "threads", "device")}


@dataclass(frozen=True)
class Trained:
    """A training after its last step."""

    prepared: Prepared
    driven: Driven
    folder: Path

    @property
    def state(self) -> State:
        """The end state."""
        return self.prepared.state


def prepare_training(config: TrainConfig) -> Prepared:
    """Everything a training needs, checked, before anything is written.

    Raises:
        ShaketableError: whatever in the config cannot be.
    """
    ground = prepare(config)
    parts = open_parts(config.data)
    splits = split(
        parts.train, parts.test, train_count=config.train_count, validation_count=config.validation_count,
        test_count=config.test_count, seed=config.seed,
    )  # fmt: skip
    if config.select == "validation" and splits.validation is None:
        remedy = "Set validation_count, or select the last epoch with --select last."
        raise ConfigError("select", "a validation split to select on", "validation_count 0", remedy)
    spec = _spec(config, splits.train)
    plan = _plan(config)
    state = begin(build(spec, config.seed).to(ground.device), plan)
    slices = {name: _head(part, config.curve_count) for name, part in splits.sets.items()}
    return Prepared(config, ground, splits, spec, plan, state, slices)


def train(config: TrainConfig, *, progress: Progress | None = None, label: str = "train") -> Trained:
    """Train in the config's folder, from its checkpoint if asked to, and write best.safetensors and last.safetensors.

    Raises:
        Interrupted: the user stopped it; it can be resumed.
        DivergenceError, CheckpointError, StorageError, ConfigError: see there.
    """
    new = begins(config.out, resume=config.resume)
    prepared = prepare_training(config)
    if new:
        text = json.dumps(config.model_dump(mode="json"), indent=1, sort_keys=True)
        write_atomically(config.out / "config.json", text.encode())
    steps = steps_of(len(prepared.splits.train), config.batch_size)
    with (progress or Quiet()).stage(label, config.epochs * steps) as stage:

        def show(event: Step | Epoch) -> None:
            if isinstance(event, Step):
                stage.update((event.epoch - 1) * steps + event.step)
            elif event.slices:
                stage.update(event.epoch * steps, _note(event))

        driven = drive(
            prepared.state, prepared.plan, prepared.splits.train, prepared.slices, folder=config.out,
            spec=prepared.spec, identity=prepared.identity, machine=prepared.machine, save_every=config.save_every,
            show=show,
        )  # fmt: skip
    trained = Trained(prepared, driven, config.out)
    for name, model in final_models(trained):
        facts = {"epoch": prepared.state.epoch if name == "last" else prepared.state.best_epoch, "which": name}
        save_model(config.out / f"{name}.safetensors", model, prepared.spec, facts=facts)
    return trained


def final_models(trained: Trained) -> Iterator[tuple[str, torch.nn.Module]]:
    """The last and, if there is a rule for it, the best model, in eval mode: one and the same module, loaded in turn."""
    state = trained.state
    model = state.model.eval()
    last = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    try:
        yield "last", model
        if state.best:
            model.load_state_dict(state.best)
            yield "best", model
    finally:
        model.load_state_dict(last)


def run(config: TrainConfig, *, progress: Progress | None = None) -> Report:
    """Train, evaluate the best and the last model on the test split, and report.

    Cost: see `Plan` and `fit`; then two evaluations. Checked by tests/end_to_end/test_train.py.
    """
    from .train_report import report

    trained = train(config, progress=progress)
    return report(trained, progress=progress)


def _spec(config: TrainConfig, train_set: Dataset) -> ModelSpec:
    """The architecture for these images; the normalisation is the training images' own unless it is given."""
    mean, std = config.mean, config.std
    if (mean is None) != (std is None):
        raise ConfigError("mean, std", "both or neither", "one of them", "Give both, or leave both to be measured.")
    if mean is None or std is None:
        mean, std = _statistics(train_set)
    return spec_for(config.architecture, train_set, mean=mean, std=std)


def _statistics(data: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, to four digits."""
    total = torch.zeros(data.channels, dtype=torch.float64)
    squares, count = torch.zeros_like(total), 0
    for batch in data.batches(256):
        x = batch.x.double()
        total += x.sum((0, 2, 3))
        squares += x.square().sum((0, 2, 3))
        count += x.numel() // data.channels
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-8).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(max(round(v, 4), 1e-4) for v in std.tolist())


def _plan(config: TrainConfig) -> Plan:
    loss, evaluation = choose(config.loss, LOSSES, "loss"), choose(config.evaluation, ASCENTS, "evaluation")
    missing = [name for name in ("start", "attack_mode", "inner", "outer", "weights") if not hasattr(loss, name)]
    if missing:
        found = f"{type(loss).__name__} without {', '.join(missing)}"
        raise ConfigError("loss", "what shaketable.training.RobustLoss describes", found, "Give it these, as AT does.")
    if not isinstance(evaluation, PGD):
        remedy = "Evaluate with pgd(...); another attack is for `shaketable evaluate --attack`."
        raise ConfigError("evaluation", "pgd(...)", type(evaluation).__name__, remedy)
    return Plan(
        loss=loss,
        weights=choose(config.weights, WEIGHTS, "weights"),
        within=Ball(config.norm, config.eps, box=(0.0, 1.0)),
        attack=choose(config.attack, ASCENTS, "attack"),
        epochs=config.epochs,
        batch_size=config.batch_size,
        rate=config.rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        schedule=choose(config.schedule, SCHEDULES, "schedule"),
        augment=choose(config.augment, AUGMENTS, "augment"),
        evaluate_every=config.evaluate_every,
        evaluation=evaluation,
        select=None if config.select == "last" else config.select,
        seed=config.seed,
    )


def _head(data: Dataset, count: int) -> Dataset:
    return data.take(torch.arange(min(count, len(data))))


def _note(event: Epoch) -> str:
    parts = [f"{name} {100 * r.robust_correct / r.n:.0f} %" for name, r in event.slices.items()]
    return f"epoch {event.epoch}, robust accuracy: {', '.join(parts)}"
