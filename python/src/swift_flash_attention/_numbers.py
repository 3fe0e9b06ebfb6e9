"""Numbers of callers, as numbers: whatever holds one, read at every call, since a tensor that held a number may hold another one at
the next. Each refusal names the argument. (Also without torch; within ``torch.compile``, numbers may be symbols.)"""

import numbers

_SYMBOLS = ("SymInt", "SymFloat")


def _one(name, value):
    """What an array of one element holds, or the value itself."""
    if not hasattr(value, "item") or not hasattr(value, "shape"):
        return value
    if tuple(value.shape) not in ((), (1,)):
        raise TypeError(f"{name} has the shape {tuple(value.shape)}; it must be one number.")
    return value.item()


def number(name, value):
    """A float, of whatever holds one number."""
    if type(value) is float:
        return value
    value = _one(name, value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) and type(value).__name__ not in _SYMBOLS:
        raise TypeError(f"{name} is {value!r}; it must be a number.")
    return float(value) if type(value).__name__ not in _SYMBOLS else value


def whole(name, value):
    """An int, of whatever holds one whole number."""
    if type(value) is int:
        return value
    if type(value).__name__ == "SymInt":
        return value
    value = _one(name, value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {value!r}; it must be a whole number.")
    return int(value)


def flag(name, value):
    """A bool, of True, False, 1, 0 or what holds one of them."""
    if value is True or value is False:
        return value
    value = _one(name, value)
    if isinstance(value, bool) or isinstance(value, numbers.Integral) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{name} is {value!r}; it must be True or False.")


def window(name, value):
    """Both sides of a window, -1 where one is unlimited (None, or anything below 0)."""
    if value is None:
        return -1, -1
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or len(value) != 2:
        raise TypeError(f"{name} is {value!r}; it must be (left, right): the keys before and after a query's own that it sees.")
    sides = []
    for side, what in zip(value, ("left", "right")):
        side = -1 if side is None else whole(f"{name} ({what})", side)
        sides.append(-1 if side < 0 else side)
    return tuple(sides)
