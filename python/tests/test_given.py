"""What callers hand over: right, or refused by the name of the argument; and nothing of it is remembered but what it is."""

import subprocess
import sys

import numpy
import pytest
import torch
from reference import attention as exact

import swift_flash_attention as fa
from swift_flash_attention import _overlap, _sequences, _torch
from swift_flash_attention.compat.flash_attn_interface import (
    flash_attn_combine, flash_attn_func, flash_attn_qkvpacked_func, flash_attn_varlen_func, flash_attn_with_kvcache)

Q = torch.randn(1, 5, 2, 64, generator=torch.Generator().manual_seed(0))
PACKED, STARTS = Q[0], torch.tensor([0, 2, 5], dtype=torch.int32)
ONE, CACHE = Q[:, :1], torch.randn(1, 8, 2, 64, generator=torch.Generator().manual_seed(1))
PAGES, TABLE = CACHE.view(4, 2, 2, 64), torch.arange(4, dtype=torch.int32)[None]


# MARK: - Sentences


@pytest.mark.parametrize(
    "call, kind, sentence", [
        (lambda: flash_attn_varlen_func(PACKED, PACKED, PACKED, STARTS, STARTS, 2, 3), ValueError,
         r"The number of queries by cu_seqlens_q \(at most max_seqlen_q\) of sequence 1 is 3; it must be from 0 to 2"),
        (lambda: flash_attn_varlen_func(PACKED, PACKED, PACKED, STARTS, STARTS, 3, 2), ValueError,
         r"The number of keys by cu_seqlens_k \(at most max_seqlen_k\) of sequence 1 is 3"),
        (lambda: flash_attn_varlen_func(Q, Q, Q, STARTS, STARTS, 3, 3), ValueError, r"^q has the shape \(1, 5, 2, 64\); it must be"),
        (lambda: flash_attn_varlen_func(PACKED, PACKED, PACKED, STARTS[None], STARTS, 3, 3), ValueError, "^cu_seqlens_q has"),
        (lambda: flash_attn_varlen_func(PACKED, PACKED, PACKED, STARTS, STARTS[:2], 3, 3), ValueError, "^cu_seqlens_k has"),
        (lambda: flash_attn_varlen_func(PACKED, PACKED, PACKED, STARTS.float(), STARTS, 3, 3), TypeError,
         "^cu_seqlens_q is torch.float32; it must hold whole numbers"),
        (lambda: flash_attn_varlen_func(PACKED, PACKED, PACKED, None, STARTS, 3, 3), TypeError, "^cu_seqlens_q is a NoneType"),
        (lambda: flash_attn_varlen_func(PACKED, PACKED, PACKED, STARTS, STARTS, 3.5, 3), TypeError, "^max_seqlen_q is 3.5"),
        (lambda: flash_attn_func(PACKED, Q, Q), ValueError, r"^q has the shape \(5, 2, 64\)"),
        (lambda: flash_attn_func(Q.numpy(), Q, Q), TypeError, "^q is a numpy.ndarray; it must be a torch.Tensor"),
        (lambda: flash_attn_func(Q, Q.to_sparse(), Q), TypeError, "^k has the layout torch.sparse_coo"),
        (lambda: flash_attn_func(Q, Q[..., :32], Q), ValueError, "^k has the shape"),
        (lambda: flash_attn_func(Q, Q, Q[:, :3]), ValueError, "^v has the shape"),
        (lambda: flash_attn_func(Q, Q.half(), Q), ValueError, "^k is torch.float16; torch.float32 is needed"),
        (lambda: flash_attn_func(Q, Q, Q, softcap=None), TypeError, "^softcap is None; it must be a number"),
        (lambda: flash_attn_func(Q, Q, Q, softcap=-1.0), ValueError, "softcap"),
        (lambda: flash_attn_func(Q, Q, Q, softmax_scale=torch.ones(2)), TypeError, "^softmax_scale has the shape"),
        (lambda: flash_attn_func(Q, Q, Q, softmax_scale=float("nan")), ValueError, "scale .softmax_scale. is nan"),
        (lambda: flash_attn_func(Q, Q, Q, causal="yes"), TypeError, "^causal is 'yes'; it must be True or False"),
        (lambda: flash_attn_func(Q, Q, Q, window_size=5), TypeError, r"^window_size is 5; it must be \(left, right\)"),
        (lambda: flash_attn_func(Q, Q, Q, attention_chunk=-2), ValueError, "chunk"),
        (lambda: flash_attn_func(Q, Q, Q, q_descale=torch.ones(1, 2)), ValueError, "^q_descale is a factor of float8_e4m3fn"),
        (lambda: flash_attn_qkvpacked_func(Q), ValueError, "num_heads_q"),
        (lambda: flash_attn_qkvpacked_func(Q, num_heads_q=1), ValueError, "^num_heads_q is 1, and qkv has 2 heads"),
        (lambda: flash_attn_qkvpacked_func(Q[:, :, None].expand(1, 5, 2, 2, 64)), ValueError, "^qkv has the shape"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=8, num_splits=-1), ValueError, "^num_splits is -1; it must be 0"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=8, num_splits=1.5), TypeError, "^num_splits is 1.5"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=9), ValueError, "^cache_seqlens is 9; it must be from 0 to 8"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=[9]), ValueError,
         "^The number of keys by cache_seqlens of sequence 0 is 9|^cache_seqlens of sequence 0 is 9"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=[5, 5]), ValueError, "^cache_seqlens has the shape"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=5.5), TypeError, "^cache_seqlens is a float"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=5, cache_batch_idx=[3]), ValueError, "cache_batch_idx of sequence 0 is 3"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=5, cache_leftpad=[9]), ValueError, "cache_leftpad of sequence 0 is 9"),
        (lambda: flash_attn_with_kvcache(ONE, PAGES, PAGES, cache_seqlens=5, page_table=[[0, 1, 7, 0]]), ValueError,
         "page in page_table of sequence 0 is 7"),
        (lambda: flash_attn_with_kvcache(ONE, PAGES, PAGES, cache_seqlens=5, page_table=[0, 1]), ValueError, "^page_table has the shape"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE[..., ::2]), ValueError, "k_cache and v_cache must have elements side by side"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE.half()), ValueError, "^k_cache is torch.float32 and v_cache is torch.float16"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE.clone(), k=ONE, v=ONE, cache_seqlens=8), ValueError, "by cache_seqlens with 1 new keys"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE, k=ONE.half(), v=ONE, cache_seqlens=5), ValueError, "^k is torch.float16"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE.clone(), CACHE, k=CACHE[:, 7:], v=ONE, cache_seqlens=3), ValueError,
         "^v_cache and k share memory"),
        (lambda: flash_attn_with_kvcache(CACHE[:, :1], CACHE, CACHE.clone(), k=ONE, v=ONE, cache_seqlens=3), ValueError,
         "^k_cache and q share memory"),
        (lambda: flash_attn_with_kvcache(
            Q.expand(2, 5, 2, 64), CACHE.expand(2, 8, 2, 64).clone(), CACHE.expand(2, 8, 2, 64).clone(), k=torch.cat([ONE, ONE]),
            v=torch.cat([ONE, ONE]), cache_seqlens=torch.tensor([3, 3]), cache_batch_idx=torch.tensor([1, 1])), ValueError,
         "Sequences 0 and 1 of the call would both append to row 3 of sequence 1 of the cache"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE, k=ONE, v=ONE, cache_seqlens=5, rotary_cos=torch.ones(9, 8)), ValueError,
         "give both rotary_cos and rotary_sin"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE, rotary_cos=torch.ones(9, 8), cache_seqlens=5), ValueError,
         "^rotary_cos is for new keys: give k and v with it"),
        (lambda: flash_attn_with_kvcache(
            ONE, CACHE, CACHE.clone(), k=ONE, v=ONE, cache_seqlens=5, rotary_cos=torch.ones(9, 12), rotary_sin=torch.ones(9, 12)),
         ValueError, "^The rotary dimension .twice the columns of rotary_cos. is 24; it must be a multiple of 16"),
        (lambda: flash_attn_with_kvcache(
            ONE, CACHE, CACHE.clone(), k=ONE, v=ONE, cache_seqlens=5, rotary_cos=torch.ones(5, 8), rotary_sin=torch.ones(5, 8)),
         ValueError, "reaches position 5, and the tables of rotary_cos and rotary_sin have 5 rows"),
        (lambda: flash_attn_with_kvcache(
            ONE, PAGES, PAGES.clone(), k=ONE, v=ONE, cache_seqlens=5, page_table=TABLE, rotary_cos=torch.ones(7, 8),
            rotary_sin=torch.ones(7, 8)), ValueError, "^rotary_cos has 7 rows; with page_table"),
        (lambda: flash_attn_with_kvcache(PACKED, CACHE, CACHE, cu_seqlens_q=[0, 5], cache_seqlens=5), ValueError, "need max_seqlen_q"),
        (lambda: flash_attn_with_kvcache(ONE, CACHE, CACHE, k=ONE, v=ONE, cache_seqlens=3), ValueError, "^k_cache and v_cache are one memory"),
        (lambda: flash_attn_with_kvcache(ONE, PAGES, PAGES, cache_seqlens=3, page_table=[[0, 1]], cache_batch_idx=[7]), ValueError,
         r"^cache_batch_idx is \[7\]; with page_table, it must be from 0 to 0"),
        (lambda: flash_attn_varlen_func(PACKED, PACKED, PACKED, STARTS, STARTS, -1, 3), ValueError, "^max_seqlen_q is -1"),
        (lambda: flash_attn_func(Q, Q, Q, window_size={1: 2, 3: 4}), TypeError, "^window_size is {1: 2, 3: 4}"),
        (lambda: flash_attn_func(Q, Q, Q, window_size=(torch.ones(2), 0)), TypeError, "^window_size .left. has the shape"),
        (lambda: flash_attn_func(Q, Q, Q, attention_chunk=2**64 + 4), ValueError, "^attention_chunk is 18446744073709551620"),
        (lambda: flash_attn_func(Q, Q, Q, softmax_scale=10**400), ValueError, "^softmax_scale is 1000"),
        (lambda: flash_attn_func(Q, Q, Q, softmax_scale=torch.tensor(0.3, requires_grad=True)), NotImplementedError,
         "^softmax_scale wants a gradient"),
        (lambda: fa.attention(Q, Q, Q, return_lse=torch.ones(2)), TypeError, "^return_lse has the shape"),
        (lambda: fa.prepare(None, Q), TypeError, "^function is None"),
        (lambda: flash_attn_combine(Q, Q), ValueError, "^out_partial has the shape"),
        (lambda: flash_attn_combine(Q[None].half(), Q[None, ..., 0]), ValueError, "^out_partial is torch.float16"),
        (lambda: flash_attn_combine(Q[None], Q[None, ..., 0], out=torch.empty(1, 1, 2, 64).expand(1, 5, 2, 64)), ValueError,
         "^out has the strides"),
        (lambda: flash_attn_combine(Q[None], Q[None, ..., 0], out_dtype=torch.int32), ValueError, "^out_dtype is torch.int32"),
        (lambda: fa.attention(Q, Q, Q, window=128), TypeError, r"^window is 128; it must be \(left, right\)"),
        (lambda: fa.attention(Q, Q, Q, window=(1.5, 0)), TypeError, "^window .left. is 1.5"),
        (lambda: fa.attention(Q, Q, Q, chunk=2.5), TypeError, "^chunk is 2.5"),
        (lambda: fa.attention(Q, Q, Q, causal=2), TypeError, "^causal is 2"),
        (lambda: fa.attention(Q, Q.numpy(), Q), TypeError, "^k is a numpy.ndarray"),
        (lambda: fa.attention(Q.numpy(), Q, Q.numpy()), TypeError, "^q is a numpy.ndarray"),
        (lambda: fa.attention(numpy.ma.masked_array(Q.numpy(), Q.numpy() > 0), Q.numpy(), Q.numpy()), TypeError, "^q is a masked array"),
        (lambda: fa.attention(Q.numpy().astype(">f4"), Q.numpy(), Q.numpy()), TypeError, "^q is >f4"),
        (lambda: fa.attention(Q, Q, Q, out=Q), ValueError, "^out shares memory with q"),
        (lambda: fa.attention(Q, Q, Q, out=Q[:, :1].expand(1, 5, 2, 64)), ValueError, "^out has the strides"),
        (lambda: fa.attention(*[Q.numpy()] * 3, out=Q.numpy()), ValueError, "^out shares memory with q"),
        (lambda: fa.attention(*[Q.numpy()] * 3, out=numpy.broadcast_to(Q.numpy()[:, :1], Q.shape)), ValueError, "^out is read-only"),
    ])
def test_sentences_name_the_argument(call, kind, sentence):
    with pytest.raises(kind, match=sentence):
        call()


def test_strides_that_are_no_whole_elements():
    rows = numpy.zeros(5, dtype=[("flag", "i1"), ("row", "f4", (2, 64))])["row"][None]
    assert rows.strides[1] % 4 == 1
    with pytest.raises(ValueError, match="^q has strides of .* bytes, which are not whole elements of 4 bytes"):
        fa.attention(rows, Q.numpy(), Q.numpy())


class OnSomeGPU:
    """An array that says where it is, and not on which GPU."""

    dtype, shape, device = numpy.dtype("float16"), (1, 5, 2, 64), None

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "typestr": "<f2", "data": (4096, False), "strides": None, "version": 3}


def test_arrays_that_do_not_say_on_which_gpu_they_are():
    with pytest.raises(TypeError, match="^q is a OnSomeGPU, which does not say on which GPU it is; give an array with DLPack"):
        fa.attention(OnSomeGPU(), OnSomeGPU(), OnSomeGPU())


def test_memory_that_may_not_be_written(tmp_path):
    constant = bytes(Q.numel() * 4)
    with pytest.raises(ValueError, match="^out is read-only"):
        fa.attention(*[Q.numpy()] * 3, out=numpy.frombuffer(constant, numpy.float32).reshape(Q.shape))
    assert not any(constant)
    path = tmp_path / "out.bin"
    path.write_bytes(constant)
    with pytest.raises(ValueError, match="^out is read-only"):
        fa.attention(*[Q.numpy()] * 3, out=numpy.memmap(path, numpy.float32, "r", shape=tuple(Q.shape)))


def test_one_memory_for_queries_keys_values_and_results():
    """What lies between each other does not overlap."""
    together = torch.randn(2, 9, 4, 2, 16)
    q, k, v, out = together.unbind(2)
    expected = fa.attention(q, k, v)
    assert fa.attention(q, k, v, out=out) is out and torch.equal(out, expected)
    assert not _overlap.overlaps_itself((2, 1, 3), (3, 7, 1)) and _overlap.overlaps_itself((2, 3), (2, 1))


# MARK: - Lists and numbers of any kind


@pytest.mark.parametrize("make", [
    lambda x: x.long(), lambda x: x.numpy(), lambda x: x.numpy().astype("uint8"), lambda x: x.tolist(), lambda x: tuple(x.tolist()),
    lambda x: torch.stack([x, x], -1)[..., 0], lambda x: x.to(torch.int16), lambda x: torch._neg_view(-x)])
def test_lists_of_any_kind(make):
    expected = flash_attn_varlen_func(PACKED, PACKED, PACKED, STARTS, STARTS, 3, 3, causal=True)
    assert torch.equal(flash_attn_varlen_func(PACKED, PACKED, PACKED, make(STARTS), make(STARTS), 3, 3, causal=True), expected)
    lengths, index = torch.tensor([5], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
    expected = flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=5)
    own = flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=make(lengths), cache_batch_idx=make(index))
    assert torch.equal(own, expected)
    # Pages are read one by one: the same numbers, in sums of their own.
    of_pages = flash_attn_with_kvcache(ONE, PAGES, PAGES, cache_seqlens=lengths, page_table=TABLE)
    torch.testing.assert_close(of_pages, expected)
    assert torch.equal(flash_attn_with_kvcache(ONE, PAGES, PAGES, cache_seqlens=make(lengths), page_table=make(TABLE)), of_pages)


def test_numbers_are_read_at_every_call():
    scale, softcap = torch.tensor(0.3), numpy.array(5.0)
    cap = numpy.float32(2.0)
    for value in (0.3, 0.05, -0.2):
        scale.fill_(value)
        for own in (
            flash_attn_func(Q, Q, Q, softmax_scale=scale), fa.attention(Q, Q, Q, scale=scale),
            flash_attn_with_kvcache(Q, Q, Q, softmax_scale=scale), fa.attention(Q.numpy(), Q.numpy(), Q.numpy(), scale=scale),
        ):
            assert torch.equal(torch.as_tensor(own), flash_attn_func(Q, Q, Q, softmax_scale=float(scale)))
    for value in (5.0, 0.5):
        softcap[...] = value
        assert torch.equal(flash_attn_func(Q, Q, Q, softcap=softcap), flash_attn_func(Q, Q, Q, softcap=value))
    assert torch.equal(fa.attention(Q, Q, Q, softcap=cap.item()), flash_attn_func(Q, Q, Q, softcap=cap))
    flag, side = torch.tensor(True), torch.tensor(2)
    assert torch.equal(flash_attn_func(Q, Q, Q, causal=flag), flash_attn_func(Q, Q, Q, causal=True))
    flag.fill_(False)
    assert torch.equal(flash_attn_func(Q, Q, Q, causal=flag), flash_attn_func(Q, Q, Q))
    for value in (2, 0):
        side.fill_(value)
        assert torch.equal(flash_attn_func(Q, Q, Q, window_size=(side, None)), flash_attn_func(Q, Q, Q, window_size=(value, -1)))
    for memory in vars(_torch._local).values():
        for key in memory if isinstance(memory, dict) else ():
            assert not any(isinstance(part, (torch.Tensor, numpy.ndarray)) for part in key)


def test_cache_lengths_of_no_axes():
    expected = flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=5)
    for length in (numpy.int64(5), torch.tensor(5), torch.tensor(5, dtype=torch.int32)):
        assert torch.equal(flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=length), expected)


# MARK: - Lazy tensors


def test_lazily_negated_tensors():
    negated = torch._neg_view(torch.randn(1, 5, 2, 64))
    plain = negated.resolve_neg()
    assert torch.equal(flash_attn_func(Q, negated, negated), flash_attn_func(Q, plain, plain))
    assert torch.equal(fa.attention(negated, Q, negated), fa.attention(plain, Q, plain))
    assert torch.equal(
        flash_attn_with_kvcache(negated, negated, Q, cache_seqlens=4), flash_attn_with_kvcache(plain, plain, Q, cache_seqlens=4))
    assert torch.equal(
        flash_attn_combine(negated[None], Q[None, ..., 0])[0], flash_attn_combine(plain[None], Q[None, ..., 0])[0])
    imaginary = torch.randn(1, 5, 2, 64, dtype=torch.complex64).conj().imag
    assert imaginary.is_neg() and torch.equal(flash_attn_func(Q, Q, imaginary), flash_attn_func(Q, Q, imaginary.resolve_neg()))
    with pytest.raises(ValueError, match="^v_cache is a lazily negated view, to which new keys cannot be appended"):
        flash_attn_with_kvcache(ONE, CACHE.clone(), torch._neg_view(CACHE.clone()), k=ONE, v=ONE, cache_seqlens=2)
    with pytest.raises(ValueError, match="^out is a lazily negated view"):
        fa.attention(Q, Q, Q, out=torch._neg_view(torch.empty_like(Q)))


# MARK: - FlashAttention 3's habits


def test_rotary_positions_mean_nothing_without_tables():
    one, other = CACHE.clone(), CACHE.clone()
    expected = flash_attn_with_kvcache(ONE, one, CACHE.clone(), k=ONE, v=ONE, cache_seqlens=3)
    own = flash_attn_with_kvcache(ONE, other, CACHE.clone(), k=ONE, v=ONE, cache_seqlens=3, rotary_seqlens=torch.tensor([7], dtype=torch.int32))
    assert torch.equal(own, expected) and torch.equal(one, other)
    assert torch.equal(
        flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=3, rotary_seqlens=[2]),
        flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=3))


@pytest.mark.parametrize("rotary", [False, True])
def test_new_keys_of_e4m3(device, rotary):
    q = torch.randn(2, 1, 4, 64, device=device).to(torch.float8_e4m3fn)
    caches = [torch.randn(2, 40, 2, 64, device=device).to(torch.float8_e4m3fn) for _ in range(2)]
    k, v = (torch.randn(2, 1, 2, 64, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    angles = torch.rand(40, 16, device=device)
    tables = [f(angles).to(torch.float8_e4m3fn) if rotary else None for f in (torch.cos, torch.sin)]
    own, expected = [x.clone() for x in caches], [x.clone() for x in caches]
    lengths = torch.tensor([20, 3], dtype=torch.int32, device=device)
    out = flash_attn_with_kvcache(
        q, *own, k=k, v=v, rotary_cos=tables[0], rotary_sin=tables[1], cache_seqlens=lengths, causal=True)
    wide = [None if x is None else x.bfloat16() for x in tables]
    same = flash_attn_with_kvcache(
        q, *expected, k=k.bfloat16(), v=v.bfloat16(), rotary_cos=wide[0], rotary_sin=wide[1], cache_seqlens=lengths, causal=True)
    assert out.dtype == torch.bfloat16 and torch.equal(out, same)
    for x, y in zip(own, expected):
        assert torch.equal(x.view(torch.uint8), y.view(torch.uint8))
    for b, n in enumerate([20, 3]):
        assert torch.equal(own[1][b, n].float(), v[b, 0].float())
        assert rotary or torch.equal(own[0][b, n].float(), k[b, 0].float())


def test_parts_without_keys_by_either_infinity(device):
    outs, lses = torch.randn(3, 1, 4, 2, 32, device=device), torch.randn(3, 1, 4, 2, device=device)
    outs[1, 0, 2], lses[1, 0, 2] = torch.nan, -torch.inf
    outs[:, 0, 3], lses[:, 0, 3] = torch.nan, -torch.inf
    expected, expected_lse = flash_attn_combine(outs, lses)
    own, lse = flash_attn_combine(outs, lses.where(lses != -torch.inf, torch.inf))
    assert torch.equal(own, expected) and torch.equal(lse, expected_lse) and not own.isnan().any() and (own[0, 3] == 0).all()


# MARK: - Traces, transforms, gradients


def functions():
    q4 = lambda q: flash_attn_func(q, q, q, causal=True)  # noqa: E731
    own = lambda q: fa.attention(q, q, q, causal=True)  # noqa: E731
    varlen = lambda q: flash_attn_varlen_func(  # noqa: E731
        q.flatten(0, 1), q.flatten(0, 1), q.flatten(0, 1), STARTS, STARTS, 3, 3, causal=True)
    cache = lambda q: flash_attn_with_kvcache(q, q, q, cache_seqlens=STARTS[1:2], causal=True)  # noqa: E731
    combine = lambda q: flash_attn_combine(q[None] * 1, q[None, ..., 0])[0]  # noqa: E731
    packed = lambda q: flash_attn_qkvpacked_func(torch.stack([q] * 3, 2), causal=True)  # noqa: E731
    return {"func": q4, "attention": own, "varlen": varlen, "kvcache": cache, "combine": combine, "qkvpacked": packed}


@pytest.mark.parametrize("name", functions())
def test_gradients_are_there_or_say_why_not(name):
    q = Q.clone().requires_grad_()
    out = functions()[name](q)
    assert out.requires_grad and torch.equal(out, functions()[name](Q))
    words = {"kvcache": "^A cache of keys and values has no gradient", "combine": "^flash_attn_combine has no gradient"}
    if name in words:
        with pytest.raises(NotImplementedError, match=words[name]):
            out.sum().backward()
    else:
        out.sum().backward()
        assert torch.isfinite(q.grad).all() and q.grad.any()
    with torch.no_grad():
        assert not functions()[name](q).requires_grad


def test_gradients_of_what_is_written_in_place_raise():
    q = ONE.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="^flash_attn_with_kvcache appends k and v in place, and has no gradient"):
        flash_attn_with_kvcache(q, CACHE.clone(), CACHE.clone(), k=q, v=q, cache_seqlens=3)
    q = Q.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="^out cannot be given where gradients are wanted"):
        fa.attention(q, q, q, out=torch.empty_like(Q))
    with pytest.raises(NotImplementedError, match="^out cannot be given where gradients are wanted"):
        flash_attn_combine(q[None], q[None, ..., 0], out=torch.empty_like(Q))


@pytest.mark.parametrize("name", functions())
def test_traces_hold_an_operator(name):
    function = functions()[name]
    other = torch.randn(1, 5, 2, 64)
    expected = function(other)
    traced = torch.jit.trace(function, (Q,), check_trace=False)
    assert torch.equal(traced(other), expected)
    from torch.fx.experimental.proxy_tensor import make_fx

    # Lists that the function brings along are not of the tracer's kind.
    for mode in ("real",) if name in ("varlen", "kvcache") else ("real", "fake"):
        assert torch.equal(make_fx(function, tracing_mode=mode)(Q)(other), expected)
    fake = torch._subclasses.FakeTensorMode()
    with fake:
        out = function(fake.from_tensor(Q)) if name not in ("varlen", "kvcache") else None
    assert out is None or type(out).__name__ == "FakeTensor" and out.shape == expected.shape


@pytest.mark.parametrize("name", ["func", "attention", "qkvpacked"])
def test_vmap_is_a_larger_batch(name):
    many = torch.randn(3, 1, 5, 2, 64)
    own = torch.vmap(functions()[name])(many)
    assert torch.allclose(own, torch.stack([functions()[name](x) for x in many]), atol=1e-6)
    k = torch.randn(1, 7, 2, 64)
    own = torch.vmap(lambda q: flash_attn_func(q, k, k))(many)
    assert torch.allclose(own, torch.stack([flash_attn_func(x, k, k) for x in many]), atol=1e-6)


@pytest.mark.parametrize("name, words", [
    ("varlen", "flash_attn_varlen_func"), ("kvcache", "flash_attn_with_kvcache"), ("combine", "flash_attn_combine")])
def test_vmap_is_refused_elsewhere(name, words):
    with pytest.raises(NotImplementedError, match=f"vmap over {words} is not supported"):
        torch.vmap(functions()[name])(torch.randn(3, 1, 5, 2, 64))


def test_function_transforms_raise():
    with pytest.raises(NotImplementedError, match="^torch.func's gradients"):
        torch.func.grad(lambda q: flash_attn_func(q, q, q).sum())(Q)


@pytest.mark.parametrize("name", functions())
def test_compiles_whole(name):
    torch._dynamo.reset()
    own = torch.compile(functions()[name], fullgraph=True, backend="aot_eager")(Q)
    assert torch.equal(own, functions()[name](Q))


def test_exports():
    class Block(torch.nn.Module):
        def forward(self, q):
            return fa.attention(q, q, q, causal=True) + flash_attn_func(q, q, q)

    assert torch.equal(torch.export.export(Block(), (Q,)).module()(Q), Block()(Q))


def test_numbers_in_tensors_are_refused_by_traces():
    scale = torch.tensor(0.1)
    for trace in (
        lambda: torch.jit.trace(lambda q, s: fa.attention(q, q, q, scale=s), (Q, scale), check_trace=False),
        lambda: torch.vmap(lambda q: fa.attention(q, q, q, scale=scale))(torch.randn(2, 1, 5, 2, 64)),
    ):
        with pytest.raises(TypeError, match="^scale is a tensor, whose number a trace would keep as it is"):
            trace()


def test_forward_mode_gradients_raise():
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="^Forward-mode gradients"):
        fa.attention(torch.autograd.forward_ad.make_dual(Q, torch.ones_like(Q)), Q, Q)


def test_gradients_of_tables_and_scales_raise():
    table = torch.ones(9, 8, requires_grad=True)
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="appends k and v in place, and has no gradient"):
            flash_attn_with_kvcache(
                ONE, CACHE.clone(), CACHE.clone(), k=ONE, v=ONE, cache_seqlens=3, rotary_cos=table, rotary_sin=table)
        with torch.no_grad():
            flash_attn_with_kvcache(
                ONE, CACHE.clone(), CACHE.clone(), k=ONE, v=ONE, cache_seqlens=3, rotary_cos=table, rotary_sin=table)


def test_fake_lists_are_noticed():
    mode = torch._subclasses.FakeTensorMode()
    flash_attn_with_kvcache(ONE, CACHE, CACHE, cache_seqlens=[5], cache_leftpad=[1])
    with pytest.raises(TypeError, match="^cache_leftpad is a FakeTensor"):
        flash_attn_with_kvcache(
            ONE, CACHE, CACHE, cache_seqlens=[5], cache_leftpad=mode.from_tensor(torch.tensor([1], dtype=torch.int32)))


def test_windows_beyond_all_keys():
    expected = flash_attn_func(Q, Q, Q, causal=True)
    for size in (2**31, 2**63, 2**70):
        assert torch.equal(flash_attn_func(Q, Q, Q, window_size=(size, 0)), expected)
        assert torch.equal(fa.attention(Q, Q, Q, window=(size, 0)), expected)


def test_out_compiles():
    torch._dynamo.reset()
    own = torch.compile(lambda q, out: fa.attention(q, q, q, out=out), fullgraph=True, backend="aot_eager")(Q, torch.empty_like(Q))
    assert torch.equal(own, fa.attention(Q, Q, Q))


# MARK: - Devices


class Elsewhere(torch.Tensor):
    """A tensor that says it is on another GPU."""

    def get_device(self):
        return 1


def test_every_tensor_of_every_call_must_be_on_one_device():
    """After a shape's first call, too, of which everything is remembered."""
    lengths, index, table = (torch.tensor(x, dtype=torch.int32) for x in ([5], [0], [[0, 1, 2, 3]]))
    q, new = ONE.clone(), ONE.clone()
    cos = torch.ones(9, 8)
    calls = [
        ({"k": CACHE, "v": CACHE, "lengths": lengths, "batch_index": index}, ("k", "v", "lengths", "batch_index")),
        ({"k": PAGES, "v": PAGES, "lengths": lengths, "page_table": table}, ("page_table",)),
        ({"k": CACHE.clone(), "v": CACHE.clone(), "lengths": lengths, "new_k": new, "new_v": new, "cosines": cos, "sines": cos,
          "positions": lengths}, ("new_k", "new_v", "cosines", "sines", "positions")),
    ]
    for arguments, names in calls:
        _sequences.sequences(q, **arguments)
        for name in names:
            moved = arguments | {name: arguments[name].as_subclass(Elsewhere)}
            own = {"new_k": "k", "new_v": "v"}.get(name, name)
            with pytest.raises(ValueError, match=f"^{own} is on .*; all tensors must be on one device"):
                _sequences.sequences(q, **moved)


@pytest.mark.gpu
def test_two_gpus():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for first in (0, 1):
        here, there = f"cuda:{first}", f"cuda:{1 - first}"
        q, k = (x.bfloat16().to(here) for x in (ONE, CACHE))
        lengths = torch.tensor([5], dtype=torch.int32, device=here)
        expected = flash_attn_with_kvcache(q.cpu(), k.cpu(), k.cpu(), cache_seqlens=lengths.cpu())
        out = flash_attn_with_kvcache(q, k, k, cache_seqlens=lengths)
        assert out.device == q.device and torch.allclose(out.cpu().float(), expected.float(), atol=1e-2)
        for arguments in ((q, k.to(there), k), (q, k, k.to(there)), (q.to(there), k, k)):
            with pytest.raises(ValueError, match="all tensors must be on one device"):
                flash_attn_with_kvcache(*arguments, cache_seqlens=lengths)
        with pytest.raises(ValueError, match="^cache_seqlens is on cuda"):
            flash_attn_with_kvcache(q, k, k, cache_seqlens=lengths.to(there))
        whole = flash_attn_func(q, k, k)
        assert whole.device == q.device
        with pytest.raises(ValueError, match="all tensors must be on one device"):
            flash_attn_func(q, k, k.to(there))


# MARK: - Preparing


def test_prepare_computes_nothing():
    k, v = CACHE.clone(), CACHE.clone()
    fa.prepare(flash_attn_with_kvcache, ONE, k, v, k=ONE, v=ONE, cache_seqlens=3)
    assert torch.equal(k, CACHE) and torch.equal(v, CACHE)
    fa.prepare(fa.attention, Q, Q, Q, causal=True)
    out = flash_attn_with_kvcache(ONE, k, v, k=ONE, v=ONE, cache_seqlens=3)
    assert torch.equal(k[:, 3], ONE[:, 0]) and not out.isnan().any()
    right, _ = exact(Q[0], Q[0], Q[0])
    assert torch.allclose(flash_attn_func(Q, Q, Q)[0].double(), right, atol=1e-5)


def test_imports_without_torch():
    code = "import sys; sys.modules['torch'] = None; import numpy, swift_flash_attention as fa; q = numpy.ones((1, 4, 2, 32), 'f4'); fa.attention(q, q, q)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.gpu
def test_sentences_of_a_gpu(gpu):
    q, cache = (torch.randn(1, n, 2, 64, device=gpu) for n in (1, 8))
    half, bytes_apart = q.half(), torch.randn(1, 1, 2, 65, device=gpu).half()[..., :64]
    for call, sentence in (
        (lambda: flash_attn_func(q, q, q), "The GPU has no kernel for q of f32"),
        (lambda: flash_attn_func(bytes_apart, half, half), "The head stride of q is 130 bytes; on the GPU it must be a multiple of 16"),
        (lambda: flash_attn_with_kvcache(half, bytes_apart, half), "of k_cache is 130 bytes"),
        (lambda: flash_attn_with_kvcache(half, cache.half(), cache.half(), k=half, v=bytes_apart, cache_seqlens=3), "of v is 130 bytes"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
