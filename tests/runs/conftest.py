"""A training of a second, in this process or in children that can be killed; and checkpoints without a training."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shaketable.runs import Generation, open_generation

FILE = Path(__file__).with_name("tiny_training.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module of the training of a second: `Training`, `PLAN`, `SPEC`, `EVENTS`."""
    spec = importlib.util.spec_from_file_location("tiny_training", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_training"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def whole(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the training that nothing interrupted, in this process."""
    training = tiny.Training()
    training.drive(tmp_path_factory.mktemp("whole"), save_every=1e9)
    return training.digest


class Server:
    """Runs the training in forked children, each in a folder of its own choice; see `tiny_training.serve`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def send(self, folder: Path, **request: Any) -> None:
        assert self.process.stdin is not None
        folder.mkdir(parents=True, exist_ok=True)
        self.process.stdin.write(json.dumps({"folder": str(folder), **request}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server of trainings has died"
        return json.loads(line)

    def run(self, folder: Path, **request: Any) -> dict[str, Any]:
        """Run to the end, or to the death that is asked for."""
        self.send(folder, **request)
        return self.answer()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server, started once; a first run warms nothing but tells that it works."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(FILE)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Server(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)


@pytest.fixture
def checkpoints() -> Callable[[Path], list[Generation]]:
    """All checkpoints that a run's folder shows, each verified as it is opened."""

    def found(folder: Path) -> list[Generation]:
        root = folder / "checkpoints"
        names = sorted(p.name for p in root.iterdir() if not p.name.startswith(".")) if root.is_dir() else []
        return [open_generation(root / name) for name in names]

    return found
