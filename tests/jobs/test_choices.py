"""Choices as text: names with literal arguments, a user's own code, and nothing that is evaluated."""

import ast
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shaketable.core import PGD, Ball
from shaketable.core.errors import ConfigError, InputError, ShaketableError
from shaketable.jobs.choices import choose, parse
from shaketable.training import AT, AVERAGES, LOSSES, OPTIMISERS, SCHEDULES, TRADES, WEIGHTS, MultiStep, awp

TABLE: dict[str, Any] = {
    "pgd": PGD,
    "none": lambda: None,
    "plain": Ball("linf", 0.1),
    "part": functools.partial(PGD, 3),
}


@pytest.mark.parametrize(
    ("text", "table", "value"),
    [
        ("at", LOSSES, AT()),
        ("at()", LOSSES, AT()),
        ("  trades ( beta = 3 ) ", LOSSES, TRADES(3)),
        ("trades(beta=1/2)", LOSSES, TRADES(0.5)),
        ("awp(gamma=0.005, warmup=10)", WEIGHTS, awp(0.005, warmup=10)),
        ("awp(gamma=1/200,)", WEIGHTS, awp(0.005)),
        ("none", WEIGHTS, None),
        ("multistep(at=(1/2, 3/4), factor=-1/-10)", SCHEDULES, MultiStep()),
        ("multistep(at=())", SCHEDULES, MultiStep(at=())),
        ("pgd(steps=50, restarts=5)", TABLE, PGD(50, restarts=5)),
        ("pgd(\n  steps=50,\n  keep='best')", TABLE, PGD(50, keep="best")),
        ("plain", TABLE, TABLE["plain"]),
        ("part(step=.5)", TABLE, PGD(3, 0.5)),
    ],
)
def test_what_a_text_names(text: str, table: dict[str, Any], value: Any) -> None:
    found = choose(text, table, "it")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        ("-8/255", -8 / 255),
        ("-(8/255)", -8 / 255),
        ("1e-3/2", 5e-4),
        ("(1, 2/4, (3/4,))", (1, 0.5, (0.75,))),
        ("{'a': 1/2}", {"a": 0.5}),
        ("'8/255'", "8/255"),
        ("None", None),
        ("True", True),
        ("1e999", math.inf),
    ],
)
def test_literals_and_fractions(text: str, value: Any) -> None:
    assert parse(f"name(key={text})", "it") == ("name", {"key": value})


@pytest.mark.parametrize(
    "text",
    [
        "pgd(steps=__import__('os'))",
        "pgd(steps=__import__('os').system('touch {marker}'))",
        "pgd(steps=open('{marker}', 'w'))",
        "pgd(steps=(lambda: open('{marker}', 'w'))())",
        "pgd(steps=[open('{marker}', 'w') for _ in (1,)])",
        "pgd(steps=f\"{{open('{marker}', 'w')}}\")",
        "pgd(steps=(s := 5))",
        "pgd(steps=1) + open('{marker}', 'w')",
        "pgd(steps=1)(steps=2)",
        "pgd(steps=1).open('{marker}')",
        "pgd(steps=1)[0]",
        "pgd(steps=1) if open('{marker}', 'w') else 0",
        "pgd(steps=1); open('{marker}', 'w')",
        "pgd(steps=1)\nopen('{marker}', 'w')",
        "pgd(*[1])",
        "pgd(**{{'steps': 1}})",
        "pgd(5)",
        "pgd(steps=1, steps=2)",
        "pgd(steps=9**9**9)",
        "pgd(steps=[0] * 10**9)",
        "pgd(steps=1/0)",
        "pgd(steps='a'/'b')",
        "pgd(steps=1/2/0)",
        "pgd(steps=name)",
        "pgd(steps=1",
        "pgd(steps=)",
        "pgd)",
        "pgd(steps=1))",
        "pgd(=1)",
        "pgd(steps=\x00)",
        "pgd(steps=" + "(" * 500,
        "pgd(steps=" + "-" * 100_000 + "1)",
        "pgd(steps=" + "9" * 5000 + ")",
        "pgd(steps='\\d' is 'x')",
        "pgd(steps={{[]: 1}})",
    ],
)
def test_hostile_and_broken_texts_are_refused_and_run_nothing(text: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(ConfigError) as caught:
        choose(text.format(marker=marker), TABLE, "attack")
    assert caught.value.argument == "attack"
    assert caught.value.remedy
    assert len(str(caught.value)) < 1000
    assert not marker.exists()


ATOMS = st.sampled_from(
    ["pgd", "(", ")", "steps", "=", ",", "1", "/", "0", "'", "[", "]", "-", ":", ".py", "os", "\n", " "]
)


@settings(deadline=None)
@given(
    st.one_of(
        st.text(max_size=30), st.lists(ATOMS, max_size=12).map("".join), st.text(max_size=20).map("pgd({})".format)
    )
)
@example("pgd(steps=1#)")
@example("(")
def test_any_text_is_a_value_or_a_config_error(text: str) -> None:
    try:
        name, arguments = parse(text, "it")
    except ConfigError:
        return
    assert isinstance(name, str)
    assert all(isinstance(key, str) and key.isidentifier() for key in arguments)
    if "(" not in text:
        assert (name, arguments) == (text.strip(), {})


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda word: word.isidentifier()),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_every_literal_comes_through(arguments: dict[str, Any]) -> None:
    import keyword

    arguments = {key: value for key, value in arguments.items() if not keyword.iskeyword(key)}
    text = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    assert parse(f"name({text})", "it") == ("name", arguments)
    assert ast.literal_eval(repr(arguments)) == arguments


@pytest.mark.parametrize(
    ("text", "found", "remedy"),
    [
        ("trade", "'trade'", "Did you mean 'trades'?"),
        ("tradse(beta=1)", "'tradse'", "Did you mean 'trades'?"),
        ("zzz", "'zzz'", "Choose from at, trades, mart, rst, rotation, module:name, file.py:name."),
        ("", "''", "Choose from at, trades, mart, rst, rotation, module:name, file.py:name."),
        ("trades(betta=1)", "'betta'", "Did you mean 'beta'?"),
        ("at(zz=1)", "'zz'", "Choose from start, attack_mode."),
        ("TRADES", "'TRADES'", "Choose from at, trades, mart, rst, rotation, module:name, file.py:name."),
    ],
)
def test_unknown_names_get_the_nearest(text: str, found: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(text, LOSSES, "loss")
    assert (caught.value.argument, caught.value.found, caught.value.remedy) == ("loss", found, remedy)


@pytest.mark.parametrize(
    ("text", "table", "error", "argument"),
    [
        ("trades(beta=-1)", LOSSES, InputError, "beta"),
        ("trades(beta='x')", LOSSES, ConfigError, "it"),
        ("pgd(steps=-1)", TABLE, InputError, "steps"),
        ("awp(gamma=-1)", WEIGHTS, InputError, "gamma"),
        ("awp(steps=0)", WEIGHTS, InputError, "steps"),
        ("multistep(at=3)", SCHEDULES, InputError, "at"),
        ("multistep(at=('a',))", SCHEDULES, InputError, "at"),
        ("rotation(base='fat')", LOSSES, InputError, "base"),
        ("ema(decay=2)", AVERAGES, InputError, "decay"),
        ("sgd(momentum=1.0)", OPTIMISERS, InputError, "momentum"),
        ("none(x=1)", TABLE, ConfigError, "it"),
        ("plain(x=1)", TABLE, ConfigError, "it"),
    ],
)
def test_bad_values(text: str, table: dict[str, Any], error: type[ShaketableError], argument: str) -> None:
    with pytest.raises(error) as caught:
        choose(text, table, "it")
    assert caught.value.argument == argument
    assert caught.value.remedy


@pytest.fixture
def mine(tmp_path: Path):
    """Writes the user's file; forgets its module afterwards."""
    before = set(sys.modules)

    def write(text: str) -> str:
        (tmp_path / "mine.py").write_text(text)
        return str(tmp_path / "mine.py")

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


USERS = """
from shaketable.core import PGD
from shaketable.training import MultiStep

class Mine:
    def __init__(self, scale=1.0):
        self.scale = scale

def make(steps):
    return PGD(steps)

def broken():
    return {}["key"]

def refusing():
    from shaketable.core.errors import InputError
    raise InputError("scale", "more", "less", "Give more.")

ready = MultiStep()
ascent = PGD(7)
"""


def test_a_users_own_code(mine: Callable[[str], str]) -> None:
    path = mine(USERS)
    assert choose(f"{path}:Mine(scale=1/4)", LOSSES, "loss").scale == 0.25
    assert choose(f"{path}:make(steps=3)", TABLE, "attack") == PGD(3)
    assert choose(f"{path}:ready", SCHEDULES, "schedule") == MultiStep()  # a value, though it can be called
    assert choose(f"{path}:ascent", TABLE, "attack") == PGD(7)
    assert choose("shaketable.training:trades(beta=2)", LOSSES, "loss") == TRADES(2)


@pytest.mark.parametrize(
    ("call", "error", "part"),
    [
        ("make", ConfigError, "missing 1 required positional argument: 'steps'"),
        ("make(stps=3)", ConfigError, "Did you mean 'steps'"),
        ("make(steps=-1)", InputError, "a whole number >= 0"),
        ("broken", ConfigError, "KeyError: 'key'"),
        ("refusing", InputError, "Give more."),
        ("ready(x=1)", ConfigError, "It takes no arguments."),
        ("Mne", ConfigError, "Did you mean 'Mine'"),
    ],
)
def test_errors_in_the_users_code(call: str, error: type[Exception], part: str, mine: Callable[[str], str]) -> None:
    with pytest.raises(error) as caught:
        choose(f"{mine(USERS)}:{call}", TABLE, "loss")
    assert part in str(caught.value)
