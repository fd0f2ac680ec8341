"""Every recipe of the repository: its choices resolve, its arithmetic is right, it runs on files of its formats."""

import functools
import pickle
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shaketable.cli import _parse, main
from shaketable.jobs.ground import config_of
from shaketable.jobs.reproduce_recipes import TrainingRecipe, read
from shaketable.jobs.reproduce_runs import WITHOUT
from shaketable.jobs.study.plan import runs_of
from shaketable.jobs.study.recipe import read as read_study
from shaketable.jobs.study.verbs import identity
from shaketable.jobs.train_config import TrainConfig
from shaketable.jobs.train_plan import plan_of
from shaketable.models import ModelSpec, build
from shaketable.training import MART, RST, TRADES

ROOT = Path(__file__).parents[2]
PATHS = sorted(ROOT.glob("recipes/*/*.toml"))
STUDIES = sorted(ROOT.glob("studies/**/*.toml"))
NAMES = [f"{path.parent.name}/{path.stem}" for path in PATHS]
SOURCE = {"data/cifar-10": (50_000, 10_000), "data/cifar-100": (50_000, 10_000), "data/svhn": (73_257, 26_032)}
WIDE = [name for name in NAMES if "-wrn" in name]


def recipe(name: str) -> TrainingRecipe:
    return read(ROOT / "recipes" / f"{name}.toml")


@pytest.mark.parametrize("name", NAMES)
def test_it_parses_its_choices_resolve_and_it_says_what_it_is_for(name: str):
    found = recipe(name)
    plan = plan_of(found.config)
    assert found.about.hours > 0
    assert found.about.gpu
    assert found.about.notes
    assert bool(found.about.published) == (not name.startswith("small/"))
    assert (plan.weights is not None) == name.endswith("-awp")
    kind = {"trades": TRADES, "mart": MART, "rst": RST}
    wanted = next((made for word, made in kind.items() if word in name.split("/")[1].split("-")), None)
    assert wanted is None or isinstance(plan.loss, wanted)
    if found.config.select == "test":  # the papers' own rule is one that the reader is told of
        assert "test set" in found.about.notes


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_takes_it_as_it_is(name: str):
    path = ROOT / "recipes" / f"{name}.toml"
    assert _parse("train", ["--config", str(path)])[1] == recipe(name).config


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("small/")])
def test_its_hours_are_the_arithmetic_that_they_are_said_to_be(name: str):
    found = recipe(name)
    config, about, plan = found.config, found.about, plan_of(found.config)
    train, test = SOURCE[config.data]
    forward = _flop_of_a_pass(config.architecture)
    two = isinstance(plan.loss, TRADES | MART | RST)  # a clean and an adversarial pass, each back to the weights
    update = 3 * (1 + two)
    clean = isinstance(plan.loss, TRADES | RST)  # the prediction that the attack moves away from
    per_image = 2 * plan.attack.steps + clean + update * (1 + (plan.weights is not None))
    look = 2 * plan.evaluation.steps * plan.evaluation.restarts + 2
    curves = -(-plan.epochs // plan.evaluate_every) * (min(config.curve_count, train) + min(config.curve_count, test))
    finals = train + (1 if config.select == "last" else 2) * test
    flop = forward * (plan.epochs * train * per_image + look * (curves + finals))
    assert about.flop == pytest.approx(flop, rel=0.02)
    assert about.rate is not None
    assert about.hours == pytest.approx(flop / about.rate / 3600, rel=0.05)
    assert about.gpu == "arithmetic, not measured"


@functools.cache
def _flop_of_a_pass(architecture: str) -> int:
    """Counted by PyTorch, of one image of 32 x 32."""
    from shaketable.jobs.choices import parse

    name, arguments = parse(architecture, "architecture")
    model = build(_spec(name, arguments), 0).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def _spec(name: str, arguments: dict, classes: int = 10) -> ModelSpec:
    labels = tuple(map(str, range(classes)))
    return ModelSpec(
        architecture=name, arguments=arguments, classes=classes, channels=3, size=(32, 32), mean=(0.5,) * 3,
        std=(0.25,) * 3, labels=labels,
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("small/")])
def test_a_small_recipe_is_the_studys_cell_of_the_same_name(name: str):
    cell = runs_of(read_study(ROOT / "studies/awp/fashion.toml"), Path("out"))[f"{name.split('/')[1]}/seed-0"]
    assert identity(config_of(cell.config), WITHOUT) == identity(config_of(recipe(name).config), WITHOUT)


@pytest.mark.parametrize("path", STUDIES, ids=[path.stem for path in STUDIES])
def test_the_studies_recipes_parse_and_their_choices_resolve(path: Path):
    study = read_study(path)
    assert len(study.seeds) >= 3
    for run in runs_of(study, Path("out")).values():
        if isinstance(run.config, TrainConfig):
            plan_of(run.config)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few images in each data set's own format, where the recipes look for them."""
    root = tmp_path_factory.mktemp("place")
    drawn = np.random.default_rng(0)

    def images(count: int) -> np.ndarray:
        return drawn.integers(0, 256, (count, 3072), dtype=np.uint8)

    ten, hundred, svhn = (root / "data" / name for name in ("cifar-10", "cifar-100", "svhn"))
    for folder in (ten, hundred, svhn):
        folder.mkdir(parents=True)
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        records = np.concatenate([np.zeros((1, 1), np.uint8), images(1)], 1)
        (ten / name).write_bytes(records.tobytes())
    names = [f"class {k}" for k in range(100)]
    for part, count in (("train", 4), ("test", 2)):
        labels = list(range(count))
        content = {b"data": images(count), b"fine_labels": labels, b"coarse_labels": labels, b"filenames": labels}
        (hundred / part).write_bytes(pickle.dumps(content, 2))
    (hundred / "meta").write_bytes(pickle.dumps({b"fine_label_names": names, b"coarse_label_names": names[:20]}, 2))
    from scipy.io import savemat

    for part, count in (("train", 4), ("test", 2)):
        x = images(count).reshape(count, 3, 32, 32).transpose(2, 3, 1, 0)
        savemat(svhn / f"{part}_32x32.mat", {"X": x, "y": np.arange(1, count + 1, dtype=np.uint8)[:, None]})
    return root


def dry_run(name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    path = ROOT / "recipes" / f"{name}.toml"
    quick = ["--batch-size", "2", "--evaluation", "pgd(steps=1)", "--threads", "1"]
    assert main(["train", "--config", str(path), *quick, "--dry-run"]) == 0
    assert "hours" in capsys.readouterr().out
    assert not (place / "runs").exists()


ONE_OF_EACH = ["awp/cifar10-linf-prn18-at-awp"]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_it_begins_on_files_of_the_real_format(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    dry_run(name, place, monkeypatch, capsys)


@pytest.mark.full
@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*ONE_OF_EACH, *WIDE)])
def test_every_other_small_net_begins_too(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    dry_run(name, place, monkeypatch, capsys)


@pytest.mark.full
@pytest.mark.parametrize("name", WIDE)
def test_the_wide_nets_begin_too_from_the_files_that_their_notes_name(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config = recipe(name).config
    if config.unlabelled is not None:
        drawn = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        content = {"data": drawn, "extrapolated_targets": np.arange(6, dtype=np.int64)}
        (place / config.unlabelled).write_bytes(pickle.dumps(content, 2))
    if config.init is not None:
        (place / config.init).parent.mkdir(exist_ok=True)
        wide = build(_spec("wide_resnet", {"depth": 28, "widen": 10}, classes=1000), 1)
        torch.save({k.removeprefix("network."): v for k, v in wide.state_dict().items()}, place / config.init)
    dry_run(name, place, monkeypatch, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_it_goes_where_its_reader_says(name: str):
    assert "out" not in tomllib.loads((ROOT / "recipes" / f"{name}.toml").read_text())
