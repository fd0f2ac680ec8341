"""The table [flatness] of a recipe: its defaults, every mistake by its name, and that a plain study leaves it alone."""

from pathlib import Path

import pytest

from shaketable.core import ConfigError
from shaketable.jobs.flatness_study.recipe import FlatnessPlan, plan_of
from shaketable.jobs.study.config import StudyConfig
from shaketable.jobs.study.recipe import read
from shaketable.jobs.study.run import prepare_study

STUDY = """\
title = "A study"
seeds = [3, 1]
[base]
eps = "16/255"
norm = "l2"
evaluation = "pgd(steps=7)"
[cells.at]
[cells.awp]
weights = "awp"
[cells.awp-02]
weights = "awp(gamma=0.02)"
eps = 0.3
[cells.labels]
verb = "pseudolabel"
model = "{teacher}"
hidden = true
[cells.teacher]
hidden = true
"""
FLAT = '[flatness]\nmeasures = ["average"]\n'


def plan(tmp_path: Path, text: str) -> FlatnessPlan:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return plan_of(read(path), "r.toml")


def test_what_is_not_said_is_the_bases_for_all_cells_alike(tmp_path: Path):
    found = plan(tmp_path, STUDY + FLAT)
    assert [cell.name for cell in found.cells] == ["at", "awp", "awp-02"]  # trainings that are shown
    assert found.baseline == "at"
    config = found.config
    assert (config.norm, config.eps, config.attack, config.data) == ("l2", 16 / 255, "pgd(steps=7)", "fashion-mnist")
    assert (config.measures, config.count, config.threads, config.preset) == (("average",), 1000, 1, "paper")
    assert found.table.checkpoints == ("last", "best")
    assert found.family("awp-02") == "awp-02"


def test_what_is_said_is_taken(tmp_path: Path):
    text = (
        STUDY
        + FLAT
        + 'count = 50\nattack = "pgd(steps=3)"\neps = "4/255"\nbaseline = "awp"\ncheckpoints = ["last"]\nseed = 4\n'
        'families = {awp-02 = "awp"}\n[models.wide]\npath = "w.safetensors"\nfamily = "wide nets"\nepoch = 9\n'
        '[models.alone]\npath = "a.safetensors"\n'
    )
    found = plan(tmp_path, text)
    assert (found.config.count, found.config.attack, found.config.eps, found.config.seed) == (
        50,
        "pgd(steps=3)",
        4 / 255,
        4,
    )
    assert (found.baseline, found.table.checkpoints) == ("awp", ("last",))
    assert [found.family(name) for name in ("awp-02", "at", "wide", "alone")] == ["awp", "at", "wide nets", "alone"]
    assert found.models["wide"].epoch == 9


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("", r"r.toml: expected a table \[flatness\]"),
        ("[flatness]\ncount = 3\n", "flatness.measures: expected a value"),
        ('[flatness]\nmeasure = ["average"]\n', "Did you mean 'measures'"),
        ("[flatness]\nmeasures = []\n", "flatness.measures"),
        (FLAT + "count = 0\n", "flatness.count"),
        (FLAT + 'checkpoints = ["first"]\n', "flatness.checkpoints"),
        (FLAT + 'baseline = "ap"\n', "Did you mean 'awp' or 'at'|Did you mean 'at' or 'awp'|Did you mean 'awp'"),
        (FLAT + 'baseline = "teacher"\n', "a training of this recipe that is shown"),
        (FLAT + 'families = {tech = "x"}\n', "a training of this recipe that is shown"),
        (FLAT + '[models.x]\nfamily = "y"\n', "models.x.path: expected a value"),
        (FLAT + '[models.at]\npath = "y"\n', "a name that no cell has"),
        (FLAT + '[models.x]\npath = "y"\nsize = 3\n', "models.x.size"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, more: str, says: str):
    with pytest.raises(ConfigError, match=says):
        plan(tmp_path, STUDY + more)


def test_a_plain_study_takes_a_recipe_with_it(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text(STUDY + FLAT + '[models.wide]\npath = "w.safetensors"\n')
    assert len(prepare_study(StudyConfig(recipe=path, out=tmp_path / "out")).runs) == 10
