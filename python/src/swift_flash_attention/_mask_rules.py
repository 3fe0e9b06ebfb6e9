"""What a mask function of transformers says, read off the function itself.

A mask function takes the indices of a sequence, a head, a query and a key and says whether the query sees the key. Called once
with symbols for the indices, it shows what it compares, and that is a rule of the kernels: how far a query sees to both sides, and
within which chunks. This costs no memory, waits for no GPU, knows nothing of transformers' own functions and their names (which
change from version to version), and it is exact: what a symbol does not know has no rule, and must be evaluated key by key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

_T = torch.Tensor
# What a mask function computes with: a _Symbol, another tensor, or a number. (_kind says which.)
_Operand: TypeAlias = Any


class Rule(NamedTuple):
    """Which keys a query sees, as the kernels have it: -1 is unlimited, a chunk of 0 is none."""

    left: int = -1
    right: int = -1
    chunk: int = 0

    @property
    def is_aligned(self) -> bool:
        """Whether it matters where the queries stand."""
        return self != Rule()


class _Symbol(torch.Tensor):
    """An index, or what a mask function made of indices. (A tensor, since ``torch.compile`` follows no other values through
    operators of tensors. What is in it is never used.)

    ``kind`` and ``value`` are:
        query, key: (number that was added, tensors that were subtracted)
        distance: (sign, number) for ``sign * (query - key) + number``; size: () for ``|query - key|``
        chunk: ("query" or "key", size, tensors that were subtracted)
        seen: limits ("left" or "right", number) and ("chunk", size, tensors), all of which hold; none: nothing is seen
        unknown: anything else
    """

    kind: str
    value: tuple[Any, ...]

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Sequence[type], arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None
    ) -> Any:
        a = arguments[0]
        b = arguments[1] if len(arguments) > 1 else None
        if options and function not in (_T.to, _T.new_ones, _T.new_zeros):
            return _forgotten(arguments)
        # (Which torch's stubs have as values.)
        if function in (_T.device.__get__, _T.dtype.__get__, _T.shape.__get__, _T.requires_grad.__get__):  # type: ignore[attr-defined]
            with torch._C.DisableTorchFunctionSubclass():
                return function(*arguments)
        if function in (_T.to, _T.bool):
            return a
        if function in (_T.new_ones, torch.ones_like):
            return _symbol("seen", ())
        if function in (_T.new_zeros, torch.zeros_like):
            return _symbol("none")
        if function in (_T.add, _T.__add__, _T.__radd__):
            return _sum(a, b)
        if function in (_T.sub, _T.__sub__, torch.sub):
            return _difference(a, b)
        if function in (_T.abs, _T.__abs__, torch.abs):
            return _symbol("size") if _kind(a) == "distance" and a.value[1] == 0 else _symbol("unknown")
        if function in (_T.floor_divide, _T.__floordiv__, torch.floor_divide):
            return _chunk(a, b)
        if function in (_T.le, _T.__le__):
            return _at_most(a, b, 0)
        if function in (_T.lt, _T.__lt__):
            return _at_most(a, b, 1)
        if function in (_T.ge, _T.__ge__):
            return _at_most(b, a, 0)
        if function in (_T.gt, _T.__gt__):
            return _at_most(b, a, 1)
        if function in (_T.eq, _T.__eq__):
            return _same_chunk(a, b)
        if function in (_T.__and__, _T.__rand__, _T.bitwise_and, _T.logical_and, torch.logical_and):
            return _both(a, b)
        if function in (_T.__or__, _T.__ror__, _T.bitwise_or, _T.logical_or, torch.logical_or):
            return _either(a, b)
        return _forgotten(arguments)


def _forgotten(arguments: Sequence[_Operand]) -> _Symbol:
    """What comes of an operation that nobody here knows, after which its arguments may be something else, too."""
    for x in arguments:
        if isinstance(x, _Symbol):
            x.kind = "unknown"
    return _symbol("unknown")


def _symbol(kind: str, value: tuple[Any, ...] = ()) -> _Symbol:
    # One element, so that a tensor can be indexed with it.
    symbol = torch.zeros(1, dtype=torch.long).as_subclass(_Symbol)
    symbol.kind, symbol.value = kind, value
    return symbol


def _kind(x: _Operand) -> str:
    return x.kind if isinstance(x, _Symbol) else "tensor" if isinstance(x, torch.Tensor) else "number"


def _sum(a: _Operand, b: _Operand) -> _Symbol:
    if _kind(a) == "number":
        a, b = b, a
    if _kind(a) in ("query", "key") and _kind(b) == "number":
        return _symbol(a.kind, (a.value[0] + b, a.value[1]))
    return _symbol("unknown")


def _difference(a: _Operand, b: _Operand) -> _Symbol:
    kinds = (_kind(a), _kind(b))
    if kinds[0] in ("query", "key"):
        number, shifts = a.value
        if kinds[1] == "number":
            return _symbol(a.kind, (number - b, shifts))
        if kinds[1] == "tensor":
            return _symbol(a.kind, (number, (*shifts, b)))
        if kinds in (("query", "key"), ("key", "query")) and not shifts and not b.value[1]:
            return _symbol("distance", (1 if kinds[0] == "query" else -1, number - b.value[0]))
    return _symbol("unknown")


def _chunk(a: _Operand, size: _Operand) -> _Symbol:
    if _kind(a) in ("query", "key") and _is_whole(size) and size > 0 and a.value[0] == 0 and len(a.value[1]) <= 1:
        return _symbol("chunk", (a.kind, size, a.value[1]))
    return _symbol("unknown")


def _same_chunk(a: _Operand, b: _Operand) -> _Symbol:
    if _kind(a) == "chunk" and _kind(b) == "chunk":
        (one, size, shifts), (other, other_size, other_shifts) = a.value, b.value
        if one != other and size == other_size and len(shifts) == len(other_shifts):
            return _symbol("seen", (("chunk", size, (*shifts, *other_shifts)),))
    return _symbol("unknown")


def _at_most(a: _Operand, b: _Operand, less: int) -> _Symbol:
    """What ``a <= b - less`` says."""
    kinds = (_kind(a), _kind(b))
    if kinds == ("key", "query") and not a.value[1] and not b.value[1]:
        return _limit("right", b.value[0] - a.value[0] - less)
    if kinds == ("query", "key") and not a.value[1] and not b.value[1]:
        return _limit("left", b.value[0] - a.value[0] - less)
    if kinds == ("distance", "number"):
        return _limit("left" if a.value[0] == 1 else "right", b - a.value[1] - less)
    if kinds == ("number", "distance"):
        return _limit("right" if b.value[0] == 1 else "left", b.value[1] - a - less)
    if kinds == ("size", "number"):
        return _both(_limit("left", b - less), _limit("right", b - less))
    # No index is below 0.
    if kinds[0] == "number" and kinds[1] in ("query", "key") and not b.value[1] and a + less <= b.value[0]:
        return _symbol("seen", ())
    return _symbol("unknown")


def _limit(side: str, number: _Operand) -> _Symbol:
    # Where a query does not even see its own key, there is no window of the kernels.
    return _symbol("seen", ((side, number),)) if _is_whole(number) and number >= 0 else _symbol("unknown")


def _is_whole(number: object) -> bool:
    return isinstance(number, int) or type(number).__name__ == "SymInt"


def _both(a: _Operand, b: _Operand) -> _Symbol:
    kinds = (_kind(a), _kind(b))
    if kinds == ("seen", "seen"):
        return _symbol("seen", (*a.value, *b.value))
    return _symbol("none") if kinds == ("none", "none") else _symbol("unknown")


def _either(a: _Operand, b: _Operand) -> _Operand:
    kinds = (_kind(a), _kind(b))
    if kinds[0] == "none":
        return b if isinstance(b, _Symbol) else _symbol("unknown")
    if kinds[1] == "none":
        return a
    everything = [x for x, kind in zip((a, b), kinds) if kind == "seen" and not x.value]
    return everything[0] if everything else _symbol("unknown")


def read(function: Callable[..., Any], batch: int) -> tuple[Rule, tuple[torch.Tensor, ...]] | None:
    """The rule of a mask function, and tensors ``[batch, 1, 1, 1]`` (or of fewer elements) from which it counts chunks, all of which
    must be where each sequence's keys begin; None where it has none."""
    index = torch.arange(batch)[:, None, None, None]
    try:
        meaning = function(index, torch.zeros_like(index[:1]), _symbol("query", (0, ())), _symbol("key", (0, ())))
    except (TypeError, ValueError, IndexError, RuntimeError, AttributeError):
        return None
    if _kind(meaning) != "seen":
        return None
    left, right, chunk, shifts = -1, -1, 0, ()
    for limit in meaning.value:
        if limit[0] == "left":
            left = limit[1] if left < 0 else min(left, limit[1])
        elif limit[0] == "right":
            right = limit[1] if right < 0 else min(right, limit[1])
        elif chunk and chunk != limit[1]:
            return None
        else:
            chunk, shifts = limit[1], (*shifts, *limit[2])
    return Rule(left, right, chunk), shifts
