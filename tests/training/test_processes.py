"""The processes of a training: two real ones over gloo, one alone, and a group of one."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from shaketable.core import ConfigError, InputError
from shaketable.training import joining
from shaketable.training.joining import joined
from shaketable.training.processes import Alone, Group, ProcessError, Processes, UnequalError

FILE = Path(__file__).with_name("two_processes.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
HERE = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def two() -> Iterator[Ask]:
    """Has two processes do a task of two_processes.py together: what each returned, raised or ended by."""
    with subprocess.Popen(
        [sys.executable, str(FILE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        requests, answers = server.stdin, server.stdout

        def ask(task: str, **request: Any) -> list[dict[str, Any]]:
            requests.write(json.dumps({"task": task} | request) + "\n")
            requests.flush()
            line = answers.readline()
            assert line, "the server has died"
            found = json.loads(line)
            assert not any(process["hung"] for process in found), found
            return found

        yield ask
        requests.close()
        server.wait(timeout=60)


def values(found: list[dict[str, Any]]) -> list[Any]:
    assert all("value" in process for process in found), found
    return [process["value"] for process in found]


@pytest.fixture(scope="module")
def tasks() -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("two_processes", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_add_sums_exactly_in_place_with_one_all_reduce_for_each_dtype(two: Ask, tasks: Any) -> None:
    first, second = values(two("add"))
    a, b = tasks.to_add(0), tasks.to_add(1)
    assert first["reduced"] == ["torch.float32", "torch.float64", "torch.bfloat16", "torch.int64"]
    assert first == second
    assert first["in place"]
    for name in a:
        assert first["after"][name] == (a[name] + b[name]).double().tolist(), name


def test_any_is_so_in_any_process(two: Ask) -> None:
    pairs = [(False, False), (False, True), (True, False), (True, True), (False, False)]
    assert values(two("flags", given={"flags": pairs})) == [[False, True, True, True, False]] * 2


def test_same_tensors_pass_and_others_are_named_in_all_processes(two: Ask) -> None:
    said, other = values(two("same"))
    assert said == other
    assert said[:3] == ["", "", ""]
    zero, shape, dtype, bits, name = said[3:]
    start = "UnequalError: weights: expected the same bits in all 2 processes, found "
    assert all(text.startswith(start) and "--resume" in text for text in said[3:])
    assert "1 of 3 tensors that differ in processes [1] from process 0: ['a']" in zero
    assert "['b']" in shape
    assert "['b']" in dtype
    assert "2 of 3 tensors that differ in processes [1] from process 0: ['a', 'c']" in bits
    assert "1 of 4 tensors that differ in processes [1] from process 0: ['d']" in name


def test_gather_is_in_order_of_rank_whatever_the_lengths(two: Ask, tasks: Any) -> None:
    sent = [{"loss": 0.1, "names": ["ä", "b" * 1000]}, {"none": None, "deep": [[1, True], {"x": -1e-300}]}]
    first, second = values(two("gathered", given={"values": sent}))
    assert first == second
    assert first["values"] == sent
    assert first["scalars"] == [2.5, 3.5]
    for name, dtype in tasks.DTYPES.items():
        for lengths in ((3, 5), (4, 0), (0, 0)):
            for rank, (kind, shape, grad, rows) in enumerate(first[f"{name} {lengths}"]):
                wanted = torch.arange(10 * lengths[rank]).reshape(-1, 2, 5) + 100 * rank
                assert (kind, shape, grad) == (str(dtype), [lengths[rank], 2, 5], False)
                assert rows == wanted.to(dtype).double().tolist()


def test_values_that_are_not_finite_are_gathered(two: Ask) -> None:
    found = values(two("gathered", given={"values": [[math.nan, math.inf], [-math.inf]]}))[0]["values"]
    assert math.isnan(found[0][0])
    assert found[0][1:] + found[1] == [math.inf, -math.inf]


def test_what_cannot_be_gathered_is_an_error_in_all_processes_and_they_go_on(two: Ask) -> None:
    said, other = values(two("unlike"))
    assert said == other
    kind, dtype, shape, dims, *unsent = said
    assert "InputError: value: expected the same kind in all processes, found a value and torch.float32" in kind
    assert "torch.float32 of shape (n, *[]) and torch.float64" in dtype
    assert "(n, *[3]) and torch.float32 of shape (n, *[4])" in shape
    assert "InputError" in dims
    assert all(text.startswith("InputError: value: expected a tensor, or what JSON holds") for text in unsent)


@pytest.mark.parametrize("call", ["add", "any", "require_same", "barrier", "gather"])
def test_a_killed_process_ends_the_other_with_an_error_within_seconds(two: Ask, call: str) -> None:
    alive, dead = two("deserted", given={"call": call, "way": "killed"}, environment=HERE)
    assert dead["killed"]
    assert alive["error"] == ProcessError.__name__
    assert "processes: expected an answer from all 2 processes, found " in alive["text"]
    assert "--resume" in alive["text"]
    assert "GLHF" not in alive["text"]
    assert alive["cause"] in ("RuntimeError", "DistBackendError")
    assert alive["left"] < 10
    assert not alive["initialised"]


def test_a_process_that_raises_keeps_its_own_error_and_ends_the_other(two: Ask) -> None:
    alive, failed = two("deserted", given={"call": "add", "way": "raises"}, environment=HERE)
    assert (failed["error"], failed["text"]) == ("ArithmeticError", "of process 1 itself")
    assert alive["error"] == "ProcessError"
    assert alive["left"] < 10
    assert not failed["initialised"]


def test_a_process_that_does_not_answer_is_given_up_after_the_timeout(two: Ask) -> None:
    found = two("deserted", given={"call": "any", "way": "silent"}, environment=HERE, timeout=2.0)
    assert found[0]["error"] == "ProcessError"
    assert "Timed out" in found[0]["text"]
    assert 1.9 < found[0]["seconds"] < 10
    assert found[1]["value"] == "waited"


def test_joined_is_a_group_that_is_given_up(two: Ask) -> None:
    found = two("who", environment=HERE)
    assert values(found) == [[0, 2], [1, 2]]
    assert not any(process["initialised"] for process in found)


def test_a_process_that_never_comes_is_an_error(two: Ask) -> None:
    (alone,) = two("who", environment=HERE, started=1, timeout=0.5)
    assert alone["error"] == "ProcessError"
    assert 0.4 < alone["left"] < 10
    assert not alone["initialised"]


@pytest.mark.full
def test_torchrun_starts_a_group(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, str(FILE), str(tmp_path)], env=ENVIRONMENT, check=True, timeout=120, capture_output=True)
    for rank in (0, 1):
        wanted = {"rank": rank, "count": 2, "sum": 3.0, "all": [[0], [1]], "initialised": False}
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == wanted


@pytest.fixture(params=["alone", "group of one"])
def one(request: pytest.FixtureRequest) -> Iterator[Processes]:
    if request.param == "alone":
        yield Alone()
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Group()
    dist.destroy_process_group()


def test_one_process_hears_itself(one: Processes) -> None:
    assert (one.rank, one.count) == (0, 1)
    x = torch.tensor([1.5, 2])
    one.add([x])
    assert x.tolist() == [1.5, 2]
    assert [one.any(True), one.any(False)] == [True, False]
    one.require_same("x", {"x": x})
    one.barrier()
    (copy,) = one.gather(x.requires_grad_())
    assert torch.equal(copy, x)
    assert not copy.requires_grad
    assert copy.data_ptr() != x.data_ptr()
    sent = {"a": [1, None]}
    assert one.gather(sent) == [sent]
    assert one.gather(sent)[0] is not sent


@pytest.mark.parametrize(
    "tensor", [torch.ones(2, dtype=torch.bool), torch.ones(2, dtype=torch.int16), torch.eye(2).to_sparse()]
)
def test_tensors_that_cannot_be_added_are_an_error(one: Processes, tensor: torch.Tensor) -> None:
    with pytest.raises(InputError, match="tensors: expected dense tensors of floats"):
        one.add([torch.ones(1), tensor])


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, [{"a": {1}}], b"x", 1j, torch.float32, [torch.ones(1)]])
def test_values_that_json_would_change_are_an_error(one: Processes, value: Any) -> None:
    with pytest.raises(InputError, match="value: expected a tensor, or what JSON holds"):
        one.gather(value)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@settings(max_examples=30, deadline=None)
@given(st.recursive(PLAIN, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=8))
def test_json_comes_back_as_it_was(value: Any) -> None:
    (back,) = Alone().gather(value)
    assert back == value
    assert repr(back) == repr(value)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    def put(given: dict[str, str]) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    "variables", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"LOCAL_RANK": "0"}, {"WORLD_SIZE": ""}]
)
@pytest.mark.parametrize("device", ["cpu", "cuda:1", torch.device("meta")])
def test_without_torchrun_a_process_is_alone(environment: Any, variables: dict[str, str], device: Any) -> None:
    environment(variables)
    with joined(device) as processes:
        assert isinstance(processes, Alone)
        assert not dist.is_initialized()


WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"WORLD_SIZE": None}, "WORLD_SIZE: expected the number of processes, found RANK=0 without it"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number from 1, found 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: expected a whole number from 1, found '0'"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE: expected a whole number from 1, found '-2'"),
        ({"RANK": None}, "RANK: expected a whole number from 0 to 1, found nothing"),
        ({"RANK": "2"}, "RANK: expected a whole number from 0 to 1, found '2'"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK: expected a whole number from 0 to 0, found '1'"),
        ({"RANK": "0.5"}, "RANK: expected a whole number"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR: expected the host of process 0, found nothing"),
        ({"MASTER_PORT": None}, "MASTER_PORT: expected a whole number from 0 to 65535, found nothing"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT: expected a whole number from 0 to 65535"),
    ],
)
def test_half_an_environment_is_an_error(environment: Any, change: dict[str, str | None], message: str) -> None:
    environment({name: value for name, value in (WHOLE | change).items() if value is not None})
    with pytest.raises(ConfigError, match="torchrun") as caught, joined("cpu"):
        pass
    assert str(caught.value).startswith(message)
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("device", "timeout", "message"),
    [
        ("meta", 600, "device: expected 'cpu' or 'cuda' for several processes, found meta"),
        ("cuda:0", 600, "device: expected 'cpu' or 'cuda' for several processes, found cuda:0"),
        ("gpu", 600, "device: expected 'cpu' or 'cuda', found 'gpu'"),
        ("cpu", 0, "timeout: expected a number of seconds > 0"),
        ("cpu", math.inf, "timeout: expected a number of seconds > 0"),
    ],
)
def test_a_device_or_timeout_that_cannot_be_is_an_error(
    environment: Any, device: str, timeout: float, message: str
) -> None:
    environment(WHOLE)
    with pytest.raises(InputError, match=message), joined(device, timeout=timeout):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without CUDA")
def test_cuda_that_is_not_there_is_an_error(environment: Any) -> None:
    environment(WHOLE)
    with pytest.raises(InputError, match="device: expected a machine with CUDA"), joined("cuda"):
        pass


@pytest.mark.parametrize(
    ("local", "message"),
    [
        (None, "LOCAL_RANK: expected a whole number from 0 to 1, found nothing"),
        ("2", "LOCAL_RANK: expected a whole number from 0 to 1, found '2'"),
        ("1", "LOCAL_RANK: expected a CUDA device for each process, found device 1 of 1"),
    ],
)
def test_more_processes_than_cuda_devices_are_an_error(
    environment: Any, monkeypatch: pytest.MonkeyPatch, local: str | None, message: str
) -> None:
    """As on a machine with one CUDA device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    environment({name: value for name, value in (WHOLE | {"LOCAL_RANK": local}).items() if value is not None})
    with pytest.raises(ConfigError) as caught, joined("cuda"):
        pass
    assert str(caught.value).startswith(message)


def test_a_group_that_is_there_is_used_and_left_alone() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with joined("cpu") as processes:
            assert isinstance(processes, Group)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_a_group_without_a_process_group_is_an_error() -> None:
    with pytest.raises(InputError, match="group: expected a process group that has been initialised"):
        Group()


@pytest.mark.parametrize("leaves", ["hangs", "raises"])
def test_leaving_does_not_wait_for_the_dead(monkeypatch: pytest.MonkeyPatch, leaves: str) -> None:
    """As NCCL may; gloo never does."""
    free = threading.Event()

    def destroy() -> None:
        if leaves == "raises":
            raise RuntimeError("a peer is dead")
        free.wait(20)

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", destroy)
    began = time.monotonic()
    joining._leave(0.2)
    assert time.monotonic() - began < 5
    free.set()


def test_the_errors_are_told_apart() -> None:
    assert issubclass(UnequalError, ProcessError)
    assert issubclass(ProcessError, ValueError)
