"""Numbers of callers, as numbers: whatever holds one, read at every call, since a tensor that held a number may hold another one at
the next. Each refusal names the argument. (Also without torch; within ``torch.compile``, numbers may be symbols.)"""

from __future__ import annotations

import numbers
from typing import Any

_SYMBOLS = ("SymInt", "SymFloat")
_LIMIT = 2**62


def _one(name: str, value: Any) -> Any:
    """What an array of one element holds, or the value itself."""
    if not hasattr(value, "item") or not hasattr(value, "shape"):
        return value
    if tuple(value.shape) not in ((), (1,)):
        raise TypeError(f"{name} has the shape {tuple(value.shape)}; it must be one number.")
    if type(value).__module__.partition(".")[0] == "torch":
        _look_at(name, value)
    return value.item()


def _look_at(name: str, value: Any) -> None:
    """What a number of torch must not be: one that a trace would keep as it is now, or that a gradient is wanted of."""
    import torch

    if (
        torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
    ):
        raise TypeError(f"{name} is a tensor, whose number a trace would keep as it is; give a number.")
    if value.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(f"{name} wants a gradient, which is not supported; give a number, or call under torch.no_grad().")


def number(name: str, value: object) -> float:
    """A float, of whatever holds one number."""
    if type(value) is float:
        return value
    value = _one(name, value)
    if type(value).__name__ in _SYMBOLS:
        return value  # type: ignore[return-value]  # What torch takes for a number.
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}; it must be a number.")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is {value}; it must be a number that fits a float.") from None


def whole(name: str, value: object) -> int:
    """An int, of whatever holds one whole number."""
    if type(value) is int and -_LIMIT <= value <= _LIMIT:
        return value
    if type(value).__name__ == "SymInt":
        return value  # type: ignore[return-value]  # What torch takes for a whole number.
    value = _one(name, value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {value!r}; it must be a whole number.")
    own = int(value)
    if not -_LIMIT <= own <= _LIMIT:
        raise ValueError(f"{name} is {value}; it must be a number that fits 62 bits.")
    return own


def flag(name: str, value: object) -> bool:
    """A bool, of True, False, 1, 0 or what holds one of them."""
    if value is True or value is False:
        return value
    value = _one(name, value)
    if isinstance(value, bool) or isinstance(value, numbers.Integral) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{name} is {value!r}; it must be True or False.")


def window(name: str, value: Any) -> tuple[int, int]:
    """Both sides of a window, -1 where one is unlimited (None, or anything below 0)."""
    if value is None:
        return -1, -1
    if not isinstance(value, (tuple, list)) and not hasattr(value, "__array__") or len(value) != 2:
        raise TypeError(f"{name} is {value!r}; it must be (left, right): the keys before and after a query's own that it sees.")
    sides: list[int] = []
    for side, what in zip(value, ("left", "right")):
        if type(side) is int:
            # As far as anything reaches.
            side = min(side, _LIMIT)
        side = -1 if side is None else whole(f"{name} ({what})", side)
        sides.append(-1 if side < 0 else side)
    return sides[0], sides[1]
