"""Pictures for a report: strips and grids of images, as PNG."""

import base64
import io
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from .model import Picture

SIDE = 112  # of an image in pixels on the page, at least
GAP = 4


def picture(
    rows: Sequence[Sequence[Float[Tensor, "c h w"]]],
    *,
    title: str,
    description: str,
    caption: str = "",
    side: int = SIDE,
) -> Picture:
    """Rows of images beside each other, enlarged without smoothing to about `side` pixels.

    Args:
        rows: of images of one size, (c, h, w) in [0, 1]; 1 or 3 channels, of others the first is shown.

    Checked by tests/report/test_pictures.py.
    """
    from PIL import Image

    height, width = rows[0][0].shape[-2:]
    factor = max(1, -(-side // max(height, width)))
    tall, wide = height * factor, width * factor
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * (wide + GAP) - GAP, len(rows) * (tall + GAP) - GAP), (128, 128, 128))
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            levels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte()
            levels = levels if levels.shape[0] == 3 else levels[:1].expand(3, -1, -1)
            tile = Image.fromarray(levels.permute(1, 2, 0).numpy()).resize((wide, tall), Image.Resampling.NEAREST)
            sheet.paste(tile, (c * (wide + GAP), r * (tall + GAP)))
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    png = base64.b64encode(stream.getvalue()).decode()
    return Picture(title=title, png=png, caption=caption, description=description)


def amplified(delta: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """A difference of two images as an image: grey where there is none, its largest entry half way to black or white."""
    return 0.5 + 0.5 * delta / delta.abs().max().clamp(min=1e-9)
