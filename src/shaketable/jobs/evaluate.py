"""`shaketable evaluate MODEL`: clean and robust accuracy, after checking that model and data belong together."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from ..attacks import ATTACKS, Attack, Curve, Lints, SelfTest, curve, lint, selftest
from ..attacks.batches import usual_size
from ..attacks.half import Compared, HalfSearch, compared
from ..attacks.regions import mask_of
from ..core import Ball, ConfigError, generator
from ..data import Dataset, open_dataset, parts_of
from ..models import Contract, Loaded, ModelSpec, check, load
from ..plugins import names_code
from ..report import Finding, Report
from ..runs import Interrupted, Progress, Quiet, Stage
from .choices import choose, spec_for
from .config import EvaluateConfig, SubjectConfig
from .evaluate_kept import FOLDER, keeper_of
from .findings import reported
from .ground import Ground, counted, prepare
from .robustbench import write_entry
from .run_images import Chosen, own_images

CHECKED = 512  # images that the contract is checked on
LINTED, TESTED = 300, 32  # images that lints choose from, and that the self-test plants at
COMPARED = 100  # images on which a search in bfloat16 is compared with one in float32


Config = TypeVar("Config", bound=SubjectConfig)


@dataclass(frozen=True)
class Subject(Generic[Config]):
    """A model and the images it is evaluated on, checked against each other; `note` says which images, where it must."""

    config: Config
    ground: Ground
    loaded: Loaded
    data: Dataset
    contract: Contract
    within: Ball
    attack: Attack
    note: str = ""

    @property
    def attacked(self) -> bool:
        """Whether the attack can be made: on a model without gradients only one that needs none."""
        return self.loaded.gradients or not getattr(self.attack, "gradients", True)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of the contract, and of a ball that holds every image."""
        entries, radius = self.data.channels * math.prod(self.data.size), max(self.config.eps)
        whole = {"linf": 1.0, "l2": entries**0.5, "l1": float(entries), "l0": float(entries)}[self.config.norm]
        made = [reported(f) for f in self.contract.findings]
        if radius >= whole:
            message = f"The ball of radius {radius:g} holds every image there is: inputs are in [0, 1]."
            remedy = "If levels of 8 bits were meant, divide: --eps 8/255."
            made.append(Finding(level="info", code="whole-box", message=message, remedy=remedy))
        return tuple(made)


def prepare_evaluation(config: Config) -> Subject[Config]:
    """Load the model and the data, and check the contract between them.

    Raises:
        ShaketableError: whatever cannot be; see `models.load`, `data.open_dataset` and `models.check`.
    """
    ground = prepare(config)
    within, attack = Ball(config.norm, max(config.eps), box=(0.0, 1.0)), choose(config.attack, ATTACKS, "attack")
    if not callable(attack):
        remedy = "Write a function or class with the signature of shaketable.attacks.Attack."
        raise ConfigError("attack", "something that can be called", type(attack).__name__, remedy)
    chosen = _images(config)
    data = chosen.data
    if config.count is not None and config.count < len(data):
        rows = torch.randperm(len(data), generator=generator(config.seed, "count"))[: config.count]
        data = data.take(rows.sort().values)
    loaded = load(
        config.model,
        spec=_spec(config, data),
        mean=config.mean,
        std=config.std,
        labels=config.labels,
        trust=config.trust,
    )
    name = f"{Path(config.model).resolve().name} ({loaded.name})" if Path(config.model).is_dir() else loaded.name
    loaded = replace(loaded, model=loaded.model.to(ground.device), name=name)
    rows = torch.randperm(len(data), generator=generator(config.seed, "contract"))[:CHECKED]
    sample = data.batch(rows).to(ground.device)
    contract = check(loaded, sample.x, sample.y)
    return Subject(config, ground, loaded, data, contract, within, cast(Attack, attack), chosen.note)


@dataclass(frozen=True)
class Evaluated:
    """What was found of a subject.

    Args:
        curve: its accuracy at each radius.
        lints: None: they were not asked for, or nothing was attacked.
        selftest: likewise.
        half: how far a search in bfloat16 is from one in float32, at the smallest radius; None without such a search.
        kept: batches that an earlier run of the same evaluation had finished.
        misfits: in what an attack of one's own does not keep to the interface; see `shaketable.testing.check_attack`.
    """

    curve: Curve
    lints: Lints | None
    selftest: SelfTest | None
    half: Compared | None = None
    kept: int = 0
    misfits: tuple[str, ...] = ()


def run(config: EvaluateConfig, *, progress: Progress | None = None) -> Report:
    """Evaluate and report. After a standard AutoAttack the folder has a robustbench.json too.

    Cost: `models.check` on 512 images, `attacks.curve`, and `attacks.lint` on 50 images unless --no-lints; with --selftest
    `attacks.selftest` on 32; a search in bfloat16 is repeated in float32 on 100, and an attack of one's own runs through its
    conformance suite on a small model. Checked by tests/end_to_end/test_evaluate.py and test_evaluate_lints.py.
    """
    from .evaluate_report import report

    subject = prepare_evaluation(config)
    shown = progress or Quiet()
    try:
        with shown.stage("evaluate", len(config.eps) * len(subject.data)) as stage:
            found = evaluated(subject, stage)
    except KeyboardInterrupt:
        kept = (
            f"finished batches are kept in {config.out}: run it again to go on"
            if (config.out / FOLDER).is_dir()
            else ""
        )
        raise Interrupted(f"Stopped; {kept or 'nothing was finished'}.") from None
    made = report(subject, found)
    write_entry(subject, found)
    return made


def evaluated(subject: Subject[EvaluateConfig], stage: Stage) -> Evaluated:
    """The evaluation; a model without gradients is looked at without an attack that needs them."""
    config, attack, within = subject.config, subject.attack, subject.within
    model, data = subject.loaded.model, subject.data
    if not subject.attacked:
        attack = choose("pgd(steps=0, start='zero')", ATTACKS, "attack")
    x: Dataset | Tensor = data
    y = None
    if config.region is not None:
        within, x, y = _on_region(subject)
    misfits = _misfits(subject) if subject.attacked else ()
    keeper = keeper_of(config, subject.loaded, data, subject.ground) if subject.attacked else None
    searched = HalfSearch(attack) if config.search == "bfloat16" and subject.attacked else attack
    found = curve(
        model, x, y, within=within, radii=config.eps, attack=searched, seed=config.seed, batch_size=config.batch_size,
        progress=counted(stage), kept=None if keeper is None else keeper.at,
    )  # fmt: skip
    if not subject.attacked or not max(config.eps) > 0:
        return Evaluated(found, None, None, misfits=misfits)
    rows = torch.randperm(len(data), generator=generator(config.seed, "lint"))[:LINTED]
    sample = data.batch(rows).to(subject.ground.device)
    if within.mask is not None and len(cast(Tensor, within.mask)) > 1:
        within = replace(within, mask=None)  # regions of each image: the lints are of the whole image
    radius = min(r for r in config.eps if r > 0)
    options: dict[str, Any] = {"within": replace(within, radius=radius), "attack": attack, "seed": config.seed}
    lints = lint(model, sample.x, sample.y, **options) if config.lints else None
    planted = selftest(model, sample.x[:TESTED], **options) if config.selftest else None
    half = None if searched is attack else compared(model, sample.x[:COMPARED], sample.y[:COMPARED], **options)
    return Evaluated(found, lints, planted, half, 0 if keeper is None else keeper.found, misfits)


def _misfits(subject: Subject[EvaluateConfig]) -> tuple[str, ...]:
    """What the conformance suite has against an attack of the user's own."""
    from ..testing import ConformanceError, check_attack

    if not names_code(subject.config.attack.partition("(")[0].strip()):
        return ()
    try:
        check_attack(subject.attack, norms=(subject.config.norm,), strong=False)
    except ConformanceError as error:
        return tuple(f"{check}: {reason}" for check, reason in error.failures.items())
    return ()


def _on_region(subject: Subject[EvaluateConfig]) -> tuple[Ball, Dataset | Tensor, Tensor | None]:
    """The ball on its region; with a region for each image also all of them as one tensor."""
    config, data, device = subject.config, subject.data, subject.ground.device
    model, within = subject.loaded.model, subject.within
    few = data.batch(range(min(2, len(data)))).to(device)
    mask = mask_of(config.region, model, few.x, few.y, generator(config.seed, "region"))
    if mask is not None and len(mask) == 1:
        return replace(within, mask=mask), data, None
    source = generator(config.seed, "region")
    parts = [
        data.batch(rows).to(device) for rows in torch.arange(len(data)).split(config.batch_size or usual_size(data))
    ]
    masks = [cast(Tensor, mask_of(config.region, model, part.x, part.y, source)) for part in parts]
    return replace(within, mask=torch.cat(masks)), torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts])


def _images(config: SubjectConfig) -> Chosen:
    """The part that is asked for: the data's own, else that of the model's run, else all images, which the report says."""
    own = None if config.split == "all" else own_images(config.model, config.data, config.split, size=config.size)
    if own is not None:
        return own
    parts = parts_of(config.data)
    data = open_dataset(config.data, split=config.split if parts else "all", size=config.size)
    if parts or config.split == "all":
        return Chosen(data)
    return Chosen(
        data, f"{data.name} has no parts, and no run of the model on it is known: these are all of its images, and those "
        "among them that the model was trained on, if there are any, raise its accuracy.",
    )  # fmt: skip


def _spec(config: SubjectConfig, data: Dataset) -> ModelSpec | None:
    """The architecture of a bare state dict, for these images."""
    if config.architecture is None:
        return None
    return spec_for(config.architecture, data, mean=config.mean, std=config.std)
