"""`Joint`: a dict of constraints over a dict of origins."""

import pytest
import torch

from shaketable import core as st
from shaketable.core.constraint import constraint

ORIGIN = {"x": torch.full((3, 4), 0.5), "w": {"a": torch.ones(2, 2), "b": torch.ones(3)}}
BALLS = {"x": st.Ball("linf", 0.1, box=(0, 1)), "w": st.Ball("l2", 0.5, per="tensor", relative=True)}


def test_each_part_has_its_own_constraint() -> None:
    joint = constraint(BALLS).on(ORIGIN)
    far = {"x": torch.full((3, 4), 9.0), "w": {"a": torch.ones(2, 2), "b": -torch.ones(3)}}
    found = joint.project(far, ORIGIN)
    assert torch.equal(found["x"], BALLS["x"].project(far["x"], ORIGIN["x"]))
    assert all(torch.equal(found["w"][k], v) for k, v in BALLS["w"].project(far["w"], ORIGIN["w"]).items())
    assert joint.clip(far)["x"].max() == 1
    assert joint.clip(far)["w"] is far["w"]
    steepest = joint.steepest(far, ORIGIN, found)
    assert torch.equal(steepest["x"], torch.ones(3, 4))
    assert torch.allclose(steepest["w"]["b"], -torch.ones(3) / 3**0.5)
    assert joint.reach(ORIGIN)["x"] == 0.1
    assert torch.allclose(joint.reach(ORIGIN)["w"]["a"], torch.tensor(1.0))
    size = joint.size(found, ORIGIN)
    assert torch.allclose(size["x"], torch.full((3,), 0.1))
    assert torch.allclose(size["w"]["a"], torch.tensor([0.5]))


def test_samples_are_drawn_in_the_order_of_the_names() -> None:
    joint = constraint(BALLS).on(ORIGIN)
    found, source = joint.sample(ORIGIN, st.generator(0)), st.generator(0)
    assert torch.equal(found["x"], BALLS["x"].sample(ORIGIN["x"], source))
    assert torch.equal(found["w"]["b"], BALLS["w"].sample(ORIGIN["w"], source)["b"])


def test_rowwise_only_if_every_part_is() -> None:
    assert not constraint(BALLS).rowwise
    two = constraint({"a": st.Ball("linf", torch.tensor([0.1, 0.2, 0.3])), "b": st.Ball("l2", 1)})
    assert two.rowwise
    part = two.rows(torch.tensor([2]))
    ones = {"a": torch.ones(1, 2), "b": torch.ones(1, 2)}
    assert torch.allclose(part.project(ones, ones)["a"], torch.full((1, 2), 0.3))


def test_a_rowwise_joint_place_drops_finished_examples_of_every_part() -> None:
    class Objective:
        stops = True

        def judge(self, point: dict[str, torch.Tensor], rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
            assert len(point["a"]) == len(point["b"])
            value = (point["a"] * goal[slice(None) if rows is None else rows]).sum(1) + point["b"].sum(1)
            return value, value > 0.9

        def __call__(self, point: dict[str, torch.Tensor], rows: torch.Tensor | None) -> torch.Tensor:
            return self.judge(point, rows)[0]

    goal = torch.tensor([[1.0, 0], [0.1, 0], [-3, 1]])
    origin = {"a": torch.zeros(3, 2), "b": torch.zeros(3, 1)}
    found = st.perturb(Objective(), origin, {"a": st.Ball("linf", 0.5), "b": st.Ball("l2", 0.4)}, by=st.PGD(4))
    assert found.flags.stopped.tolist() == [False, False, True]
    assert found.value is not None
    assert found.value.tolist() == pytest.approx([0.9, 0.45, 1.2], rel=1e-5)
    assert found.calls == st.Calls(2 * 5 + 3, 2 * 4 + 3)


@pytest.mark.parametrize("origin", [torch.ones(2, 2), {"x": torch.ones(2, 2)}, {"x": ORIGIN["x"], "v": ORIGIN["w"]}])
def test_other_names_are_an_error(origin: object) -> None:
    with pytest.raises(st.InputError, match="within: expected a constraint for each origin"):
        constraint(BALLS).on(origin)


@pytest.mark.parametrize("within", [None, 0.1, "linf", [st.Ball("linf", 0.1)], {"x": 3}])
def test_what_is_no_constraint_is_an_error(within: object) -> None:
    with pytest.raises(st.InputError, match="within: expected a Ball"):
        constraint(within)
