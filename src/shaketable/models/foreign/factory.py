"""Models that the user's own code makes: `module:function` or `path/file.py:function`."""

import difflib
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from shaketable.core.errors import ModelError
from shaketable.files import sha256_of
from shaketable.models.factories import _module_of_file
from shaketable.models.spec import Loaded

_EXPECTED = "module:function or file.py:function that makes a torch.nn.Module"


def is_factory(source: str) -> bool:
    """Whether a source reads as `module:function` or `path/file.py:function`."""
    place, colon, attribute = source.rpartition(":")
    dotted = all(part.isidentifier() for part in place.split("."))
    named = all(part.isidentifier() for part in attribute.split("."))
    return bool(colon) and named and (place.endswith(".py") or dotted)


def load_factory(source: str) -> Loaded:
    """Import the user's module and call the function for a model. This runs the user's code, and the notes say so.

    Args:
        source: `module:function` or `path/file.py:function`. The function takes no arguments it needs; a torch.nn.Module
            at that name is taken as it is. A file may import its neighbours.

    The function runs with PyTorch's global generator at seed 0, restored afterwards, so that a model with fresh weights
    is the same each time.

    Raises:
        ModelError: no such file, module or function (the nearest name is suggested), an exception within it, or a result
            that is no torch.nn.Module.

    Checked by tests/models/foreign/test_factory.py.
    """
    place, _, attribute = source.rpartition(":")
    digest = sha256_of(Path(place)) if place.endswith(".py") and Path(place).is_file() else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = _find(_module(source, place), attribute, source)
        model = found if isinstance(found, nn.Module) else _call(found, source)
    if not isinstance(model, nn.Module):
        raise ModelError(source, _EXPECTED, f"a {type(model).__name__} as its result", "Return the torch.nn.Module.")
    notes = (f"The model was made by your own code, {source}, which was run.",)
    return Loaded(model.eval(), None, attribute, source, digest, notes=notes)


def _module(source: str, place: str) -> ModuleType:
    path = Path(place)
    if place.endswith(".py") and not path.is_file():
        near = _near(path.name, [p.name for p in path.absolute().parent.glob("*.py")])
        raise ModelError(source, _EXPECTED, f"no file {place}", f"Check the path.{near}")
    try:
        module = _module_of_file(path) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        remedy = "Make it importable (its folder on PYTHONPATH), or correct the error in it."
        raise ModelError(source, "a module that can be imported", f"{type(error).__name__}: {error}", remedy) from error
    return cast(ModuleType, module)


def _find(module: ModuleType, attribute: str, source: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name, value in vars(found).items() if callable(value) or isinstance(value, nn.Module)]
            names = [name for name in names if not name.startswith("_")]
            remedy = "Correct the name." + (
                _near(part, names) or f" There are: {', '.join(sorted(names)[:8]) or 'none'}."
            )
            raise ModelError(source, _EXPECTED, f"no {part} in {getattr(found, '__name__', found)}", remedy)
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(
            source, _EXPECTED, f"a {type(found).__name__}", "Name a function or class that makes the model."
        )
    return found


def _call(function: Any, source: str) -> Any:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ModelError(source, "a function without arguments", str(error), "Give its arguments defaults.") from error
    except ValueError:
        pass  # a builtin without a signature: call it and see
    try:
        return function()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise ModelError(
            source, "a function that runs", found, "Correct the error in it; --debug shows where."
        ) from error


def _near(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {close[0]}?" if close else ""
