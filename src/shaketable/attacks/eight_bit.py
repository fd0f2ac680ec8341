"""Images that survive being saved: the 256 levels of 8 bits, a constraint that keeps to them, PNG and JPEG."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.ball import Ball, Law
from ..core.errors import InputError
from ..core.perturb import Perturbation
from ..data.decoding import decoded as read_image
from ..stats import Rate
from .verdicts import wrong

LEVELS = 255
SLACK = 1e-4  # of a level, for the rounding of floats
Format = Literal["png", "jpeg"]


def rounded(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The nearest of the 256 levels k / 255, of values in [0, 1]: what an 8-bit file holds.

    Exactly what reading gives back: a level is the correctly rounded quotient. Checked by tests/attacks/test_eight_bit.py.
    """
    return torch.round(x.clamp(0, 1) * LEVELS) / LEVELS


@dataclass(frozen=True)
class EightBit:
    """The points of a ball that 8 bits can hold: a constraint for `perturb` and every gradient attack of this package.

        found = PGDAttack()(model, x, y, EightBit(Ball("linf", 8 / 255, box=(0, 1))), generator=st.generator(0))

    Each projection takes the ball's own and then the nearest levels; where those leave the ball, the next levels towards
    the origin: for linf of each entry, for other norms of the whole example, which can only shorten. So every iterate, not
    only the last, is an image that can be saved, inside ball, box and mask.

    Args:
        ball: with box=(0, 1), per example, not relative. Radii that are no whole number of levels count as the next
            below, for linf.

    The origin must lie on the levels: images read from files do; others are rounded first, with `rounded`. Steps shorter than
    half a level go nowhere: step x radius must be 1/510 or more.

    Raises:
        InputError: another ball; an origin off the levels.

    Checked by tests/attacks/test_eight_bit.py.
    """

    ball: Ball

    def __post_init__(self) -> None:
        if self.ball.box != (0, 1) or self.ball.per != "example" or self.ball.relative:
            remedy = "Give Ball(norm, radius, box=(0, 1))."
            raise InputError("ball", "box=(0, 1), per='example', relative=False", str(self.ball)[:80], remedy)

    def __getattr__(self, name: str) -> Any:
        """The ball's own fields: norm, radius, per, relative, box, mask, and its methods but those below."""
        if name.startswith("__") or name == "ball":
            raise AttributeError(name)
        return getattr(self.ball, name)

    def on(self, origin: Tensor) -> "EightBit":
        """The same set, checked and shaped for an origin."""
        ball = self.ball.on(origin)
        if not torch.equal(rounded(origin), origin):
            off = int((rounded(origin) != origin).sum())
            raise InputError(
                "origin", "images of 256 levels", f"{off} values between", "Round them: eight_bit.rounded(x)."
            )
        return EightBit(ball)

    def project(self, delta: Tensor, origin: Tensor) -> Tensor:
        """A feasible delta near this one."""
        near = self.ball.project(delta, origin)
        assert isinstance(near, Tensor)
        moved = near * LEVELS
        steps = torch.round(moved)
        inward = moved.sign() * (moved.abs() + SLACK).floor()
        if self.ball.norm == "linf":
            reach: Any = self.ball.reach(origin)
            steps = torch.where(steps.abs() > reach * LEVELS + SLACK, inward, steps)
        else:
            length = self.ball.size(steps / LEVELS, origin)
            assert isinstance(length, Tensor)
            radius = torch.as_tensor(self.ball.radius, dtype=torch.float64, device=origin.device)
            outside = length.double() > radius * (1 + 1e-6)
            steps = torch.where(outside.reshape(-1, *[1] * (origin.dim() - 1)), inward, steps)
        return self.clip(origin + steps / LEVELS) - origin

    def sample(self, origin: Tensor, generator: torch.Generator, law: Law = "ball") -> Tensor:
        """A draw from the ball, on the levels."""
        return self.project(self.ball.sample(origin, generator, law), origin)  # pyright: ignore[reportArgumentType]

    def steepest(self, gradient: Any, origin: Any, delta: Any) -> Any:
        """The ball's own."""
        return self.ball.steepest(gradient, origin, delta)

    def reach(self, origin: Any) -> Any:
        """The ball's own."""
        return self.ball.reach(origin)

    def size(self, delta: Any, origin: Any) -> Any:
        """The ball's own."""
        return self.ball.size(delta, origin)

    @property
    def rowwise(self) -> bool:
        """Each example is constrained by itself."""
        return True

    def clip(self, point: Tensor) -> Tensor:
        """The point, exactly on the levels."""
        return rounded(point)

    def rows(self, index: Tensor) -> "EightBit":
        """The set of some of the examples."""
        return EightBit(self.ball.rows(index))


def on_levels(point: Float[Tensor, "n ..."], origin: Float[Tensor, "n ..."], ball: Ball) -> Float[Tensor, "n ..."]:
    """A finished attack's points, brought to the levels of 8 bits inside the ball: rounding at the end.

    Args:
        point: in the ball around the origin.
        origin: images on the levels, see `EightBit`.
    """
    limits = EightBit(ball).on(origin)
    return limits.clip(origin + limits.project(point - origin, origin))


def encoded(images: Float[Tensor, "n c h w"], form: Format = "png", *, quality: int = 95) -> list[bytes]:
    """Image files of a batch, as bytes: rounded to 8 bits, grey or RGB.

    Args:
        images: in [0, 1], of 1 or 3 channels.
        form: "png", which loses nothing more, or "jpeg".
        quality: of JPEG, 1 to 95; Pillow's tables and its subsampling of colour.
    """
    from PIL import Image

    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise InputError("images", "shape (n, 1 or 3, h, w)", f"{tuple(images.shape)}", "Give grey or RGB images.")
    if form not in ("png", "jpeg"):
        raise InputError("form", "'png' or 'jpeg'", repr(form), "Choose one of them.")
    if type(quality) is not int or not 1 <= quality <= 95:
        raise InputError("quality", "a whole number in 1..95", repr(quality), "95 is the best that JPEG is meant for.")
    levels = torch.round(images.detach().clamp(0, 1) * LEVELS).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    files = []
    for pixels in levels:
        stream = io.BytesIO()
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture.save(stream, format=form.upper(), **({"quality": quality} if form == "jpeg" else {}))
        files.append(stream.getvalue())
    return files


def saved(images: Float[Tensor, "n c h w"], form: Format = "png", *, quality: int = 95) -> Float[Tensor, "n c h w"]:
    """The images as they come back from files; see `encoded`. PNG gives back ``rounded(images)``, bit for bit."""
    files = encoded(images, form, quality=quality)
    if not files:
        return images.detach().clone()
    read = torch.stack([read_image(content, f"image {k}", channels=images.shape[1]) for k, content in enumerate(files)])
    return read.to(images) / LEVELS


@dataclass(frozen=True, eq=False)
class Survival:
    """What is left of an attack once its images are saved.

    Args:
        counted: the clean image is classified correctly, (n,).
        before: of those, which the images fool as the attack left them.
        after: the same, by how they were saved: "png", "jpeg 75", ...; PNG is rounding alone.
        clean: which clean images the saving itself makes wrong: what no attack has to do with.
    """

    counted: Bool[Tensor, " n"]
    before: Bool[Tensor, " n"]
    after: Mapping[str, Bool[Tensor, " n"]]
    clean: Mapping[str, Bool[Tensor, " n"]]

    def rate(self, how: str | None = None, *, clean: bool = False) -> Rate:
        """The success rate on the images that are right when clean: before saving, or after saving so."""
        fooled = self.before if how is None else (self.clean if clean else self.after)[how]
        return Rate(int((fooled & self.counted).sum()), int(self.counted.sum()))

    def __str__(self) -> str:
        lines = [f"before saving  {self.rate()}"]
        lines += [f"{how:<13}  {self.rate(how)}; clean images {self.rate(how, clean=True)}" for how in self.after]
        return "\n".join(lines)


def surviving(
    model: Any,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    perturbation: Perturbation | Float[Tensor, "n c h w"],
    *,
    quality: Sequence[int] = (95, 75, 50),
) -> Survival:
    """Save the images of an attack, read them again, and ask the model once more.

    Args:
        model: from inputs in [0, 1] to logits; left as it is.
        x, y: clean images and true labels.
        perturbation: what an attack found, or its points.
        quality: the JPEG qualities to try, besides PNG.

    An image is fooled if the model does not give its true class. Cost: 4 + 2 x len(quality) forward passes an image.
    Checked by tests/attacks/test_eight_bit.py.
    """
    point = perturbation.point if isinstance(perturbation, Perturbation) else perturbation
    if point.shape != x.shape or y.shape != x.shape[:1]:
        found = f"{tuple(point.shape)} and {tuple(y.shape)} for {tuple(x.shape)}"
        raise InputError("perturbation", "points and labels of the same images", found, "Give those of one attack.")
    ways: dict[str, tuple[Format, int]] = {"png": ("png", 95), **{f"jpeg {q}": ("jpeg", q) for q in quality}}
    after, clean = {}, {}
    for how, (form, best) in ways.items():
        after[how] = wrong(model, saved(point, form, quality=best), y)
        clean[how] = wrong(model, saved(x, form, quality=best), y)
    return Survival(~wrong(model, x, y), wrong(model, point, y), after, clean)
