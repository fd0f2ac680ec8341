"""Small models and files that several tests of the foreign loaders share."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaketable.models.spec import ModelSpec

Edit = Callable[[dict[str, bytes]], None]


class Net(nn.Module):
    """A tiny classifier with parameters, buffers, a constant and a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.register_buffer("shift", torch.full((1, 1, 1, 1), 0.5))
        self.scale = torch.ones(3) * 2

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn(self.conv(x - self.shift)))
        return self.head(h.mean((2, 3))) * self.scale


def export_to(model: nn.Module, path: Path, *, most: int | None = 512) -> Path:
    """Export a model with a batch of 1 to `most` (None: the batch of the example alone)."""
    example = torch.linspace(0, 1, 2 * 8 * 8).reshape(2, 1, 8, 8)
    shapes = ({0: torch.export.Dim("n", min=1, max=most)},) if most else None
    torch.export.save(torch.export.export(model.eval(), (example,), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="session")
def exported_net(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A tiny model and the program exported from it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().eval()
    return net, export_to(net, tmp_path_factory.mktemp("pt2") / "net.pt2")


@pytest.fixture(scope="session")
def export() -> Callable[..., Path]:
    """`export_to`: export a model into a file."""
    return export_to


@pytest.fixture
def edited(exported_net: tuple[nn.Module, Path], tmp_path: Path) -> Callable[[Edit], Path]:
    """Write the tiny program anew after a function has edited its entries, by their name below the root folder."""

    def write(edit: Edit) -> Path:
        with zipfile.ZipFile(exported_net[1]) as archive:
            entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        edit(entries)
        path = tmp_path / "edited.pt2"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(f"archive/{name}", content)
        return path

    return write


@pytest.fixture
def edited_json(edited: Callable[[Edit], Path]) -> Callable[..., Path]:
    """Write the tiny program anew after a function has edited one of its JSON entries."""

    def write(edit: Callable[[dict[str, Any]], None], name: str = "models/model.json") -> Path:
        def change(entries: dict[str, bytes]) -> None:
            value = json.loads(entries[name])
            edit(value)
            entries[name] = json.dumps(value).encode()

        return edited(change)

    return write


class Canary:
    """An object whose unpickling writes a file, so that a test can see that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)

    @property
    def command(self) -> str:
        return f"touch {self.path}"


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    """An object that, unpickled, makes `canary.path`; its `command` does so in a shell."""
    return Canary(tmp_path / "canary")


@pytest.fixture
def saved() -> Callable[..., bytes]:
    """What torch.save writes of an object."""

    def write(value: Any, **options: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, **options)
        return buffer.getvalue()

    return write


@pytest.fixture
def small_spec() -> ModelSpec:
    """A small network for 8 x 8 grey images."""
    return ModelSpec("small_cnn", classes=3, channels=1, size=(8, 8), arguments={"width": 4, "hidden": 6})
