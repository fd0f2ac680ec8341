"""Texts for Plotly, which would act on what stands in them."""

from .wording import shortened, visible

_SPECIAL = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "%": "&#37;"}


def plotly_text(text: str, limit: int = 60) -> str:
    """A text that Plotly shows as it is: no tag, entity, template or formula in it is acted on; shortened to `limit`.

    Checked by tests/report/test_page.py, in a browser.
    """
    return "".join(_SPECIAL.get(c, c) for c in shortened(visible(text), limit))
