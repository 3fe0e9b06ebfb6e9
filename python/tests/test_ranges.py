"""Ranges of keys that queries see: given ones, prefixes, first keys; beside masks, with gradients, packed, over caches."""

import numpy
import pytest
import torch

import swift_flash_attention as fa
from swift_flash_attention.compat import flash_attn_interface as compat


def tensors(device="cpu", dtype=torch.float32, queries=37, keys=37, batch=2, heads=4, kv=2, dimension=16):
    torch.manual_seed(3)
    shapes = ((batch, queries, heads, dimension), (batch, keys, kv, dimension), (batch, keys, kv, dimension))
    return [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]


def given(queries=37, keys=37, batch=2, count=2):
    torch.manual_seed(4)
    ranges = torch.randint(-3, keys + 4, (batch, queries, count, 2)).sort(-1).values
    ranges[:, ::7] = 0
    ranges[:, 3::11] = ranges[:, 3::11].flip(-1)
    return ranges.to(torch.int32)


def seen(queries, keys, causal=False, left=-1, ranges=None, prefix=None, first=None):
    """bool ``[batch or 1, queries, keys]``, by the definition."""
    places, own = torch.arange(keys), (torch.arange(queries) + keys - queries)[:, None]
    mask = torch.ones(1, queries, keys, dtype=torch.bool)
    right = places <= own if causal else torch.ones_like(mask[0])
    mask = mask & right & (places >= own - left if left >= 0 else True)
    if ranges is not None:
        begin, end = ranges.long()[..., None].unbind(-2)
        mask = mask & ((places >= begin) & (places < end)).any(2)
    if prefix is not None:
        mask = mask | (places < prefix.long()[:, None, None])
    return mask if first is None else mask | (places < first) & right


def formula(q, k, v, mask):
    """In 64 bits, with gradients; a query that sees nothing gets zeros."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask[:, None], -1e300)
    weights = scores.softmax(-1) * mask[:, None]
    return torch.einsum("bhnm,bmhd->bnhd", weights, v)


CASES = {
    "one": (dict(key_ranges=given(count=1)), dict(ranges=given(count=1))),
    "two, causal": (dict(key_ranges=given(), causal=True), dict(ranges=given(), causal=True)),
    "shared, in a window": (
        dict(key_ranges=given(batch=1), window=(9, 0)), dict(ranges=given(batch=1), causal=True, left=9)),
    "prefix": (dict(prefix=torch.tensor([5, 100], dtype=torch.int32), causal=True), dict(prefix=torch.tensor([5, 100]), causal=True)),
    "first keys": (dict(first_keys=4, window=(6, 0)), dict(first=4, causal=True, left=6)),
}


def placed(options, device):
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}


@pytest.mark.parametrize("case", CASES)
def test_attention_and_its_gradients(case, device):
    dtype, tolerance = (torch.float32, 1e-5) if device == "cpu" else (torch.float16, 4e-3)
    options, definition = CASES[case]
    q, k, v = (x.requires_grad_() for x in tensors(device, dtype))
    mask = seen(37, 37, **definition).to(device)
    made = fa.attention(q, k, v, **placed(options, device))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = formula(*exact, mask)
    assert (made.double() - expected).abs().max() < tolerance * expected.abs().max()
    upstream = torch.randn_like(made)
    expected.backward(upstream.double())
    made.backward(upstream)
    for own, right in zip((q, k, v), exact):
        assert (own.grad.double() - right.grad).abs().max() < 2 * tolerance * right.grad.abs().max()
    with torch.no_grad():
        assert torch.equal(fa.attention(q, k, v, **placed(options, device)), made)


@pytest.mark.parametrize("case", CASES)
def test_compiles_and_is_an_operator(case):
    options, _ = CASES[case]
    q, k, v = tensors()
    run = torch.compile(lambda q, k, v: fa.attention(q, k, v, **options), fullgraph=True, backend="aot_eager")
    own = [x.clone().requires_grad_() for x in (q, k, v)]
    other = [x.clone().requires_grad_() for x in (q, k, v)]
    out, expected = run(*own), fa.attention(*other, **options)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(own, other):
        assert torch.equal(a.grad, b.grad)


def test_the_operators_keep_their_promises():
    from swift_flash_attention import _operators

    q, k, v = (x.requires_grad_() for x in tensors(queries=5, keys=7))
    arguments = (q, k, v, None, True, -1, 0, 0, 0.0, None)
    torch.library.opcheck(_operators.forward_op, (*arguments, given(5, 7), 0))
    torch.library.opcheck(_operators.forward_op, (*arguments, None, 2))
    torch.library.opcheck(_operators.forward_op, arguments)


def test_arrays_of_numpy():
    q, k, v = tensors()
    for options, _ in CASES.values():
        own = {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
        made = fa.attention(q.numpy(), k.numpy(), v.numpy(), **own)
        expected = fa.attention(q, k, v, **options)
        assert numpy.allclose(made, expected.numpy(), atol=1e-6)
        # Beside torch's tensors, too, of a call that is known by now.
        assert torch.equal(fa.attention(q, k, v, **own), expected)
    # What `attention` takes, `plan` takes.
    assert fa.plan(q, k, v, key_ranges=given().long()) == fa.plan(q, k, v, first_keys=3, window=(5, 0)) == fa.plan(q, k, v, prefix=[1, 2])
    with pytest.raises(TypeError, match="key_ranges is int64; int32 is needed"):
        fa.attention(q.numpy(), k.numpy(), v.numpy(), key_ranges=given().numpy().astype("int64"))
    with pytest.raises(ValueError, match="key_ranges must be contiguous"):
        fa.attention(q.numpy(), k.numpy(), v.numpy(), key_ranges=given(count=1).numpy()[..., ::-1])


def test_packed_sequences(device):
    """Each as it is alone, gradients too."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    tolerance = 1e-5 if device == "cpu" else 4e-3
    lengths = [9, 0, 20, 5]
    starts = torch.tensor([0, 9, 9, 29, 34], dtype=torch.int32, device=device)
    q, k, v = (x[0].requires_grad_() for x in tensors(device, dtype, 34, 34, 1))
    ranges = torch.cat([given(n, n, 1)[0] for n in lengths]).to(device)
    prefix = torch.tensor([3, 2, 30, 0], dtype=torch.int32, device=device)
    for options, own in (
        (dict(key_ranges=ranges, causal=True), lambda b, first, end: dict(key_ranges=ranges[None, first:end], causal=True)),
        (dict(prefix=prefix, causal=True), lambda b, first, end: dict(prefix=prefix[b : b + 1], causal=True)),
        (dict(first_keys=2, window_size=(3, 0)), lambda b, first, end: dict(first_keys=2, window_size=(3, 0))),
    ):
        made = compat.flash_attn_varlen_func(q, k, v, starts, starts, 20, 20, **options)
        upstream = torch.randn_like(made)
        gradients = torch.autograd.grad(made, (q, k, v), upstream)
        first = 0
        for b, n in enumerate(lengths):
            part = [x.detach()[None, first : first + n].clone().requires_grad_() for x in (q, k, v)]
            if n > 0:
                alone = compat.flash_attn_func(*part, **own(b, first, first + n))
                assert (alone[0] - made[first : first + n]).abs().max() < tolerance
                for x, y in zip(torch.autograd.grad(alone, part, upstream[None, first : first + n]), gradients):
                    assert (x[0] - y[first : first + n]).abs().max() < 4 * tolerance
            first += n


def test_over_a_cache(device):
    dtype = torch.float32 if device == "cpu" else torch.float16
    q, k, v = tensors(device, dtype, queries=3, keys=50)
    lengths = torch.tensor([50, 31], dtype=torch.int32, device=device)
    ranges = given(3, 50).to(device)
    for options in (
        dict(key_ranges=ranges, causal=True), dict(prefix=torch.tensor([7, 60], dtype=torch.int32, device=device), window_size=(4, 0)),
        dict(first_keys=4, window_size=(5, 0)),
    ):
        made = compat.flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, **options)
        for b, n in enumerate(lengths.tolist()):
            own = {
                name: x[b : b + 1] if isinstance(x, torch.Tensor) else x for name, x in options.items()}
            alone = compat.flash_attn_func(q[b : b + 1], k[b : b + 1, :n], v[b : b + 1, :n], **own)
            assert (alone[0] - made[b]).abs().max() < (1e-5 if device == "cpu" else 4e-3)


def test_nothing_to_see():
    q, k, v = tensors()
    assert fa.attention(q[:, :0], k, v, key_ranges=torch.zeros(1, 0, 1, 2, dtype=torch.int32)).shape == (2, 0, 4, 16)
    assert fa.attention(q[:0], k[:0], v[:0], prefix=torch.zeros(0, dtype=torch.int32)).shape == (0, 37, 4, 16)
    starts = torch.zeros(3, dtype=torch.int32)
    empty = torch.zeros(0, 1, 2, dtype=torch.int32)
    assert compat.flash_attn_varlen_func(q[0, :0], k[0, :0], v[0, :0], starts, starts, 0, 0, key_ranges=empty).shape == (0, 4, 16)


def test_refusals_name_what_is_wrong():
    q, k, v = tensors()
    for options, words in (
        (dict(key_ranges=given(), first_keys=3), "Give one of key_ranges, prefix and first_keys"),
        (dict(key_ranges=given(queries=5)), r"key_ranges has the shape \(2, 5, 2, 2\); \(2, 37, 2, 2\) is needed, or 1 for the batch"),
        (dict(key_ranges=given(count=2)[..., 0]), r"key_ranges has the shape \(2, 37, 2\); it must be \[batch or 1, queries, 1 or 2, 2\]"),
        (dict(key_ranges=given().float()), "key_ranges is torch.float32; it must hold whole numbers"),
        (dict(prefix=[1, 2, 3]), r"prefix has the shape \(3,\); \(2,\) is needed"),
        (dict(first_keys=-1), "first_keys is -1; it must be a number of keys from 0 on"),
        (dict(first_keys=1.5), "first_keys is 1.5; it must be a whole number"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            fa.attention(q, k, v, **options)
    starts = torch.tensor([0, 37], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"key_ranges has the shape \(1, 37, 1, 2\); it must be \[total, 1 or 2, 2\]"):
        compat.flash_attn_varlen_func(q[0], k[0], v[0], starts, starts, 37, 37, key_ranges=given(batch=1, count=1))
