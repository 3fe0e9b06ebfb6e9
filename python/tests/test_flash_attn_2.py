"""FlashAttention 2's names: arguments, values, what is refused."""

import inspect
import random
import sys

import pytest
import torch
from reference import attention, check, check_lse

from swift_flash_attention import compat
from swift_flash_attention.compat import flash_attn as two
from swift_flash_attention.compat import flash_attn_interface as three
from swift_flash_attention.compat.flash_attn import bert_padding

_COMMON = "dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic return_attn_probs"
_SIGNATURES = {
    "flash_attn_func": "q k v " + _COMMON,
    "flash_attn_kvpacked_func": "q kv " + _COMMON,
    "flash_attn_qkvpacked_func": "qkv " + _COMMON,
    "flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k " + _COMMON + " block_table",
    "flash_attn_varlen_kvpacked_func": "q kv cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k " + _COMMON,
    "flash_attn_varlen_qkvpacked_func": "qkv cu_seqlens max_seqlen " + _COMMON,
    "flash_attn_with_kvcache": (
        "q k_cache v_cache k v rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad block_table softmax_scale causal "
        "window_size softcap rotary_interleaved alibi_slopes num_splits return_softmax_lse"),
}
_DEFAULTS = {
    "dropout_p": 0.0, "softmax_scale": None, "causal": False, "window_size": (-1, -1), "softcap": 0.0, "alibi_slopes": None,
    "deterministic": False, "return_attn_probs": False, "block_table": None, "rotary_interleaved": True, "num_splits": 0,
    "return_softmax_lse": False}


@pytest.mark.parametrize("name", _SIGNATURES)
def test_arguments_and_defaults(name):
    parameters = inspect.signature(getattr(two, name)).parameters
    assert list(parameters) == _SIGNATURES[name].split()
    for argument, default in _DEFAULTS.items():
        if argument in parameters:
            assert parameters[argument].default == default, argument


def _draw(case, device):
    draw = random.Random(case)
    dtype = draw.choice([torch.bfloat16, torch.float16])
    options = draw.choice([
        {}, {"causal": True}, {"window_size": (20, 3)}, {"causal": True, "window_size": (9, -1)}, {"softcap": 5.0},
        {"softmax_scale": 0.3}, {"causal": True, "deterministic": True}])
    own = {
        "causal": options.get("causal", False), "window": options.get("window_size", (-1, -1)),
        "softcap": options.get("softcap", 0.0), "scale": options.get("softmax_scale")}
    return draw, dtype, options, own


def _check_lse(lse, exact):
    """Rows without keys have +inf."""
    assert torch.equal(lse == torch.inf, exact == -torch.inf)
    check_lse(lse.masked_fill(lse == torch.inf, -torch.inf), exact)


# 60 and 20 are no multiples of 8.
@pytest.mark.parametrize("case", range(10))
def test_func(device, case):
    draw, dtype, options, own = _draw(case, device)
    heads, group, d = draw.choice([1, 2]), draw.choice([1, 4]), draw.choice([60, 64, 128, 20])
    n, s = draw.choice([1, 65, 130]), draw.choice([1, 90, 257])
    q = torch.randn(2, n, heads * group, d, dtype=dtype, device=device)
    kv = torch.randn(2, s, 2, heads, d, dtype=dtype, device=device)
    out, lse, probs = two.flash_attn_func(q, *kv.unbind(2), return_attn_probs=True, **options)
    assert out.shape == q.shape and probs.numel() == 0
    for b in range(2):
        k, v = kv[b].unbind(1)
        exact, exact_lse = attention(q[b], k, v, **own)
        check(out[b], exact, attention(q[b], k, v, plain=dtype, **own)[0], dtype)
        _check_lse(lse[b], exact_lse)
    assert torch.equal(two.flash_attn_kvpacked_func(q, kv, **options), out)
    # By place: a dropout of 0 is no scale.
    by_place = (0.0, own["scale"], own["causal"], own["window"], own["softcap"], None, options.get("deterministic", False))
    assert torch.equal(two.flash_attn_func(q, *kv.unbind(2), *by_place), out)
    qkv = torch.randn(2, n, 3, heads, d, dtype=dtype, device=device)
    assert torch.equal(two.flash_attn_qkvpacked_func(qkv, **options), two.flash_attn_func(*qkv.unbind(2), **options))


@pytest.mark.parametrize("case", range(8))
def test_varlen(device, case):
    draw, dtype, options, own = _draw(case + 100, device)
    heads, group, d = draw.choice([1, 2]), draw.choice([1, 4]), draw.choice([60, 64, 128])
    counts, lengths = [5, 0, 70, 1], [9, 3, 70, 200]
    starts, ends = ([0, *torch.tensor(x).cumsum(0).tolist()] for x in (counts, lengths))
    q = torch.randn(sum(counts), heads * group, d, dtype=dtype, device=device)
    kv = torch.randn(sum(lengths), 2, heads, d, dtype=dtype, device=device)
    lists = [torch.tensor(x, dtype=torch.int32, device=device) for x in (starts, ends)]
    out, lse, _ = two.flash_attn_varlen_func(q, *kv.unbind(1), *lists, 70, 200, return_attn_probs=True, **options)
    for i in range(4):
        rows, keys = slice(starts[i], starts[i + 1]), slice(ends[i], ends[i + 1])
        k, v = kv[keys].unbind(1)
        exact, exact_lse = attention(q[rows], k, v, **own)
        check(out[rows], exact, attention(q[rows], k, v, plain=dtype, **own)[0], dtype)
        _check_lse(lse[:, rows], exact_lse)
    assert torch.equal(two.flash_attn_varlen_kvpacked_func(q, kv, *lists, 70, 200, **options), out)
    qkv = torch.randn(sum(lengths), 3, heads, d, dtype=dtype, device=device)
    assert torch.equal(
        two.flash_attn_varlen_qkvpacked_func(qkv, lists[1], 200, **options),
        two.flash_attn_varlen_func(*qkv.unbind(1), lists[1], lists[1], 200, 200, **options))


def test_varlen_over_pages(device):
    lengths, page = [30, 7], 16
    q = torch.randn(5, 4, 64, dtype=torch.bfloat16, device=device)
    k, v = (torch.randn(4, page, 2, 64, dtype=torch.bfloat16, device=device) for _ in range(2))
    table = torch.tensor([[2, 0], [3, 1]], dtype=torch.int32, device=device)
    starts = [torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 3, 5], [0, 30, 37])]
    out = two.flash_attn_varlen_func(q, k, v, *starts, 3, 30, causal=True, block_table=table)
    for i, rows in enumerate([slice(0, 3), slice(3, 5)]):
        own = [x[table[i].long()].flatten(0, 1)[: lengths[i]] for x in (k, v)]
        exact = attention(q[rows], *own, causal=True)[0]
        check(out[rows], exact, attention(q[rows], *own, causal=True, plain=torch.bfloat16)[0], torch.bfloat16)


def test_with_kvcache(device):
    q = torch.randn(2, 3, 4, 64, dtype=torch.bfloat16, device=device)
    new = [torch.randn(2, 3, 2, 64, dtype=torch.bfloat16, device=device) for _ in range(2)]
    caches = [[torch.randn(2, 50, 2, 64, dtype=torch.bfloat16, device=device) for _ in range(2)]]
    caches.append([x.clone() for x in caches[0]])
    lengths = torch.tensor([7, 40], dtype=torch.int32, device=device)
    out, lse = two.flash_attn_with_kvcache(q, *caches[0], *new, cache_seqlens=lengths, causal=True, return_softmax_lse=True)
    others, other_lse, *_ = three.flash_attn_with_kvcache(
        q, *caches[1], *new, cache_seqlens=lengths, causal=True, return_softmax_lse=True)
    assert torch.equal(out, others) and torch.equal(lse, other_lse)
    assert all(torch.equal(a, b) for a, b in zip(*caches))


def test_gradients(device):
    q = torch.randn(1, 40, 4, 60, dtype=torch.float16, device=device, requires_grad=True)
    kv = torch.randn(1, 40, 2, 2, 60, dtype=torch.float16, device=device, requires_grad=True)
    upstream = torch.randn(1, 40, 4, 60, dtype=torch.float16, device=device)
    two.flash_attn_kvpacked_func(q, kv, causal=True).backward(upstream)
    exact_q, exact_kv = (x.detach().double().requires_grad_() for x in (q, kv))
    attention(exact_q[0], *exact_kv[0].unbind(1), causal=True)[0].backward(upstream[0].double())
    for own, exact in [(q.grad, exact_q.grad), (kv.grad, exact_kv.grad)]:
        torch.testing.assert_close(own.double(), exact, atol=2e-2, rtol=2e-2)


def test_refusals(device):
    q = torch.randn(1, 4, 2, 64, dtype=torch.float16, device=device)
    with pytest.raises(NotImplementedError, match="dropout_p is 0.1; swift_flash_attention has no dropout"):
        two.flash_attn_func(q, q, q, 0.1)
    with pytest.raises(NotImplementedError, match="alibi_slopes is not supported"):
        two.flash_attn_func(q, q, q, alibi_slopes=torch.ones(2))
    with pytest.raises(NotImplementedError, match="alibi_slopes is not supported"):
        two.flash_attn_with_kvcache(q, q, q, alibi_slopes=torch.ones(2))
    with pytest.raises(ValueError, match=r"kv has the shape \(1, 4, 2, 64\); it must be \[batch, tokens, 2, heads, dimension\]"):
        two.flash_attn_kvpacked_func(q, q)
    with pytest.raises(NotImplementedError, match="multiple of 8; it is 60, and caches are not filled up"):
        two.flash_attn_with_kvcache(*(torch.zeros(1, 4, 2, 60, dtype=torch.float16, device=device),) * 3)
    starts = torch.tensor([0, 4], dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="block_table has the shape"):
        two.flash_attn_varlen_func(q[0], q, q, starts, starts, 4, 4, block_table=starts)
    with pytest.raises(ValueError, match=r"cu_seqlens_k has the shape \(1,\); it must be that of cu_seqlens_q"):
        two.flash_attn_varlen_func(q[0], q, q, starts, starts[:1], 4, 4, block_table=starts[None])
    with pytest.raises(ValueError, match="qkv has the shape"):
        two.flash_attn_qkvpacked_func(torch.cat([q[:, :, None]] * 4, 2))


def test_padding(device):
    x = torch.randn(3, 5, 2, 4, device=device, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], device=device)
    rows, places, starts, most, used = bert_padding.unpad_input(x, mask)
    assert rows.shape == (5, 2, 4) and starts.tolist() == [0, 3, 5, 5] and most == 3 and used.tolist() == [3, 2, 0]
    assert starts.dtype == used.dtype == torch.int32 and places.tolist() == [0, 1, 2, 6, 8]
    back = bert_padding.pad_input(rows, places, 3, 5)
    assert torch.equal(back, x * mask[..., None, None])
    back.sum().backward()
    assert torch.equal(x.grad, mask[..., None, None].expand_as(x).to(x.dtype))
    assert bert_padding.unpad_input(x, mask, 1 - mask)[4].tolist() == [3, 2, 0]
    assert bert_padding.unpad_input(x, mask, 1 - mask)[2].tolist() == [0, 5, 10, 15]
    for chosen in (places.int(), mask.flatten().bool()):
        assert torch.equal(bert_padding.pad_input(rows, chosen, 3, 5), back)
    assert torch.equal(bert_padding.index_first_axis_residual(x.flatten(0, 1), places)[0], rows)
    several = torch.tensor([[2, 1, 0, 0, 0], [5, 0, 0, 0, 0], [0, 0, 0, 0, 0]], device=device)
    rows, places, starts, most = bert_padding.unpad_input_for_concatenated_sequences(x, several)
    assert places.tolist() == [0, 1, 2, 5, 6, 7, 8, 9] and starts.tolist() == [0, 2, 3, 8] and most == 5


def test_install(monkeypatch):
    for name in ("flash_attn", "flash_attn.bert_padding", "flash_attn.flash_attn_interface"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    compat.install(2)
    import flash_attn
    from flash_attn.bert_padding import unpad_input
    from flash_attn.flash_attn_interface import flash_attn_varlen_func

    assert flash_attn is two and flash_attn.__version__ == "2.8.3"
    assert unpad_input is bert_padding.unpad_input and flash_attn_varlen_func is two.flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", object())
    with pytest.raises(ImportError, match=r"flash_attn has been imported before, and is not ours; call install\(2\) first"):
        compat.install(2)
    with pytest.raises(ValueError, match="version is 4; it must be 3"):
        compat.install(4)
    for name in ("flash_attn", "flash_attn.bert_padding", "flash_attn.flash_attn_interface"):
        monkeypatch.delitem(sys.modules, name, raising=False)
