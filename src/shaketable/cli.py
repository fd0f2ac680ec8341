"""The command line: one verb, its config as flags, a report.

Exit codes: 0, done; 1, a gate failed, or with --strict there are findings; 2, an error; 130, interrupted (and resumable).
"""

import itertools
import os
import sys
import sysconfig
import tomllib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .core.errors import ConfigError, ShaketableError
from .plugins import nearest
from .version import __version__

VERBS = {
    "train": ("train_config.TrainConfig", "train a model that holds (AT, TRADES, MART, RST, ..., with or without AWP)"),
    "pseudolabel": ("pseudolabel_config.PseudolabelConfig", "label images by a model, to train with"),
    "study": ("study.config.StudyConfig", "a grid of trainings over seeds, with paired differences"),
    "study flatness": (
        "flatness_study.config.FlatnessStudyConfig",
        "whether flatness goes with robustness, over many models, and what else explains it",
    ),
    "reproduce": ("reproduce_config.ReproduceConfig", "published numbers beside those of the runs that are there"),
    "evaluate": ("config.EvaluateConfig", "clean and robust accuracy of any model on any data set"),
    "attack": (
        "attack_config.AttackConfig",
        "adversarial images, in regions too, saved and read again; where a model is weak",
    ),
    "transfer": (
        "transfer_config.TransferConfig",
        "which models are fooled by perturbations made on others, by region",
    ),
    "flatness": ("flatness.config.FlatnessConfig", "how flat the robust loss is around a model's weights"),
    "landscape": ("landscape.config.LandscapeConfig", "the adversarial loss around a model's weights, drawn"),
    "demo": ("config.DemoConfig", "AT against AT-AWP on embedded images, in minutes"),
}
"""Verb, of one word or two -> its config in `jobs` and what it does; `run` of its job does it (see `_job`)."""
_WIDTH = max(map(len, VERBS)) + 2

USAGE = f"""\
Shaketable {__version__}: puts a neural network on a shake table.

usage: shaketable VERB [options]

{chr(10).join(f"  {verb:<{_WIDTH}}{text}" for verb, (_, text) in VERBS.items())}

shaketable VERB --help    its options
shaketable --version      the version
"""


@dataclass(frozen=True)
class Options:
    """What every verb takes beside its config."""

    json: bool = False
    """Print the report as JSON on standard output."""
    dry_run: bool = False
    """Do nothing but print how long it would take and how much memory, from a few timed steps."""
    strict: bool = False
    """Exit with 1 if there are findings."""
    debug: bool = False
    """Show the traceback of an error."""
    config: Path | None = None
    """A TOML or JSON file of this verb's options; flags override it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return _run(arguments)
    except ShaketableError as error:
        if debug:
            raise
        _complain(str(error))
    except KeyboardInterrupt as stop:
        _complain(str(stop) or "Stopped.", word="stopped")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except Exception as error:
        if debug:
            raise
        _complain(f"{type(error).__name__}: {str(error).rstrip('.')}. {_whose(error)}; --debug shows where.")
    return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        print(f"shaketable {__version__}")
        return 0
    verb, rest = _verb(arguments)
    if verb not in VERBS:
        raise ConfigError("verb", f"one of {', '.join(VERBS)}", repr(verb), nearest(verb, VERBS))
    if verb != "train" and os.environ.get("RANK") and os.environ.get("WORLD_SIZE") not in (None, "", "1"):
        remedy = "Run it without torchrun."
        raise ConfigError("verb", "train, which the processes that torchrun starts can share", repr(verb), remedy)
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
    options, config = _parse(verb, rest)
    job = import_module(f".jobs.{_job(verb)}", __package__)
    if options.dry_run:
        return _print_estimate(import_module(".jobs.dry_run", __package__).estimate(config), options)
    from .runs import Quiet, progress

    first = os.environ.get("RANK", "0") == "0"
    report = job.run(config, progress=progress() if first and not options.json else Quiet())
    if not first:
        return 0
    page = import_module(".jobs.ground", __package__).write(report, getattr(config, "reports", config.out))
    _show(report, page, options, getattr(job, "show", None))
    return 1 if report.verdict == "failed gate" or (options.strict and report.verdict != "pass") else 0


def _verb(arguments: list[str]) -> tuple[str, list[str]]:
    """The verb and the rest: the longest verb that the first words make, or what was meant as one."""
    two = " ".join(arguments[:2])
    if two in VERBS:
        return two, arguments[2:]
    first = arguments[0]
    halves = first not in VERBS and any(verb.startswith(f"{first} ") for verb in VERBS)
    return (two, arguments[2:]) if halves else (first, arguments[1:])


def _job(verb: str) -> str:
    """The module of `jobs` that does a verb: `run` beside its config, or the config's without "_config", or the verb itself."""
    module = VERBS[verb][0].rpartition(".")[0]
    if module.endswith(".config"):
        return module.removesuffix("config") + "run"
    return module.removesuffix("_config") if module.endswith("_config") else verb


def _parse(verb: str, rest: list[str]) -> tuple[Options, Any]:
    """The options and the verb's config: defaults, then the file given with --config, then the flags."""
    import tyro

    kind = _config_class(verb)
    arguments = _from_file(rest, kind) + rest

    def call(config: kind, options: Options) -> tuple[Options, Any]:  # type: ignore[valid-type]
        return options, config

    call.__doc__ = kind.__doc__
    settings = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    try:
        return tyro.cli(call, prog=f"shaketable {verb}", args=arguments, config=settings)
    except SystemExit as stop:
        raise SystemExit(2 if stop.code not in (0, None) else 0) from None


def _config_class(verb: str) -> Any:
    module, _, name = VERBS[verb][0].rpartition(".")
    return getattr(import_module(f".jobs.{module}", __package__), name)


def _from_file(rest: list[str], kind: Any) -> list[str]:
    """The flags that a config file stands for; the flags on the command line come after them and win."""
    path = next((b for a, b in itertools.pairwise(rest) if a == "--config"), None)
    path = path or next((a.partition("=")[2] for a in rest if a.startswith("--config=")), None)
    if path is None:
        return []
    try:
        text = Path(path).read_text(encoding="utf-8")
        import json

        values = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except (OSError, ValueError) as error:
        remedy = "Give a .toml or .json file of options."
        raise ConfigError("config", "a file that can be read", f"{type(error).__name__}: {error}", remedy) from error
    flags: list[str] = []
    fields = {**kind.model_fields, **dict.fromkeys(Options.__dataclass_fields__)}
    if isinstance(values.get("recipe"), dict):  # where the options are from, and what they are to reach
        del values["recipe"]
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise ConfigError(path, "a known key", repr(key), nearest(name, fields))
        given = any(a == f"--{name.replace('_', '-')}" or a.startswith(f"--{name.replace('_', '-')}=") for a in rest)
        if value is not None and not given and name != "config":
            flags += _flag(name, value, positional=name in ("model", "recipe", "name"))
    return flags


def _flag(name: str, value: Any, *, positional: bool) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    values = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return values if positional else [flag, *values]


def _show(report: Any, page: Path, options: Options, show: Callable[..., None] | None) -> None:
    """Print a report: as JSON, in the verb's own way, or as all are printed."""
    if options.json:
        from .report import to_json

        print(to_json(report))
        return
    from rich.console import Console

    from .report import print_report

    (show or print_report)(report, Console(highlight=False), path=page)


def _print_estimate(estimate: Any, options: Options) -> int:
    import json
    from dataclasses import asdict

    print(json.dumps(asdict(estimate), indent=1) if options.json else estimate)
    return 0


def _whose(error: Exception) -> str:
    """Whose mistake an unexpected error is: that of a file of the user's that it came through, or ours."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = [Path(__file__).parent, *libraries]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_file()]
    theirs = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(home) for home in ours)]
    if not theirs:
        return "This is a defect of Shaketable"
    return f"It came through {theirs[-1].filename}, line {theirs[-1].lineno}"


def _complain(message: str, word: str = "error") -> None:
    from rich.console import Console
    from rich.text import Text

    style = "bold red" if word == "error" else "bold yellow"
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text.assemble((f"{word}: ", style), message))
