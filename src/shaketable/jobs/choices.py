"""Choices as text: `trades`, `trades(beta=3)`, `my_losses.py:mine(scale=2)`; one syntax in flags and config files."""

import ast
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, ShaketableError
from ..data import Dataset
from ..files import sha256_of
from ..models import ModelSpec
from ..plugins import load, names_code, nearest


def choose(text: str, table: Mapping[str, Any], argument: str) -> Any:
    """The value that a text names: an entry of a table, or a user's own code, called with the arguments given.

    Args:
        text: a name, optionally with keyword arguments that are literals: ``pgd(steps=50, restarts=5)``.
        table: name -> a function or class that makes the value; any other object is the value itself.
        argument: its name, for errors.

    Nothing of the text is evaluated: names are looked up, and arguments are literals, or fractions of two such as 8/255.
    A user's own code is run only where the name asks for it.

    Raises:
        ConfigError: an unknown name or argument (the nearest one is suggested), arguments that are no literals, or
            whatever a user's own code raises while it makes the value.

    Checked by tests/jobs/test_choices.py.
    """
    name, arguments = parse(text, argument)
    if name in table:
        made = table[name]
    elif names_code(name):
        made = load(name, argument)
    else:
        names = [*table, "module:name", "file.py:name"]
        raise ConfigError(argument, "a name that is known", repr(name), nearest(name, names))
    if not (inspect.isclass(made) or inspect.isroutine(made) or isinstance(made, functools.partial)):
        if arguments:
            raise ConfigError(argument, f"{name} alone", text, "It takes no arguments.")
        return made
    _require_known(name, made, arguments, argument)
    try:
        return made(**arguments)
    except ShaketableError:
        raise
    except Exception as error:
        found = f"{text}: {type(error).__name__}: {error}"
        raise ConfigError(argument, f"arguments that {name} takes", found, "Give what it asks for.") from error


def code_of(text: str) -> str | None:
    """The SHA-256 of the file that a choice names, of a user's own code; None of a choice of this package.

    Raises:
        ConfigError: code that is named by its module, whose file is not known, so that nobody could see that it changes.
    """
    name, _ = parse(text, "attack")
    if not names_code(name):
        return None
    place = Path(name.rpartition(":")[0])
    if place.suffix != ".py" or not place.is_file():
        raise ConfigError("attack", "code in a file, file.py:name", repr(name), "Give the path of its file.")
    return sha256_of(place)


def parse(text: str, argument: str) -> tuple[str, dict[str, Any]]:
    """Split ``name(key=literal, ...)`` into its name and its arguments."""
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return name, {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's, of odd literals: they are refused below
            call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("one pair of brackets is taken")
        if call.args or any(k.arg is None for k in call.keywords):
            raise ValueError("only keyword arguments are taken")
        keys = [str(k.arg) for k in call.keywords]
        if len(set(keys)) < len(keys):
            raise ValueError("an argument is given twice")
        return name.strip(), {str(k.arg): _literal(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        remedy = "For example: pgd(steps=50, restarts=5), in quotes in a shell."
        shown = f"{text[:200]!r} ({str(error) or type(error).__name__})"
        raise ConfigError(argument, "name(key=value, ...)", shown, remedy) from error


def spec_for(text: str, data: Dataset, *, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> ModelSpec:
    """The spec of the architecture that a text names, ``wide_resnet(depth=34)``, for these images and their classes."""
    name, arguments = parse(text, "architecture")
    return ModelSpec(
        architecture=name, arguments=arguments, classes=len(data.classes), channels=data.channels, size=data.size,
        mean=mean or (), std=std or (), labels=data.classes,
    )  # fmt: skip


class _Fractions(ast.NodeTransformer):
    """Puts the quotient in the place of a fraction of two numbers."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        if not isinstance(node.op, ast.Div):
            return node
        above, below = (ast.literal_eval(side) for side in (node.left, node.right))
        return ast.copy_location(ast.Constant(above / below), node)


def _literal(node: ast.expr) -> Any:
    """A literal in which a number may be a fraction: 8/255, (1/2, 3/4)."""
    try:
        return ast.literal_eval(_Fractions().visit(node))
    except ValueError as error:
        raise ValueError(f"{ast.unparse(node)} is no literal") from error


def _require_known(name: str, made: Callable[..., Any], arguments: dict[str, Any], argument: str) -> None:
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in arguments:
        if key not in parameters:
            raise ConfigError(argument, f"an argument of {name}", repr(key), nearest(key, parameters))
