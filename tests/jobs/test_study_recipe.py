"""A study's recipe: what it may say, what its cells need of each other, and every mistake by its name."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shaketable.core.errors import ConfigError, DataError, InputError
from shaketable.jobs.config import EvaluateConfig
from shaketable.jobs.pseudolabel_config import PseudolabelConfig
from shaketable.jobs.study.config import StudyConfig
from shaketable.jobs.study.plan import Run, runs_of
from shaketable.jobs.study.recipe import cells_of, read
from shaketable.jobs.study.run import estimate, prepare_study
from shaketable.jobs.train_config import TrainConfig

GOOD = """\
title = "A study"
seeds = [3, 1]
[base]
epochs = 4
threads = 1
batch-size = 10
[cells.rst]
loss = "rst"
unlabelled = "{labels}/pseudolabelled.npz"
[cells.at]
[cells.labels]
verb = "pseudolabel"
model = "{teacher}"
hidden = true
[cells.teacher]
hidden = true
eps = "0/255"
epochs = 2
[[compare]]
name = "RST on AT"
a = "rst"
b = "at"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Run]:
    return runs_of(read(write(tmp_path, GOOD)), tmp_path / "out")


def test_runs_are_seed_after_seed_and_each_after_what_it_needs(runs: dict[str, Run]):
    order = ["teacher", "labels", "rst", "at"]
    assert list(runs) == [f"{cell}/seed-{seed}" for seed in (3, 1) for cell in order]
    assert runs["rst/seed-1"].needs == ("labels/seed-1",)
    assert runs["at/seed-1"].needs == ()


def test_options_are_the_bases_then_the_cells_then_the_studys_own(runs: dict[str, Run], tmp_path: Path):
    config = runs["rst/seed-3"].config
    assert isinstance(config, TrainConfig)
    assert (config.loss, config.epochs, config.batch_size, config.seed) == ("rst", 4, 10, 3)
    assert config.unlabelled == tmp_path / "out/labels/seed-3/pseudolabelled.npz"
    assert config.out == tmp_path / "out/rst/seed-3"
    assert config.resume
    teacher = runs["teacher/seed-3"].config
    assert isinstance(teacher, TrainConfig)
    assert (teacher.epochs, teacher.eps) == (2, 0.0)


def test_another_verb_takes_of_the_base_the_machine_alone(runs: dict[str, Run], tmp_path: Path):
    config = runs["labels/seed-1"].config
    assert isinstance(config, PseudolabelConfig)
    assert (config.threads, config.batch_size, config.seed) == (1, PseudolabelConfig(model="x").batch_size, 1)
    assert config.model == str(tmp_path / "out/teacher/seed-1")


def test_hidden_cells_are_marked(tmp_path: Path):
    cells = cells_of(read(write(tmp_path, GOOD)))
    assert [name for name, cell in cells.items() if cell.hidden] == ["teacher", "labels"]


CELL = 'title = "t"\nseeds = [0]\n[cells.at]\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title = ", "TOMLDecodeError"),
        ("seeds = [0]\n[cells.at]\n", "title: expected a value, found none"),
        ('title = "t"\nseeds = []\n[cells.at]\n', "seeds"),
        ('title = "t"\nseeds = [0.5]\n[cells.at]\n', "seeds.0"),
        ('title = "t"\nseeds = ["0"]\n[cells.at]\n', "seeds.0"),
        ('title = "t"\nseeds = [0, 1, 0]\n[cells.at]\n', "expected each seed once"),
        ('title = "t"\nseeds = [0]\n', "cells: expected a value"),
        ('title = "t"\nseeds = [0]\n[cells]\n', "cells"),
        ('titel = "t"\n' + CELL, "'titel'. Did you mean 'title'?"),
        ('title = "t"\nseeds = [0]\n[cells."a b"]\n', "a b"),
        ('title = "t"\nseeds = [0]\n[cells."../up"]\n', "../up"),
        ('title = "t"\nseeds = [0]\n[cells.7]\n', "a name that is no number"),
        (CELL + 'verb = "trian"\n', "Did you mean 'train'?"),
        (CELL + 'verb = "evaluate"\n', "Write a table [final]."),
        (CELL + "[cells.'at.final']\n[final]\n", "cells.at.final: expected another name"),
        (CELL + "[final]\nmodel = 'x'\n", "final.model: expected an option that the study leaves"),
        (CELL + "[final]\nlabels = '{att}/x.json'\n", "final.labels: expected the name of a cell"),
        (CELL + 'hidden = "yes"\n', "true or false"),
        (CELL + "[[compare]]\nname = 'x'\na = 'at'\n", "compare.0.b"),
        (CELL + "[[compare]]\nname = 'x'\na = 'at'\nb = 'att'\n", "Did you mean 'at'?"),
        (CELL + "[[compare]]\nname = 'x'\na = 'at'\nb = 'at'\nc = 1\n", "'c'"),
        (CELL + 2 * "[[compare]]\nname = 'x'\na = 'at'\nb = 'at'\n", "expected each name once"),
        (CELL + "[[curves]]\ntitle = 'x'\ncells = ['awp']\n", "curves.x"),
        (CELL + "[[curves]]\ntitle = 'x'\ncells = []\n", "curves.0.cells"),
        (CELL + "unlabelled = '{label}/x.npz'\n[cells.labels]\n", "Did you mean 'labels'?"),
        (CELL + "unlabelled = '{at}/x.npz'\n", "at needs at"),
        (CELL + "init = '{b}'\n[cells.b]\ninit = '{at}'\n", "at needs b needs at"),
        (CELL + "hidden = true\n[[compare]]\nname = 'x'\na = 'at'\nb = 'at'\n", "that is shown"),
    ],
)
def test_mistakes_of_the_recipe_are_named_when_it_is_read(text: str, says: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        read(write(tmp_path, text))
    assert says in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("rat = 0.1", "cells.at.rat: expected a key that is known, found 'rat'. Did you mean 'rate'"),
        ("epochs = 0", "cells.at.epochs"),
        ('eps = "8/0"', "a fraction such as 8/255"),
        ("seed = 3", "Use seeds."),
        ('out = "x"', "Use --out."),
        ('loss = "trade"', "Did you mean 'trades'?"),
        ('weights = "awp(gama=1)"', "Did you mean 'gamma'?"),
        ('data = "fashion-mnst"', "Did you mean 'fashion-mnist'?"),
        ('verb = "pseudolabel"', "cells.at.model: expected a value"),
    ],
)
def test_mistakes_of_a_cell_are_named_before_anything_runs(options: str, says: str, tmp_path: Path):
    path = write(tmp_path, f"{CELL}{options}\n[cells.other]\n")
    with pytest.raises((ConfigError, DataError)) as caught:
        prepare_study(StudyConfig(recipe=path, out=tmp_path / "out"))
    assert says in str(caught.value)
    assert "cells.at" in str(caught.value)
    assert not (tmp_path / "out").exists()


FINAL = """\
[final]
attack = "apgd(steps=3)"
count = 20
batch-size = 10
"""


def test_the_table_final_adds_a_hidden_evaluation_of_each_training_that_is_shown(tmp_path: Path):
    path = write(tmp_path, GOOD.replace("[cells.at]\n", "[cells.at]\neps = 0.2\nnorm = 'l2'\n") + FINAL)
    runs = runs_of(read(path), tmp_path / "out")
    order = ["teacher", "labels", "rst", "at", "rst.final", "at.final"]
    assert list(runs) == [f"{cell}/seed-{seed}" for seed in (3, 1) for cell in order]
    run = runs["at.final/seed-1"]
    assert run.needs == ("at/seed-1",)
    assert run.cell.hidden
    config = run.config
    assert isinstance(config, EvaluateConfig)
    assert config.model == str(tmp_path / "out/at/seed-1/last.safetensors")
    assert (config.attack, config.count, config.batch_size) == ("apgd(steps=3)", 20, 10)
    assert (config.data, config.norm, config.eps, config.threads, config.seed) == ("fashion-mnist", "l2", (0.2,), 1, 1)
    other = runs["rst.final/seed-3"].config
    assert isinstance(other, EvaluateConfig)
    assert (other.norm, other.eps) == ("linf", (TrainConfig().eps,))


def test_the_table_final_may_give_what_would_be_the_trainings(tmp_path: Path):
    runs = runs_of(read(write(tmp_path, GOOD + FINAL + 'eps = "2/255"\nthreads = 2\n')), tmp_path / "out")
    config = runs["at.final/seed-1"].config
    assert isinstance(config, EvaluateConfig)
    assert (config.eps, config.threads) == ((2 / 255,), 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("coutn = 3", "final.coutn: expected a key that is known, found 'coutn'. Did you mean 'count'"),
        ("count = 0", "final.count"),
        ("seed = 3", "final.seed: expected an option that the study leaves to its cells, found seed. Use seeds."),
        ('attack = "autoatack"', "final: attack: expected a name that is known, found 'autoatack'. Did you mean"),
        ('eps = "0,1/255"', "final: eps: expected one radius"),
        ('region = "centr:0.1"', "final: region"),
        ('data = "fashion-mnst"', "Did you mean 'fashion-mnist'?"),
    ],
)
def test_mistakes_of_the_table_final_are_named_before_anything_runs(options: str, says: str, tmp_path: Path):
    path = write(tmp_path, f"{CELL}[final]\n{options}\n")
    with pytest.raises((ConfigError, DataError, InputError)) as caught:
        prepare_study(StudyConfig(recipe=path, out=tmp_path / "out"))
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{path}: final")


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ((), 12),
        (("at", "1"), 2),  # with its final
        (("rst", "3"), 4),
    ],
)
def test_only_runs_the_finals_of_what_is_asked_for(only: tuple[str, ...], wanted: int, tmp_path: Path):
    path = write(tmp_path, GOOD + FINAL)
    study = prepare_study(StudyConfig(recipe=path, out=tmp_path / "out", only=only))
    assert len(study.wanted) == wanted
    without = prepare_study(StudyConfig(recipe=path, out=tmp_path / "out", only=only), finals=False)
    assert not [name for name in without.runs if "final" in name]


def test_a_dry_run_does_not_count_the_finals(tmp_path: Path):
    @dataclass
    class Timed:
        seconds: float = 10.0
        memory: int = 7

    config = StudyConfig(recipe=write(tmp_path, GOOD + FINAL), out=tmp_path / "out", only=("at",))
    found = estimate(config, lambda _training: Timed())
    assert (found.seconds, dict(found.cells), list(found.left_out)) == (20.0, {"at": 10.0}, ["at.final"])


def test_a_study_that_was_begun_without_the_table_final_may_get_one(runs: dict[str, Run], tmp_path: Path):
    leave_config(runs["at/seed-1"])
    path = write(tmp_path, GOOD + FINAL)
    study = prepare_study(StudyConfig(recipe=path, out=tmp_path / "out"))
    leave_config(study.runs["at.final/seed-1"], model="/elsewhere/at/seed-1/last.safetensors")
    prepare_study(StudyConfig(recipe=path, out=tmp_path / "out"))
    path.write_text(path.read_text().replace("count = 20", "count = 30"))
    with pytest.raises(ConfigError, match="count: 20, now 30"):
        prepare_study(StudyConfig(recipe=path, out=tmp_path / "out"))


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ((), 8),
        (("at",), 2),
        (("at", "1"), 1),
        (("1",), 4),
        (("rst", "3"), 3),  # with the teacher and the labels that it needs
        (("rst", "at", "1", "3"), 8),
    ],
)
def test_only_runs_what_is_asked_for_and_what_that_needs(only: tuple[str, ...], wanted: int, tmp_path: Path):
    config = StudyConfig(recipe=write(tmp_path, GOOD), out=tmp_path / "out", only=only)
    study = prepare_study(config)
    assert len(study.wanted) == wanted
    assert list(study.wanted) == [name for name in study.runs if name in set(study.wanted)]


def test_only_names_the_nearest_cell(tmp_path: Path):
    with pytest.raises(ConfigError, match="Did you mean 'teacher'"):
        prepare_study(StudyConfig(recipe=write(tmp_path, GOOD), out=tmp_path / "out", only=("techer",)))


def test_the_folder_is_named_after_the_recipe():
    assert StudyConfig(recipe=Path("a/fashion.toml")).folder == Path("runs/study-fashion")
    assert StudyConfig(recipe=Path("a/fashion.toml"), out=Path("x")).folder == Path("x")


def leave_config(run: Run, **changes: Any) -> None:
    """What a run leaves when it begins."""
    run.folder.mkdir(parents=True)
    content = {**run.config.model_dump(mode="json"), **changes}
    (run.folder / "config.json").write_text(json.dumps(content))


def test_a_folder_with_other_settings_is_refused_and_they_are_named(runs: dict[str, Run], tmp_path: Path):
    leave_config(runs["at/seed-1"], rate=0.3)
    with pytest.raises(ConfigError, match=r"rate: 0\.3, now 0\.1") as caught:
        prepare_study(StudyConfig(recipe=write(tmp_path, GOOD), out=tmp_path / "out"))
    assert "at/seed-1" in caught.value.argument
    assert "--out" in caught.value.remedy


@pytest.mark.parametrize("changes", [{"threads": 7}, {"device": "cuda:3"}, {"out": "elsewhere"}, {"save_every": 1.0}])
def test_what_belongs_to_the_machine_may_differ(changes: dict[str, Any], runs: dict[str, Run], tmp_path: Path):
    leave_config(runs["at/seed-1"], **changes)
    prepare_study(StudyConfig(recipe=write(tmp_path, GOOD), out=tmp_path / "out"))


def test_a_study_may_be_moved_but_its_needs_may_not_become_other_runs(runs: dict[str, Run], tmp_path: Path):
    leave_config(runs["rst/seed-1"], unlabelled="/elsewhere/labels/seed-1/pseudolabelled.npz")
    prepare_study(StudyConfig(recipe=write(tmp_path, GOOD), out=tmp_path / "out"))
    leave_config(runs["rst/seed-3"], unlabelled="/elsewhere/labels/seed-1/pseudolabelled.npz")
    with pytest.raises(ConfigError, match="unlabelled"):
        prepare_study(StudyConfig(recipe=write(tmp_path, GOOD), out=tmp_path / "out"))


def test_a_config_that_cannot_be_read_is_an_error_that_names_it(runs: dict[str, Run], tmp_path: Path):
    folder = runs["at/seed-1"].folder
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json"):
        prepare_study(StudyConfig(recipe=write(tmp_path, GOOD), out=tmp_path / "out"))
