"""`shaketable train`: train a model that holds, and say how it holds."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core import ConfigError, DataError
from ..data import Dataset, Splits, open_dataset, open_parts, overlaps, split
from ..files import write_atomically
from ..models import ModelSpec, build
from ..models import save as save_model
from ..report import Report, environment
from ..runs import Driven, Progress, Quiet, drive
from ..training import Epoch, Plan, Processes, State, Step, begin
from .choices import spec_for
from .fine_tune import Begun, begin_from, statistics_of
from .ground import Ground, begins, config_of, on_ground, prepare
from .kept_epochs import keep, require
from .train_config import TrainConfig
from .train_plan import plan_of


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
    unlabelled: Dataset | None
    begun: Begun | None

    @property
    def processes(self) -> Processes:
        """The processes that share the work."""
        return self.ground.processes

    @property
    def leaks(self) -> dict[str, int]:
        """Pairs of sets, and how many images of the second are in the first too, where there are some."""
        found = dict(self.splits.overlap)
        if self.unlabelled is not None:
            sets = {"pseudo-labelled": self.unlabelled, **self.splits.sets}
            found |= overlaps(sets, [("pseudo-labelled", "validation"), ("pseudo-labelled", "test")])
        return {pair: count for pair, count in found.items() if count}

    @property
    def hashes(self) -> dict[str, str]:
        """Of all data that is used."""
        more = {} if self.unlabelled is None else {"pseudo-labelled.content": self.unlabelled.fingerprint}
        return self.splits.hashes | more

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one it goes on with; device and threads are the machine's."""
        config = {key: value for key, value in config_of(self.config).items() if key not in ("device", "threads")}
        begun = {} if self.begun is None else {"init": self.begun.sha256}
        return {"config": config, "data": self.hashes} | begun

    @property
    def machine(self) -> dict[str, Any]:
        """What it should have in common for the same bits."""
        facts = environment(device=str(self.ground.device))
        kept = {key: facts[key] for key in ("shaketable", "torch", "machine", "cpu capability", "threads", "device")}
        return kept | {"processes": self.processes.count}


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


def prepare_training(config: TrainConfig, ground: Ground | None = None) -> Prepared:
    """Everything a training needs, checked, before anything is written.

    Raises:
        ShaketableError: whatever in the config cannot be.
    """
    ground = ground or prepare(config)
    require(config)
    plan = plan_of(config)
    parts = open_parts(config.data)
    splits = split(
        parts.train, parts.test, train_count=config.train_count, validation_count=config.validation_count,
        test_count=config.test_count, seed=config.seed,
    )  # fmt: skip
    if config.select == "validation" and splits.validation is None:
        remedy = "Set validation_count, or select the last epoch with --select last."
        raise ConfigError("select", "a validation split to select on", "validation_count 0", remedy)
    unlabelled = _unlabelled(config, splits.train)
    spec, begun = _spec(config, splits.train), None
    model = build(spec, config.seed)
    if config.init is not None:
        begun = begin_from(config.init, model, spec, trust=config.trust)
    sample = splits.train.batch(torch.arange(min(4, len(splits.train)))).to(ground.device)
    state = begin(model.to(ground.device), plan, sample.x)
    slices = {name: _head(part, config.curve_count) for name, part in splits.sets.items()}
    return Prepared(config, ground, splits, spec, plan, state, slices, unlabelled, begun)


def train(
    config: TrainConfig, *, progress: Progress | None = None, label: str = "train", ground: Ground | None = None
) -> Trained:
    """Train in the config's folder, from its checkpoint if asked to, and write best.safetensors and last.safetensors.

    Args:
        ground: with the processes that share the work; the first of them writes.

    Raises:
        Interrupted: the user stopped it; it can be resumed.
        DivergenceError, CheckpointError, StorageError, ConfigError, ProcessError: see there.
    """
    new = begins(config.out, resume=config.resume)
    prepared = prepare_training(config, ground)
    first = prepared.processes.rank == 0
    prepared.processes.barrier()  # none has looked at the folder after another wrote to it
    if new and first:
        text = json.dumps(config.model_dump(mode="json"), indent=1, sort_keys=True)
        write_atomically(config.out / "config.json", text.encode())
    train_set, extra = prepared.splits.train, prepared.unlabelled
    steps = prepared.plan.batches(len(train_set), None if extra is None else len(extra)).steps
    with (progress or Quiet()).stage(label, config.epochs * steps) as stage:

        def show(event: Step | Epoch) -> None:
            if isinstance(event, Step):
                stage.update((event.epoch - 1) * steps + event.step)
                return
            if first:
                keep(config, prepared.state, prepared.spec, event)
            if event.slices:
                stage.update(event.epoch * steps, _note(event))

        driven = drive(
            prepared.state, prepared.plan, train_set, prepared.slices, folder=config.out, spec=prepared.spec,
            identity=prepared.identity, machine=prepared.machine, save_every=config.save_every, show=show,
            unlabelled=extra, processes=prepared.processes,
        )  # fmt: skip
    trained = Trained(prepared, driven, config.out)
    for name, model in final_models(trained):
        facts = {"epoch": prepared.state.epoch if name == "last" else prepared.state.best_epoch, "which": name}
        if first:
            save_model(config.out / f"{name}.safetensors", model, prepared.spec, facts=facts)
    return trained


def final_models(trained: Trained) -> Iterator[tuple[str, torch.nn.Module]]:
    """The last and, if there is a rule for it, the best model, in eval mode: one and the same module, loaded in turn."""
    state = trained.state
    model = state.plain.eval()
    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    try:
        if state.last:
            model.load_state_dict(state.last)
        yield "last", model
        if state.best:
            model.load_state_dict(state.best)
            yield "best", model
    finally:
        model.load_state_dict(kept)


def run(config: TrainConfig, *, progress: Progress | None = None) -> Report:
    """Train, evaluate the best and the last model on the test split, and report.

    Cost: see `Plan` and `fit`; then two evaluations. Checked by tests/end_to_end/test_train.py.
    """
    from .train_report import report

    with on_ground(config) as ground:
        trained = train(config, progress=progress, ground=ground)
        return report(trained, progress=progress)


def _unlabelled(config: TrainConfig, train_set: Dataset) -> Dataset | None:
    """The pseudo-labelled images, if they fit the labelled ones."""
    if config.unlabelled is None:
        return None
    data = open_dataset(config.unlabelled, split="all")

    def form(part: Dataset) -> str:
        return f"{part.channels} channels of {part.size[0]} x {part.size[1]} and {len(part.classes)} classes"

    if form(data) != form(train_set):
        expected, found = f"{form(train_set)}, as the labelled images", form(data)
        raise DataError(str(config.unlabelled), expected, found, "Make them by `shaketable pseudolabel`.")
    if data.classes != train_set.classes:
        expected, found = f"the classes {train_set.classes[:3]}...", f"{data.classes[:3]}..."
        remedy = "Use the labels of a model whose classes have these names, in this order."
        raise DataError(str(config.unlabelled), expected, found, remedy)
    return data


def _spec(config: TrainConfig, train_set: Dataset) -> ModelSpec:
    """The architecture for these images; the normalisation is the training images' own unless it is given."""
    mean, std = config.mean, config.std
    if (mean is None) != (std is None):
        raise ConfigError("mean, std", "both or neither", "one of them", "Give both, or leave both to be measured.")
    if (mean is None or std is None) and config.init is not None:
        mean, std = statistics_of(config.init) or (None, None)
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


def _head(data: Dataset, count: int) -> Dataset:
    return data.take(torch.arange(min(count, len(data))))


def _note(event: Epoch) -> str:
    parts = [f"{name} {100 * r.robust_correct / r.n:.0f} %" for name, r in event.slices.items()]
    return f"epoch {event.epoch}, robust accuracy: {', '.join(parts)}"
