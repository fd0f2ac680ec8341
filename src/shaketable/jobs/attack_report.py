"""The report of `shaketable attack`: success, norms, what survives saving, pictures, the map of weak cells."""

import math
from typing import Any

import torch
from torch import Tensor

from ..report import (
    Chart,
    Hashes,
    Metric,
    Picture,
    Report,
    Section,
    Series,
    Table,
    amplified,
    elapsed_since,
    environment,
    mean_metric,
    picture,
    rate_metric,
    verdict_of,
)
from ..stats import Rate, mean
from .attack import Attacked
from .attack_config import AttackConfig
from .command import command_of
from .evaluate import Subject
from .findings import reported
from .ground import config_of


def report(subject: Subject[AttackConfig], config: AttackConfig, found: Attacked) -> Report:
    """All of it."""
    result, (radius,) = found.result, config.eps
    success = Rate(int((result.clean_correct & ~result.robust_correct).sum()), int(result.clean_correct.sum()))
    kept = found.survival.rate(found.how)
    findings = (
        *subject.findings,
        *(reported(f) for f in result.findings),
    )
    where = "" if config.region is None else f", in {config.region}"
    return Report(
        verb="attack",
        title=f"{config.attack} on {subject.loaded.name}",
        summary=(
            f"Of {success.n} images of {subject.data.name} that {subject.loaded.name} gets right, {config.attack} "
            f"({config.norm}, eps {radius:.4g}{where}) fools it on {100 * success.value:.1f} %.",
            f"Saved with 8 bits, {'as JPEG, ' if config.save == 'jpeg' else ''}{100 * kept.value:.1f} % still do.",
            *([f"{len(found.files)} images are in the folder images beside this report."] if found.files else []),
        ),
        verdict=verdict_of(findings),
        headline=(
            _rate(config, success),
            rate_metric("Success after saving", kept, note=_form(config)),
        ),
        findings=findings,
        sections=(_success(config, found, success), _saving(found), *_pictures(config, found), *_map(config, found)),
        command=command_of("attack", config),
        config=config_of(config),
        environment=environment(device=str(subject.ground.device)),
        seeds={"seed": config.seed},
        hashes=Hashes(
            models={subject.loaded.name: subject.loaded.sha256} if subject.loaded.sha256 else {},
            data={subject.data.name: subject.data.fingerprint},
        ),
        volatile=elapsed_since(subject.ground.started),
    )


def _rate(config: AttackConfig, success: Rate) -> Metric:
    return rate_metric("Success", success, note=f"{config.norm}, eps {config.eps[0]:.4g}")


def _success(config: AttackConfig, found: Attacked, success: Rate) -> Section:
    delta = (found.read.double() - found.x.double())[found.fooled]
    flat = delta.flatten(1)
    positions = (delta != 0).any(1).flatten(1).double().mean(1) if len(delta) else torch.zeros(0)
    sizes = {"L0, share of pixels changed": positions, "L2": flat.norm(dim=1)}
    if len(flat):
        sizes["Linf"] = flat.abs().amax(1)
    metrics = [rate_metric("Clean accuracy", found.result.clean), _rate(config, success)]
    metrics += [mean_metric(name, mean(values.tolist())) for name, values in sizes.items() if len(values)]
    text = (
        "Norms of the saved images that fool the model, over the whole image. An attack that stops at the first success "
        "leaves smaller ones than it may."
    )
    mask = found.within.mask
    if mask is not None:
        text += f" The region has {100 * float(torch.as_tensor(mask).double().mean()):.1f} % of the entries"
        text += "." if config.save == "jpeg" else "; every pixel outside is as it was, to the bit."
    if config.save == "jpeg":
        text += f" {_left(found)}"
    return Section(title="Success and size", text=text, metrics=tuple(metrics))


def _form(config: AttackConfig) -> str:
    """How the images were saved."""
    return f"JPEG, quality {config.quality}" if config.save == "jpeg" else "PNG, rounded to 256 levels"


def _left(found: Attacked) -> str:
    """What JPEG did to ball and region."""
    ball = found.within.on(found.x)
    size = torch.as_tensor(ball.size(found.read - found.x, found.x)).double()
    radius = torch.as_tensor(ball.radius, device=size.device).double()
    said = f"JPEG changes all of an image: {int((size > radius * (1 + 1e-6)).sum())} of {len(size)} files lie outside the ball"
    if found.within.mask is None:
        return f"{said}."
    moved = (found.read != found.points) & (torch.as_tensor(ball.mask) == 0)
    return f"{said}, {int(moved.flatten(1).any(1).sum())} differ outside the region too."


def _saving(found: Attacked) -> Section:
    rows: list[tuple[Any, ...]] = [("as the attack left them", found.survival.rate(), None)]
    rows += [(how, found.survival.rate(how), found.survival.rate(how, clean=True)) for how in found.survival.after]
    text = (
        "The attack's images brought to the 256 levels inside the ball, written to files and read again. PNG loses nothing "
        "more; JPEG changes clean images too, and the share of those that it alone makes wrong is beside it."
    )
    table = Table(title="After saving", columns=("How", "Fools the model", "Clean images made wrong"), rows=tuple(rows))
    return Section(title="What survives saving", text=text, tables=(table,))


def _pictures(config: AttackConfig, found: Attacked) -> list[Section]:
    rows = torch.nonzero(found.fooled)[:, 0][: config.shown]
    if not len(rows):
        return []
    clean, adversarial = found.x[rows], found.read[rows]
    strip = picture(
        [list(clean), list(adversarial), [amplified(d) for d in adversarial - clean]], title="Images that fool the model",
        description=f"{len(rows)} images; first as they were, then perturbed, then the difference, amplified.",
        caption="From above: clean, perturbed, the difference (grey: none; each amplified to its largest change).",
    )  # fmt: skip
    return [Section(title="Examples", pictures=(strip,))]


def _map(config: AttackConfig, found: Attacked) -> list[Section]:
    weak = found.weak
    if weak is None:
        return []
    budgets, columns = weak.mean_map, tuple(f"column {c}" for c in range(weak.budgets.shape[2]))
    series = tuple(Series(name=f"row {r}", x=columns, y=tuple(map(float, row))) for r, row in enumerate(budgets))
    chart = Chart(
        kind="heatmap", title="Mean smallest budget in each cell", series=series, x_label="", y_label="",
        description="For each cell the mean over images of the smallest Linf budget that fools the model there.",
        caption=f"Linf eps; cells that nothing up to {weak.largest:g} fools count as {weak.largest:g}.",
    )  # fmt: skip
    rates: tuple[Any, ...] = tuple(
        (f"row {r}", *(weak.rate(r, c) for c in range(weak.budgets.shape[2]))) for r in range(weak.budgets.shape[1])
    )
    table = Table(title="Images that some budget fools in a cell", columns=("", *columns), rows=rates)
    pictures = _overlays(config, found)
    text = f"In each cell of a {config.grid} grid, the smallest budget that fools the model when only this cell may change."
    return [Section(title="Where the model is weak", text=text, charts=(chart,), pictures=pictures, tables=(table,))]


def _overlays(config: AttackConfig, found: Attacked) -> tuple[Picture, ...]:
    """Images with their maps over them: red where little is enough."""
    weak = found.weak
    assert weak is not None
    rows = torch.nonzero(weak.correct)[:, 0][: config.shown]
    if not len(rows):
        return ()
    tiles = [_overlay(found.x[k], weak.budgets[k]) for k in rows.tolist()]
    return (
        picture(
            [[found.x[k].expand(3, -1, -1) for k in rows.tolist()], tiles], title="Weak cells of single images",
            description=f"{len(rows)} images, and the same with their weak cells in red.",
            caption="Redder: a smaller budget is enough, on a logarithmic scale from one level of 8 bits to the whole range.",
        ),
    )  # fmt: skip


def _overlay(image: Tensor, budgets: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    strength = budgets.clamp(1 / 255, 1.0).log() / math.log(1 / 255)  # 1 at one level, 0 at the whole range or none
    down = torch.arange(height) * budgets.shape[0] // height
    across = torch.arange(width) * budgets.shape[1] // width
    alpha = 0.75 * strength[down][:, across].to(image)
    red = torch.tensor([0.85, 0.1, 0.1]).to(image)[:, None, None]
    grey = image.mean(0, keepdim=True).expand(3, -1, -1)
    return (1 - alpha) * grey + alpha * red
