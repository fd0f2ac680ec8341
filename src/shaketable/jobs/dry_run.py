"""`--dry-run`: how long a job would take and how much memory, from a few timed steps; nothing is written."""

import copy
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from ..attacks import evaluate
from ..attacks.batches import usual_size
from ..core import ConfigError
from ..runs import duration
from .config import DemoConfig, SubjectConfig, TrainConfig
from .flatness.config import FlatnessConfig
from .flatness_study.config import FlatnessStudyConfig
from .landscape.config import LandscapeConfig
from .pseudolabel_config import PseudolabelConfig
from .study.config import StudyConfig

STEPS = 4  # timed, after one that is not


@dataclass(frozen=True)
class Estimate:
    """What a job would take.

    Args:
        seconds: of the whole job, from the median of the timed steps; an upper bound where an attack drops images.
        memory: peak bytes, of the process or, on a GPU, of its allocations.
        steps: how many steps or batches it has.
        step: seconds of one.
    """

    seconds: float
    memory: int
    steps: int
    step: float

    def __str__(self) -> str:
        gib = self.memory / 2**30
        return (
            f"would take about {duration(self.seconds)} ({self.seconds / 3600:.2f} hours): "
            f"{self.steps} steps of {self.step:.3f} s\nwould need about {gib:.2f} GiB of memory"
        )


def estimate(config: Any) -> Any:
    """Time a few steps of a job; what it returns has `seconds` and `memory`, and prints as text.

    Raises:
        ConfigError: a job that runs no model.
    """
    if isinstance(config, TrainConfig):
        return _training(config)
    if isinstance(config, SubjectConfig):
        return _evaluation(config)
    if isinstance(config, PseudolabelConfig):
        return _labelling(config)
    if isinstance(config, StudyConfig):
        from .study.run import estimate as of_study

        return of_study(config, _training)
    if isinstance(config, FlatnessStudyConfig):
        from .flatness_study.run import estimate as of_flatness_study

        return of_flatness_study(config, _training)
    if isinstance(config, FlatnessConfig):
        return _flatness(config)
    if isinstance(config, LandscapeConfig):
        return _landscape(config)
    if isinstance(config, DemoConfig):
        return _demo(config)
    raise ConfigError("dry-run", "a job that runs a model", "reproduce, which reads", "Run it; it takes seconds.")


def _demo(config: DemoConfig) -> Estimate:
    from .demo import MODELS, training_config

    extra = config.train_count + (config.flatness_samples + 1) * config.flatness_count
    parts = [_training(training_config(config, name), extra) for name in MODELS]
    first = parts[0]
    seconds = sum(part.seconds for part in parts)
    return Estimate(seconds, max(p.memory for p in parts), sum(p.steps for p in parts), first.step)


def _labelling(config: PseudolabelConfig) -> Estimate:
    from .pseudolabel import predict, prepare_labelling

    labelling = prepare_labelling(config)
    data, model = labelling.chosen.data, labelling.match.loaded.model
    part = data.take(torch.arange(min(config.batch_size, len(data))))
    times: list[float] = []
    for _ in range(2):
        began = time.perf_counter()
        predict(
            model, part, device=labelling.ground.device, batch_size=config.batch_size, seed=config.seed,
            advance=lambda _count: None,
        )  # fmt: skip
        times.append(time.perf_counter() - began)
    steps = -(-len(data) // config.batch_size)
    return Estimate(steps * times[1], _memory(labelling.ground.device), steps, times[1])


def _training(config: TrainConfig, extra: int = 0) -> Estimate:
    """Steps, with the perturbation of the weights, the learning curves, the test images, and `extra` evaluated images."""
    from ..core import generator
    from ..training import evaluate_slices, train_step
    from .train import prepare_training

    prepared = prepare_training(config)
    plan, state, data = prepared.plan, prepared.state, prepared.splits.train
    model = copy.deepcopy(state.model).train()
    optimiser = plan.optimiser([p for p in model.parameters() if p.requires_grad], plan.rate, plan.weight_decay)
    rows = torch.arange(min(plan.batch_size, len(data)))  # pseudo-labelled images cost what labelled ones do
    times: list[float] = []
    for k in range(STEPS + 1):
        began = time.perf_counter()
        batch = data.batch(rows).to(prepared.ground.device)
        train_step(
            model, optimiser, plan.loss, batch.x, batch.y, within=plan.within, by=plan.attack, weights=plan.weights,
            generator=generator(plan.seed, "dry run", k), update=plan.update, labels=plan.labels,
        )  # fmt: skip
        times.append(time.perf_counter() - began)
    small = {name: part.take(torch.arange(min(64, len(part)))) for name, part in prepared.slices.items()}
    began = time.perf_counter()
    evaluate_slices(getattr(model, "plain", model), plan, small)
    an_image = (time.perf_counter() - began) / sum(map(len, small.values()))
    measured = -(-plan.epochs // plan.evaluate_every) * sum(map(len, prepared.slices.values()))
    measured += 2 * len(prepared.splits.test) + len(data) + extra
    extra_count = None if prepared.unlabelled is None else len(prepared.unlabelled)
    steps, step = plan.epochs * plan.batches(len(data), extra_count).steps, statistics.median(times[1:])
    return Estimate(steps * step + measured * an_image, _memory(prepared.ground.device), steps, step)


def _evaluation(config: SubjectConfig) -> Estimate:
    from .evaluate import prepare_evaluation

    subject = prepare_evaluation(config)
    size = min(config.batch_size or usual_size(subject.data), len(subject.data))
    part = subject.data.take(torch.arange(size))
    times: list[float] = []
    for _ in range(2):
        began = time.perf_counter()
        evaluate(
            subject.loaded.model, part, within=subject.within, attack=subject.attack, seed=config.seed, batch_size=size
        )
        times.append(time.perf_counter() - began)
    steps = -(-len(subject.data) // size)
    return Estimate(steps * times[1], _memory(subject.ground.device), steps, times[1])


def _flatness(config: FlatnessConfig) -> Estimate:
    """What is not in the ledger yet, by the passes of each measurement and the time of a pass, shared by the workers."""
    from ..core import PGD, generator
    from ..core.measure import measure
    from .flatness.run import left_of, prepare_flatness

    job = prepare_flatness(config)
    first, left = job.measurements[0], left_of(job)
    model = first.subject.place.load(first.images.data).model.to(job.ground.device)
    batch = first.images.data.batch(torch.arange(min(config.batch_size or 128, len(first.images.data)))).to(
        job.ground.device
    )
    times: list[float] = []
    for k in range(2):
        began = time.perf_counter()
        found = measure(
            model, batch.x, batch.y, first.chosen.within, by=PGD(2), generator=generator(config.seed, "dry run", k),
            batch_size=len(batch),
        )  # fmt: skip
        times.append((time.perf_counter() - began) / (found.calls.forward + found.calls.backward))
    seconds = times[1] * sum(one.task.cost for one in left) / max(1, min(config.workers, len(left)))
    return Estimate(seconds, _memory(job.ground.device), len(left), seconds / max(1, len(left)))


def _landscape(config: LandscapeConfig) -> Estimate:
    """All points, those that the ledger has included, by the time of one, shared by the workers."""
    from .landscape.plan import prepare_landscape
    from .landscape.run import timed

    job = prepare_landscape(config)
    step = timed(job)
    return Estimate(
        job.points_in_all * step / max(1, config.workers), _memory(job.ground.device), job.points_in_all, step
    )


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
