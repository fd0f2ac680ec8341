"""What `transfer` returns: a matrix of rates for each region, and comparisons of regions image by image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..core.errors import InputError
from ..plugins import nearest
from ..stats import Mean, Rate
from .over_images import over_images
from .survival import Curve, survival

What = Literal["transfer", "left", "reached"]
NormName = Literal["l0", "l0_inside", "l2", "linf"]


@dataclass(frozen=True)
class Ratio:
    """How much larger a norm is in one region than in another, on the successes that both have.

    Args:
        value: the geometric mean of the ratios, with its bootstrap interval over images: (0, inf) of one image; NaN where
            none is common.
        common: how many (image, pair of models) succeeded in both.
        first, second: how many succeeded in each: where these differ much, the common ones are a selection.
        at_once: common successes at the first step in both, which were left out: there the ratio is that of the areas.
    """

    value: Mean
    common: int
    first: Rate
    second: Rate
    at_once: int


@dataclass(frozen=True, eq=False, repr=False)
class Transfer:
    """Transfer between models, for each region.

    Args:
        rows: of each source what `transfer_row` gives, in the order of the models.
        seed: of the bootstrap, that of the attack.
    """

    rows: tuple[dict[str, Any], ...]
    seed: int

    @property
    def models(self) -> tuple[str, ...]:
        """Their names; each row's source is one."""
        return tuple(self.rows[0]["models"])

    @property
    def regions(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.rows[0]["regions"])

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All (source, target) with a row."""
        return tuple((row["source"], name) for row in self.rows for name in self.models if name != row["source"])

    @property
    def margins(self) -> dict[str, list[float]]:
        """Each model's true logit minus the largest other, on the clean images."""
        return self.rows[0]["margin"]

    def valid(self, source: str, target: str) -> list[bool]:
        """The images that both get right."""
        correct = self._row(source)["correct"]
        return [a and b for a, b in zip(correct[source], correct[target], strict=True)]

    def first(self, source: str, target: str, region: str | None = None) -> list[int | None]:
        """The iterate at which each image first fooled the target; None if it never did or is not counted."""
        found = self._part(source, region)["to"][target]["first"]
        return [k if ok and k >= 0 else None for k, ok in zip(found, self.valid(source, target), strict=True)]

    @property
    def attack(self) -> str:
        """What was run: "regional", or the name of another attack, of which nothing but the end is known."""
        return self.rows[0]["attack"]

    def rate(
        self, source: str, target: str, region: str | None = None, *, oracle: bool = False, aimed: bool = False
    ) -> Rate:
        """The share of images, of those both get right, that fool the target.

        Args:
            region: its name; may be left out if there is one.
            oracle: at some iterate, chosen with the target's help; else at the last.
            aimed: only where it gives the class that the source was led to, at the last iterate: targeted transfer.
        """
        hits = self.hits(source, target, region, oracle, aimed)
        return Rate(sum(map(bool, hits)), sum(self.valid(source, target)))

    def hits(
        self, source: str, target: str, region: str | None = None, oracle: bool = False, aimed: bool = False
    ) -> list[bool]:
        """Of each image whether it fools the target, and both get it right as it is; see `rate`."""
        found = self._part(source, region)["to"][target]
        hits = [k >= 0 for k in found["first"]] if oracle and not aimed else found["aimed" if aimed else "fixed"]
        if hits is None and aimed and self.attack != "regional":
            raise InputError("aimed", "False of an attack without a class to lead to", "True", "Ask for the others.")
        if hits is None:
            raise InputError("oracle", "True, since images were dropped at transfer", "False", "Run with stop='fixed'.")
        return [bool(hit and ok) for hit, ok in zip(hits, self.valid(source, target), strict=True)]

    def white_box(self, source: str, region: str | None = None, what: Literal["left", "reached"] = "left") -> Rate:
        """The share of images that the source gets right, which made it leave the true class, or reach the target."""
        row = self._row(source)
        first = self._part(source, region)[what]["first"]
        counted = [k >= 0 for k, ok in zip(first, row["correct"][source], strict=True) if ok]
        return Rate(sum(counted), len(counted))

    def inside(
        self, source: str, radius: float, region: str | None = None, *, norm: NormName = "linf",
        what: Literal["left", "reached"] = "left",
    ) -> Rate:  # fmt: skip
        """The share of a source's successes, each where it first succeeded, whose norm is at most a radius.

        Below a defence's radius such a success is one that the defence claims to withstand; above it, it claims nothing.
        """
        found, right = self._part(source, region)[what], self._row(source)["correct"][source]
        sizes = [size for size, k, ok in zip(found[norm], found["first"], right, strict=True) if ok and k > 0]
        return Rate(sum(size <= radius * (1 + 1e-6) for size in sizes), len(sizes))

    def mean(self, region: str | None = None, *, oracle: bool = False, aimed: bool = False) -> Mean:
        """The mean over pairs of the transfer rate; see `rate` for the arguments.

        Its interval is by bootstrap over images, each drawn with all its pairs: cells share images, so they are not
        independent. At 0 and 1, where the resamples are all alike, it is the Wilson interval of the images that count; where
        they are alike although outcomes differ, or there is one image, it is (-inf, inf).
        """
        hits = [[float(h) for h in self.hits(s, t, region, oracle, aimed)] for s, t in self.pairs]
        return over_images(hits, [self.valid(s, t) for s, t in self.pairs], self.seed)

    def ratio(
        self, region: str, against: str, *, norm: NormName = "l2", what: What = "transfer", at_once: bool = False
    ) -> Ratio:
        """A region's norm over another's, paired: on the images and models on which both succeed.

        Args:
            norm: "l0", "l0_inside", "l2" or "linf".
            what: at the first iterate that fools the target ("transfer", an oracle), or at which the source has "left" the
                true class or "reached" the target: there nearly all pairs succeed, so the ratio has more power.
            at_once: count successes at the first step too.
        """
        logs: list[list[float]] = []
        kept: list[list[bool]] = []
        tally = [0, 0, 0, 0]
        for mine, other, valid in self._events(region, against, what):
            log, keep = [0.0] * len(valid), [False] * len(valid)
            for i, ok in enumerate(valid):
                won, lost = mine["first"][i] > 0 and ok, other["first"][i] > 0 and ok
                tally[0], tally[1], tally[2] = tally[0] + won, tally[1] + lost, tally[2] + ok
                early = won and lost and mine["first"][i] == other["first"][i] == 1
                tally[3] += early
                if won and lost and (at_once or not early) and mine[norm][i] > 0 and other[norm][i] > 0:
                    log[i], keep[i] = math.log(mine[norm][i] / other[norm][i]), True
            logs.append(log)
            kept.append(keep)
        found = over_images(logs, kept, self.seed, pooled=True)
        low, high = (found.low, found.high) if region != against or not found.n else (0.0, 0.0)  # 1 for certain
        value = Mean(math.exp(found.value), math.exp(low), math.exp(high), found.n, found.deviation, "bootstrap")
        first, second = Rate(tally[0], tally[2]), Rate(tally[1], tally[2])
        return Ratio(value, sum(map(sum, kept)), first, second, tally[3])

    def survival(self, region: str | None = None, *, norm: NormName = "l2", what: What = "transfer") -> Curve:
        """The share of (image, pair) that withstands a norm; a failure is censored at the norm of its last iterate.

        Args: see `ratio`.
        """
        name = self._region(region)
        sizes, fell = [], []
        for source, found, valid in self._found(name, what):
            end = self._part(source, name)["end"][norm]
            for i, ok in enumerate(valid):
                if ok:
                    fell.append(found["first"][i] >= 0)
                    sizes.append(found[norm][i] if fell[-1] else end[i])
        return survival(sizes, fell)

    def __repr__(self) -> str:
        return f"Transfer({len(self.models)} models, {len(self.regions)} regions, {self.rows[0]['n']} images)"

    def __str__(self) -> str:
        from .transfer_text import matrices

        return matrices(self)

    def _found(self, region: str, what: What) -> list[tuple[str, dict[str, Any], list[bool]]]:
        """Of each pair (or each source, for what it does itself): its source, the event, the images that count."""
        if what == "transfer":
            return [(s, self._part(s, region)["to"][t], self.valid(s, t)) for s, t in self.pairs]
        if what not in ("left", "reached"):
            raise InputError("what", "'transfer', 'left' or 'reached'", repr(what), "Choose one of them.")
        return [(row["source"], row["regions"][region][what], row["correct"][row["source"]]) for row in self.rows]

    def _events(self, region: str, against: str, what: What) -> list[tuple[dict[str, Any], dict[str, Any], list[bool]]]:
        mine, other = (self._found(self._region(name), what) for name in (region, against))
        return [(a, b, valid) for (_, a, valid), (_, b, _) in zip(mine, other, strict=True)]

    def _region(self, name: str | None) -> str:
        if name is None and len(self.regions) == 1:
            return self.regions[0]
        if name not in self.regions:
            raise InputError("region", f"one of {list(self.regions)}", repr(name), nearest(name, self.regions))
        return str(name)

    def _row(self, source: str) -> dict[str, Any]:
        found = next((row for row in self.rows if row["source"] == source), None)
        if found is None:
            names = [row["source"] for row in self.rows]
            raise InputError("source", f"one of {names}", repr(source), nearest(source, names))
        return found

    def _part(self, source: str, region: str | None) -> dict[str, Any]:
        return self._row(source)["regions"][self._region(region)]


def collected(rows: Sequence[dict[str, Any]]) -> Transfer:
    """The matrix of rows that `transfer_row` gave, in any order; rows may be missing.

    Raises:
        InputError: no row, two of one source, or rows of different models, images, settings or regions.
    """
    if not rows:
        raise InputError("rows", "at least one", "none", "Run transfer_row for a source.")
    shared = ("models", "n", "seed", "attack", "steps", "step", "loss")
    for row in rows:
        for key in shared:
            if row[key] != rows[0][key]:
                raise InputError("rows", f"one {key} in all", f"{rows[0][key]} and {row[key]}", "Run them alike.")
        if list(row["regions"]) != list(rows[0]["regions"]):
            raise InputError("rows", "the same regions in all", str(list(row["regions"])), "Run them alike.")
    names = [row["source"] for row in rows]
    if len(set(names)) < len(names):
        raise InputError("rows", "one a source", str(names), "Leave the doubles out.")
    return Transfer(tuple(sorted(rows, key=lambda row: row["models"].index(row["source"]))), rows[0]["seed"])
