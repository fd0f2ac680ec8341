"""A user's own code by name: `module:name` or `file.py:name`."""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .core.errors import ConfigError


def names_code(text: str) -> bool:
    """Whether a text has the form of `module:name` or `file.py:name`."""
    place, colon, name = text.rpartition(":")
    return bool(colon) and name.isidentifier() and (place.endswith(".py") or _is_module(place))


def load(text: str, argument: str) -> Any:
    """The object that `module:name` or `file.py:name` names. **This runs the module's code.**

    Args:
        argument: the name of the argument, for errors.

    Raises:
        ConfigError: no such file or module, an error while it was imported, or no such name in it (nearest ones given).

    Checked by tests/test_plugins.py.
    """
    place, _, name = text.rpartition(":")
    if not names_code(text):
        raise ConfigError(
            argument, "module:name or file.py:name", repr(text), "Write the file or module, then the name."
        )
    try:
        module = _from_file(Path(place), argument) if place.endswith(".py") else importlib.import_module(place)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        found = f"{type(error).__name__}: {error}"
        raise ConfigError(argument, f"{place!r} to import", found, "Mend the module, or check its name.") from error
    if not hasattr(module, name):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(argument, f"a name in {place}", repr(name), nearest(name, names))
    return getattr(module, name)


def nearest(word: str, names: Iterable[str]) -> str:
    """A remedy that names what the user may have meant: "Did you mean 'trades'?", or all there is."""
    names = list(names)
    near = difflib.get_close_matches(word, names, 3, 0.5)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"Choose from {', '.join(names)}." if names else "There is nothing to choose from."


def _is_module(place: str) -> bool:
    return all(part.isidentifier() for part in place.split("."))


def _from_file(path: Path, argument: str) -> Any:
    """Run a file as a module; it may import its neighbours. A file that was run once is not run again."""
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(argument, "a Python file that exists", str(path), nearest(path.name, siblings))
    name = f"shaketable_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its dataclasses and pickles find it
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
