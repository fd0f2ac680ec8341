"""Models that the user's own code makes: `module:function` or `path/file.py:function`."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shaketable.core.errors import ModelError
from shaketable.files import sha256_of
from shaketable.models.spec import Loaded
from shaketable.plugins import load

_EXPECTED = "module:function or file.py:function that makes a torch.nn.Module"


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
        found = load(source, source, error=ModelError)
        if not callable(found):
            remedy = "Name a function or class that makes the model."
            raise ModelError(source, _EXPECTED, f"a {type(found).__name__}", remedy)
        model = found if isinstance(found, nn.Module) else _call(found, source)
    if not isinstance(model, nn.Module):
        raise ModelError(source, _EXPECTED, f"a {type(model).__name__} as its result", "Return the torch.nn.Module.")
    notes = (f"The model was made by your own code, {source}, which was run.",)
    return Loaded(model.eval(), None, attribute, source, digest, notes=notes)


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
