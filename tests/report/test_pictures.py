"""Pictures: what is drawn is what was given, and the page shows it."""

import base64
import io

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from shaketable.report import Picture, Report, Section, picture, render


def opened(made: Picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(made.png)))


def test_every_image_is_at_its_place_and_enlarged_without_smoothing() -> None:
    images = [torch.full((1, 4, 4), k / 10) for k in range(6)]
    sheet = opened(picture([images[:3], images[3:]], title="t", description="d", side=8))
    assert sheet.size == (3 * 8 + 2 * 4, 2 * 8 + 4)
    for k in range(6):
        corner = (12 * (k % 3), 12 * (k // 3))
        assert sheet.getpixel((corner[0] + 7, corner[1])) == (round(255 * k / 10),) * 3


def test_colours_are_kept_and_ragged_rows_are_grey() -> None:
    red = torch.zeros(3, 2, 2)
    red[0] = 1
    sheet = opened(picture([[red, red], [red]], title="t", description="d", side=2))
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((7, 7)) == (128, 128, 128)


def test_the_page_has_it_with_its_description_and_refuses_what_is_no_png() -> None:
    made = picture([[torch.rand(1, 3, 3)]], title="A <b>title</b>", description="what it shows", caption="said")
    report = Report(verb="v", title="t", summary=(), verdict="pass", sections=(Section(title="s", pictures=(made,)),))
    page = render(report)
    assert f'<img src="data:image/png;base64,{made.png}" alt="what it shows">' in page
    assert "A &lt;b&gt;title" in page
    assert Report.model_validate_json(report.model_dump_json()) == report
    with pytest.raises(ValidationError, match="png"):
        Picture(title="t", png='x" onerror="alert(1)', description="d")
