"""FlashAttention for Swift, for Python: exact attention on NVIDIA GPUs and on the CPU.

``attention`` takes arrays of torch, numpy, cupy, jax; ``compat`` has the functions of FlashAttention 3 under their names;
``transformers`` registers an attention implementation for Hugging Face models.
"""

import ctypes

from . import _library as c
from ._arrays import array, empty, finished, stream

__all__ = ["__version__", "attention", "gpu_is_usable", "plan"]
__version__ = c.library.fa_version().decode()


def gpu_is_usable(ordinal=0):
    """Whether the library can use a GPU: an NVIDIA GPU of the Ampere generation or newer, and its driver."""
    return c.library.fa_gpu_check(ordinal) == c.OK


def scores(causal, window, chunk, softcap, scale):
    """``fa_scores``; the sides of a window are None where it is unlimited."""
    result = c.Scores(chunk=chunk or 0, softcap=softcap or 0.0)
    if scale is not None:
        result.scale_is_given, result.scale = 1, scale
    # None, and below 0 as FlashAttention has it, is unlimited.
    left, right = (None if side is None or side < 0 else side for side in window or (None, None))
    if causal:
        right = 0
    if left is None and right is None:
        result.mask = c.MASK_NONE
    elif left is None and right == 0:
        result.mask = c.MASK_CAUSAL
    else:
        result.mask = c.MASK_WINDOW
        result.window_left = -1 if left is None else left
        result.window_right = -1 if right is None else right
    return result


def _params(q, k, v, causal, window, chunk, softcap, scale):
    arrays = {name: array(name, value) for name, value in (("q", q), ("k", k), ("v", v))}
    for name, a in arrays.items():
        if len(a.shape) != 4:
            raise ValueError(f"{name} has the shape {a.shape}; it must be [batch, tokens, heads, dimension].")
        if (a.device, a.ordinal, a.type) != (arrays["q"].device, arrays["q"].ordinal, arrays["q"].type):
            raise ValueError(f"{name} must have the device and the element type of q.")
    (b, n, h, d), (bk, nk, hk, dk), (bv, nv, hv, dv) = (arrays[name].shape for name in "qkv")
    if (b, d) != (bk, dk) or (bk, nk, hk) != (bv, nv, hv):
        raise ValueError(f"The shapes of q {q.shape}, k {k.shape} and v {v.shape} do not fit each other.")
    params = c.ForwardParams(
        size=ctypes.sizeof(c.ForwardParams), device=arrays["q"].device, ordinal=arrays["q"].ordinal,
        type=arrays["q"].type, batch=b, queries=n, keys=nk, query_heads=h, key_value_heads=hk, dimension=d,
        value_dimension=dv)
    params.scores = scores(causal, window, chunk, softcap, scale)
    for name, a in arrays.items():
        setattr(params, name, a.tensor(name))
    return params, arrays


def attention(
    q, k, v, *, causal=False, window=None, chunk=None, softcap=None, scale=None, out=None, return_lse=False
):
    """Computes ``softmax(mask(scale * q k^T)) v``, exactly and without a tokens x tokens buffer.

    Args:
        q: ``[batch, tokens, heads, dimension]``, any strides but along the dimension.
        k: ``[batch, keys, kv_heads, dimension]``; ``heads`` is a multiple of ``kv_heads`` (grouped-query attention).
        v: ``[batch, keys, kv_heads, value_dimension]``.
        causal: Whether a query sees no later keys; the last query stands on the last key.
        window: ``(left, right)``: keys before and after its own that a query sees; None or below 0 is unlimited.
        chunk: Size of chunks of keys, of which a query sees only its own.
        softcap: Scores become ``softcap * tanh(score / softcap)``.
        scale: What scores are multiplied by; ``1 / sqrt(dimension)`` by default.
        out: Where to write ``[batch, tokens, heads, value_dimension]``; new by default.
        return_lse: Whether also to return the log-sum-exp, float32 ``[batch, heads, tokens]``.

    Raises:
        ValueError: What cannot be computed, as a sentence.
        RuntimeError: The device cannot be used or failed.
    """
    params, arrays = _params(q, k, v, causal, window, chunk, softcap, scale)
    b, n, h, _ = arrays["q"].shape
    shape = (b, n, h, params.value_dimension)
    result = empty(q, shape) if out is None else out
    o = array("out", result)
    if o.shape != shape or o.type != params.type or (o.device, o.ordinal) != (params.device, params.ordinal):
        raise ValueError(f"out must have the shape {shape} and the device and element type of q.")
    params.o = o.tensor("out")
    lse = None
    if return_lse:
        lse = empty(q, (b, h, n), _float32(q))
        params.log_sum_exp = array("lse", lse).pointer
    params.stream = stream(q, params.device)
    c.check(c.library.fa_forward(ctypes.byref(params)))
    result = finished(q, result) if out is None else result
    return (result, finished(q, lse)) if return_lse else result


def _is_torch(value):
    return type(value).__module__.partition(".")[0] == "torch"


def _float32(like):
    if _is_torch(like):
        import torch

        return torch.float32
    return "float32"


def plan(q, k, v, *, causal=False, window=None, chunk=None, softcap=None, scale=None):
    """Which path ``attention`` takes for these arrays and why, in a few lines."""
    params, _ = _params(q, k, v, causal, window, chunk, softcap, scale)
    text = ctypes.create_string_buffer(1000)
    c.check(c.library.fa_forward_describe(ctypes.byref(params), text, len(text)))
    return text.value.decode()
