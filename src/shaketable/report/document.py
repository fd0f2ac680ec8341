"""A report as a file: canonical JSON, checked when it is read.

Canonical: keys sorted, ASCII, two spaces of indent, the shortest repr that reads back to the same float, and a final newline.
The same report is therefore the same bytes, and what differs between two of them a line-wise diff shows.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..core.errors import InputError
from ..files import write_atomically
from .model import SCHEMA_VERSION, Report

MAX_BYTES = 256 << 20
SCHEMA_FILE = Path(__file__).parent / "schema" / "report-1.0.json"


def to_json(report: Report) -> str:
    """The report as canonical JSON."""
    return _canonical(report.model_dump(mode="json"))


def write_json(report: Report, path: str | Path) -> None:
    """Write `report.json`, all of it or nothing.

    Raises:
        StorageError: the folder cannot be written.

    Checked by tests/report/test_document.py.
    """
    write_atomically(Path(path), to_json(report).encode())


def read_json(path: str | Path) -> Report:
    """Read and check a report.

    Raises:
        InputError: no such file, no JSON, not a report, a report that contradicts itself (a rate whose interval is not
            that of its counts), or one of a newer schema than this version knows.

    Checked by tests/report/test_document.py.
    """
    path = Path(path)
    content = _parsed(path)
    found = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(found, str):
        raise _refusal(path, "no schema_version", "Give the report.json that a run of Shaketable wrote.")
    if _is_newer(found):
        remedy = f"Update Shaketable; this version reads schema {SCHEMA_VERSION}."
        raise InputError(str(path), f"a report of schema {SCHEMA_VERSION}", f"schema {found[:40]!r}", remedy)
    try:
        return Report.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise _refusal(path, _first(error), "Make the report again; it was edited or damaged.") from error


def same(a: Report, b: Report) -> bool:
    """Whether two reports say the same, `volatile` left aside; NaN is the same as NaN."""
    return _settled(a) == _settled(b)


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of `report.json`, made from the model; `report/schema/` holds it as a file."""
    made = Report.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:shaketable:report:1.0", **made}


def schema_text() -> str:
    """The schema as the committed file holds it."""
    return _canonical(schema())


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False, indent=2) + "\n"


def _settled(report: Report) -> str:
    return _canonical(report.model_dump(mode="json", exclude={"volatile"}))


def _parsed(path: Path) -> Any:
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise _refusal(path, f"a file of {size:,} bytes", f"No report is larger than {MAX_BYTES:,} bytes.")
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_not_json)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _refusal(path, reason, "Give the path of a report.json that can be read.") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"no JSON ({error})", "Make the report again; it was cut short or damaged.") from error


def _not_json(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _is_newer(version: str) -> bool:
    try:
        parts = [int(part) for part in version.split(".")]
    except ValueError:
        return True
    return parts > [int(part) for part in SCHEMA_VERSION.split(".")]


def _first(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "values nested too deeply"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(step) for step in first["loc"]) or "the report"
    return f"{place}: {first['msg']}"


def _refusal(path: Path, found: str, remedy: str) -> InputError:
    return InputError(str(path), "a report that Shaketable wrote", found, remedy)
