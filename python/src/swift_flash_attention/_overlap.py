"""Whether memory is shared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """Where an array lies; strides in elements, sizes in bytes."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    element_size: int

    @property
    def reach(self) -> tuple[int, int]:
        """The first byte, and the one behind the last."""
        if 0 in self.shape:
            return 0, 0
        steps = [(extent - 1) * stride * self.element_size for extent, stride in zip(self.shape, self.strides)]
        return (
            self.pointer + sum(step for step in steps if step < 0),
            self.pointer + sum(step for step in steps if step > 0) + self.element_size)


def check_written(name: str, own: Place, others: Iterable[tuple[str, Place]] = ()) -> None:
    """Whether each element of what is written has memory of its own.

    Args:
        others: What is read meanwhile, by name.

    Raises:
        ValueError: With what it shares memory.
    """
    if 0 in own.shape:
        return
    if overlaps_itself(own.shape, own.strides):
        raise ValueError(f"{name} has the strides {own.strides}, so that its elements share memory; give memory of its own.")
    first, last = own.reach
    for other, x in others:
        begin, end = x.reach
        # Parts of one packed array lie between each other, with the same strides.
        if first < end and begin < last and (x.pointer == own.pointer or x.strides != own.strides):
            raise ValueError(f"{name} shares memory with {other}, which is read while {name} is written; give memory of its own.")


def overlaps_itself(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements of a tensor may share memory."""
    reach = 1
    for stride, extent in sorted((abs(stride), extent) for stride, extent in zip(strides, shape) if extent > 1):
        if stride < reach:
            return True
        reach += stride * (extent - 1)
    return False
