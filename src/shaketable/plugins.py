"""What is found by name and is no part of this package: a user's own code, optional packages; and the nearest names."""

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from .core.errors import ConfigError, ShaketableError

_LISTED = 20  # names that a remedy lists at most
_READ = 10_000  # entries of a folder that are looked at for near ones
_MEND = "Make it importable (its folder on PYTHONPATH), or correct the error in it."


def names_code(text: str) -> bool:
    """Whether a text has the form of `module:name` or `file.py:name`; the name may be dotted: `file.py:Class.method`."""
    place, colon, name = text.rpartition(":")
    return bool(colon) and _is_dotted(name) and (place.endswith(".py") or _is_dotted(place))


def load(text: str, argument: str, *, error: type[ShaketableError] = ConfigError) -> Any:
    """The object that `module:name` or `file.py:name` names. **This runs the module's code.**

    Args:
        text: the module or file, a colon and the name, which may be dotted. A file may import its neighbours; one that
            was run once is not run again.
        argument: the name of the argument, for errors.
        error: the class of the errors.

    Raises:
        error: no such file or module, an error while it was imported, or no such name in it (nearest ones given).

    Checked by tests/test_plugins.py.
    """
    if not names_code(text):
        raise error(argument, "module:name or file.py:name", repr(text), "Write the file or module, then the name.")
    place, _, name = text.rpartition(":")
    if place.endswith(".py") and not os.path.isfile(place):
        raise error(argument, "a Python file that exists", f"no file {place}", nearest_file(Path(place)))
    try:
        found = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as cause:
        raise error(argument, f"{place!r} to import", f"{type(cause).__name__}: {cause}", _MEND) from cause
    for part in name.split("."):
        try:
            inner = getattr(found, part)
        except AttributeError:
            raise error(argument, f"a name in {place}", repr(part), nearest(part, _callables(found))) from None
        except Exception as cause:  # whatever the `__getattr__` of a user's module raises
            raise error(argument, f"{text!r} to import", f"{type(cause).__name__}: {cause}", _MEND) from cause
        found, place = inner, f"{part} of {place}"
    return found


def extra(package: str, name: str, argument: str, *, error: type[ShaketableError] = ConfigError) -> ModuleType:
    """An optional package, imported.

    Args:
        package: to import.
        name: of the extra that installs it.
        argument: how errors name what needs it.
        error: the class of the errors.

    Raises:
        error: it is missing or does not import; the error names the extra.

    Checked by tests/models/foreign/test_hubs.py.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as cause:
        found = f"no module named {cause.name}"
        raise error(argument, f"the package {package}", found, f"pip install 'shaketable[{name}]'") from cause
    except Exception as cause:  # as a torchvision that was built for another torch
        found = f"one that does not import ({type(cause).__name__}: {str(cause)[:200]})"
        remedy = f"Install matching versions: pip install --upgrade 'shaketable[{name}]'"
        raise error(argument, f"the package {package}", found, remedy) from cause


def nearest(word: object, names: Iterable[str], otherwise: str | None = None) -> str:
    """A remedy that names what the user may have meant.

    Args:
        word: what was given.
        names: what there is.
        otherwise: the remedy where no name is near; None: the names themselves, 20 at most.

    Returns "Did you mean 'trades'?", with up to three names, or the other remedy. Checked by tests/test_plugins.py.
    """
    names = list(dict.fromkeys(names))
    near = _near(str(word), names)
    if near:
        return _did_you_mean(near)
    if otherwise is not None:
        return otherwise
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"Choose from {', '.join(names[:_LISTED])}{more}." if names else "There is nothing to choose from."


def nearest_file(path: Path, others: Iterable[str] = ()) -> str:
    """A remedy for a path that does not exist: the nearest names in its folder, as paths, and those of some others.

    Checked by tests/test_plugins.py.
    """
    shown = {name: name for name in others}
    try:
        entries = sorted(os.listdir(path.parent))[:_READ]
    except (OSError, ValueError):  # no such folder, none that may be read, or no path at all
        entries = []
    shown |= {name: str(path.parent / name) for name in entries}
    near = _near(path.name, list(shown))
    return _did_you_mean([shown[name] for name in near]) if near else "Check the path."


def _near(word: str, names: list[str]) -> list[str]:
    return difflib.get_close_matches(word, names, 3, 0.5)


def _did_you_mean(names: list[str]) -> str:
    return f"Did you mean {' or '.join(map(repr, names))}?"


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _callables(found: object) -> list[str]:
    """The public names of a module or class that can be called, by looking alone: nothing of it is run."""
    there = getattr(found, "__dict__", {}).items()
    return [name for name, value in there if name[:1] != "_" and (callable(value) or isinstance(value, classmethod))]


def _from_file(path: Path) -> ModuleType:
    """Run a file as a module; it may import its neighbours. A file that was run once is not run again."""
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
