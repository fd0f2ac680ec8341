"""Reports that the tests of this room share: a realistic one, and one whose every name is hostile."""

import math
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from shaketable.report import (
    Chart,
    Finding,
    Hashes,
    Report,
    Section,
    Series,
    Table,
    Volatile,
    mean_metric,
    number_metric,
    rate_metric,
    write_html,
)
from shaketable.stats import Mean, Rate

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>window.hacked=1</script>",
    "<!--<script>",
    "javascript:alert(1)",
    '<a href="javascript:alert(1)">k</a>',
    '<b onclick="alert(1)">bold</b>&lt;i&gt;',
    '" onmouseover="alert(1)',
    "{{7*7}}{% raw %}${7*7}",
    "%{y} %{customdata} $x^2$",
    "abc\u202egnp.exe\u202c",
    "\x1b[31mred\x1b[2J\x07",
    "@tone-0",
    "x" * 400,
    "W" * 90 + " " + "שלום",
)


def _band(values: list[float], half: float) -> dict[str, list[float]]:
    return {"y": values, "low": [v - half for v in values], "high": [v + half for v in values]}


def _curve(start: float, floor: float, rise: float, epochs: list[int], wobble: float = 0.012) -> list[float]:
    wave = [wobble * math.sin(1.9 * e) * math.cos(0.7 * e) for e in epochs]
    late = [max(0, e - 24) / 36 for e in epochs]
    return [
        floor + (start - floor) * math.exp(-e / 6) + rise * t**1.3 + w
        for e, t, w in zip(epochs, late, wave, strict=True)
    ]


def _learning_curves() -> Section:
    epochs = list(range(2, 61, 2))
    loss = {
        ("AT", "test"): _curve(1.9, 1.20, 0.31, epochs),
        ("AT", "train"): _curve(1.9, 0.92, -0.55, epochs, 0.004),
        ("AT-AWP", "test"): _curve(1.95, 1.19, 0.04, epochs, 0.008),
        ("AT-AWP", "train"): _curve(1.95, 1.02, -0.34, epochs, 0.004),
    }
    lines = [
        Series(
            name=f"{model}, {split}", x=epochs, group=model, dash="solid" if split == "test" else "dot",
            **_band(values, 0.05 if split == "test" else 0.03),
        )
        for (model, split), values in loss.items()
    ]  # fmt: skip
    gap = [
        Series(name=m, x=epochs, **_band([a - b for a, b in zip(loss[m, "test"], loss[m, "train"], strict=True)], 0.06))
        for m in ("AT", "AT-AWP")
    ]
    return Section(
        title="Robust overfitting",
        text="Both nets are trained on the same 500 images for 60 epochs. The robust loss is the cross-entropy under "
        "PGD-10 with ε = 0.1, on fixed slices of the training and the test set.\n\n"
        "Past epoch 24 adversarial training alone still gains on the images it trains on and loses on those it does not.",
        charts=[
            Chart(
                kind="line", title="Robust loss on training and test images", series=lines, x_label="epoch",
                y_label="robust cross-entropy", caption="Bands are 95 % intervals over images.",
                description="Four lines over 60 epochs. The test loss of AT falls to 1.21 and rises to 1.51, "
                "that of AT-AWP stays near 1.23; both training losses fall.",
            ),
            Chart(
                kind="line", title="Robust generalisation gap", series=gap, x_label="epoch",
                y_label="test minus training loss", caption="The gap that AWP narrows.",
                description="Two lines. The gap of AT grows to 1.14, that of AT-AWP to 0.55.",
            ),
        ],
    )  # fmt: skip


def _accuracies() -> Section:
    rates = {"AT": (Rate(1588, 2000), Rate(1100, 2000)), "AT-AWP": (Rate(1562, 2000), Rate(1148, 2000))}
    names = ("no attack", "PGD-20")
    bars = [
        Series(
            name=model, x=names, y=[r.value for r in pair], low=[r.interval[0] for r in pair],
            high=[r.interval[1] for r in pair],
        )
        for model, pair in rates.items()
    ]  # fmt: skip
    return Section(
        title="Accuracy on 2000 test images",
        metrics=[
            rate_metric(f"{model}, {name}", rate, group=model)
            for model, pair in rates.items()
            for name, rate in zip(names, pair, strict=True)
        ],
        charts=[
            Chart(
                kind="bar", title="Accuracy with and without attack", series=bars, x_label="", y_label="accuracy",
                y_format="percent", caption="Whiskers are 95 % Wilson intervals.",
                description="Bars: 79.4 % and 78.1 % without attack, 55.0 % and 57.4 % under PGD-20.",
            ),
            Chart(
                kind="heatmap", title="Where attacks made on one net fool the other", x_label="evaluated on",
                y_label="made on", y_format="percent", description="A two by two matrix of success rates.",
                series=[
                    Series(name="AT", x=["AT", "AT-AWP"], y=[0.45, 0.31]),
                    Series(name="AT-AWP", x=["AT", "AT-AWP"], y=[0.34, 0.426]),
                ],
            ),
        ],
    )  # fmt: skip


def _flatness() -> Section:
    flat = {"AT": Mean(0.412, 0.371, 0.457, 10, 0.06), "AT-AWP": Mean(0.238, 0.214, 0.265, 10, 0.036)}
    return Section(
        title="Flatness of the robust loss",
        text="The rise of the robust loss when the weights are moved at random within ξ = 0.5 of each layer's norm, "
        "the attack made anew at every point. Smaller is flatter.",
        metrics=[mean_metric(m, v, unit="nats", group=m) for m, v in flat.items()],
        charts=[
            Chart(
                kind="scatter", title="Flatness and robustness", x_label="average-case robust flatness",
                y_label="robust accuracy", y_format="percent", description="Two points: AT-AWP is flatter and more robust.",
                series=[
                    Series(name="AT", x=[0.412], y=[0.55], low=[0.528], high=[0.572]),
                    Series(name="AT-AWP", x=[0.238], y=[0.574], low=[0.552], high=[0.596]),
                ],
            )
        ],
        tables=[
            Table(
                title="The two nets side by side",
                columns=["net", "robust accuracy", "flatness", "robust loss, last", "parameters", "collapsed"],
                rows=[
                    ["AT", Rate(1100, 2000), flat["AT"], 1.5104, 206_922, False],
                    ["AT-AWP", Rate(1148, 2000), flat["AT-AWP"], 1.2321, 206_922, False],
                ],
                note="Robust accuracy is recomputed from the stored adversarial images.",
            )
        ],
    )  # fmt: skip


@pytest.fixture(scope="session")
def demo() -> Report:
    """A report like the demo's."""
    return Report(
        verb="demo",
        title="Adversarial weight perturbation closes the robust generalisation gap",
        summary=[
            "AT-AWP ends with half the robust generalisation gap of AT, at the same cost in clean accuracy as chance allows.",
            "Adversarial training alone overfits: its robust test loss rises from 1.21 to 1.51 after epoch 24.",
            "The difference in robust accuracy, 2.4 points, is within the intervals of 2000 images.",
        ],
        verdict="findings",
        headline=[
            rate_metric("AT, robust accuracy (PGD-20)", Rate(1100, 2000), group="AT"),
            rate_metric("AT-AWP, robust accuracy (PGD-20)", Rate(1148, 2000), group="AT-AWP"),
            mean_metric("AT-AWP minus AT, paired by image", Mean(2.4, 0.9, 3.9, 2000, 34.0), unit="points"),
            mean_metric("AT, robust loss gap", Mean(1.14, 1.06, 1.22, 2000, 1.8), group="AT"),
            mean_metric("AT-AWP, robust loss gap", Mean(0.553, 0.494, 0.612, 2000, 1.4), group="AT-AWP"),
            number_metric("Parameters of each net", 206_922),
        ],
        findings=[
            Finding(
                level="finding", code="robust-overfitting",
                message="AT: the robust test loss at the last epoch is 0.30 above its minimum.",
                remedy="Stop at epoch 24, or train with AWP.",
            ),
            Finding(
                level="info", code="small-test", remedy="Evaluate on all 10 000 images to resolve 1 point.",
                message="With 2000 images differences below 3 points in accuracy are not resolved.",
            ),
        ],
        sections=[_learning_curves(), _accuracies(), _flatness()],
        command="shaketable demo --seed 0 --out runs/demo",
        config={"data": "fashion-mnist-embedded", "epochs": 60, "eps": 0.1, "awp": {"gamma": 0.01, "warm_up": 10}},
        environment={"python": "3.11.7", "torch": "2.13.0", "threads": 2, "device": "cpu"},
        seeds={"all": 0},
        hashes=Hashes(models={"AT": "a" * 64, "AT-AWP": "b" * 64}, data={"test": "c" * 64}),
        volatile=Volatile(started="2025-01-01T00:00:00+00:00", seconds=212.4, host="host", extra={"passes/s": 812.0}),
    )  # fmt: skip


@pytest.fixture(scope="session")
def hostile() -> Report:
    """A report in which every name, label and text is one that somebody would attack a reader with."""
    curves = [
        Series(name=n, x=[1, 2, 3], y=[k, k + 1, None], low=[k - 1] * 3, high=[k + 2] * 3)
        for k, n in enumerate(HOSTILE)
    ]
    kinds = [
        Chart(kind="line", title=HOSTILE[0], series=curves, x_label=HOSTILE[8], y_label=HOSTILE[1], description=HOSTILE[6]),
        Chart(
            kind="bar", title=HOSTILE[1], x_label=HOSTILE[4], y_label=HOSTILE[5], caption=HOSTILE[0], description=HOSTILE[2],
            series=[Series(name=n, x=HOSTILE, y=range(len(HOSTILE))) for n in HOSTILE[:3]],
        ),
        Chart(
            kind="scatter", title=HOSTILE[7], x_label=HOSTILE[9], y_label=HOSTILE[12], description=HOSTILE[10],
            series=[Series(name=HOSTILE[0], x=range(len(HOSTILE)), y=range(len(HOSTILE)), labels=HOSTILE)],
        ),
        Chart(
            kind="heatmap", title=HOSTILE[8], x_label="", y_label=HOSTILE[0], description=HOSTILE[0],
            series=[Series(name=n, x=HOSTILE, y=range(len(HOSTILE))) for n in HOSTILE],
        ),
    ]  # fmt: skip
    metrics = [rate_metric(n, Rate(k, 20), note=n, group=n) for k, n in enumerate(HOSTILE)]
    return Report(
        verb=HOSTILE[0],
        title=HOSTILE[1],
        summary=HOSTILE,
        verdict="failed gate",
        headline=metrics[:6],
        findings=[Finding(level="failed", code="hostile", message=n, remedy=n) for n in HOSTILE],
        sections=[
            Section(
                title=n, text=n, metrics=metrics if k < 2 else [], charts=kinds if k == 0 else [],
                tables=[Table(title=n, columns=HOSTILE, rows=[HOSTILE, HOSTILE], note=n)] if k < 2 else [],
            )
            for k, n in enumerate(HOSTILE)
        ],
        command=HOSTILE[0],
        config=dict.fromkeys(HOSTILE, HOSTILE[1]),
        environment={HOSTILE[0]: HOSTILE[3]},
        seeds={HOSTILE[0]: 0},
        hashes=Hashes(models={HOSTILE[0]: "0" * 64}),
        volatile=Volatile(host=HOSTILE[0]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, started once; a test that asks for it is skipped where there is none."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, demo: Report, hostile: Report) -> dict[str, str]:
    """The addresses of the two reports' pages."""
    folder = tmp_path_factory.mktemp("pages")
    for name, report in (("demo", demo), ("hostile", hostile)):
        write_html(report, folder / f"{name}.html")
    return {name: (folder / f"{name}.html").as_uri() for name in ("demo", "hostile")}
