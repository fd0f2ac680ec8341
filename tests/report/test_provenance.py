"""Environment, volatile section, and what importing the room costs."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import torch

from shaketable.report import Report, elapsed_since, environment, same


def test_the_environment_names_what_the_numbers_depend_on() -> None:
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert found["device"] == "cpu"
    assert found == environment()


def test_the_volatile_section_holds_time_and_host() -> None:
    started = datetime.now(UTC) - timedelta(seconds=90)
    run = elapsed_since(started, extra={"passes/s": 10.0})
    assert run.seconds is not None
    assert 90 <= run.seconds < 95
    assert run.host
    assert run.started == started.isoformat(timespec="seconds")
    fields = {"verb": "v", "title": "t", "summary": [], "verdict": "pass", "environment": environment()}
    assert same(Report(**fields, volatile=run), Report(**fields))


def test_importing_the_room_imports_no_library_for_pages_or_terminals() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import shaketable.report\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pydantic" in new
    assert not {"jinja2", "plotly", "rich", "scipy", "markupsafe"} & set(new)
