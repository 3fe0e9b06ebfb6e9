"""The functions of FlashAttention 2, by those of FlashAttention 3: what differs is the order of arguments, some names, and how packed
tensors come."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import pad

from swift_flash_attention import _arguments as given
from swift_flash_attention._numbers import flag, number
from swift_flash_attention.compat import flash_attn_interface as three

if TYPE_CHECKING:
    from swift_flash_attention._types import WholeNumbers

__all__ = [
    "flash_attn_func", "flash_attn_kvpacked_func", "flash_attn_qkvpacked_func", "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func", "flash_attn_varlen_qkvpacked_func", "flash_attn_with_kvcache"]


def _refuse(dropout_p: float, alibi_slopes: Tensor | None) -> None:
    if number("dropout_p", dropout_p) != 0:
        raise NotImplementedError(
            f"dropout_p is {dropout_p}; swift_flash_attention has no dropout. Give 0.0, as in evaluation. (The scale of scores is "
            "softmax_scale, the argument behind it.)")
    if alibi_slopes is not None:
        raise NotImplementedError("alibi_slopes is not supported by swift_flash_attention.")


def _unpacked(name: str, packed: Tensor, parts: int, axes: int, shape: str) -> tuple[Tensor, ...]:
    """The tensors that are one: ``(..., parts, heads, d)``."""
    packed = given.tensor(name, packed)
    if packed.dim() != axes or packed.shape[-3] != parts:
        raise ValueError(f"{name} has the shape {tuple(packed.shape)}; it must be {shape}.")
    return packed.unbind(-3)


def _padded(scale: float | None, *tensors: Tensor) -> tuple[float | None, Sequence[Tensor], int | None]:
    """Dimensions of any size, with zeros to the next multiple of 8; the scale is that of the size given."""
    d = tensors[0].shape[-1] if isinstance(tensors[0], torch.Tensor) and tensors[0].dim() else 0
    if d % 8 == 0 or any(not isinstance(x, torch.Tensor) or x.dim() < 3 or x.shape[-1] != d for x in tensors):
        return scale, tensors, None
    return d**-0.5 if scale is None else scale, [pad(x, (0, -d % 8)) for x in tensors], d


def _lse(lse: Tensor) -> Tensor:
    """Of rows without keys, infinite as there: not below zero, but above."""
    return lse.masked_fill(lse == -torch.inf, torch.inf)


def _result(results: tuple[Tensor, Tensor], d: int | None, wants_probs: bool) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    out, lse = results
    out = out if d is None else out[..., :d]
    # What dropout has left of the weights: nothing without.
    return (out, _lse(lse), torch.empty(0, dtype=out.dtype, device=out.device)) if wants_probs else out


@contextmanager
def _named(**names: str) -> Iterator[None]:
    """Errors about the arguments of FlashAttention 3 speak of those that they came from."""
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error)
        for other, own in names.items():
            text = re.sub(rf"\b{other}\b", own, text)
        raise type(error)(text) from None


def _check_dimension(d: int) -> None:
    if isinstance(d, int) and d % 8 != 0:
        raise NotImplementedError(f"Over a cache the head dimension must be a multiple of 8; it is {d}, and caches are not filled up.")


@overload
def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ...,
    window_size: tuple[int, int] = ..., softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ...,
    return_attn_probs: Literal[False] = ...,
) -> Tensor: ...
@overload
def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ...,
    window_size: tuple[int, int] = ..., softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ..., *,
    return_attn_probs: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ...,
    window_size: tuple[int, int] = ..., softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ...,
    return_attn_probs: bool = ...,
) -> Tensor | tuple[Tensor, Tensor, Tensor]: ...
def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """q ``(b, s_q, h, d)``, k and v ``(b, s_k, h_k, d)``. Returns out, or (out, lse ``(b, h, s_q)``, an empty tensor)."""
    _refuse(dropout_p, alibi_slopes)
    softmax_scale, (q, k, v), d = _padded(softmax_scale, q, k, v)
    return _result(
        three.flash_attn_func(
            q, k, v, softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
            deterministic=deterministic, return_attn_probs=True), d, flag("return_attn_probs", return_attn_probs))


@overload
def flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ...,
    window_size: tuple[int, int] = ..., softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ...,
    return_attn_probs: Literal[False] = ...,
) -> Tensor: ...
@overload
def flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ...,
    window_size: tuple[int, int] = ..., softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ..., *,
    return_attn_probs: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ...,
    window_size: tuple[int, int] = ..., softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ...,
    return_attn_probs: bool = ...,
) -> Tensor | tuple[Tensor, Tensor, Tensor]: ...
def flash_attn_kvpacked_func(
    q: Tensor, kv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """q ``(b, s_q, h, d)``, kv ``(b, s_k, 2, h_k, d)``."""
    k, v = _unpacked("kv", kv, 2, 5, "[batch, tokens, 2, heads, dimension]")
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs)


@overload
def flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ..., window_size: tuple[int, int] = ...,
    softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ..., return_attn_probs: Literal[False] = ...,
) -> Tensor: ...
@overload
def flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ..., window_size: tuple[int, int] = ...,
    softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ..., *, return_attn_probs: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ..., window_size: tuple[int, int] = ...,
    softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ..., return_attn_probs: bool = ...,
) -> Tensor | tuple[Tensor, Tensor, Tensor]: ...
def flash_attn_qkvpacked_func(
    qkv: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Tensor | None = None, deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """qkv ``(b, s, 3, h, d)``, whose gradient is one tensor, too."""
    _refuse(dropout_p, alibi_slopes)
    _unpacked("qkv", qkv, 3, 5, "[batch, tokens, 3, heads, dimension]")
    softmax_scale, (qkv,), d = _padded(softmax_scale, qkv)
    return _result(
        three.flash_attn_qkvpacked_func(
            qkv, softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
            deterministic=deterministic, return_attn_probs=True), d, flag("return_attn_probs", return_attn_probs))


@overload
def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: WholeNumbers, cu_seqlens_k: WholeNumbers, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ..., window_size: tuple[int, int] = ...,
    softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ..., return_attn_probs: Literal[False] = ...,
    block_table: WholeNumbers | None = ...,
) -> Tensor: ...
@overload
def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: WholeNumbers, cu_seqlens_k: WholeNumbers, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ..., window_size: tuple[int, int] = ...,
    softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ..., *, return_attn_probs: Literal[True],
    block_table: WholeNumbers | None = ...,
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: WholeNumbers, cu_seqlens_k: WholeNumbers, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ..., window_size: tuple[int, int] = ...,
    softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ..., return_attn_probs: bool = ...,
    block_table: WholeNumbers | None = ...,
) -> Tensor | tuple[Tensor, Tensor, Tensor]: ...
def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: WholeNumbers, cu_seqlens_k: WholeNumbers, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0, alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    block_table: WholeNumbers | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """q ``(total_q, h, d)``, k and v ``(total_k, h_k, d)``, or pages ``(pages, page size, h_k, d)`` with ``block_table``, which have no
    gradients. Returns out, or (out, lse ``(h, total_q)``, an empty tensor)."""
    _refuse(dropout_p, alibi_slopes)
    wants_probs = flag("return_attn_probs", return_attn_probs)
    if block_table is not None:
        starts = given.int32("cu_seqlens_k", cu_seqlens_k, given.tensor("q", q))
        _check_dimension(q.shape[-1])
        if starts.dim() != 1 or getattr(cu_seqlens_q, "shape", starts.shape) != starts.shape:
            raise ValueError(f"cu_seqlens_k has the shape {tuple(starts.shape)}; it must be that of cu_seqlens_q, [batch + 1].")
        with _named(page_table="block_table", k_cache="k", v_cache="v", cache_seqlens="cu_seqlens_k"):
            results = three.flash_attn_with_kvcache(
                q, k, v, cache_seqlens=starts.diff().to(torch.int32), page_table=block_table, cu_seqlens_q=cu_seqlens_q,
                max_seqlen_q=max_seqlen_q, softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
                return_softmax_lse=True)
        return _result(results[:2], None, wants_probs)
    softmax_scale, (q, k, v), d = _padded(softmax_scale, q, k, v)
    return _result(
        three.flash_attn_varlen_func(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=softmax_scale, causal=causal,
            window_size=window_size, softcap=softcap, deterministic=deterministic, return_attn_probs=True), d, wants_probs)


@overload
def flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens_q: WholeNumbers, cu_seqlens_k: WholeNumbers, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ..., window_size: tuple[int, int] = ...,
    softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ..., return_attn_probs: Literal[False] = ...,
) -> Tensor: ...
@overload
def flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens_q: WholeNumbers, cu_seqlens_k: WholeNumbers, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ..., window_size: tuple[int, int] = ...,
    softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ..., *, return_attn_probs: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens_q: WholeNumbers, cu_seqlens_k: WholeNumbers, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = ..., softmax_scale: float | None = ..., causal: bool = ..., window_size: tuple[int, int] = ...,
    softcap: float = ..., alibi_slopes: Tensor | None = ..., deterministic: bool = ..., return_attn_probs: bool = ...,
) -> Tensor | tuple[Tensor, Tensor, Tensor]: ...
def flash_attn_varlen_kvpacked_func(
    q: Tensor, kv: Tensor, cu_seqlens_q: WholeNumbers, cu_seqlens_k: WholeNumbers, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0, alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """q ``(total_q, h, d)``, kv ``(total_k, 2, h_k, d)``."""
    k, v = _unpacked("kv", kv, 2, 4, "[total, 2, heads, dimension]")
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal, window_size, softcap,
        alibi_slopes, deterministic, return_attn_probs)


@overload
def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: WholeNumbers, max_seqlen: int, dropout_p: float = ..., softmax_scale: float | None = ...,
    causal: bool = ..., window_size: tuple[int, int] = ..., softcap: float = ..., alibi_slopes: Tensor | None = ...,
    deterministic: bool = ..., return_attn_probs: Literal[False] = ...,
) -> Tensor: ...
@overload
def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: WholeNumbers, max_seqlen: int, dropout_p: float = ..., softmax_scale: float | None = ...,
    causal: bool = ..., window_size: tuple[int, int] = ..., softcap: float = ..., alibi_slopes: Tensor | None = ...,
    deterministic: bool = ..., *, return_attn_probs: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: WholeNumbers, max_seqlen: int, dropout_p: float = ..., softmax_scale: float | None = ...,
    causal: bool = ..., window_size: tuple[int, int] = ..., softcap: float = ..., alibi_slopes: Tensor | None = ...,
    deterministic: bool = ..., return_attn_probs: bool = ...,
) -> Tensor | tuple[Tensor, Tensor, Tensor]: ...
def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: WholeNumbers, max_seqlen: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """qkv ``(total, 3, h, d)``."""
    q, k, v = _unpacked("qkv", qkv, 3, 4, "[total, 3, heads, dimension]")
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, softmax_scale, causal, window_size, softcap,
        alibi_slopes, deterministic, return_attn_probs)


@overload
def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = ..., v: Tensor | None = ..., rotary_cos: Tensor | None = ...,
    rotary_sin: Tensor | None = ..., cache_seqlens: int | WholeNumbers | None = ..., cache_batch_idx: WholeNumbers | None = ...,
    cache_leftpad: WholeNumbers | None = ..., block_table: WholeNumbers | None = ..., softmax_scale: float | None = ...,
    causal: bool = ..., window_size: tuple[int, int] = ..., softcap: float = ..., rotary_interleaved: bool = ...,
    alibi_slopes: Tensor | None = ..., num_splits: int = ..., return_softmax_lse: Literal[False] = ...,
) -> Tensor: ...
@overload
def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = ..., v: Tensor | None = ..., rotary_cos: Tensor | None = ...,
    rotary_sin: Tensor | None = ..., cache_seqlens: int | WholeNumbers | None = ..., cache_batch_idx: WholeNumbers | None = ...,
    cache_leftpad: WholeNumbers | None = ..., block_table: WholeNumbers | None = ..., softmax_scale: float | None = ...,
    causal: bool = ..., window_size: tuple[int, int] = ..., softcap: float = ..., rotary_interleaved: bool = ...,
    alibi_slopes: Tensor | None = ..., num_splits: int = ..., *, return_softmax_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = ..., v: Tensor | None = ..., rotary_cos: Tensor | None = ...,
    rotary_sin: Tensor | None = ..., cache_seqlens: int | WholeNumbers | None = ..., cache_batch_idx: WholeNumbers | None = ...,
    cache_leftpad: WholeNumbers | None = ..., block_table: WholeNumbers | None = ..., softmax_scale: float | None = ...,
    causal: bool = ..., window_size: tuple[int, int] = ..., softcap: float = ..., rotary_interleaved: bool = ...,
    alibi_slopes: Tensor | None = ..., num_splits: int = ..., return_softmax_lse: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = None, v: Tensor | None = None, rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None, cache_seqlens: int | WholeNumbers | None = None, cache_batch_idx: WholeNumbers | None = None,
    cache_leftpad: WholeNumbers | None = None, block_table: WholeNumbers | None = None, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None, num_splits: int = 0, return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """q ``(b, s_q, h, d)``; caches ``(b_cache, s_cache, h_k, d)``, or pages ``(pages, page size, h_k, d)`` with ``block_table``; k and v
    are appended in place first. Returns out, or (out, lse ``(b, h, s_q)``)."""
    _refuse(0.0, alibi_slopes)
    _check_dimension(given.tensor("q", q).shape[-1] if q is not None else 0)
    with _named(page_table="block_table"):
        results = three.flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, rotary_cos=rotary_cos, rotary_sin=rotary_sin, cache_seqlens=cache_seqlens,
            cache_batch_idx=cache_batch_idx, cache_leftpad=cache_leftpad, page_table=block_table, softmax_scale=softmax_scale,
            causal=causal, window_size=window_size, softcap=softcap, rotary_interleaved=rotary_interleaved,
            num_splits=num_splits, return_softmax_lse=return_softmax_lse)
    return (results[0], _lse(results[1])) if isinstance(results, tuple) else results
