"""The command line itself: help, exit codes, nearest names, config files, tracebacks only when asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

from shaketable import cli
from shaketable.cli import VERBS, main


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 0, "usage: shaketable VERB"),
        (["--version"], 0, "shaketable 0."),
        (["trian"], 2, "Did you mean 'train'"),
        (["evaluate", "x.safetensors", "--attack", "pdg"], 2, "Did you mean 'pgd'"),
        (["evaluate", "x.safetensors", "--attack", "pgd(stepz=3)"], 2, "or 'steps'"),
        (["evaluate", "x.safetensors", "--attack", "pgd(steps=open('x'))"], 2, "pgd(steps=50"),
        (["evaluate", "x.safetensors", "--data", "fashion-mnst"], 2, "Did you mean 'fashion-mnist'?"),
        (["evaluate", "x.safetensors"], 2, "model: expected a file that exists"),
        (["evaluate", "x.safetensors", "--device", "cuda:99"], 2, "--device cpu"),
        (["train", "--loss", "trade"], 2, "Did you mean 'trades'?"),
        (["train", "--architecture", "smal_cnn"], 2, "small_cnn"),
        (["train", "--weights", "awp(gama=1)"], 2, "Did you mean 'gamma'?"),
        (["train", "--validation-count", "0"], 2, "--select last"),
        (["train", "--train-count", "60000"], 2, "train_count"),
    ],
)
def test_answers(arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    out = ["--out", str(tmp_path / "out")] if arguments and arguments[0] in VERBS else []
    assert main([*arguments, *out]) == code
    printed = capsys.readouterr()
    text = " ".join((printed.out + printed.err).split())
    assert says in text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "m.pt", "--epz", "1"], "--eps"),
        (["evaluate", "m.pt", "--eps", "a/b"], "a fraction such as 8/255"),
        (["evaluate", "m.pt", "--eps=-1"], "greater than or equal to 0"),
        (["train", "--norm", "l3"], "linf"),
        (["evaluate"], "required"),
    ],
)
def test_flags_that_cannot_be_exit_with_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert says in printed.out + printed.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_is_explained(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    kind = cli._config_class(verb)
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert f"--{name.replace('_', '-')}" in text or name in ("model", "recipe", "name")  # positional


def test_a_config_file_sets_options_flags_override_it_and_unknown_keys_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "c.toml"
    path.write_text('model = "nowhere.safetensors"\neps = "4/255"\ncount = 7\nmean = [0.5]\n')
    options, config = cli._parse("evaluate", ["--config", str(path), "--count", "9"])
    assert (config.model, config.count, config.mean) == ("nowhere.safetensors", 9, (0.5,))
    assert config.eps == (pytest.approx(4 / 255),)
    assert options.config == path
    path.write_text("epochz = 3\n")
    assert main(["train", "--config", str(path)]) == 2
    assert "Did you mean 'epochs'" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--config", str(tmp_path / "none.toml")]) == 2
    assert "config" in capsys.readouterr().err


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="expected a file that exists"):
        main(["evaluate", "nowhere.safetensors", "--debug"])


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "shaketable", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("shaketable 0.")


def test_importing_the_package_imports_torch_and_little_else():
    code = "import torch, sys; before = set(sys.modules); import shaketable; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"scipy", "pydantic", "tyro", "rich", "jinja2", "plotly", "PIL", "safetensors", "torchvision"}
    assert not {name.split(".")[0] for name in done.stdout.split()} & heavy
