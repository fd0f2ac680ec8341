"""What a check, an evaluation or a measurement found, as a report has it."""

from typing import Any

from ..report import Finding


def reported(found: Any, of: str = "") -> Finding:
    """A finding of `models.check`, of an attack or of a lint; `of` stands before its message, to say what it is about."""
    return Finding(level=found.level, code=found.code, message=f"{of}{found.message}", remedy=found.remedy)
