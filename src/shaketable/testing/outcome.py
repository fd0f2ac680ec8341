"""How a conformance suite is run: every check, whatever the others did, and one error for all that failed."""

from collections.abc import Callable, Mapping
from typing import Any


class ConformanceError(AssertionError):
    """What of a suite does not hold.

    Args:
        subject: what was checked.
        failures: check -> why it failed.
    """

    def __init__(self, subject: str, failures: Mapping[str, str]) -> None:
        self.subject, self.failures = subject, dict(failures)
        lines = "\n".join(f"- {name}: {why}" for name, why in failures.items())
        super().__init__(f"{subject} fails {len(failures)} checks:\n{lines}")


def run(subject: str, checks: Mapping[str, Callable[[], Any]]) -> tuple[str, ...]:
    """Run all checks; returns their names.

    Raises:
        ConformanceError: some raised; it has what each of them said.
    """
    failures: dict[str, str] = {}
    for name, check in checks.items():
        try:
            check()
        except Exception as error:  # a checked object may raise anything
            text = str(error).strip().splitlines()
            failures[name] = (
                text[0] if isinstance(error, AssertionError) and text else f"{type(error).__name__}: {error}"
            )
    if failures:
        raise ConformanceError(subject, failures)
    return tuple(checks)


def require(holds: bool, why: str) -> None:
    """Fail a check."""
    if not holds:
        raise AssertionError(why)
