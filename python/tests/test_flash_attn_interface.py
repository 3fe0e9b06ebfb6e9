"""The functions of FlashAttention 3: arguments, defaults, results."""

import inspect
import math
import random

import pytest
import torch
from reference import attention, check, check_lse, turned

from swift_flash_attention import compat
from swift_flash_attention.compat.flash_attn_interface import (
    flash_attn_combine, flash_attn_func, flash_attn_qkvpacked_func, flash_attn_varlen_func, flash_attn_with_kvcache,
    get_scheduler_metadata)


def types(device):
    return [torch.bfloat16, torch.float16] + ([torch.float32] if device == "cpu" else [])


def starts(counts, device):
    return torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32, device=device)


def int32(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def test_arguments_and_defaults():
    def signature(function):
        return {name: p.default for name, p in inspect.signature(function).parameters.items()}

    own = signature(flash_attn_with_kvcache)
    assert list(own) == (
        "q k_cache v_cache k v qv rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad page_table cu_seqlens_q "
        "cu_seqlens_k_new max_seqlen_q rotary_seqlens q_descale k_descale v_descale softmax_scale causal window_size "
        "attention_chunk softcap rotary_interleaved scheduler_metadata num_splits pack_gqa sm_margin return_softmax_lse learnable_sink s_aux "
        "key_ranges prefix first_keys"
    ).split()
    assert own["rotary_interleaved"] is True and own["num_splits"] == 0 and own["window_size"] == (-1, -1)
    own = signature(flash_attn_func)
    assert list(own) == (
        "q k v softmax_scale causal qv q_descale k_descale v_descale window_size attention_chunk softcap num_splits pack_gqa "
        "deterministic sm_margin return_attn_probs learnable_sink s_aux key_ranges prefix first_keys"
    ).split()
    assert own["num_splits"] == 1
    assert list(signature(flash_attn_varlen_func))[:9] == (
        "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k seqused_q seqused_k".split())


@pytest.mark.parametrize("case", range(12))
def test_func(device, case):
    draw = random.Random(case)
    dtype = draw.choice(types(device))
    heads, group, d = draw.choice([1, 2, 3]), draw.choice([1, 4, 5]), draw.choice([32, 64, 128, 96])
    n, s = draw.choice([1, 7, 65, 130]), draw.choice([1, 90, 257])
    options = draw.choice([
        {}, {"causal": True}, {"window_size": (20, 3)}, {"causal": True, "window_size": (9, -1)}, {"softcap": 5.0},
        {"attention_chunk": 32, "causal": True}, {"softmax_scale": 0.3}])
    q = torch.randn(2, n, heads * group, d, dtype=dtype, device=device)
    k, v = (torch.randn(2, s, heads, d, dtype=dtype, device=device) for _ in range(2))
    out, lse = flash_attn_func(q, k, v, return_attn_probs=True, **options)
    assert torch.equal(flash_attn_func(q, k, v, num_splits=0, pack_gqa=True, **options), out)
    own = {
        "causal": options.get("causal", False), "window": options.get("window_size", (-1, -1)),
        "chunk": options.get("attention_chunk", 0), "softcap": options.get("softcap", 0.0),
        "scale": options.get("softmax_scale")}
    for b in range(2):
        exact, exact_lse = attention(q[b], k[b], v[b], **own)
        check(out[b], exact, attention(q[b], k[b], v[b], plain=dtype, **own)[0], dtype)
        check_lse(lse[b], exact_lse)


def test_qkvpacked(device):
    qkv = torch.randn(2, 20, 3, 4, 32, device=device, dtype=torch.float16)
    assert torch.equal(flash_attn_qkvpacked_func(qkv, causal=True), flash_attn_func(*qkv.unbind(2), causal=True))
    packed = torch.randn(2, 20, 8, 32, device=device, dtype=torch.float16)
    assert torch.equal(
        flash_attn_qkvpacked_func(packed, num_heads_q=4), flash_attn_func(packed[:, :, :4], packed[:, :, 4:6], packed[:, :, 6:]))


@pytest.mark.parametrize("case", range(12))
def test_varlen(device, case):
    draw = random.Random(case)
    dtype = draw.choice(types(device))
    heads, group, d = draw.choice([1, 2]), draw.choice([1, 4, 8]), draw.choice([64, 128])
    batch = draw.choice([1, 3, 9])
    queries = [draw.choice([0, 1, 5, 33, 200]) for _ in range(batch)]
    keys = [draw.choice([0, 1, 70, 150, 200]) for _ in range(batch)]
    causal, window = draw.random() < 0.5, draw.choice([(-1, -1), (40, -1), (10, 10)])
    q = torch.randn(sum(queries), heads * group, d, dtype=dtype, device=device)
    k, v = (torch.randn(sum(keys), heads, d, dtype=dtype, device=device) for _ in range(2))
    used_q = [draw.randint(0, n) for n in queries] if draw.random() < 0.3 else queries
    used_k = [draw.randint(0, n) for n in keys] if draw.random() < 0.5 else keys
    out, lse = flash_attn_varlen_func(
        q, k, v, starts(queries, device), starts(keys, device), max(queries), max(keys),
        seqused_q=None if used_q is queries else int32(used_q, device),
        seqused_k=None if used_k is keys else int32(used_k, device), causal=causal, window_size=window,
        return_attn_probs=True)
    assert lse.shape == (heads * group, sum(queries))
    first_q = first_k = 0
    for n, s, un, us in zip(queries, keys, used_q, used_k):
        own = [q[first_q : first_q + un], k[first_k : first_k + us], v[first_k : first_k + us]]
        exact, exact_lse = attention(*own, causal=causal, window=window)
        plain, _ = attention(*own, causal=causal, window=window, plain=dtype)
        check(out[first_q : first_q + un], exact, plain, dtype)
        check_lse(lse[:, first_q : first_q + un], exact_lse)
        first_q, first_k = first_q + n, first_k + s


@pytest.mark.parametrize("case", range(40))
def test_with_kvcache(device, case):
    draw = random.Random(case)
    dtype = draw.choice(types(device))
    heads, group, d = draw.choice([1, 2, 4]), draw.choice([1, 4, 8]), draw.choice([64, 128, 256])
    batch, n = draw.choice([1, 2, 5]), draw.choice([1, 1, 3, 17])
    capacity, page = draw.choice([40, 130, 600]), draw.choice([None, None, 1, 16, 48])
    new = draw.choice([0, 0, 1, n, 5])
    lengths = [draw.randint(0, capacity - new) for _ in range(batch)]
    padding = [draw.randint(0, x) for x in lengths] if draw.random() < 0.3 else None
    causal, window = draw.random() < 0.6, draw.choice([(-1, -1), (-1, -1), (33, 0)])
    chunk = draw.choice([0, 0, 0, 50])
    rotary = draw.choice([0, 16, d]) if new else 0
    interleaved = draw.random() < 0.5
    varlen = draw.random() < 0.3

    counts = [draw.randint(0, n) for _ in range(batch)] if varlen else [n] * batch
    q_rows = [torch.randn(count, heads * group, d, dtype=dtype, device=device) for count in counts]
    keys = [torch.randn(x, heads, d, dtype=dtype, device=device) for x in lengths]
    values = [torch.randn(x, heads, d, dtype=dtype, device=device) for x in lengths]
    k = torch.randn(batch, new, heads, d, dtype=dtype, device=device) if new else None
    v = torch.randn(batch, new, heads, d, dtype=dtype, device=device) if new else None
    # A row for each position that the cache has room for, pages in full, and for queries behind the last key.
    rows = (-(-capacity // page) * page if page else capacity) + 17
    angles = torch.rand(rows, rotary // 2, device=device) * 6
    cos, sin = (torch.cos(angles).to(dtype), torch.sin(angles).to(dtype)) if rotary else (None, None)

    # The cache holds NaN where nobody should look.
    arguments = {}
    if page:
        per_sequence = -(-capacity // page)
        pages = per_sequence * batch + 2
        order = list(range(pages))
        draw.shuffle(order)
        table = int32(order[: per_sequence * batch], device).view(batch, per_sequence)
        caches = [torch.full((pages, page, heads, d), torch.nan, dtype=dtype, device=device) for _ in range(2)]
        arguments["page_table"] = table

        def row(cache, b, i):
            return cache[table[b, i // page], i % page]
    else:
        index = draw.sample(range(batch + 2), batch)
        caches = [torch.full((batch + 2, capacity, heads, d), torch.nan, dtype=dtype, device=device) for _ in range(2)]
        arguments["cache_batch_idx"] = int32(index, device)

        def row(cache, b, i):
            return cache[index[b], i]

    for b in range(batch):
        for i in range(padding[b] if padding else 0, lengths[b]):
            row(caches[0], b, i).copy_(keys[b][i])
            row(caches[1], b, i).copy_(values[b][i])
    if padding:
        arguments["cache_leftpad"] = int32(padding, device)
    if varlen:
        arguments |= {"cu_seqlens_q": starts(counts, device), "max_seqlen_q": n}
    q = torch.cat(q_rows) if varlen else torch.stack(q_rows)
    out, lse, *rest = flash_attn_with_kvcache(
        q, *caches, k=k, v=v, rotary_cos=cos, rotary_sin=sin, rotary_interleaved=interleaved,
        cache_seqlens=int32(lengths, device), causal=causal, window_size=window, attention_chunk=chunk,
        return_softmax_lse=True, **arguments)
    assert [x.numel() for x in rest] == [0, 0]

    first = 0
    for b in range(batch):
        begin = padding[b] if padding else 0
        all_k, all_v, rows = keys[b][begin:], values[b][begin:], q_rows[b]
        if new:
            new_k = k[b]
            if rotary:
                positions = lengths[b] + torch.arange(max(new, n), device=device)
                new_k = turned(new_k.float(), cos, sin, positions[:new], interleaved).to(dtype)
                advances = causal or window != (-1, -1) or chunk
                own = positions[: counts[b]] if advances else positions[:1].expand(counts[b])
                rows = turned(rows.float(), cos, sin, own, interleaved)
            for i in range(new):
                assert torch.equal(row(caches[1], b, lengths[b] + i), v[b, i])
                stored = row(caches[0], b, lengths[b] + i).float()
                assert torch.allclose(stored, new_k[i].float(), rtol=2**-7, atol=1e-6) if rotary else torch.equal(
                    stored, new_k[i].float())
            # What was rounded on the way into the cache is no error of the attention.
            stored = torch.stack([row(caches[0], b, lengths[b] + i) for i in range(new)])
            all_k, all_v = torch.cat([all_k, stored]), torch.cat([all_v, v[b]])
        own = {"causal": causal, "window": window, "chunk": chunk}
        exact, exact_lse = attention(rows, all_k, all_v, **own)
        plain, _ = attention(rows.to(dtype), all_k, all_v, plain=dtype, **own)
        if varlen:
            part, part_lse = out[first : first + counts[b]], lse[:, first : first + counts[b]]
            first += counts[b]
        else:
            part, part_lse = out[b], lse[b]
        check(part, exact, plain, dtype)
        if not rotary:
            check_lse(part_lse, exact_lse)


def test_num_splits_divides_keys(device, monkeypatch):
    """As many parts as are wished, counted over what the cache can hold; with one part, a sequence's bits are its own."""
    from swift_flash_attention import _library

    q = torch.randn(3, 1, 8, 64, device=device, dtype=torch.bfloat16)
    k, v = (torch.randn(3, 1000, 2, 64, device=device, dtype=torch.bfloat16) for _ in range(2))
    lengths = int32([1000, 17, 640], device)
    asked = []

    class Library:
        def __getattr__(self, name):
            return getattr(library, name)

        def fa_sequences(self, call):
            asked.append(call.keys_per_split)
            return library.fa_sequences(call)

    library = _library.library
    monkeypatch.setattr(_library, "library", Library())

    def check_all(out):
        for b, length in enumerate([1000, 17, 640]):
            one = (q[b], k[b, :length], v[b, :length])
            check(out[b], attention(*one, causal=True)[0], attention(*one, causal=True, plain=q.dtype)[0], q.dtype)

    for num_splits, keys in ((0, 0), (1, _library.ALL_KEYS), (3, 334), (2000, 1)):
        out = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True, num_splits=num_splits)
        assert asked.pop() == keys
        check_all(out)
        if num_splits:
            for b in range(3):
                alone = flash_attn_with_kvcache(
                    q[b:b + 1], k[b:b + 1], v[b:b + 1], cache_seqlens=lengths[b:b + 1], causal=True, num_splits=num_splits)
                assert torch.equal(alone, out[b:b + 1])
    table = torch.arange(30, dtype=torch.int32, device=device).view(3, 10)
    paged = flash_attn_with_kvcache(
        q, k.view(30, 100, 2, 64), v.view(30, 100, 2, 64), cache_seqlens=lengths, page_table=table, causal=True, num_splits=4)
    assert asked.pop() == 250
    check_all(paged)


def test_integer_and_missing_lengths(device):
    dtype = torch.float16
    q = torch.randn(2, 1, 4, 64, dtype=dtype, device=device)
    k, v = (torch.randn(2, 50, 2, 64, dtype=dtype, device=device) for _ in range(2))
    assert torch.equal(flash_attn_with_kvcache(q, k, v), flash_attn_with_kvcache(q, k, v, cache_seqlens=50))
    short = flash_attn_with_kvcache(q, k, v, cache_seqlens=20)
    check(short[0], *(attention(q[0], k[0, :20], v[0, :20], plain=p)[0] for p in (None, dtype)), dtype)
    metadata = get_scheduler_metadata(2, 1, 50, 4, 2, 64, int32([20, 20], device))
    own = flash_attn_with_kvcache(q, k, v, cache_seqlens=int32([20, 20], device), scheduler_metadata=metadata)
    assert torch.equal(own, short)


def test_e4m3(device):
    q = torch.randn(2, 3, 8, 64, device=device)
    k, v = (torch.randn(2, 70, 2, 64, device=device) for _ in range(2))
    q8, k8, v8 = (x.to(torch.float8_e4m3fn) for x in (q, k, v))
    scales = [torch.rand(2, 2, device=device) + 0.5 for _ in range(3)]
    lengths = int32([70, 33], device)
    out = flash_attn_with_kvcache(
        q8, k8, v8, cache_seqlens=lengths, q_descale=scales[0], k_descale=scales[1], v_descale=scales[2], causal=True)
    half = flash_attn_with_kvcache(
        q.bfloat16(), k8, v8, cache_seqlens=lengths, k_descale=scales[1], v_descale=scales[2], causal=True)
    assert out.dtype == half.dtype == torch.bfloat16
    for b, n in enumerate([70, 33]):
        for g in range(2):
            own = slice(4 * g, 4 * g + 4)
            kv = [x[b, :n, g : g + 1].float() for x in (k8, v8)]
            for result, rows, factor in (
                (out, q8[b, :, own].float(), scales[0][b, g] * scales[1][b, g]), (half, q.bfloat16()[b, :, own], scales[1][b, g])
            ):
                options = {"causal": True, "scale": factor.item() / 8}
                exact, plain = (attention(rows, *kv, plain=p, **options)[0].double() * scales[2][b, g].item() for p in (None, torch.bfloat16))
                check(result[b, :, own], exact, plain, torch.bfloat16)
    full = flash_attn_func(q8, k8, v8, q_descale=scales[0], k_descale=scales[1], v_descale=scales[2], causal=True)
    assert torch.equal(full[0], out[0])


def test_combine(device):
    parts, b, s, h, d = 3, 2, 5, 4, 36
    outs = torch.randn(parts, b, s, h, d, device=device)
    lses = torch.randn(parts, b, h, s, device=device).transpose(-1, -2)
    lses[1, 0] = -math.inf
    outs[1, 0] = math.nan
    out, lse = flash_attn_combine(outs, lses)
    weights = torch.softmax(lses.double(), dim=0)
    expected = torch.where(weights[..., None] == 0, 0, weights[..., None] * outs.double()).sum(0)
    assert torch.allclose(out.double(), expected, atol=1e-6) and out.dtype == torch.float32
    assert torch.allclose(lse.double(), torch.logsumexp(lses.double(), dim=0), atol=1e-5) and lse.shape == (b, s, h)
    half, _ = flash_attn_combine(outs, lses, out_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.allclose(half.double(), expected, atol=2e-2)
    odd, _ = flash_attn_combine(outs[..., :33].contiguous(), lses)
    assert torch.allclose(odd.double(), expected[..., :33], atol=1e-6)


@pytest.mark.parametrize("of_sinks", [torch.float32, torch.float16, torch.bfloat16])
def test_sinks(device, of_sinks):
    """In every function, each kind of sink: usual ones, one that is none, one that counts for all, and rows without keys."""
    dtype = types(device)[0]
    heads, group, d = 2, 4, 64
    sinks = torch.tensor([0.5, -3, 4, -math.inf, 2.25, 1000, -200, 1], device=device).to(of_sinks)
    q = torch.randn(2, 70, heads * group, d, dtype=dtype, device=device)
    k, v = (torch.randn(2, 50, heads, d, dtype=dtype, device=device) for _ in range(2))

    def judge(out, lse, q, k, v, **options):
        exact = attention(q, k, v, sinks=sinks, **options)
        check(out, exact[0], attention(q, k, v, sinks=sinks, plain=dtype, **options)[0], dtype)
        check_lse(lse, exact[1])

    for options in ({"causal": True}, {"softcap": 4.0}):
        for name in ("learnable_sink", "s_aux"):
            out, lse = flash_attn_func(q, k, v, return_attn_probs=True, **{name: sinks}, **options)
            for b in range(2):
                judge(out[b], lse[b], q[b], k[b], v[b], **options)
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    cu_q, cu_k = starts([70, 70], device), starts([50, 50], device)
    out, lse = flash_attn_varlen_func(*flat, cu_q, cu_k, 70, 50, causal=True, s_aux=sinks, return_attn_probs=True)
    for b in range(2):
        a, c = slice(70 * b, 70 * b + 70), slice(50 * b, 50 * b + 50)
        judge(out[a], lse[:, a], flat[0][a], flat[1][c], flat[2][c], causal=True)
    for queries in (1, 3):
        for splits in (0, 4):
            out, lse, *_ = flash_attn_with_kvcache(
                q[:, :queries], k, v, cache_seqlens=int32([0, 37], device), causal=True, num_splits=splits, return_softmax_lse=True,
                learnable_sink=sinks)
            for b, n in enumerate((0, 37)):
                judge(out[b], lse[b], q[b, :queries], k[b, :n], v[b, :n], causal=True)
    # Parts have none; what puts them together counts them once.
    parts = [flash_attn_func(q, k[:, part], v[:, part], return_attn_probs=True) for part in (slice(0, 20), slice(20, 50))]
    out, lse = flash_attn_combine(
        torch.stack([x.float() for x, _ in parts]), torch.stack([x.transpose(1, 2) for _, x in parts]), out_dtype=dtype, s_aux=sinks)
    for b in range(2):
        exact = attention(q[b], k[b], v[b], sinks=sinks)
        assert torch.allclose(out[b].double(), exact[0], atol=1e-2, rtol=2e-2) and torch.allclose(lse[b].T.double(), exact[1], atol=1e-4)


def test_sinks_that_cannot_be(device):
    q = torch.randn(1, 2, 4, 64, dtype=torch.float16, device=device)
    sinks = torch.zeros(4, device=device)
    for wrong, words in (
        (sinks[:3], r"s_aux has the shape \(3,\); \(4,\) is needed"), (sinks.double(), "s_aux is torch.float64; it must be float32"),
        ([0.0] * 4, "s_aux is a list; it must be a torch.Tensor"),
    ):
        for function in (
            lambda: flash_attn_func(q, q, q, s_aux=wrong), lambda: flash_attn_with_kvcache(q, q, q, s_aux=wrong),
            lambda: flash_attn_varlen_func(q[0], q[0], q[0], starts([2], device), starts([2], device), 2, 2, s_aux=wrong),
        ):
            with pytest.raises((ValueError, TypeError), match=words):
                function()
    with pytest.raises(NotImplementedError, match="flash_attn_combine has no gradient"):
        parts = torch.zeros(2, 1, 2, 4, 64, device=device)
        flash_attn_combine(parts, parts[..., 0].contiguous(), s_aux=sinks.clone().requires_grad_())[0].sum().backward()
    with pytest.raises(ValueError, match="two names of one argument"):
        flash_attn_func(q, q, q, s_aux=sinks, learnable_sink=sinks)


def test_what_is_not_supported_is_named(device):
    q = torch.randn(1, 2, 2, 64, dtype=torch.float16, device=device)
    for function in (
        lambda: flash_attn_func(q, q, q, qv=q), lambda: flash_attn_with_kvcache(q, q, q, qv=q),
        lambda: flash_attn_varlen_func(q[0], q[0], q[0], None, None, 2, 2, qv=q)
    ):
        with pytest.raises(NotImplementedError, match="^qv is not supported"):
            function()


def test_errors_are_sentences(device):
    q = torch.randn(1, 2, 3, 64, dtype=torch.float16, device=device)
    with pytest.raises(ValueError, match=r"3 query heads \(of q\) cannot share 2 key/value heads \(of k and v\) evenly"):
        flash_attn_func(q, q[:, :, :2], q[:, :, :2])
    with pytest.raises(ValueError, match=r"^cache_seqlens has the shape \(3,\); \(1,\) is needed"):
        flash_attn_with_kvcache(q, q, q, cache_seqlens=int32([1, 2, 1], device))
    with pytest.raises(ValueError, match="give cache_seqlens with k and v"):
        flash_attn_with_kvcache(q, q, q, k=q, v=q)
    with pytest.raises(ValueError, match="give both k and v"):
        flash_attn_with_kvcache(q, q, q, k=q, cache_seqlens=1)
    with pytest.raises(ValueError, match="out must have the shape"):
        parts = torch.zeros(2, 1, 2, 3, 64, device=device)
        flash_attn_combine(parts, parts[..., 0], out=q[:, :1].float())
    with pytest.raises(ValueError, match="max_seqlen_q"):
        flash_attn_with_kvcache(q[0], q, q, cu_seqlens_q=int32([0, 2], device), cache_seqlens=2)


def test_install():
    import sys

    compat.install()
    import flash_attn_interface

    assert flash_attn_interface.flash_attn_func is flash_attn_func
    del sys.modules["flash_attn_interface"]
