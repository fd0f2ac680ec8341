"""One point of a landscape as a cell of the ledger, and the axes that it lies on.

Axes that cost passes (an ascent, Lanczos, a run's checkpoints) are cells of their own: they are kept in a file, whose hash is
a part of each point's cell. Random ones are drawn again in each process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...core import Ball, Calls
from ...files import sha256_of
from ...flatness.directions import DIRECTIONS
from ...flatness.landscape import Point
from ...plugins import names_code
from ...runs import Cell, Task
from ...stats import Rate
from ..choices import choose, parse
from ..flatness.cells import ImagePlace, ModelPlace
from ..flatness.measures import attack_of

WORK = "shaketable.jobs.landscape.work"
VERSION = 1  # of the numbers of points and axes
TRAJECTORY = "trajectory"
PER = {"layer": "tensor", "filter": "filter", "model": "all"}


@dataclass(frozen=True)
class Place:
    """What all points of one model share.

    Args:
        model_sha, data_sha: see `model_hash` and `Dataset.fingerprint`.
        attack: as `choose` takes it.
        folder: of the axes' files; no number depends on it.
    """

    model: ModelPlace
    model_sha: str
    images: ImagePlace
    data_sha: str
    norm: str
    eps: float
    attack: str
    batch_size: int
    seed: int
    device: str
    threads: int
    folder: str

    @property
    def settings(self) -> dict[str, Any]:
        """All that a cell's key depends on, beside model, images and seed."""
        made = {"norm": self.norm, "eps": float(self.eps), "attack": asdict(attack_of(self.attack))}
        return made | {"batch_size": self.batch_size, "device": self.device, "threads": self.threads}

    @property
    def within(self) -> Ball:
        """The inputs' ball."""
        return Ball(self.norm, self.eps, box=(0.0, 1.0))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Line:
    """Which axes: the k-th of a direction's lines, or those of a trajectory.

    Args:
        direction: as `choose` takes it, or "trajectory".
        normalise, radius: how long the directions are; not of a trajectory's.
        checkpoints: of a trajectory: each one's place and hash.
    """

    direction: str
    normalise: str
    radius: float
    dims: int
    line: int = 0
    checkpoints: tuple[tuple[ModelPlace, str], ...] = ()

    @property
    def stored(self) -> bool:
        """Whether these axes are kept in a file."""
        return parse(self.direction, "direction")[0] != "random"

    @property
    def value(self) -> Any:
        """What makes the axes."""
        made = choose(self.direction, DIRECTIONS, "direction")
        return replace(made, scale=Ball("l2", self.radius, per=PER[self.normalise], relative=True))  # pyright: ignore

    @property
    def settings(self) -> dict[str, Any]:
        """All that their numbers depend on."""
        if self.checkpoints:
            return {"direction": TRAJECTORY, "checkpoints": [sha for _, sha in self.checkpoints], "dims": self.dims}
        name, made = parse(self.direction, "direction")[0], asdict(self.value)
        file = Path(name.rpartition(":")[0])
        code = {"code": sha256_of(file)} if names_code(name) and file.is_file() else {}
        return {"direction": name, "options": made, "dims": self.dims, "line": self.line} | code


def axes_task(place: Place, line: Line) -> Task:
    """The task that makes the axes of a line and keeps them in a file."""
    settings = place.settings | line.settings
    cell = Cell(place.model_sha, place.data_sha, "landscape axes", VERSION, settings, place.seed)
    file = str(Path(place.folder) / f"{cell.key}.safetensors")
    return Task(cell, f"{WORK}:make_axes", _arguments(place, line) | {"file": file}, cost=20.0)


def point_task(
    place: Place, line: Line | None, coordinates: Sequence[float], made: Mapping[str, Any] | None = None
) -> Task:
    """The task that measures a point.

    Args:
        line: None for the model itself, without coordinates.
        made: what the task of the axes gave, where they are kept in a file.
    """
    settings = place.settings | {"coordinates": [float(c) for c in coordinates]}
    settings |= {} if line is None else {"axes": line.settings} | ({} if made is None else {"file": made["sha256"]})
    cell = Cell(place.model_sha, place.data_sha, "landscape point", VERSION, settings, place.seed)
    arguments = _arguments(place, line) | {"coordinates": [float(c) for c in coordinates]}
    file = {} if made is None or line is None else dict(axes_task(place, line).arguments) | {"sha256": made["sha256"]}
    return Task(cell, f"{WORK}:measure_point", arguments | {"axes": file})


def point_of(result: Mapping[str, Any]) -> Point:
    """What `measure_point` found, from a ledger's file."""
    n = result["n"]
    return Point(
        tuple(result["coordinates"]), result["robust_loss"], result["clean_loss"], Rate(result["robust"], n),
        Rate(result["clean"], n), result["silent"], Calls(result["forward"], result["backward"]),
    )  # fmt: skip


def _arguments(place: Place, line: Line | None) -> dict[str, Any]:
    return {"place": asdict(place), "line": None if line is None else asdict(line)}
