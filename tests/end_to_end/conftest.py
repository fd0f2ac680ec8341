"""A small training that the tests of the verbs share."""

from pathlib import Path

import pytest

from shaketable.cli import main

QUICK = [
    "--train-count", "150", "--validation-count", "50", "--test-count", "100", "--eps", "0.1", "--epochs", "12",
    "--batch-size", "25", "--attack", "pgd(steps=2, step=1.0)", "--evaluation", "pgd(steps=3)", "--evaluate-every", "3",
    "--curve-count", "50", "--threads", "1", "--rate", "0.05",
]  # fmt: skip


@pytest.fixture(scope="session")
def quick() -> list[str]:
    """The flags of a training that takes seconds."""
    return QUICK


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    assert main(["train", *QUICK, "--weights", "awp(gamma=0.005, warmup=4)", "--out", str(folder), "--json"]) == 0
    return folder
