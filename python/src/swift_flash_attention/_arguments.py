"""What callers hand over, as what the calls need: tensors that are tensors, lists of int32. Each refusal names the argument."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_WIDEST = 2**31 - 1


def tensor(name: str, value: object, axes: int | None = None, shape: str | None = None) -> torch.Tensor:
    """A dense tensor whose numbers are what its memory holds.

    Args:
        axes: How many axes it must have, where that is known.
        shape: What they are, in words.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is a {_type_name(value)}; it must be a torch.Tensor.")
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"{name} has the layout {'nested' if value.is_nested else value.layout}; it must be a dense tensor.")
    if axes is not None and value.dim() != axes:
        raise ValueError(f"{name} has the shape {tuple(value.shape)}; it must be {shape}.")
    return value.resolve_neg() if is_lazy(value) else value


def is_lazy(value: torch.Tensor) -> bool:
    """Whether a tensor's numbers are those of its memory with the other sign. (An operator of a trace looks for itself.)"""
    return not torch.compiler.is_compiling() and value.is_neg()


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def int32(
    name: str, value: object, like: torch.Tensor, shape: Sequence[int] | None = None, words: str = ""
) -> torch.Tensor:
    """A list of whole numbers as contiguous int32 on the device of ``like``: a tensor of any whole type, an array of NumPy, a list.

    Args:
        shape: The extents that it must have, where they are known.
        words: What they are, in words.
    """
    if type(value) is not torch.Tensor or value.dtype is not torch.int32 or not value.is_contiguous() or is_lazy(value):
        value = _listed(name, value, like)
    # Devices are compared by the call itself.
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name} has the shape {tuple(value.shape)}; {tuple(shape)} is needed{words}.")
    return value


def _listed(name: str, value: object, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        value = list(value) if isinstance(value, range) else value
        if not isinstance(value, (list, tuple)) and not hasattr(value, "__array__"):
            raise TypeError(f"{name} is a {_type_name(value)}; it must be a tensor or a list of whole numbers.")
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must hold whole numbers: {error}") from None
        if value.numel() == 0 and not hasattr(value, "__array__"):
            value = value.to(torch.int32)
        value = value.to(like.device)
    if value.layout is not torch.strided:
        raise TypeError(f"{name} has the layout {value.layout}; it must be a dense tensor.")
    if value.dtype is torch.bool or value.dtype.is_floating_point or value.dtype.is_complex:
        raise TypeError(f"{name} is {value.dtype}; it must hold whole numbers, of int32 best.")
    if value.dtype in (torch.int64, torch.uint32, torch.uint64):
        # What no int32 holds stays too large.
        value = value.to(torch.int64).clamp(-_WIDEST - 1, _WIDEST)
    return value.resolve_neg().to(torch.int32).contiguous()
