"""`torchrun -m shaketable train`: two processes, one run, one report; asked to stop, killed, and resumed by one process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shaketable import models
from shaketable.cli import main
from shaketable.report import read_json
from shaketable.runs import open_generation

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
COMMAND = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "shaketable"]
LIMIT = 120.0  # seconds; nothing here takes more than ten on a free machine
WEIGHTS = ["--weights", "awp(gamma=0.005, warmup=1)"]

linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the workers in /proc")


class Torchrun:
    """A torchrun with its workers, which it puts into sessions of their own."""

    def __init__(self, arguments: list[str], error: Path) -> None:
        self.error = error
        with error.open("wb") as stream:
            self.agent = subprocess.Popen(
                [*COMMAND, *arguments], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=stream,
                start_new_session=True,
            )  # fmt: skip

    def wait_for(self, happened: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT
        while not happened():
            assert self.agent.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.02)

    @property
    def said(self) -> str:
        return " ".join(self.error.read_text(errors="replace").split())

    @property
    def workers(self) -> dict[int, int]:
        """Rank -> process id."""
        found: dict[int, int] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == self.agent.pid:
                    words = (folder / "environ").read_bytes().split(b"\0")
                    found |= {int(word[5:]): int(folder.name) for word in words if word.startswith(b"RANK=")}
            except OSError:
                continue  # it has ended
        return found

    def end(self) -> int:
        return self.agent.wait(LIMIT)

    def clear(self) -> None:
        """Leave nothing behind, whatever failed."""
        left = [*self.workers.values(), *([self.agent.pid] if self.agent.poll() is None else [])]
        for process in left:
            os.kill(process, signal.SIGKILL)
        self.agent.wait(LIMIT)


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Callable[..., Torchrun]]:
    started: list[Torchrun] = []

    def start(*arguments: str) -> Torchrun:
        started.append(Torchrun(list(arguments), tmp_path / f"error-{len(started)}.txt"))
        return started[-1]

    yield start
    for one in started:
        one.clear()


def checkpoints(folder: Path) -> list[str]:
    """The names of a run's checkpoints; there may be none yet."""
    root = folder / "checkpoints"
    return sorted(p.name for p in root.iterdir() if not p.name.startswith(".")) if root.is_dir() else []


def test_two_processes_make_one_run_and_one_report(quick: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", *quick, *WEIGHTS, "--epochs", "2", "--accumulate", "2", "--average", "ema", "--out", str(out)]
    done = subprocess.run(
        [*COMMAND, *arguments, "--json"], env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((out / "report.json").read_text())  # one process alone prints
    report = read_json(out / "report.json")
    assert "resumed-elsewhere" not in [finding.code for finding in report.findings]
    for which in ("best", "last"):
        assert models.fingerprint(models.load(out / f"{which}.safetensors").model) == report.hashes.models[which]
    assert checkpoints(out) == ["000002-000000"]
    assert {path.name for path in out.iterdir()} == {
        "best.safetensors", "last.safetensors", "checkpoints", "config.json", "report.json", "report.html"
    }  # fmt: skip


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("verb", ["evaluate", "demo", "study", "pseudolabel", "reproduce"])
def test_other_verbs_are_refused_in_every_process(
    verb: str, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([verb, "model.safetensors"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error == (
        f"error: verb: expected train, which the processes that torchrun starts can share, found '{verb}'. "
        "Run it without torchrun."
    )


@pytest.mark.parametrize(("rank", "count"), [("0", "1"), ("", "2"), ("0", "")])
def test_they_are_not_where_one_process_runs(
    rank: str, count: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", count)
    assert main(["evaluate", "no-such-model.safetensors"]) == 2
    assert "no-such-model" in capsys.readouterr().err


@pytest.mark.full
def test_torchrun_shows_the_refusal(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "evaluate", "model.safetensors", "--out", str(tmp_path / "out")], env=ENVIRONMENT, capture_output=True,
        text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "error: verb: expected train, which the processes that torchrun starts can share" in done.stderr
    assert not (tmp_path / "out").exists()


@linux
@pytest.mark.full
def test_ctrl_c_saves_then_a_kill_ends_all_then_one_process_finishes(
    torchrun: Callable[..., Torchrun], quick: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    long = ["--epochs", "400", "--evaluate-every", "20", "--stop-after", "1"]
    arguments = ["train", *quick, *WEIGHTS, *long, "--out", str(out)]

    stopped = torchrun(*arguments, "--save-every", "2")
    stopped.wait_for(lambda: bool(checkpoints(out)))
    (before,) = checkpoints(out)
    os.killpg(stopped.agent.pid, signal.SIGINT)  # Ctrl-C: torchrun alone is in the terminal's group
    assert stopped.end() != 0
    assert stopped.said.count("go on with --resume") == 2, stopped.said  # both processes end by themselves
    (saved,) = checkpoints(out)
    assert saved > before
    assert open_generation(out / "checkpoints" / saved)

    killed = torchrun(*arguments, "--resume", "--save-every", "0")
    killed.wait_for(lambda: checkpoints(out)[-1] > saved)
    os.kill(killed.workers[1], signal.SIGKILL)
    assert killed.end() != 0
    assert "Signal 9 (SIGKILL)" in killed.said
    assert not (out / "report.json").exists()
    assert open_generation(out / "checkpoints" / checkpoints(out)[-1])

    assert main([*arguments, "--resume", "--json"]) == 0
    findings = {finding.code: finding.message for finding in read_json(out / "report.json").findings}
    assert "processes: 2, now 1" in findings["resumed-elsewhere"]
    assert models.load(out / "best.safetensors")
