"""Models from the user's own code."""

import sys
from pathlib import Path

import pytest
import torch

from shaketable.core.errors import ModelError
from shaketable.models.foreign import load

CODE = """
import torch
from neighbour import WIDTH

RATE = 0.5
ready = torch.nn.Identity()

class Nets:
    @staticmethod
    def small():
        return torch.nn.Linear(WIDTH, 2)

def make_model(classes=3):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(WIDTH, classes))

def needs(classes):
    return None

def fails():
    raise KeyError("weights")

def gives_nothing():
    return {"model": 1}
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 16\n")
    path = tmp_path / "my_nets.py"
    path.write_text(CODE)
    return path


@pytest.fixture(autouse=True)
def _forget() -> object:
    """Take the modules that a test imported off again."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file(code: Path) -> None:
    paths, state = list(sys.path), torch.get_rng_state()
    loaded = load(f"{code}:make_model", mean=(0.5,), std=(0.25,))
    x = torch.linspace(0, 1, 32).reshape(2, 1, 4, 4)
    assert loaded.model(x).shape == (2, 3)
    assert not loaded.model.training
    assert loaded.name == "make_model"
    assert len(loaded.sha256 or "") == 64
    assert "your own code" in loaded.notes[0]
    assert sys.path == paths
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(load(f"{code}:make_model", mean=(0.5,), std=(0.25,)).model(x), loaded.model(x))


def test_a_module(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(code.parent))
    assert isinstance(load("my_nets:make_model").model, torch.nn.Sequential)
    assert isinstance(load("my_nets:Nets.small").model, torch.nn.Linear)
    assert isinstance(load("my_nets:ready").model, torch.nn.Identity)
    assert isinstance(load("torch.nn:Identity").model, torch.nn.Identity)
    assert load("my_nets:ready").sha256 is None


@pytest.mark.parametrize(
    ("name", "found", "remedy"),
    [
        ("my_nets.py:make_modle", "'make_modle'", "Did you mean 'make_model'?"),
        ("my_nets.py:qqqqq", "'qqqqq'", "Choose from ready, Nets, make_model"),
        ("my_nets.py:Nets.smal", "'smal'", "Did you mean 'small'?"),
        ("my_nets.py:RATE", "a float", "function or class"),
        ("my_nets.py:needs", "missing a required argument: 'classes'", "defaults"),
        ("my_nets.py:fails", "KeyError: 'weights'", "--debug"),
        ("my_nets.py:gives_nothing", "a dict as its result", "torch.nn.Module"),
        ("my_net.py:make_model", "no file", "/my_nets.py'?"),
        ("broken.py:make_model", "SyntaxError", "correct the error"),
        ("no_such_module_at_all:make", "ModuleNotFoundError", "PYTHONPATH"),
    ],
)
def test_what_cannot_be_used(name: str, found: str, remedy: str, code: Path) -> None:
    (code.parent / "broken.py").write_text("def make_model(:\n")
    source = str(code.parent / name) if ".py" in name else name
    with pytest.raises(ModelError) as caught:
        load(source)
    assert found in caught.value.found
    assert remedy in caught.value.remedy
