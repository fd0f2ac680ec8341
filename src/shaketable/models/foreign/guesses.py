"""Which of our architectures a file of weights looks like, from its names and shapes; a suggestion for error messages."""

import re
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]


def guess(shapes: Shapes) -> str | None:
    """A sentence's worth of guess, such as "wide_resnet(depth=28, widen=10), channels 3, classes 10", or None.

    Args:
        shapes: names and shapes, with or without prefixes.

    Checked by tests/models/foreign/test_keys.py for every architecture.
    """
    names = list(shapes)
    if any("batchnorm_0" in name for name in names):
        return "one of DeepMind's networks, whose activation is SiLU; it is not among the architectures: use module:function"
    convolutions = [shape for shape in shapes.values() if len(shape) == 4]
    matrices = [shape for name, shape in shapes.items() if len(shape) == 2 and name.endswith("weight")]
    if not matrices:
        return None
    classes = matrices[-1][0]
    if not convolutions:
        hidden = len(matrices) - 1
        width = f", width={matrices[0][0]}" if hidden else ""
        return f"mlp(depth={hidden}{width}), classes {classes}"
    tail = f", channels {convolutions[0][1]}, classes {classes}"
    groups = _groups(names)
    if any("token" in name for name in names) and any("qkv" in name for name in names):
        return f"vit(patch={convolutions[0][2]}, dim={convolutions[0][0]}, depth={_depth(names)}){tail}"
    if len(groups) == 3 and len(set(groups)) == 1 and convolutions[0][0] == 16:
        widen = max(shape[0] for shape in convolutions) // 64
        return f"wide_resnet(depth={6 * groups[0] + 4}, widen={widen}){tail}"
    if groups == [2, 2, 2, 2]:
        width = convolutions[0][0]
        post = any(re.search(r"(shortcut|downsample)\.1\.", name) for name in names)
        return f"{'resnet18' if post else 'preact_resnet18'}(width={width}){tail}"
    if len(convolutions) == 2 and len(matrices) == 2:
        return f"small_cnn(width={convolutions[0][0]}, hidden={matrices[0][0]}){tail}"
    return None


def _groups(names: list[str]) -> list[int]:
    """How many residual blocks each group has, in order, for layer1.0.… and block1.layer.0.… names."""
    blocks: dict[int, set[int]] = {}
    for name in names:
        found = re.search(r"(?:^|\.)(?:layer(\d)\.(\d+)|block(\d)\.layer\.(\d+))\.", name)
        if found and "sub_block" not in name:
            group, block = (int(part) for part in found.groups() if part is not None)
            blocks.setdefault(group, set()).add(block)
    return [len(blocks[group]) for group in sorted(blocks)]


def _depth(names: list[str]) -> int:
    numbers = {int(found.group(1)) for name in names if (found := re.search(r"blocks\.(\d+)\.", name))}
    return len(numbers)
