"""A step with few temporaries is the step that the ball's own methods make."""

import pytest
import torch
from torch import Tensor

import shaketable as st
from shaketable.core.moves import moved
from shaketable.core.tree import map_leaves

BALLS = {
    "linf, box": st.Ball("linf", 0.1, box=(0, 1)),
    "linf, radii": st.Ball("linf", torch.tensor([0.05, 0.1, 0.2]), box=(0, 1)),
    "linf, relative": st.Ball("linf", 0.1, per="tensor", relative=True),
    "linf, mask": st.Ball("linf", 0.1, box=(0, 1), mask=torch.tensor([1, 0, 1, 1])),
    "l2, box": st.Ball("l2", 0.5, box=(0, 1)),
    "l2, tensor": st.Ball("l2", 0.1, per="tensor", relative=True),
    "l2, filter": st.Ball("l2", 0.1, per="filter", relative=True),
    "l2, all": st.Ball("l2", 0.1, per="all"),
    "l1": st.Ball("l1", 1.0, box=(0, 1)),
    "l0": st.Ball("l0", 2, box=(0, 1)),
}


def composed(ball: st.Ball, x: Tensor, delta: Tensor, gradient: Tensor, step: float) -> Tensor:
    """By the definition."""
    direction = ball.steepest(gradient.nan_to_num(0.0, 0.0, 0.0), x, delta)
    return ball.project(map_leaves(lambda d, s, r: d + step * r * s, delta, direction, ball.reach(x)), x)


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("gradients", ["ordinary", "tiny", "zero rows", "not finite"])
@pytest.mark.parametrize("step", [0.25, 1.0, 3.0])
def test_a_step_is_the_composition_of_the_balls_methods(name: str, gradients: str, step: float) -> None:
    draw = st.generator(0, name, gradients)
    x, g = torch.rand(3, 2, 5, 4, generator=draw), torch.randn(3, 2, 5, 4, generator=draw)
    if gradients == "tiny":
        g *= 1e-25
    elif gradients == "zero rows":
        g[1] = 0
    elif gradients == "not finite":
        g[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    ball = BALLS[name].on(x)
    before = g.clone()
    for delta, first in ((torch.zeros_like(x), step <= 1), (ball.sample(x, draw), False)):
        assert isinstance(delta, Tensor)
        found = moved(ball, x, delta, g, step, ball.reach(x), first=first)
        wanted = composed(ball, x, delta, g, step)
        assert isinstance(found, Tensor)
        if first and name in ("l2, tensor", "l2, filter"):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-12)
        else:
            assert torch.equal(found, wanted)
        assert torch.equal(g.nan_to_num(7.0), before.nan_to_num(7.0))  # nothing of the caller's is written on


def test_a_tensor_without_gradient_stays_beside_one_that_has_some() -> None:
    w = {"a": torch.ones(3, 2), "b": torch.ones(4, 2)}
    ball = st.Ball("l2", 0.1, per="tensor", relative=True).on(w)
    nought = {name: torch.zeros_like(t) for name, t in w.items()}
    slopes = {"a": torch.zeros(3, 2), "b": torch.full((4, 2), 3.0)}
    found = moved(ball, w, nought, slopes, 1.0, ball.reach(w), first=True)
    assert isinstance(found, dict)
    assert torch.equal(found["a"], torch.zeros(3, 2))
    torch.testing.assert_close(found["b"], torch.full((4, 2), 0.1))
