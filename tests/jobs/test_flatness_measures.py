"""Measures as text: radii, presets, standard errors, and what a cell's key depends on."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from shaketable.core import PGD, ConfigError
from shaketable.flatness import Average, Worst
from shaketable.jobs.flatness.config import FlatnessConfig
from shaketable.jobs.flatness.measures import Chosen, chosen_of, to_json
from shaketable.jobs.flatness.precise import Precise, cheaper_than
from shaketable.runs import Cell


def chosen(*measures: str, **values: Any) -> tuple[Chosen, ...]:
    return chosen_of(FlatnessConfig(model=("m",), measures=measures or ("average", "worst"), **values))


def test_defaults_are_the_papers() -> None:
    average, worst, clean, clean_worst = chosen_of(FlatnessConfig(model=("m",)))
    assert average.measure == Average()
    assert worst.measure == Worst()
    assert (clean.measure, clean_worst.measure) == (Average(loss="clean"), Worst(loss="clean"))
    assert average.by.step * 8 / 255 == pytest.approx(0.007)
    assert dataclasses.replace(average.by, step=1.0) == PGD(20, step=1.0)
    assert (average.within.norm, average.within.radius, average.within.box) == ("linf", 8 / 255, (0.0, 1.0))


def test_each_radius_is_a_measure_of_its_own_and_none_is_there_twice() -> None:
    texts = [
        one.text for one in chosen("average(xi=(0.25, 1))", "average(xi=0.25)", "sam(rho=(0.1, 0.2), steps=3)", "worst")
    ]
    assert texts == ["average(xi=0.25)", "average(xi=1.0)", "sam(rho=0.1, steps=3)", "sam(rho=0.2, steps=3)", "worst"]


def test_shortcuts_are_for_measures_that_state_no_radius() -> None:
    found = chosen(
        "average", "average(xi=2.0)", "average(loss='clean')", "worst", "sam", xi=(0.1, 0.2), worst_xi=(0.01,)
    )
    assert [one.text for one in found] == [
        "average(xi=0.1)", "average(xi=0.2)", "average(xi=2.0)", "average(loss='clean', xi=0.1)",
        "average(loss='clean', xi=0.2)", "worst(xi=0.01)", "sam",
    ]  # fmt: skip


def test_the_preset_is_that_of_the_option_unless_the_text_names_one() -> None:
    a, b, c = chosen("average", "average(preset='paper')", "sam", preset="authors")
    assert (a.measure.preset, b.measure.preset) == ("authors", "paper")
    assert not hasattr(c.measure, "preset")


def test_a_standard_error_is_for_the_robust_average_case() -> None:
    found = chosen(
        "average(xi=0.3, law='sphere')", "average(loss='clean')", "worst", standard_error=0.1, preset="equal"
    )
    assert found[0].measure == Precise(0.1, 0.3, "equal", "sphere")
    assert [type(one.measure) for one in found[1:]] == [Average, Worst]
    assert "standard_error" not in found[1].settings["options"]
    with pytest.raises(ConfigError, match="found samples"):
        chosen("average(samples=3)", standard_error=0.1)
    assert len(cheaper_than(PGD(20))) == 1
    assert cheaper_than(PGD(2)) == ()


def key(one: Chosen) -> str:
    return Cell("a" * 64, "b" * 64, one.name, one.version, one.settings, 0).key


def test_the_cells_key_depends_on_all_that_the_numbers_do_and_not_on_how_it_was_written() -> None:
    given: dict[str, Any] = {"eps": 0.1, "attack": "pgd(steps=2)"}
    (same,), (as_well,) = chosen("average( samples = 3 )", **given), chosen("average(samples=3)", **given)
    assert key(same) == key(as_well)
    changes: tuple[dict[str, Any], ...] = (
        {"eps": 0.2}, {"norm": "l2"}, {"attack": "pgd(steps=3)"}, {"batch_size": 7}, {"preset": "equal"},
    )  # fmt: skip
    others = [chosen("average(samples=3)", **(given | change))[0] for change in changes]
    others += [*chosen("average(samples=4)", "average(samples=3, loss='clean')", "worst", **given)]
    others += chosen("average", standard_error=0.1, **given)
    keys = [key(one) for one in (same, *others)]
    assert len(set(keys)) == len(keys)


def test_a_choice_goes_to_a_worker_as_json_and_comes_back() -> None:
    for one in chosen("average(xi=(0.25, 0.5))", "worst", standard_error=0.1):
        assert Chosen(**to_json(one)) == one


def test_the_users_own_code_is_a_part_of_the_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def make():\n    return print\n")
    (mine,) = chosen(f"{file}:make")
    before = mine.settings
    assert mine.measure is print
    file.write_text("def make():\n    return print  # changed\n")
    assert mine.settings != before
    file.write_text("make = 3\n")


def test_passes_are_those_of_the_methods_card() -> None:
    average, worst, sam = chosen("average(reference_restarts=1)", "worst(restarts=1, reference_restarts=1)", "sam")
    assert average.passes == pytest.approx(11 * (20 + 2) + 11 * 20, rel=0.05)
    assert worst.passes == pytest.approx(21 + 20 + 22 + 20, rel=0.1)
    assert sam.passes == pytest.approx(43, rel=0.1)
    assert chosen("average(reference_restarts=1)", standard_error=0.1)[0].passes == average.passes


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"measures": ("avrage",)}, "Did you mean 'average'"),
        ({"measures": ("average(xi='wide')",)}, "xi"),
        ({"attack": "fgsm"}, "pgd"),
    ],
)
def test_what_is_no_measure(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        chosen_of(FlatnessConfig(model=("m",), **values))


def test_settings_are_json_and_name_every_option() -> None:
    (average,) = chosen("average")
    assert set(average.settings["options"]) == {field.name for field in dataclasses.fields(Average)}
