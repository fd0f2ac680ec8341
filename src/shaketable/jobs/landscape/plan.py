"""What `shaketable landscape` is to draw: models or a training's checkpoints, checked, their images and their axes."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ...core import ConfigError
from ...files import sha256_of
from ...flatness.directions import Combine
from ..choices import parse
from ..flatness.config import FlatnessConfig
from ..flatness.subjects import Images, Source, Subject, images_of, sources_of, subject_of
from ..ground import Ground, prepare
from .cells import TRAJECTORY, Line, Place
from .config import LandscapeConfig

DIRECTIONS_FOLDER = "directions"  # of axes that cost passes, in the report's folder
_POINTS = {1: 51, 2: 21, 3: 9}
_RADII = {"random": 0.5, "adversarial": 0.025, "hessian": 0.05}


@dataclass(frozen=True)
class Picture:
    """What is to be drawn of one model.

    Args:
        place: see `Place`.
        lines: of axes.
        checkpoints: of a trajectory: each one's own place, in order, the last one's that of the model.
    """

    subject: Subject
    images: Images
    place: Place
    lines: tuple[Line, ...]
    checkpoints: tuple[tuple[Source, Place], ...] = ()


@dataclass(frozen=True)
class Job:
    """All that is to be drawn, checked."""

    config: LandscapeConfig
    ground: Ground
    dims: int
    points: int
    combine: Combine
    pictures: tuple[Picture, ...]

    @property
    def points_in_all(self) -> int:
        """How many points there are, those at the weights and the checkpoints themselves included."""
        return sum(len(p.lines) * self.points**self.dims + 1 + max(0, len(p.checkpoints) - 1) for p in self.pictures)


def prepare_landscape(config: LandscapeConfig) -> Job:
    """Load every model once, check it against its images, and name all axes; nothing is written.

    Raises:
        ConfigError: no model, or models and a trajectory, an even number of points around a model, an unknown direction.
        ShaketableError: whatever of it cannot be; see `flatness_subjects`.
    """
    ground = prepare(config)
    if bool(config.model) == bool(config.trajectory):
        found = "both" if config.model else "neither"
        raise ConfigError("model", "models or a --trajectory", found, "Give one MODEL or more, or --trajectory RUN.")
    dims = config.dims or (2 if config.trajectory else 1)
    points = config.points or _POINTS[dims]
    if not config.trajectory and points % 2 == 0:
        remedy = "The model itself is in the middle: add or take one."
        raise ConfigError("points", "an odd number", str(points), remedy)
    if config.trajectory:
        return Job(config, ground, dims, points, "mean", (_run_picture(config, ground, dims),))
    lines, combine = _lines(config, dims)
    pictures = []
    for source in sources_of(_subjects(config, config.model)):
        subject, images, place = _placed(config, source, ground)
        pictures.append(Picture(subject, images, place, lines))
    return Job(config, ground, dims, points, combine, tuple(pictures))


def _lines(config: LandscapeConfig, dims: int) -> tuple[tuple[Line, ...], Combine]:
    """The lines that are asked for, and how they are combined."""
    name = parse(config.direction, "direction")[0]
    normalise = config.normalise or ("model" if name == "hessian" else "layer")
    radius = float(config.radius) if config.radius is not None else _RADII.get(name, 0.5)
    first = Line(config.direction, normalise, radius, dims)
    value = first.value  # or it is refused
    missing = [attribute for attribute in ("combine", "lines") if not hasattr(value, attribute)]
    if missing or not callable(value):
        remedy = "Give it what shaketable.flatness.directions.Directions describes."
        raise ConfigError("direction", "a direction of landscapes", f"{name} without {', '.join(missing)}", remedy)
    count = config.lines or (value.lines if dims == 1 else 1)
    return tuple(Line(config.direction, normalise, radius, dims, k) for k in range(count)), value.combine


def _run_picture(config: LandscapeConfig, ground: Ground, dims: int) -> Picture:
    """A training's checkpoints and the axes of their principal directions."""
    sources = checkpoints_of(config)
    if len(sources) <= dims:
        found = f"{len(sources)} in {', '.join(map(str, config.trajectory))}"
        remedy = "Keep more of them: `shaketable train --keep-every 5`, or give several files."
        raise ConfigError("trajectory", f"more than {dims} checkpoints", found, remedy)
    placed = [_placed(config, source, ground) for source in sources]
    files = tuple((place.model, sha256_of(Path(place.model.source))) for _, _, place in placed)
    subject, images, place = placed[-1]
    checkpoints = tuple((source, one[2]) for source, one in zip(sources, placed, strict=True))
    return Picture(subject, images, place, (Line(TRAJECTORY, "model", 1.0, dims, checkpoints=files),), checkpoints)


def checkpoints_of(config: LandscapeConfig) -> tuple[Source, ...]:
    """The checkpoints of a trajectory in order: files as they are given, those of folders by epoch, each epoch once."""
    found: list[Source] = []
    for path in config.trajectory:
        found += sources_of(_subjects(config, (str(path),), checkpoints=path.is_dir()))
    epochs = [source.epoch for source in found]
    return tuple(s for k, s in enumerate(found) if s.epoch is None or s.epoch not in epochs[:k])


def _placed(config: LandscapeConfig, source: Source, ground: Ground) -> tuple[Subject, Images, Place]:
    """A model, checked, and where its points are."""
    settings = _subjects(config, (source.path,))
    images = images_of(settings, source, config.split)
    subject = subject_of(settings, source, images, ground.device)
    return subject, images, Place(
        subject.place, subject.sha256, images.place, images.data.fingerprint, config.norm, float(config.eps), config.attack,
        config.batch_size, config.seed, str(ground.device), config.threads or torch.get_num_threads(),
        str((config.out / DIRECTIONS_FOLDER).absolute()),
    )  # fmt: skip


def _subjects(config: LandscapeConfig, models: tuple[str, ...], *, checkpoints: bool = False) -> FlatnessConfig:
    """The options by which models and images are found, which are those of `shaketable flatness`."""
    shared = set(FlatnessConfig.model_fields) & set(LandscapeConfig.model_fields) - {"model", "split"}
    return FlatnessConfig(model=models, checkpoints=checkpoints, **{name: getattr(config, name) for name in shared})
