"""The groups of residual blocks of the ResNets, under the names that everybody's weights give them."""

from collections.abc import Callable, Iterator, Sequence

from torch import nn


def residual_groups(
    block: Callable[[int, int, int], nn.Module], inputs: int, widths: Sequence[int], counts: Sequence[int]
) -> Iterator[tuple[str, nn.Sequential]]:
    """The groups by name: `layer1`, `layer2` and so on. Each but the first halves the image in its first block.

    Args:
        block: (channels in, channels out, stride) -> the block.
        inputs: channels of the stem.
        widths: channels of each group.
        counts: blocks of each group.

    Checked by tests/models/test_architectures.py (counts) and tests/models/foreign/test_state_dict.py.
    """
    for index, (outputs, count) in enumerate(zip(widths, counts, strict=True)):
        group = nn.Sequential()
        for place in range(count):
            group.append(block(inputs, outputs, 2 if index and not place else 1))
            inputs = outputs
        yield f"layer{index + 1}", group
