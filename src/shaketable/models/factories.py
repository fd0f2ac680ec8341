"""From the name of an architecture to the function that makes its network."""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from torch import nn

from shaketable.core.errors import ModelError

from .architectures import ARCHITECTURES


def find_factory(name: str) -> Callable[..., nn.Module]:
    """The function that makes an architecture's network. `module:name` and `file.py:name` import, hence run, that code.

    Your own factory is called with those of `channels`, `classes` and `size` that its signature names, and the spec's
    arguments.

    Raises:
        ModelError: nothing of that name.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    check_name(name)
    place, _, attribute = name.rpartition(":")
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the user's module raises while it is imported
        remedy = "Correct the name or the code, or make the module importable (its folder on PYTHONPATH)."
        found_there = f"{name} ({type(error).__name__}: {error})"
        raise ModelError("architecture", "module:name or file.py:name", found_there, remedy) from error
    if not callable(found):
        raise ModelError("architecture", "a function or class", f"{name}, a {type(found).__name__}", "Name a factory.")
    return cast(Callable[..., nn.Module], found)


def check_name(name: object) -> None:
    """Raises ModelError unless the name is an architecture of ours or may be one of the user's."""
    if not isinstance(name, str) or (name not in ARCHITECTURES and not all(name.rpartition(":"))):
        expected = f"one of {', '.join(ARCHITECTURES)}, module:name or file.py:name"
        raise ModelError("architecture", expected, repr(name), nearest(name, ARCHITECTURES))


def nearest(name: object, names: Iterable[str]) -> str:
    """A remedy that suggests the nearest of the names, or lists what there is."""
    names = list(names)
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Use one of: {', '.join(names) or 'none'}."


def _module_of_file(path: Path) -> object:
    """Run a file as a module; it may import its neighbours. A file that was run once is not run again."""
    if not path.is_file():
        raise ImportError(f"no file {path}")
    name = f"shaketable_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
