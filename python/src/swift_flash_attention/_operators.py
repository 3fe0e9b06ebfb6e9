"""Operators for whoever does not just compute: ``torch.compile``, traces, exports, autograd, ``vmap``. A trace holds the operator,
which computes when the trace runs."""

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast, overload

import torch
from torch.autograd import forward_ad

from . import _library as c
from ._forward import forward
from ._gradients import backward
from ._sequences import sequences
from ._torch import SCORES, Words, unit_stride

if TYPE_CHECKING:
    from ._types import Operator, Options, P, R

# (The annotations of operators are their schemas: torch reads them, and no strings in their place.)
_Two: TypeAlias = tuple[torch.Tensor, torch.Tensor]
_Four: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
# Of gradients, what torch keeps until then: it takes whatever is put into it.
_Context: TypeAlias = Any


def is_traced() -> bool:
    """Whether somebody records what is done with tensors, or does it to others than these."""
    return (
        torch.compiler.is_compiling() or _len_dispatch_stack() > 0 or _tracing_state() is not None
        or _functorch_level() is not None)


# Looked up once: every call asks them.
_len_dispatch_stack, _tracing_state = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_functorch_level = torch._C._functorch.maybe_current_level
is_autocast = torch._C._is_any_autocast_enabled


def needs_operator(*tensors: torch.Tensor | None) -> bool:
    """Whether somebody traces, wants gradients of what is computed, or has tensors of another kind.

    Raises:
        NotImplementedError: ``torch.func`` wants gradients, which it would look for before it runs anything, or forward mode does.
    """
    if is_traced():
        transform = None if torch.compiler.is_compiling() else torch._C._functorch.peek_interpreter_stack()
        if transform is not None and transform.key() in _GRADIENTS:
            raise NotImplementedError(
                "torch.func's gradients (grad, vjp, jvp, jacrev, ...) of swift_flash_attention are not supported; use torch.autograd "
                "(backward, autograd.grad), or another attention function.")
        return True
    if forward_ad._current_level >= 0 and any(
        x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors
    ):
        raise NotImplementedError(
            "Forward-mode gradients of swift_flash_attention are not supported; use torch.autograd's backward, or another attention "
            "function.")
    for x in tensors:
        if type(x) not in _KINDS:
            return True
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False


_KINDS = {torch.Tensor, torch.nn.Parameter, type(None)}
_GRADIENTS = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)


def _operator(
    name: str, function: "Callable[P, R]", fake: "Callable[..., R]", mutates: Sequence[str] = (), tags: Sequence[torch.Tag] = (),
    gradients: tuple[Callable[..., object], Callable[..., None]] | str | None = None
) -> "Operator[P, R]":
    """An operator.

    Args:
        gradients: How gradients are computed, ``(backward, setup_context)``; or why they are not, as a sentence.
    """
    options: dict[str, Any] = {"tags": tags} if tags else {}
    operator = torch.library.custom_op(f"swift_flash_attention::{name}", function, mutates_args=mutates, **options)
    operator.register_fake(fake)
    if isinstance(gradients, str):
        operator.register_autograd(_refusing(gradients))
    elif gradients is not None:
        operator.register_autograd(gradients[0], setup_context=gradients[1])
    return cast("Operator[P, R]", operator)


def _refusing(sentence: str) -> Callable[..., None]:
    def refuse(ctx: _Context, *gradients: object) -> None:
        raise NotImplementedError(sentence)

    return refuse


def packs_gradients(qkv: torch.Tensor) -> bool:
    """Whether the gradient of packed q, k and v shall be one tensor: where there is one, and ``vmap`` has nothing to do with it."""
    return wants_gradients(qkv) and (torch.compiler.is_compiling() or _functorch_level() is None)


def wants_gradients(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd records what is done with one of some tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def in_autocast_type(q: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors in the type that autocast says, where it is on, as ``scaled_dot_product_attention`` has it."""
    kind = q.device.type
    if not is_autocast() or kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return q, *others
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x.to(dtype) if x.dtype in _AUTOCAST and x.device.type == kind else x for x in (q, *others))


_AUTOCAST = (torch.float32, torch.float16, torch.bfloat16)
_SECOND = "Second derivatives of swift_flash_attention are not supported; compute them with another attention function."
_OF_CACHES = (
    "A cache of keys and values has no gradient in swift_flash_attention, nor have float8_e4m3fn numbers; train with flash_attn_func or "
    "flash_attn_varlen_func, in float16 or bfloat16.")


def _no_vmap(operator: "Operator[P, R]", names: str) -> None:
    """``vmap`` of an operator is a sentence."""

    def refuse(info: object, in_dims: object, *arguments: object) -> None:
        raise NotImplementedError(f"vmap over {names} is not supported; make the axis a part of the batch.")

    operator.register_vmap(refuse)


# MARK: - Whole tensors


def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None, causal: bool, left: int, right: int, chunk: int,
    softcap: float, scale: float | None, ranges: torch.Tensor | None = None, first_keys: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    return forward(
        _plain(q), _plain(k), _plain(v), causal, left, right, chunk, softcap, scale, True, sinks=sinks, ranges=_list(ranges),
        first_keys=first_keys)


def _list(ranges: torch.Tensor | None) -> torch.Tensor | None:
    """Ranges of keys as they are in memory; what a trace made of them may lie anyhow."""
    return None if ranges is None else ranges.contiguous()


@overload
def _plain(tensor: torch.Tensor) -> torch.Tensor: ...
@overload
def _plain(tensor: torch.Tensor | None) -> torch.Tensor | None: ...
def _plain(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor with its numbers as they are in memory, side by side along the last axis."""
    return None if tensor is None else unit_stride(tensor.resolve_neg())


def _fake_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: object) -> _Two:
    return (
        q.new_empty((*q.shape[:3], v.shape[-1])), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32))


def _backward(
    dout: torch.Tensor, dlse: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None,
    out: torch.Tensor, lse: torch.Tensor, wants_q: bool, wants_k: bool, wants_v: bool, wants_sinks: bool, causal: bool, left: int,
    right: int, chunk: int, softcap: float, scale: float | None, ranges: torch.Tensor | None = None, first_keys: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = _room(q, wants_q), _room(k, wants_k), _room(v, wants_v)
    ofs = _room_of_sinks(q, wants_sinks)
    backward(
        dout, dlse, _plain(q), _plain(k), _plain(v), out, lse, causal, left, right, chunk, softcap, scale, dq if wants_q else None,
        dk if wants_k else None, dv if wants_v else None, sinks=sinks, dsinks=ofs if wants_sinks else None, ranges=_list(ranges),
        first_keys=first_keys)
    return dq, dk, dv, ofs


def _room(like: torch.Tensor, wanted: bool) -> torch.Tensor:
    """Memory for a gradient, contiguous; nothing where nobody wants it."""
    return like.new_empty(like.shape if wanted else (0,))


def _room_of_sinks(q: torch.Tensor, wanted: bool) -> torch.Tensor:
    """The same for the gradient of sinks, float32."""
    return q.new_empty((q.shape[-2] if wanted else 0,), dtype=torch.float32)


def _fake_backward(
    dout: torch.Tensor, dlse: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None,
    out: torch.Tensor, lse: torch.Tensor, wants_q: bool, wants_k: bool, wants_v: bool, wants_sinks: bool, *options: object
) -> _Four:
    return _room(q, wants_q), _room(k, wants_k), _room(v, wants_v), _room_of_sinks(q, wants_sinks)


def _wanted(made: _Four, wants: Sequence[bool], sinks: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Those gradients that are wanted, that of sinks in their type."""
    *own, ofs = (x if wanted else None for x, wanted in zip(made, wants))
    return *own, None if ofs is None or sinks is None else ofs.to(sinks.dtype)


backward_op = _operator("backward", _backward, _fake_backward, gradients=_SECOND)
_no_vmap(backward_op, "the backward pass of swift_flash_attention")


def _save(ctx: _Context, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, sinks = inputs[:4]
    ctx.options, (ranges, ctx.first_keys) = inputs[4:10], inputs[10:]
    ctx.save_for_backward(q, k, v, sinks, *output, ranges)
    ctx.set_materialize_grads(False)


def _gradients(ctx: _Context, dout: torch.Tensor | None, dlse: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    q, k, v, sinks, out, lse, ranges = ctx.saved_tensors
    wants: tuple[bool, bool, bool, bool] = ctx.needs_input_grad[:4]
    options: Options = ctx.options
    # In one tuple: mypy loses count where a longer one comes behind a shorter one.
    made = backward_op(
        torch.zeros_like(out) if dout is None else dout, dlse, q, k, v, sinks, out, lse, *(*wants, *options), ranges, ctx.first_keys)
    return *_wanted(made, wants, sinks), *[None] * (len(options) + 2)


forward_op = _operator("forward", _forward, _fake_forward, gradients=(_gradients, _save))


def _vmap_forward(
    info: Any, in_dims: Sequence[int | None], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None,
    *options: Any
) -> tuple[_Two, tuple[int, int]]:
    """The axis becomes a part of the batch."""
    if in_dims[3] is not None:
        raise NotImplementedError("vmap over sinks is not supported; make the axis a part of the heads.")
    if len(options) > 6 and options[6] is not None:
        raise NotImplementedError("vmap over calls with ranges of keys is not supported; make the axis a part of the batch.")
    own = []
    for x, axis in zip((q, k, v), in_dims):
        x = x.expand(info.batch_size, *x.shape) if axis is None else x.movedim(axis, 0)
        own.append(x.flatten(0, 1))
    q, k, v = own
    out, lse = forward_op(q, k, v, sinks, *options)
    return (out.unflatten(0, (info.batch_size, -1)), lse.unflatten(0, (info.batch_size, -1))), (0, 0)


forward_op.register_vmap(_vmap_forward)


# MARK: - Q, K and V in one tensor


def _split(qkv: torch.Tensor, query_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v of ``[b, s, 3, h, d]``, or of ``[b, s, h_q + 2 h_k, d]`` where the query heads are not 0."""
    if query_heads == 0:
        q, k, v = qkv.unbind(dim=-3)
    else:
        heads = (qkv.shape[-2] - query_heads) // 2
        q, k, v = qkv.split([query_heads, heads, heads], dim=-2)
    return q, k, v


def _packed(
    qkv: torch.Tensor, query_heads: int, causal: bool, left: int, right: int, chunk: int, softcap: float, scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return forward(*_split(_plain(qkv), query_heads), causal, left, right, chunk, softcap, scale, True)


def _packed_backward(
    dout: torch.Tensor, dlse: torch.Tensor | None, qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, query_heads: int,
    causal: bool, left: int, right: int, chunk: int, softcap: float, scale: float | None,
) -> torch.Tensor:
    made = qkv.new_empty(qkv.shape)
    backward(
        dout, dlse, *_split(_plain(qkv), query_heads), out, lse, causal, left, right, chunk, softcap, scale,
        *_split(made, query_heads))
    return made


packed_backward_op = _operator(
    "packed_backward", _packed_backward, lambda dout, dlse, qkv, *rest: qkv.new_empty(qkv.shape), gradients=_SECOND)
_no_vmap(packed_backward_op, "the backward pass of flash_attn_qkvpacked_func")


def _save_packed(ctx: _Context, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    qkv, *ctx.options = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.set_materialize_grads(False)


def _packed_gradients(ctx: _Context, dout: torch.Tensor | None, dlse: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    qkv, out, lse = ctx.saved_tensors
    made = packed_backward_op(torch.zeros_like(out) if dout is None else dout, dlse, qkv, out, lse, *ctx.options)
    return made, *[None] * len(ctx.options)


packed_op = _operator(
    "packed", _packed, lambda qkv, query_heads, *options: _fake_forward(*_split(qkv, query_heads), *options),
    gradients=(_packed_gradients, _save_packed))
_no_vmap(packed_op, "flash_attn_qkvpacked_func")


# MARK: - Sequences


def _fake_sequences(
    q: torch.Tensor, v: torch.Tensor, query_starts: torch.Tensor | None, new_k: torch.Tensor | None
) -> _Two:
    dtype = q.dtype if q.dtype != torch.float8_e4m3fn else new_k.dtype if new_k is not None else torch.bfloat16
    shape = (q.shape[1], q.shape[0]) if query_starts is not None else (q.shape[0], q.shape[2], q.shape[1])
    return q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=dtype), q.new_empty(shape, dtype=torch.float32)


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, query_starts: torch.Tensor, key_starts: torch.Tensor,
    query_counts: torch.Tensor | None, key_counts: torch.Tensor | None, longest_query: int, longest_key: int,
    query_scales: torch.Tensor | None, key_scales: torch.Tensor | None, value_scales: torch.Tensor | None,
    sinks: torch.Tensor | None, causal: bool, left: int, right: int, chunk: int, softcap: float, scale: float | None,
    ranges: torch.Tensor | None = None, first_keys: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    return sequences(
        _plain(q), _plain(k), _plain(v), lengths=key_counts, query_starts=query_starts, query_counts=query_counts,
        longest_query=longest_query, key_starts=key_starts, longest_key=longest_key, query_scales=query_scales,
        key_scales=key_scales, value_scales=value_scales, scale=scale, causal=causal, left=left, right=right, chunk=chunk,
        softcap=softcap, wants_lse=True, is_recorded=True, words=VARLEN, sinks=sinks, ranges=_list(ranges), first_keys=first_keys)


VARLEN = Words(
    {
        "query_starts": "cu_seqlens_q", "key_starts": "cu_seqlens_k", "query_counts": "seqused_q", "lengths": "seqused_k",
        "longest_query": "max_seqlen_q", "query_scales": "q_descale", "key_scales": "k_descale", "value_scales": "v_descale",
    },
    (
        ("query start of", "start by cu_seqlens_q of"), ("query count of", "number of queries by cu_seqlens_q (at most max_seqlen_q) of"),
        ("key start of", "start by cu_seqlens_k of"), ("key count of", "number of keys by cu_seqlens_k (at most max_seqlen_k) of"),
        ("The length of", "The number of keys by seqused_k of"), ("of the cached keys is", "of k is"),
        ("of the cached values is", "of v is"), *SCORES))
def _varlen_backward(
    dout: torch.Tensor, dlse: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None,
    out: torch.Tensor, lse: torch.Tensor, query_starts: torch.Tensor, key_starts: torch.Tensor, query_counts: torch.Tensor | None,
    key_counts: torch.Tensor | None, longest_query: int, longest_key: int, wants_q: bool, wants_k: bool, wants_v: bool,
    wants_sinks: bool, causal: bool, left: int, right: int, chunk: int, softcap: float, scale: float | None,
    ranges: torch.Tensor | None = None, first_keys: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = _room(q, wants_q), _room(k, wants_k), _room(v, wants_v)
    ofs = _room_of_sinks(q, wants_sinks)
    backward(
        dout, dlse, _plain(q), _plain(k), _plain(v), out, lse, causal, left, right, chunk, softcap, scale,
        dq if wants_q else None, dk if wants_k else None, dv if wants_v else None,
        query_starts, key_starts, query_counts, key_counts, longest_query, longest_key, sinks, ofs if wants_sinks else None,
        _list(ranges), first_keys)
    return dq, dk, dv, ofs


def _fake_varlen_backward(
    dout: torch.Tensor, dlse: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None,
    out: torch.Tensor, lse: torch.Tensor, query_starts: torch.Tensor, key_starts: torch.Tensor, query_counts: torch.Tensor | None,
    key_counts: torch.Tensor | None, longest_query: int, longest_key: int, wants_q: bool, wants_k: bool, wants_v: bool,
    wants_sinks: bool, *options: object
) -> _Four:
    return _room(q, wants_q), _room(k, wants_k), _room(v, wants_v), _room_of_sinks(q, wants_sinks)


varlen_backward_op = _operator("varlen_backward", _varlen_backward, _fake_varlen_backward, gradients=_SECOND)
_no_vmap(varlen_backward_op, "the backward pass of flash_attn_varlen_func")


def _save_varlen(ctx: _Context, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, *lists = inputs[:7]
    ctx.longest, scales, sinks, ctx.options = inputs[7:9], inputs[9:12], inputs[12], inputs[13:19]
    ranges, ctx.first_keys = inputs[19:]
    ctx.has_scales = any(x is not None for x in scales) or q.dtype == torch.float8_e4m3fn or k.dtype == torch.float8_e4m3fn
    ctx.save_for_backward(q, k, v, sinks, *output, ranges, *lists)
    ctx.set_materialize_grads(False)


def _varlen_gradients(ctx: _Context, dout: torch.Tensor | None, dlse: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if ctx.has_scales:
        raise NotImplementedError("float8_e4m3fn numbers have no gradients in swift_flash_attention; train with float16 or bfloat16.")
    q, k, v, sinks, out, lse, ranges, query_starts, key_starts, query_counts, key_counts = ctx.saved_tensors
    longest: tuple[int, int] = ctx.longest
    wants: tuple[bool, bool, bool, bool] = *ctx.needs_input_grad[:3], ctx.needs_input_grad[12]
    options: Options = ctx.options
    made = varlen_backward_op(
        torch.zeros_like(out) if dout is None else dout, dlse, q, k, v, sinks, out, lse, query_starts, key_starts, query_counts,
        key_counts, *(*longest, *wants, *options), ranges, ctx.first_keys)
    *own, ofs = _wanted(made, wants, sinks)
    return *own, *[None] * 9, ofs, *[None] * (len(options) + 2)


varlen_op = _operator(
    "varlen", _varlen, lambda q, k, v, query_starts, *rest: _fake_sequences(q, v, query_starts, None),
    gradients=(_varlen_gradients, _save_varlen))
_no_vmap(varlen_op, "flash_attn_varlen_func")


def _kvcache(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None,
    cosines: torch.Tensor | None, sines: torch.Tensor | None, lengths: torch.Tensor, batch_index: torch.Tensor | None,
    left_padding: torch.Tensor | None, page_table: torch.Tensor | None, query_starts: torch.Tensor | None,
    new_key_starts: torch.Tensor | None, longest_query: int | None, positions: torch.Tensor | None,
    query_scales: torch.Tensor | None, key_scales: torch.Tensor | None, value_scales: torch.Tensor | None,
    sinks: torch.Tensor | None, interleaved: bool, causal: bool, left: int, right: int, chunk: int, softcap: float, scale: float | None,
    keys_per_split: int = 0, ranges: torch.Tensor | None = None, first_keys: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    return sequences(
        _plain(q), k_cache, v_cache, lengths=lengths, batch_index=batch_index, left_padding=left_padding,
        page_table=page_table, query_starts=query_starts, longest_query=longest_query, new_k=_plain(k), new_v=_plain(v),
        new_key_starts=new_key_starts, cosines=cosines, sines=sines, interleaved=interleaved, positions=positions,
        query_scales=query_scales, key_scales=key_scales, value_scales=value_scales, scale=scale, causal=causal, left=left,
        right=right, chunk=chunk, softcap=softcap, keys_per_split=keys_per_split, wants_lse=True, is_recorded=True, words=KVCACHE,
        sinks=sinks, ranges=_list(ranges), first_keys=first_keys)


KVCACHE = Words(
    {
        "k": "k_cache", "v": "v_cache", "new_k": "k", "new_v": "v", "lengths": "cache_seqlens", "batch_index": "cache_batch_idx",
        "left_padding": "cache_leftpad", "query_starts": "cu_seqlens_q", "new_key_starts": "cu_seqlens_k_new",
        "longest_query": "max_seqlen_q", "positions": "rotary_seqlens", "cosines": "rotary_cos", "sines": "rotary_sin",
        "query_scales": "q_descale", "key_scales": "k_descale", "value_scales": "v_descale",
    },
    (
        ("The length with", "The number of keys by cache_seqlens with"), ("The length of sequence", "cache_seqlens of sequence"),
        ("place in the cache of", "cache_batch_idx of"), ("left padding of", "cache_leftpad of"),
        ("query start of", "start by cu_seqlens_q of"), ("query count of", "number of queries by cu_seqlens_q (at most max_seqlen_q) of"),
        ("new key start of", "start by cu_seqlens_k_new of"), ("new key count of", "number of new keys by cu_seqlens_k_new of"),
        ("The page of", "A page in page_table of"),
        ("The rotary dimension is", "The rotary dimension (twice the columns of rotary_cos) is"),
        ("the rotary tables have", "the tables of rotary_cos and rotary_sin have"), ("of the cached keys is", "of k_cache is"),
        ("of the cached values is", "of v_cache is"), ("of the new keys is", "of k is"), ("of the new values is", "of v is"),
        ("the cached keys and", "k_cache and"), ("the cached values and", "v_cache and"), ("and the new keys share", "and k share"),
        ("and the new values share", "and v share"), ("and queries share", "and q share"), *SCORES))


def _fake_kvcache(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None,
    cosines: torch.Tensor | None, sines: torch.Tensor | None, lengths: torch.Tensor, batch_index: torch.Tensor | None,
    left_padding: torch.Tensor | None, page_table: torch.Tensor | None, query_starts: torch.Tensor | None, *rest: object
) -> _Two:
    return _fake_sequences(q, v_cache, query_starts, k)


# Appends in place, which autograd and vmap cannot follow; without new keys, the other operator computes.
append_op = _operator("with_kvcache", _kvcache, _fake_kvcache, mutates=("k_cache", "v_cache"))
cache_op = _operator("over_cache", _kvcache, _fake_kvcache, gradients=_OF_CACHES)
_no_vmap(cache_op, "flash_attn_with_kvcache")


def kvcache_op(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None, *rest: Any
) -> _Two:
    """The operator for a call: with new keys, the one that changes the caches."""
    if k is None:
        return cache_op(q, k_cache, v_cache, k, v, *rest)
    tensors = (q, k_cache, v_cache, k, v, *rest)
    if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in tensors):
        raise NotImplementedError(
            "flash_attn_with_kvcache appends k and v in place, and has no gradient; call it under torch.no_grad().")
    if torch._C._functorch.maybe_current_level() is not None:
        raise NotImplementedError("vmap over flash_attn_with_kvcache is not supported; make the axis a part of the batch.")
    return append_op(q, k_cache, v_cache, k, v, *rest)


# MARK: - Parts


def _combine(
    partials: torch.Tensor, log_sum_exps: torch.Tensor, dtype: torch.dtype, sinks: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    parts, batch, queries, heads, dimension = partials.shape
    partials = _plain(partials)
    # The kernel wants rows of whole 16 bytes; others are padded.
    if dimension % 8:
        partials = torch.nn.functional.pad(partials, (0, -dimension % 8))
    result = torch.empty((batch, queries, heads, partials.shape[-1]), dtype=dtype, device=partials.device)
    own = log_sum_exps.resolve_neg().transpose(-1, -2).contiguous()
    lse = torch.empty((batch, heads, queries), dtype=torch.float32, device=partials.device)
    on_gpu = result.is_cuda
    types = {torch.float32: c.F32, torch.float16: c.F16, torch.bfloat16: c.BF16}
    params = c.CombineParams(
        size=ctypes.sizeof(c.CombineParams), device=c.GPU if on_gpu else c.CPU,
        ordinal=result.device.index or 0 if on_gpu else 0, type=types[dtype], parts=parts, batch=batch, queries=queries,
        heads=heads, dimension=result.shape[-1], part_stride=partials.stride(0), log_sum_exps=own.data_ptr(),
        log_sum_exp=lse.data_ptr())
    if sinks is not None:
        params.sinks, params.sink_type = sinks.data_ptr(), types[sinks.dtype]
    params.partials = c.Tensor(partials.data_ptr(), *partials.stride()[1:4])
    params.o = c.Tensor(result.data_ptr(), *result.stride()[:3])
    if on_gpu:
        params.stream = torch.cuda.current_stream(result.device).cuda_stream
    c.check(c.library.fa_combine(params))
    if dimension % 8:
        result = result[..., :dimension].contiguous()
    return result, lse.transpose(-1, -2).contiguous()


def _fake_combine(
    partials: torch.Tensor, log_sum_exps: torch.Tensor, dtype: torch.dtype, sinks: torch.Tensor | None
) -> _Two:
    return partials.new_empty(partials.shape[1:], dtype=dtype), log_sum_exps.new_empty(log_sum_exps.shape[1:])


combine_op = _operator(
    "combine", _combine, _fake_combine,
    gradients="flash_attn_combine has no gradient; differentiate through the parts' log-sum-exps with torch's own operations.")
_no_vmap(combine_op, "flash_attn_combine")
