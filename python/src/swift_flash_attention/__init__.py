"""FlashAttention for Swift, for Python: exact attention on NVIDIA GPUs and on the CPU.

``attention`` takes arrays of torch, numpy, cupy, jax; ``compat`` has the functions of FlashAttention 3 under their names;
``transformers`` registers an attention implementation for Hugging Face models.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, overload

from . import _library as c
from . import _numbers
from ._arrays import Array, array, empty, finished, is_torch, numbers, stream, writable

if TYPE_CHECKING:
    from torch import Tensor

    from ._types import A, AnyArray, Options, P, WholeNumbers, Window

__all__ = ["__version__", "attention", "gpu_is_usable", "gradient_order", "plan", "prepare", "set_gradient_order"]
__version__: str = c.library.fa_version().decode()


def gpu_is_usable(ordinal: int = 0) -> bool:
    """Whether the library can use a GPU: an NVIDIA GPU of the Ampere generation or newer, and its driver."""
    return bool(c.library.fa_gpu_check(ordinal) == c.OK)


def set_gradient_order(order: Literal["fixed", "any"]) -> None:
    """Says in which order the parts of gradients are added up, for all that is computed from now on, by whatever thread.

    Args:
        order: ``"fixed"``, as it is at first: the gradients have the same bits in every run on a device. Or ``"any"``: where it is
            faster, on a GPU, they are added up as they come (``dq``, in float32), and bits differ from run to run. Then
            ``torch.use_deterministic_algorithms(True)`` makes backward passes raise.
    """
    if not isinstance(order, str) or order not in c.ORDERS:
        raise ValueError(f"order is {order!r}; it must be 'fixed' or 'any'.")
    c.gradient_order = order


def gradient_order() -> Literal["fixed", "any"]:
    """What ``set_gradient_order`` said last."""
    return c.gradient_order


def _options(
    causal: bool, window: Window | None, chunk: int | None, softcap: float | None, scale: float | None
) -> Options:
    """``(causal, left, right, chunk, softcap, scale)``; sides are -1 where they are unlimited."""
    causal = _numbers.flag("causal", causal)
    left, right = _numbers.window("window", window)
    return (
        causal, left, 0 if causal else right, 0 if chunk is None else _numbers.whole("chunk", chunk),
        0.0 if softcap is None else _numbers.number("softcap", softcap),
        None if scale is None else _numbers.number("scale", scale))


def scores(causal: bool, left: int, right: int, chunk: int, softcap: float, scale: float | None) -> c.Scores:
    """``fa_scores``."""
    result = c.Scores(chunk=chunk, softcap=softcap)
    if scale is not None:
        result.scale_is_given, result.scale = 1, scale
    if left < 0 and right < 0:
        result.mask = c.MASK_NONE
    elif left < 0 and right == 0:
        result.mask = c.MASK_CAUSAL
    else:
        result.mask, result.window_left, result.window_right = c.MASK_WINDOW, left, right
    return result


def _params(q: AnyArray, k: AnyArray, v: AnyArray, options: Options) -> tuple[c.ForwardParams, dict[str, Array]]:
    arrays = {name: array(name, value) for name, value in (("q", q), ("k", k), ("v", v))}
    for name, a in arrays.items():
        if len(a.shape) != 4:
            raise ValueError(f"{name} has the shape {a.shape}; it must be [batch, tokens, heads, dimension].")
        if (a.device, a.ordinal, a.type) != (arrays["q"].device, arrays["q"].ordinal, arrays["q"].type):
            raise ValueError(f"{name} must have the device and the element type of q.")
    (b, n, h, d), (bk, nk, hk, dk), (bv, nv, hv, dv) = (arrays[name].shape for name in "qkv")
    if (b, d) != (bk, dk) or (bk, nk, hk) != (bv, nv, hv):
        shapes = [arrays[name].shape for name in "qkv"]
        raise ValueError("The shapes of q {}, k {} and v {} do not fit each other.".format(*shapes))
    params = c.ForwardParams(
        size=ctypes.sizeof(c.ForwardParams), device=arrays["q"].device, ordinal=arrays["q"].ordinal,
        type=arrays["q"].type, batch=b, queries=n, keys=nk, query_heads=h, key_value_heads=hk, dimension=d,
        value_dimension=dv)
    params.scores = scores(*options)
    for name, a in arrays.items():
        setattr(params, name, a.tensor(name))
    return params, arrays


def _set_sinks(params: c.ForwardParams, sinks: AnyArray) -> Array:
    own = array("sinks", sinks)
    if own.shape != (params.query_heads,) or own.type == c.E4M3 or (own.device, own.ordinal) != (params.device, params.ordinal):
        raise ValueError(
            f"sinks must have the shape {(params.query_heads,)}, the device of q, and be float32, float16 or bfloat16.")
    if own.shape[0] > 1 and own.strides[0] != 1:
        raise ValueError(f"sinks must lie side by side in memory; their stride is {own.strides[0]}.")
    params.scores.sinks, params.scores.sink_type = own.pointer, own.type
    return own


def _set_ranges(
    params: c.ForwardParams, key_ranges: WholeNumbers | None, prefix: WholeNumbers | None, first_keys: int | None
) -> Array | None:
    if sum(x is not None for x in (key_ranges, prefix, first_keys)) > 1:
        raise ValueError("Give one of key_ranges, prefix and first_keys; they are three ways of saying which keys queries see.")
    if first_keys is not None:
        count = _numbers.whole("first_keys", first_keys)
        if count < 0:
            raise ValueError(f"first_keys is {count}; it must be a number of keys from 0 on.")
        params.scores.ranges, params.scores.first_keys = c.RANGES_FIRST_KEYS, count
        return None
    if key_ranges is None and prefix is None:
        return None
    name, value = ("prefix", prefix) if key_ranges is None else ("key_ranges", key_ranges)
    own = numbers(name, value)
    if (own.device, own.ordinal) != (params.device, params.ordinal):
        raise ValueError(f"{name} must be on the device of q.")
    if prefix is not None:
        if own.shape != (params.batch,):
            raise ValueError(f"prefix has the shape {own.shape}; {(params.batch,)} is needed.")
        params.scores.ranges = c.RANGES_PREFIX
    else:
        if len(own.shape) != 4 or own.shape[0] not in (1, params.batch) or own.shape[1] != params.queries or own.shape[3] != 2:
            raise ValueError(
                f"key_ranges has the shape {own.shape}; it must be [batch or 1, queries, 1 or 2, 2], of {params.batch} x {params.queries} "
                "queries.")
        params.scores.ranges, params.scores.ranges_of_query = c.RANGES_GIVEN, own.shape[2]
        params.scores.ranges_are_shared = int(own.shape[0] == 1)
    params.scores.key_ranges = own.pointer
    return own


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = ..., window: Window | None = ..., chunk: int | None = ...,
    softcap: float | None = ..., scale: float | None = ..., sinks: Tensor | None = ..., key_ranges: WholeNumbers | None = ...,
    prefix: WholeNumbers | None = ..., first_keys: int | None = ..., out: Tensor | None = ..., return_lse: Literal[False] = ...,
) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = ..., window: Window | None = ..., chunk: int | None = ...,
    softcap: float | None = ..., scale: float | None = ..., sinks: Tensor | None = ..., key_ranges: WholeNumbers | None = ...,
    prefix: WholeNumbers | None = ..., first_keys: int | None = ..., out: Tensor | None = ..., return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def attention(
    q: A, k: AnyArray, v: AnyArray, *, causal: bool = ..., window: Window | None = ..., chunk: int | None = ...,
    softcap: float | None = ..., scale: float | None = ..., sinks: AnyArray | None = ..., key_ranges: WholeNumbers | None = ...,
    prefix: WholeNumbers | None = ..., first_keys: int | None = ..., out: A | None = ..., return_lse: Literal[False] = ...,
) -> A: ...
@overload
def attention(
    q: A, k: AnyArray, v: AnyArray, *, causal: bool = ..., window: Window | None = ..., chunk: int | None = ...,
    softcap: float | None = ..., scale: float | None = ..., sinks: AnyArray | None = ..., key_ranges: WholeNumbers | None = ...,
    prefix: WholeNumbers | None = ..., first_keys: int | None = ..., out: A | None = ..., return_lse: Literal[True],
) -> tuple[A, A]: ...
@overload
def attention(
    q: A, k: AnyArray, v: AnyArray, *, causal: bool = ..., window: Window | None = ..., chunk: int | None = ...,
    softcap: float | None = ..., scale: float | None = ..., sinks: AnyArray | None = ..., key_ranges: WholeNumbers | None = ...,
    prefix: WholeNumbers | None = ..., first_keys: int | None = ..., out: A | None = ..., return_lse: bool = ...,
) -> A | tuple[A, A]: ...
def attention(
    q: AnyArray, k: AnyArray, v: AnyArray, *, causal: bool = False, window: Window | None = None, chunk: int | None = None,
    softcap: float | None = None, scale: float | None = None, sinks: AnyArray | None = None, key_ranges: WholeNumbers | None = None,
    prefix: WholeNumbers | None = None, first_keys: int | None = None, out: AnyArray | None = None, return_lse: bool = False
) -> AnyArray | tuple[AnyArray, AnyArray]:
    """Computes ``softmax(mask(scale * q k^T)) v``, exactly and without a tokens x tokens buffer.

    Args:
        q: ``[batch, tokens, heads, dimension]``, any strides but along the dimension (torch's tensors are copied then).
        k: ``[batch, keys, kv_heads, dimension]``; ``heads`` is a multiple of ``kv_heads`` (grouped-query attention).
        v: ``[batch, keys, kv_heads, value_dimension]``.
        causal: Whether a query sees no later keys; the last query stands on the last key.
        window: ``(left, right)``: keys before and after its own that a query sees; None or below 0 is unlimited.
        chunk: Size of chunks of keys, of which a query sees only its own.
        softcap: Scores become ``softcap * tanh(score / softcap)``.
        scale: What scores are multiplied by; ``1 / sqrt(dimension)`` by default.
        sinks: ``[heads]`` float32, float16 or bfloat16: attention sinks, logits that every query sees beside its keys, unscaled, and
            that have no value: they are in the softmax's denominator alone, and in the log-sum-exp.
        key_ranges: int32 ``[batch or 1, tokens, 1 or 2, 2]``: for each query one range of keys or two, half-open, of which it sees the
            union, as far as the mask lets it. Documents, images of a prompt and prefixes are such masks.
        prefix: int32 ``[batch]``: so many keys, the first of each sequence, that all queries see beside what the mask lets them see.
        first_keys: The same with one number for all, and no key behind the last that the mask lets a query see: a window that keeps
            the first tokens (StreamingLLM).
        out: Where to write ``[batch, tokens, heads, value_dimension]``; new by default.
        return_lse: Whether also to return the log-sum-exp, float32 ``[batch, heads, tokens]``.

    Of torch's tensors, a trace or ``torch.compile`` holds an operator; they have gradients, also through the log-sum-exp.

    Raises:
        ValueError, TypeError: What cannot be computed, as a sentence.
        RuntimeError: The device cannot be used or failed.
    """
    options, return_lse = _options(causal, window, chunk, softcap, scale), _numbers.flag("return_lse", return_lse)
    if is_torch(q) or is_torch(k) or is_torch(v) or is_torch(sinks):
        from . import _whole

        return _whole.attention(q, k, v, sinks, (key_ranges, prefix, first_keys), options, out, return_lse)
    params, arrays = _params(q, k, v, options)
    if sinks is not None:
        arrays["sinks"] = _set_sinks(params, sinks)
    own = _set_ranges(params, key_ranges, prefix, first_keys)
    if own is not None:
        arrays["key_ranges" if prefix is None else "prefix"] = own
    b, n, h, _ = arrays["q"].shape
    shape = (b, n, h, params.value_dimension)
    result = empty(q, shape) if out is None else out
    o = array("out", result)
    if o.shape != shape or o.type != params.type or (o.device, o.ordinal) != (params.device, params.ordinal):
        raise ValueError(f"out must have the shape {shape} and the device and element type of q.")
    if out is not None:
        writable("out", out, o, arrays)
    params.o = o.tensor("out")
    lse = None
    if return_lse:
        lse = empty(q, (b, h, n), "float32")
        params.log_sum_exp = array("lse", lse).pointer
    params.stream = stream(q, params.device)
    c.limit_threads(0)
    c.check(c.library.fa_forward(ctypes.byref(params)))
    result = finished(q, result) if out is None else result
    return (result, finished(q, lse)) if return_lse else result


def plan(
    q: AnyArray, k: AnyArray, v: AnyArray, *, causal: bool = False, window: Window | None = None, chunk: int | None = None,
    softcap: float | None = None, scale: float | None = None, sinks: AnyArray | None = None, key_ranges: WholeNumbers | None = None,
    prefix: WholeNumbers | None = None, first_keys: int | None = None
) -> str:
    """Which path ``attention`` takes for these arrays and why, in a few lines."""
    options, lines = _options(causal, window, chunk, softcap, scale), ""
    if is_torch(q) or is_torch(k) or is_torch(v) or is_torch(sinks):
        import torch

        from ._torch import ranges_fit, sinks_fit
        from ._whole import computed

        (q, k, v), lines = computed(q, k, v)
        sinks = sinks_fit("sinks", sinks, q.shape[2], q)
        ranges, first = ranges_fit(key_ranges, prefix, first_keys, q, q.shape[0])
        key_ranges, prefix = (ranges, None) if ranges is not None and ranges.dim() > 1 else (None, ranges)
        first_keys = first if first_keys is not None else None
        c.limit_threads(torch.get_num_threads())
    else:
        c.limit_threads(0)
    params, _ = _params(q, k, v, options)
    if sinks is not None:
        _set_sinks(params, sinks)
    _set_ranges(params, key_ranges, prefix, first_keys)
    text = ctypes.create_string_buffer(1000)
    c.check(c.library.fa_forward_describe(ctypes.byref(params), text, len(text)))
    return text.value.decode() + lines


def prepare(function: Callable[P, object], *arguments: P.args, **options: P.kwargs) -> None:
    """Compiles and loads what a call with such torch tensors needs, without computing anything: on a GPU, the first call of a shape
    takes as long as the driver needs to compile its kernel.

        prepare(attention, q, k, v, causal=True)
        prepare(flash_attn_with_kvcache, q, k_cache, v_cache, cache_seqlens=lengths)

    What the call would return is not returned, since nothing is in it; no tensor is changed.
    """
    from ._torch import preparing

    if not callable(function):
        raise TypeError(f"function is {function!r}; give attention or one of compat's functions.")
    with preparing():
        function(*arguments, **options)
