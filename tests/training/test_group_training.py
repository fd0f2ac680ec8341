"""Two processes that train as one: real ones, over gloo, against the same training in a single process."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shaketable.training import Alone

FILE = Path(__file__).with_name("group_training.py")
LOSSES = ("at", "trades", "mart")
PERTURBATIONS = ("none", "awp", "awp shared", "awp three steps", "sam", "rwp")
Ask = Callable[..., list[dict[str, Any]]]
Pair = Callable[..., tuple[Any, Any]]


@pytest.fixture(scope="module")
def tasks() -> ModuleType:
    """The tasks of group_training.py, to be done in this process."""
    spec = importlib.util.spec_from_file_location("group_training", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["group_training"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Has two processes do a task together: how each ended, and with what."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [sys.executable, str(FILE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        requests, answers = server.stdin, server.stdout

        def ask(task: str, **given: Any) -> list[dict[str, Any]]:
            folder = tmp_path_factory.mktemp("group")
            requests.write(json.dumps({"task": task, "given": given, "folder": str(folder), "limit": 200.0}) + "\n")
            requests.flush()
            line = answers.readline()
            assert line, "the server has died"
            found = json.loads(line)
            assert not any(process["hung"] for process in found), found
            for rank, process in enumerate(found):
                if "error" not in process:
                    process["value"] = torch.load(folder / f"{rank}.pt", weights_only=True)
            return found

        yield ask
        requests.close()
        server.wait(timeout=60)


@pytest.fixture
def pair(ask: Ask) -> Pair:
    """What two processes returned."""

    def pair(task: str, **given: Any) -> tuple[Any, Any]:
        first, second = ask(task, **given)
        assert "value" in first, first
        assert "value" in second, second
        return first["value"], second["value"]

    return pair


def require_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """To the bit."""
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two entries."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


# --- Steps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "weights"),
    [
        pytest.param(loss, weights, marks=() if (i + j) % len(LOSSES) == 0 else pytest.mark.full)
        for i, loss in enumerate(LOSSES)
        for j, weights in enumerate(PERTURBATIONS)
    ],
)
def test_twenty_steps_are_those_of_one_process(loss: str, weights: str, pair: Pair, tasks: ModuleType) -> None:
    """In float64 to 1e-10, with momentum, weight decay and clipped gradients; batches of 1 to 8, whole or in two parts."""
    case = {"loss": loss, "weights": weights, "clip_gradient": 1.0, "accumulate": (1, 2)}
    if PERTURBATIONS.index(weights) % 2 == LOSSES.index(loss) % 2:
        case |= {"norm": "group", "decay_at": "restored"}
    (one,), ((first,), (second,)) = tasks.steps(Alone(), {"cases": [case]}), pair("steps", cases=[case])
    require_same(first["left"], second["left"])
    assert distance(first["left"], one["left"]) < 1e-10
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-10)
    assert first["silent"] == second["silent"] == one["silent"]
    (begun,) = tasks.steps(Alone(), {"cases": [case | {"sizes": [2]}]})
    assert distance(begun["left"], one["left"]) > 0.01  # they have come far


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_in_float32_on_given_points_is_that_of_one_process(loss: str, pair: Pair, tasks: ModuleType) -> None:
    """To 1e-6; steps that follow may turn a sign of the attack, so they are compared in float64."""
    cases = [
        {"loss": loss, "weights": weights, "by": by, "dtype": "float32", "sizes": [7], "accumulate": parts}
        for weights in PERTURBATIONS
        for by, parts in (("given", (1,)), ("start", (2,)))
        if weights != "awp shared"  # which needs an attack
    ]
    alone, found = tasks.steps(Alone(), {"cases": cases}), pair("steps", cases=cases)
    for one, first, second in zip(alone, *found, strict=True):
        require_same(first["left"], second["left"])
        assert (
            distance(*({n: t for n, t in end["left"].items() if n.startswith("/model/")} for end in (first, one)))
            < 1e-6
        )
        assert first["losses"] == pytest.approx(one["losses"], rel=1e-6)


def test_lower_precisions_end_the_same_in_both_processes(pair: Pair, tasks: ModuleType) -> None:
    """And near one process; process 1 has no example at first, so that its scaler has scaled nothing."""
    common = {"weights": "awp", "by": "given", "dtype": "float32", "sizes": [1, 5, 4]}
    cases = [common | {"precision": precision} for precision in ("bfloat16", "float16")]
    alone, found = tasks.steps(Alone(), {"cases": cases}), pair("steps", cases=cases)
    for one, first, second in zip(alone, *found, strict=True):
        require_same(first["left"], second["left"])
        assert first["skipped"] == second["skipped"] == one["skipped"] == 0
        assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=0.05)


def test_labels_and_early_stopping_attacks_are_those_of_one_process(pair: Pair, tasks: ModuleType) -> None:
    cases = [
        {"labels": {"noise": 0.5, "smoothing": 0.2}},
        {"loss": "trades", "weights": "awp", "labels": {"noise": 0.5}, "accumulate": (2,)},
        {"loss": "mart", "labels": {"smoothing": 0.3, "attack": "predicted"}},
        {"weights": "awp", "labels": {"attack": "predicted", "ignore_incorrect": True}, "accumulate": (2,)},
        {"weights": "sam", "by": "friendly"},
        {"by": "friendly", "accumulate": (2,), "clip_weights": 0.5},
    ]
    cases = [case | {"sizes": [7, 1, 6, 3, 5, 2]} for case in cases]
    alone, found = tasks.steps(Alone(), {"cases": cases}), pair("steps", cases=cases)
    for one, first, second in zip(alone, *found, strict=True):
        require_same(first["left"], second["left"])
        assert distance(first["left"], one["left"]) < 1e-10
    ends = [one["left"] for one in alone]
    assert min(distance(a, b) for i, a in enumerate(ends) for b in ends[:i]) > 1e-3  # each option has its effect


def test_what_parts_of_the_batch_or_one_process_alone_would_do_is_told_apart(tasks: ModuleType) -> None:
    """The comparisons above can fail: the first half of each batch alone ends elsewhere."""
    one, half = tasks.steps(Alone(), {"cases": [{"weights": "awp", "sizes": [n, n]} for n in (8, 4)]})
    assert distance(one["left"], half["left"]) > 1e-4


def test_a_parameter_that_no_example_uses_keeps_no_gradient(pair: Pair, tasks: ModuleType) -> None:
    """And one that the examples of one process alone use has the same gradient in both."""
    alone, found = tasks.branches(Alone(), {}), pair("branches")
    for one, first, second in zip(alone, *found, strict=True):
        assert first["used"] == second["used"] == one["used"]
        require_same(first["left"], second["left"])
        assert distance(first["left"], one["left"]) < 1e-12
    assert not any("never" in name for name in alone[0]["used"])
    assert [any("bright" in name for name in one["used"]) for one in alone] == [True, False]


# --- BatchNorm -----------------------------------------------------------------------------------------------------------


def test_with_batchnorm_the_processes_end_the_same_and_count_passes_once(pair: Pair) -> None:
    cases: list[Any] = [
        {"loss": loss, "weights": "awp", "norm": "batch", "accumulate": (parts,), "batch_norm": policy, "sizes": [7, 4, 5, 6]}
        for loss in ("at", "trades", "rotation")
        for parts in (1, 2)
        for policy in ("once", "authors")
    ]  # fmt: skip
    first, second = pair("steps", cases=cases)
    for case, a, b in zip(cases, first, second, strict=True):
        require_same(a["left"], b["left"])
        passes = {"at": 1, "trades": 2, "rotation": 2}[case["loss"]]
        if case["batch_norm"] == "authors":  # the attack's two passes as well, and one after the step
            passes = {"at": 2 + 1 + 1, "trades": 2, "rotation": 2 * 2 + 2 + 1}[case["loss"]]
        counts = {int(t) for name, t in a["left"].items() if "num_batches" in name}
        assert counts == {4 * passes * case["accumulate"][0]}, case


def test_batchnorm_statistics_are_the_mean_over_the_processes_by_their_examples(pair: Pair, tasks: ModuleType) -> None:
    (found,), _ = pair("steps", cases=[{"norm": "batch", "by": "given", "sizes": [7]}])
    (x, _), sides = tasks.batch(7, 0), list[Any]()
    adversarial = (x + 0.05 * torch.sign(torch.sin(1000 * x))).clamp(0, 1)
    for rows in (slice(0, 4), slice(4, 7)):
        model = tasks.network("batch")
        model(adversarial[rows])
        sides.append(model.state_dict())
    for name in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
        expected = sides[0][name] * 4 / 7 + sides[1][name] * 3 / 7
        torch.testing.assert_close(found["left"][f"/model/{name}"], expected, rtol=1e-12, atol=1e-12)


def test_statistics_that_nothing_moves_keep_their_bits(pair: Pair) -> None:
    """Also where the processes have unequal shares, whose sum is 1 but for rounding."""
    for found in pair("frozen"):
        for name, before in found[0]["before"].items():
            assert torch.equal(found[0]["after"][f"/model/{name}"], before), name
        for name, before in found[1]["before"].items():  # the second layer alone is in eval mode
            assert torch.equal(found[1]["after"][f"/model/{name}"], before) == name.startswith("4."), name


# --- Each process its own v ----------------------------------------------------------------------------------------------


def test_local_weight_perturbations_are_each_process_own(pair: Pair, tasks: ModuleType) -> None:
    """w - rate (sum over processes of share * gradient at w + v of its rows, + decay w), v = gamma ||w|| g / ||g||."""
    first, second = pair("local")
    for key in ("local", "global"):
        require_same(first[key], second[key])
    assert distance(first["local"], first["global"]) > 1e-4
    said = 'InputError: decay_at: expected "restored" with sync="local", found "perturbed". Set decay_at="restored"'
    assert first["said"].startswith(said)
    assert second["said"] == first["said"]
    (x, y), model = tasks.batch(7, 0), tasks.network("group")
    total = {name: 0.1 * p.detach() for name, p in model.named_parameters()}
    for rows in (slice(0, 4), slice(4, 7)):
        shaken = copy.deepcopy(model)
        own = dict(shaken.named_parameters())
        slopes = torch.autograd.grad(F.cross_entropy(shaken(x[rows]), y[rows]), list(own.values()))
        with torch.no_grad():
            for p, g in zip(own.values(), slopes, strict=True):
                if p.dim() > 1:
                    p.add_(0.3 * p.norm() * g / g.norm())
        slopes = torch.autograd.grad(F.cross_entropy(shaken(x[rows]), y[rows]), list(own.values()))
        for name, g in zip(own, slopes, strict=True):
            total[name] = total[name] + len(x[rows]) / 7 * g
    for name, p in model.named_parameters():
        expected = p.detach() - 0.5 * total[name]
        torch.testing.assert_close(first["local"][f"/model/{name}"], expected, rtol=1e-10, atol=1e-10)


# --- Wrappers and errors -------------------------------------------------------------------------------------------------


def test_a_wrapped_model_is_refused_alone_and_unwrapped_in_a_group(pair: Pair) -> None:
    for found in pair("parallel"):
        assert len(found["said"]) == 2  # also where the wrapper is inside another one
        for said in found["said"]:
            assert said.startswith("InputError: model: expected a bare module, found a DistributedDataParallel.")
            assert "processes=st.training.Group()" in said
        require_same(found["wrapped"], found["bare"])
        require_same(found["fitted True"], found["fitted False"])
        assert found["unwrapped True"]


BROKEN = [
    {"how": how, "rows": rows, "weights": weights, "n": n}
    for how, rows, n in (
        ("logits", [4], 5),  # one example of process 1
        ("logits", [3, 4], 5),  # all of them: its attack sees no gradient
        ("logits", [0], 1),  # process 1 has no example
        ("gradient", [4], 5),  # the loss is finite, its gradient is not
        ("weights", [], 5),
        ("weights", [], 1),
    )
    for weights in ("none", "awp", "awp shared", "awp local")
]


def test_what_is_not_finite_in_one_process_is_a_divergence_in_both(pair: Pair) -> None:
    """The processes stay in step: all cases are in one group, one after the other."""
    for found in pair("broken", cases=BROKEN):
        for case, end in zip(BROKEN, found, strict=True):
            what = ("gradient", "NaN or infinite entries") if case["how"] == "gradient" else ("loss", "nan")
            assert end["said"].startswith(f"DivergenceError: {what[0]}: expected a finite number, found {what[1]}"), (
                case
            )
            assert end["stayed"], case


def test_images_that_are_not_finite_end_both_processes(ask: Ask) -> None:
    other, failed = ask("white_noise")
    assert failed["error"] == "InputError"
    assert failed["text"].startswith("origin: expected finite values")
    assert other["error"] == "ProcessError"
    assert "see its own error" in other["text"]
    assert max(other["seconds"], failed["seconds"]) < 20


def test_weights_that_have_parted_end_the_training_at_the_epoch(ask: Ask) -> None:
    for process in ask("apart"):
        assert process["error"] == "UnequalError"
        assert "1 of 6 tensors that differ in processes [1] from process 0: ['0.bias']" in process["text"]


# --- Trainings -----------------------------------------------------------------------------------------------------------


def test_trainings_are_those_of_one_process(pair: Pair, tasks: ModuleType) -> None:
    cases = [
        {"loss": "rst", "weights": "none", "unlabelled": True, "average": "ema"},
        {"loss": "rst", "weights": "awp", "unlabelled": True, "accumulate": 2},
        {"loss": "at", "weights": "awp", "average": "swa", "labels": {"noise": 0.3, "smoothing": 0.1}, "accumulate": 2},
        {"loss": "trades", "weights": "awp", "optimiser": "adam", "labels": {"ignore_incorrect": True}},
        {"loss": "mart", "weights": "sam", "optimiser": "entropy_sgd", "batch_size": 1},  # process 1 does nothing
    ]
    alone, found = tasks.fitted(Alone(), {"cases": cases}), pair("fitted", cases=cases)
    for one, first, second in zip(alone, *found, strict=True):
        require_same(first["left"], second["left"])
        assert distance(first["left"], one["left"]) < 1e-10
        assert first["records"] == second["records"]
        for record, expected in zip(first["records"], one["records"], strict=True):
            assert record == pytest.approx(expected, rel=1e-9)
        assert first["silent"] == second["silent"] == one["silent"]
    assert any(name.startswith("/average/") for name in alone[0]["left"])
    assert any(name.startswith("/average/") for name in alone[2]["left"])


def test_processes_that_normalise_or_drop_by_themselves_end_the_same(pair: Pair) -> None:
    """BatchNorm, dropout, and rotations that count within a part: not as one process, but the same in all."""
    cases = [
        {"loss": "at", "weights": "awp", "norm": "batch", "average": "ema", "accumulate": 2},
        {"loss": "trades", "weights": "awp", "norm": "batch", "average": "swa", "batch_norm": "frozen"},
        {"loss": "at", "weights": "awp local", "norm": "dropout", "decay_at": "restored", "average": "ema"},
        {"loss": "rotation", "weights": "awp", "norm": "batch", "precision": "bfloat16"},
    ]
    for a, b in zip(*pair("fitted", cases=cases), strict=True):
        require_same(a["left"], b["left"])
        assert a["records"] == b["records"]


# --- Evaluations ---------------------------------------------------------------------------------------------------------


def test_shared_evaluations_are_those_of_one_process_to_the_bit(pair: Pair, tasks: ModuleType) -> None:
    """Learning curves and `attacks.evaluate`, of several batches and of fewer than there are processes."""
    alone, found = tasks.evaluated(Alone(), {}), pair("evaluated")
    for shared in found:
        assert shared.keys() == alone.keys()
        for key, expected in alone.items():
            if key.startswith("progress"):
                continue
            if not isinstance(expected, dict) or "tensors" not in expected:
                assert shared[key] == expected, key
                continue
            require_same(shared[key]["tensors"], expected["tensors"])
            assert {k: v for k, v in shared[key].items() if k != "tensors"} == {
                k: v for k, v in expected.items() if k != "tensors"
            }, key
    assert alone["untouched"]
    assert "4 images gave NaN" in alone["findings"][0]
    for key in (key for key in alone if key.startswith("progress")):  # each process has its own part of the batches
        assert sorted(found[0][key] + found[1][key]) == sorted(alone[key])
        assert len(found[0][key]) - len(found[1][key]) in (0, 1)
