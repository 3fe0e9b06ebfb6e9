"""``attention`` of torch's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import _arguments as given
from ._forward import forward
from ._operators import forward_op, in_autocast_type, is_autocast, needs_operator
from ._torch import is_unlike, output_fits, ranges_fit, sinks_fit, unit_stride

if TYPE_CHECKING:
    from ._types import Options, WholeNumbers

_SHAPE = "[batch, tokens, heads, dimension]"


def _taken(q: object, k: object, v: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is handed over, in the type that autocast says."""
    q, k, v = in_autocast_type(*(given.tensor(name, x, 4, _SHAPE) for name, x in (("q", q), ("k", k), ("v", v))))
    for name, x in (("k", k), ("v", v)):
        if x.device != q.device or x.dtype != q.dtype:
            raise ValueError(f"{name} must have the device and the element type of q: {x.dtype} on {x.device}, {q.dtype} on {q.device}.")
    return q, k, v


def computed(q: object, k: object, v: object) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], str]:
    """The tensors that ``attention`` computes with where it is handed these, and lines that say what it does to them first."""
    taken = _taken(q, k, v)
    own = [unit_stride(x) for x in taken]
    lines = []
    if isinstance(q, torch.Tensor) and q.dtype != taken[0].dtype:
        lines.append(f"autocast: in {taken[0].dtype}")
    copied = [name for name, x, y in zip("qkv", taken, own) if x is not y]
    if copied:
        lines.append(f"copied first, since the elements of a row lie apart: {', '.join(copied)}")
    return (own[0].detach(), own[1].detach(), own[2].detach()), "".join(f"\n{line}" for line in lines)


def _known(q: Any, k: Any, v: Any, options: Options, return_lse: bool) -> tuple[torch.Tensor, Any] | None:
    """What a call gives that is like one before, whose arguments were looked at then: looking again takes half as long as a call
    costs. None where there was none."""
    try:
        if needs_operator(q, k, v) or is_autocast():
            return None
        known: tuple[torch.Tensor, Any] | None = forward(q, k, v, *options, return_lse, None, True)
        return known
    except (AttributeError, TypeError, RuntimeError) as error:
        if is_unlike(error, q, k, v):
            return None
        raise


def attention(
    q: object, k: object, v: object, sinks: object, key_ranges: tuple[WholeNumbers | None, WholeNumbers | None, int | None],
    options: Options, out: Any, return_lse: bool
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """See ``swift_flash_attention.attention``."""
    own, prefix, first = key_ranges
    if out is sinks is None and own is None and prefix is None and first is None:
        known = _known(q, k, v, options, return_lse)
        if known is not None:
            return known if return_lse else known[0]
    q, k, v = _taken(q, k, v)
    sinks = sinks_fit("sinks", sinks, q.shape[2], q)
    ranges = ranges_fit(*key_ranges, q, q.shape[0])
    if out is None:
        if needs_operator(q, k, v, sinks):
            result, lse = forward_op(q, k, v, sinks, *options, *ranges)
        else:
            result, lse = forward(q, k, v, *options, return_lse, None, False, sinks, *ranges)
        return (result, lse) if return_lse else result
    given.tensor("out", out, 4, _SHAPE)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, out, sinks)):
        raise NotImplementedError("out cannot be given where gradients are wanted; leave it out, or call under torch.no_grad().")
    if needs_operator(q, k, v, out, sinks):
        # Copied in the end, so that it may be any memory.
        result, lse = forward_op(q, k, v, sinks, *options, *ranges)
        if out.shape != result.shape or out.dtype != result.dtype:
            raise ValueError(f"out must have the shape {tuple(result.shape)} and the element type of q.")
        out.copy_(result)
    else:
        output_fits(out, q, k, v, sinks, ranges[0])
        _, lse = forward(q, k, v, *options, return_lse, out, False, sinks, *ranges)
    return (out, lse) if return_lse else out
