"""The recipe of a study: which trainings, over which seeds, compared with which; read, checked and spelt out as runs.

    title = "Does AWP narrow the gap?"
    seeds = [0, 1, 2]
    [base]                        # options of `shaketable train`, for every cell
    data = "fashion-mnist"
    [cells.at]                    # what differs; cells run in this order
    [cells.at-awp]
    weights = "awp(gamma=0.01)"
    [[compare]]                   # paired by seed: a - b
    name = "AWP on AT"
    a = "at-awp"
    b = "at"

A cell may need another one: `{teacher}` in an option is that cell's folder for the same seed. `verb = "pseudolabel"` makes
a cell of that verb, which takes of the base the device and the threads alone; `hidden = true` keeps a cell out of the
tables. `[[curves]]` says which cells share a chart. `[final]` holds options of `shaketable evaluate`, by which the last
epoch's model of every training that is shown is evaluated as well (see `study_finals`). `[flatness]` and `[models.NAME]`
are for `shaketable study flatness`, which checks them (see `flatness_recipe`).
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ...core.errors import ConfigError
from ...plugins import nearest
from .finals import VERB as FINAL_VERB
from .finals import final_name, final_options
from .verbs import MACHINE, VERBS

Title = Annotated[str, StringConstraints(min_length=1)]
CellName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=60)]
REFERENCE = re.compile(r"\{([A-Za-z0-9][A-Za-z0-9_.+-]*)\}")
"""A cell's name in braces, within an option: that cell's folder."""


class Strict(BaseModel):
    """A part of a recipe."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", strict=True)


class Compare(Strict):
    """Two cells whose numbers are compared seed by seed: a - b."""

    name: Title
    a: str
    b: str


class Curves(Strict):
    """Cells whose learning curves share a chart."""

    title: Title
    cells: Annotated[tuple[str, ...], Field(min_length=1)]


class Recipe(Strict):
    """A study as its file has it; `read` also checks that it makes sense."""

    title: Title
    question: str = ""
    notes: str = ""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    base: dict[str, Any] = Field(default_factory=dict)
    cells: Annotated[dict[CellName, dict[str, Any]], Field(min_length=1)]
    compare: tuple[Compare, ...] = ()
    curves: tuple[Curves, ...] = ()
    final: dict[str, Any] | None = None
    flatness: dict[str, Any] = Field(default_factory=dict)
    models: dict[str, dict[str, Any]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One kind of run of a study.

    Args:
        name: also of its folder.
        verb: "train", or another one of `study_verbs.VERBS`.
        options: of the verb, with the base's; texts may hold `{cell}`.
        hidden: whether it is there for other cells alone.
        needs: the cells that its options name, in order of appearance.
    """

    name: str
    verb: str
    options: Mapping[str, Any]
    hidden: bool
    needs: tuple[str, ...]

    @property
    def place(self) -> str:
        """Where in the recipe its options are from, for errors."""
        return "final" if self.verb == FINAL_VERB else f"cells.{self.name}"


def read(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: a file that cannot be read or is no TOML; a key, a cell, an option or a reference that is not known
            (the nearest ones are named); options that no verb takes; cells that need each other; a seed or a comparison
            that is there twice.

    Checked by tests/jobs/test_study_recipe.py.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"[:200]
        raise ConfigError("recipe", "a TOML file that can be read", found, "Give a study's recipe.") from error
    try:
        recipe = Recipe.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise refusal(str(path), error, Recipe) from error
    if len(set(recipe.seeds)) < len(recipe.seeds):
        raise ConfigError(f"{path}: seeds", "each seed once", str(list(recipe.seeds)), "Leave out the copies.")
    cells = cells_of(recipe, str(path))
    _check_uses(recipe, cells, str(path))
    return recipe


def cells_of(recipe: Recipe, where: str = "recipe") -> dict[str, Cell]:
    """The cells by name, in an order in which each comes after those that it needs, and otherwise as they are given."""
    cells: dict[str, Cell] = {}
    for name, given in recipe.cells.items():
        if name.isdigit():
            raise ConfigError(f"{where}: cells.{name}", "a name that is no number", name, "Seeds are numbers.")
        options = dict(given)
        verb, hidden = options.pop("verb", "train"), options.pop("hidden", False)
        known = [verb for verb in VERBS if verb != FINAL_VERB]
        if verb not in known:
            remedy = "Write a table [final]." if verb == FINAL_VERB else nearest(verb, known)
            raise ConfigError(f"{where}: cells.{name}.verb", f"one of {', '.join(known)}", repr(verb), remedy)
        if not isinstance(hidden, bool):
            raise ConfigError(f"{where}: cells.{name}.hidden", "true or false", repr(hidden), "Write hidden = true.")
        base = {key: value for key, value in recipe.base.items() if verb == "train" or key in MACHINE}
        options = {key.replace("-", "_"): value for key, value in (base | options).items()}
        cells[name] = Cell(name, verb, options, hidden, _needs(f"cells.{name}", options, recipe, where))
    cells |= _finals(cells, recipe, where)
    return {name: cells[name] for name in _in_order(cells, where)}


def _finals(cells: Mapping[str, Cell], recipe: Recipe, where: str) -> dict[str, Cell]:
    """The cells that the table [final] adds: one for each training that is shown."""
    made: dict[str, Cell] = {}
    for cell in cells.values() if recipe.final is not None else ():
        if cell.verb != "train" or cell.hidden:
            continue
        name = final_name(cell.name)
        if name in cells:
            remedy = "Rename the cell."
            raise ConfigError(f"{where}: cells.{name}", f"another name: [final] evaluates {cell.name} so", name, remedy)
        options = final_options(cell.name, cell.options, recipe.final or {}, where)
        made[name] = Cell(name, FINAL_VERB, options, True, _needs("final", options, recipe, where))
    return made


def refusal(place: str, error: ValidationError, kind: type[BaseModel]) -> ConfigError:
    """The first thing that is wrong, as the house says it; a key that is unknown before one that is missing for it."""
    errors = error.errors(include_url=False, include_context=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    steps = [str(step) for step in first["loc"] if step != "[key]"]
    where = f"{place}: {'.'.join(steps)}" if kind is Recipe else ".".join([place, *steps])
    if first["type"] == "extra_forbidden":
        known = _fields(kind, steps[:-1])
        return ConfigError(where, "a key that is known", repr(steps[-1]), nearest(steps[-1], known))
    if first["type"] == "missing":
        return ConfigError(where, "a value", "none", f"Give {steps[-1]} = ... in the file.")
    message = str(first["msg"]).removeprefix("Value error, ")
    return ConfigError(where, message, f"{first['input']!r}"[:80], "Correct it in the file.")


def _fields(kind: type[BaseModel], steps: list[str]) -> Iterable[str]:
    """The keys that a place in a recipe has."""
    inner: dict[str, type[BaseModel]] = {"compare": Compare, "curves": Curves}
    return (inner.get(steps[0], kind) if steps and kind is Recipe else kind).model_fields


def _needs(place: str, options: Mapping[str, Any], recipe: Recipe, where: str) -> tuple[str, ...]:
    """The cells that a cell's options name."""
    found: dict[str, None] = {}
    for key, value in options.items():
        for text in value if isinstance(value, list) else [value]:
            for needed in REFERENCE.findall(text) if isinstance(text, str) else ():
                if needed not in recipe.cells:
                    remedy = nearest(needed, recipe.cells)
                    raise ConfigError(f"{where}: {place}.{key}", "the name of a cell in braces", repr(value), remedy)
                found[needed] = None
    return tuple(found)


def _in_order(cells: Mapping[str, Cell], where: str) -> list[str]:
    """The cells' names, each after those that it needs."""
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            found = " needs ".join([*above[above.index(name) :], name])
            raise ConfigError(f"{where}: cells", "no cell that needs itself", found, "Take one of the references out.")
        if name not in order:
            for needed in cells[name].needs:
                visit(needed, (*above, name))
            order.append(name)

    for name in cells:
        visit(name, ())
    return order


def _check_uses(recipe: Recipe, cells: Mapping[str, Cell], where: str) -> None:
    """Comparisons and charts name trainings that are shown; and no comparison is there twice."""
    uses = [(f"compare.{c.name}", name) for c in recipe.compare for name in (c.a, c.b)]
    uses += [(f"curves.{c.title}", name) for c in recipe.curves for name in c.cells]
    shown = [name for name, cell in cells.items() if cell.verb == "train" and not cell.hidden]
    for place, name in uses:
        if name not in shown:
            raise ConfigError(
                f"{where}: {place}", "a training of this recipe that is shown", repr(name), nearest(name, shown)
            )
    names = [c.name for c in recipe.compare]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: compare", "each name once", str(names)[:120], "Give each comparison its own name.")
