"""``attention`` of torch's tensors."""

import torch

from . import _arguments as given
from ._operators import forward_op, in_autocast_type, needs_operator
from ._torch import forward, output_fits

_SHAPE = "[batch, tokens, heads, dimension]"


def attention(q, k, v, options, out, return_lse):
    """See ``swift_flash_attention.attention``."""
    q, k, v = in_autocast_type(*(given.tensor(name, x, 4, _SHAPE) for name, x in (("q", q), ("k", k), ("v", v))))
    for name, x in (("k", k), ("v", v)):
        if x.device != q.device or x.dtype != q.dtype:
            raise ValueError(f"{name} must have the device and the element type of q: {x.dtype} on {x.device}, {q.dtype} on {q.device}.")
    if out is None:
        if needs_operator(q, k, v):
            result, lse = forward_op(q, k, v, *options)
        else:
            result, lse = forward(q, k, v, *options, return_lse)
        return (result, lse) if return_lse else result
    given.tensor("out", out, 4, _SHAPE)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, out)):
        raise NotImplementedError("out cannot be given where gradients are wanted; leave it out, or call under torch.no_grad().")
    if needs_operator(q, k, v, out):
        # Copied in the end, so that it may be any memory.
        result, lse = forward_op(q, k, v, *options)
        if out.shape != result.shape or out.dtype != result.dtype:
            raise ValueError(f"out must have the shape {tuple(result.shape)} and the element type of q.")
        out.copy_(result)
    else:
        output_fits(out, q, k, v)
        _, lse = forward(q, k, v, *options, return_lse, out)
    return (out, lse) if return_lse else out
