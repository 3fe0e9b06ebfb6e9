"""Gradients against float64 autograd of the formula, and what autograd, compilers and trainers do with them."""

import copy
import gc
import math

import pytest
import torch

import swift_flash_attention as fa
from reference import visible
from swift_flash_attention import _operators
from swift_flash_attention.compat.flash_attn_interface import (
    _flash_attn_backward, flash_attn_func, flash_attn_qkvpacked_func, flash_attn_varlen_func, flash_attn_with_kvcache)


def int32(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def formula(q, k, v, sinks=None, causal=False, window=(-1, -1), chunk=0, softcap=0.0, scale=None):
    """Attention as it is defined, in the type of its inputs; returns the output and the log-sum-exp."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    s = torch.einsum("bnhd,bmhd->bhnm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    queries, keys = s.shape[-2:]
    seen = visible(queries, keys, causal, window, chunk, q.device)
    s = s.masked_fill(~seen, -math.inf)
    if sinks is not None:
        s = torch.cat([s, sinks.to(s.dtype)[None, :, None, None].expand(*s.shape[:3], 1)], -1)
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], -1)
    p = torch.softmax(s.float() if s.dtype != torch.float64 else s, -1).nan_to_num(0).to(v.dtype)
    # A row that sees nothing gives no gradient, not NaN.
    lse = torch.logsumexp(torch.where(seen.any(-1)[:, None], s, 0.0), -1)
    return torch.einsum("bhnm,bmhd->bnhd", p[..., :keys], v), lse


def inputs(device, dtype, batch=2, queries=33, keys=50, heads=4, kv_heads=2, dimension=64, value_dimension=None):
    shapes = (
        (batch, queries, heads, dimension), (batch, keys, kv_heads, dimension), (batch, keys, kv_heads, value_dimension or dimension))
    return [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]


def gradients(function, tensors, weights, of_lse=None):
    out, lse = function(*tensors)
    loss = (out * weights.to(out.dtype)).sum()
    if of_lse is not None:
        loss = loss + (lse * of_lse.to(lse.dtype)).sum()
    return torch.autograd.grad(loss, tensors)


def check(function, reference, tensors, weights, of_lse=None):
    """FlashAttention 3's rule: at most twice the error of the same formula in the type, and what rounding a number near it takes."""
    own = gradients(function, tensors, weights, of_lse)
    exact = gradients(reference, [x.detach().double().requires_grad_() for x in tensors], weights, of_lse)
    plain = gradients(reference, [x.detach().requires_grad_() for x in tensors], weights, of_lse)
    for name, a, b, c, x in zip(("q", "k", "v", "sinks"), own, exact, plain, tensors):
        assert a.dtype == x.dtype and torch.isfinite(a).all(), name
        near = b.to(a.dtype).double()
        allowed = 2 * (c.double() - b).abs().max() + 2 * ((near + 0.3).to(a.dtype).double() - 0.3 - near).abs().max()
        # What is saved of a row's sum has 24 bits.
        allowed += 1e-5 if a.dtype == torch.float32 else 1e-6
        if name == "sinks":
            # Few, and sums of terms that nearly cancel: what rounding the output moves them by at most.
            out = reference(*(x.detach().double() for x in tensors))[0]
            allowed += torch.finfo(tensors[0].dtype).eps / 2 * (weights.abs() * out.abs()).sum((0, 1, 3)).max()
        assert (a.double() - b).abs().max() <= allowed, f"d{name}: {(a.double() - b).abs().max()} of {allowed}"
    return own


@pytest.fixture(params=["fixed", "any"])
def order(request):
    """The order in which gradients may be added up."""
    fa.set_gradient_order(request.param)
    yield request.param
    fa.set_gradient_order("fixed")


CLAUSES = [
    {}, {"causal": True}, {"window": (7, 3)}, {"window": (5, 0)}, {"causal": True, "softcap": 3.0}, {"scale": 0.3}, {"chunk": 9, "causal": True},
    {"scale": -0.2},
]


@pytest.mark.parametrize("options", CLAUSES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_are_those_of_the_formula(device, order, dtype, options):
    if device == "cuda" and dtype == torch.float32:
        pytest.skip("float32 is for the CPU")
    for sizes in ({}, {"queries": 40, "keys": 20, "heads": 3, "kv_heads": 1, "dimension": 72, "value_dimension": 40}):
        tensors = inputs(device, dtype, **sizes)
        weights = torch.randn(*tensors[0].shape[:3], tensors[2].shape[-1], device=device)
        of_lse = torch.randn(tensors[0].shape[0], tensors[0].shape[2], tensors[0].shape[1], device=device)
        check(
            lambda q, k, v: fa.attention(q, k, v, return_lse=True, **options), lambda q, k, v: formula(q, k, v, **options), tensors,
            weights, of_lse)


def half(device):
    return torch.float16 if device == "cuda" else torch.float32


@pytest.mark.parametrize("of_sinks", [torch.float32, torch.bfloat16])
def test_of_sinks(device, order, of_sinks):
    """Of every function that has them; also where rows see no key, and of them alone."""
    dtype = half(device)
    q, k, v = inputs(device, dtype, queries=40, keys=25)
    sinks = (torch.tensor([0.5, -2, 3, 1]).to(of_sinks).to(device)).requires_grad_()
    weights = torch.randn(q.shape, device=device)
    of_lse = torch.randn(2, 4, 40, device=device)
    for causal in (False, True):
        check(
            lambda q, k, v, sinks: fa.attention(q, k, v, sinks=sinks, causal=causal, return_lse=True),
            lambda q, k, v, sinks: formula(q, k, v, sinks, causal=causal), [q, k, v, sinks], weights, of_lse)
    check(
        lambda q, k, v, sinks: flash_attn_func(q, k, v, learnable_sink=sinks, softcap=2.0, return_attn_probs=True),
        lambda q, k, v, sinks: formula(q, k, v, sinks, softcap=2.0), [q, k, v, sinks], weights)
    # One sequence behind the other.
    a, b, c = (x.detach().flatten(0, 1).requires_grad_() for x in (q, k, v))
    cu_q, cu_k = int32([0, 40, 80], device), int32([0, 25, 50], device)
    packed = flash_attn_varlen_func(a, b, c, cu_q, cu_k, 40, 25, causal=True, s_aux=sinks)
    whole = flash_attn_func(q, k, v, causal=True, s_aux=sinks)
    own = torch.autograd.grad(packed, (a, b, c, sinks), weights.flatten(0, 1).to(dtype))
    other = torch.autograd.grad(whole, (q, k, v, sinks), weights.to(dtype))
    for x, y in zip(own, other):
        assert torch.allclose(x.float(), y.flatten(0, 1).float() if y.dim() == 4 else y.float(), atol=1e-3, rtol=1e-2)
    (alone,) = torch.autograd.grad(
        flash_attn_func(q.detach(), k.detach(), v.detach(), causal=True, s_aux=sinks), sinks, weights.to(dtype))
    assert torch.allclose(alone.float(), other[3].float(), atol=1e-5)


def test_of_flash_attn_func(device):
    q, k, v = inputs(device, half(device))
    weights = torch.randn(q.shape, device=device)
    check(
        lambda q, k, v: flash_attn_func(q, k, v, causal=True, window_size=(9, 0), return_attn_probs=True),
        lambda q, k, v: formula(q, k, v, causal=True, window=(9, 0)), [q, k, v], weights)
    # Only those that are wanted; and none at all.
    out = flash_attn_func(q, k.detach(), v, causal=True)
    dq, dv = torch.autograd.grad((out * weights).sum(), (q, v))
    full = torch.autograd.grad((flash_attn_func(q, k, v, causal=True) * weights).sum(), (q, v))
    assert torch.equal(dq, full[0]) and torch.equal(dv, full[1])
    assert not flash_attn_func(q.detach(), k.detach(), v.detach()).requires_grad


def test_of_a_gradient_of_one_number(device):
    """``sum().backward()`` hands over a tensor whose elements are all one."""
    q, k, v = inputs(device, half(device))
    ones = torch.autograd.grad(fa.attention(q, k, v).sum(), (q, k, v))
    own = torch.autograd.grad(fa.attention(q, k, v), (q, k, v), torch.ones_like(q))
    assert all(torch.equal(a, b) for a, b in zip(ones, own))


def packed(device, dtype, lengths, heads=4, kv_heads=2, dimension=64):
    starts = [int32([0, *torch.tensor(x).cumsum(0).tolist()], device) for x in zip(*lengths)]
    shapes = ((int(starts[0][-1]) + 3, heads), (int(starts[1][-1]) + 2, kv_heads), (int(starts[1][-1]) + 2, kv_heads))
    return [torch.randn(*x, dimension, device=device).to(dtype).requires_grad_() for x in shapes], starts


@pytest.mark.parametrize("causal", [False, True])
def test_of_packed_sequences(device, order, causal):
    """Also of sequences without queries or keys; rows of no sequence get zeros, whatever is in them."""
    lengths = [(17, 30), (0, 4), (5, 0), (40, 40)]
    (q, k, v), (cu_q, cu_k) = packed(device, half(device), lengths)
    with torch.no_grad():
        q[-3:], k[-2:], v[-2:] = math.nan, math.nan, math.nan
    weights = torch.randn(q.shape, device=device)
    weights[-3:] = math.nan
    out = flash_attn_varlen_func(q, k, v, cu_q, cu_k, 40, 40, causal=causal)
    own = torch.autograd.grad(out, (q, k, v), weights.to(q.dtype))
    for i, (queries, keys) in enumerate(lengths):
        a, b = slice(int(cu_q[i]), int(cu_q[i + 1])), slice(int(cu_k[i]), int(cu_k[i + 1]))
        one = [x.detach()[None, rows].requires_grad_() for x, rows in ((q, a), (k, b), (v, b))]
        if queries and keys:
            check(
                lambda q, k, v: flash_attn_func(q, k, v, causal=causal, return_attn_probs=True),
                lambda q, k, v: formula(q, k, v, causal=causal), one, weights[None, a])
        expected = torch.autograd.grad((flash_attn_func(*one, causal=causal) * weights[None, a].to(q.dtype)).sum(), one)
        for x, y, rows in zip(own, expected, (a, b, b)):
            assert torch.equal(x[rows], y[0]) or torch.allclose(x[rows], y[0], atol=1e-5)
    for x, count in zip(own, (3, 2, 2)):
        assert (x[-count:] == 0).all()


def test_of_sequences_of_which_a_part_counts(device):
    (q, k, v), (cu_q, cu_k) = packed(device, half(device), [(17, 30), (20, 9)])
    used_q, used_k = int32([12, 20], device), int32([30, 4], device)
    weights = torch.randn(q.shape, device=device, dtype=q.dtype)
    out = flash_attn_varlen_func(q, k, v, cu_q, cu_k, 20, 30, seqused_q=used_q, seqused_k=used_k, causal=True)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), weights)
    one = [x.detach()[None, rows].requires_grad_() for x, rows in ((q, slice(17, 37)), (k, slice(30, 34)), (v, slice(30, 34)))]
    expected = torch.autograd.grad((flash_attn_func(*one, causal=True) * weights[None, 17:37]).sum(), one)
    assert torch.allclose(dq[17:37], expected[0][0], atol=1e-5) and torch.allclose(dk[30:34], expected[1][0], atol=1e-5)
    assert (dq[12:17] == 0).all() and (dk[34:39] == 0).all() and (dv[34:39] == 0).all()


@pytest.mark.parametrize("heads", [0, 4])
def test_of_packed_qkv_is_one_tensor(device, heads):
    shape = (2, 20, 3, 4, 64) if heads == 0 else (2, 20, 8, 64)
    qkv = torch.randn(shape, device=device).to(half(device)).requires_grad_()
    given = {"num_heads_q": heads} if heads else {}
    out = flash_attn_qkvpacked_func(qkv, causal=True, **given)
    weights = torch.randn_like(out)
    (own,) = torch.autograd.grad(out, qkv, weights)
    parts = qkv.detach().unbind(2) if heads == 0 else qkv.detach().split([4, 2, 2], 2)
    parts = [x.clone().requires_grad_() for x in parts]
    expected = torch.autograd.grad(flash_attn_func(*parts, causal=True), parts, weights)
    assert own.is_contiguous()
    assert torch.equal(own, torch.stack(expected, 2) if heads == 0 else torch.cat(expected, 2))


def test_flash_attn_backward(device):
    q, k, v = (x.detach() for x in inputs(device, half(device)))
    out, lse = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    dout, made = torch.randn_like(out), [torch.empty_like(x) for x in (q, k, v)]
    sums = _flash_attn_backward(
        dout, q, k, v, out, lse, None, None, None, None, None, None, *made, None, True, -1, -1, 0.0, True)
    own = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(flash_attn_func(*own, causal=True), own, dout)
    assert all(torch.equal(a, b) for a, b in zip(made, expected))
    assert torch.allclose(sums, (dout.float() * out.float()).sum(-1).transpose(1, 2))
    with pytest.raises(ValueError, match="^Gradients are written to dq, dk and dv"):
        _flash_attn_backward(dout, q, k, v, out, lse)
    into = dict(zip(("dq", "dk", "dv"), made))
    for given, message in (
        ({"dk": made[1][:1]}, r"^dk has the shape \(1, "), ({"dv": made[2].double()}, "^dv is torch.float64"),
        ({"dout": dout[:, :-1]}, r"^dout has the shape"), ({"dout": dout.double()}, "^dout is torch.float64"),
        ({"softmax_lse": lse.double()}, "^softmax_lse is torch.float64"), ({"softmax_lse": lse[:, :1]}, "^softmax_lse has the shape"),
        ({"out": out[..., :8]}, "^out has the shape"), ({"k": k.double()}, "^k is torch.float64"),
        ({"sequed_k": int32([1, 2], device)}, "^sequed_k is of packed sequences"), ({"max_seqlen_q": 3}, "^max_seqlen_q is of packed"),
        ({"dq": made[0].transpose(-1, -2).contiguous().transpose(-1, -2)}, "^dq: elements must lie side by side"),
    ):
        call = {"dout": dout, "q": q, "k": k, "v": v, "out": out, "softmax_lse": lse, **into, **given}
        with pytest.raises(ValueError, match=message):
            _flash_attn_backward(**call)


def test_preparing_computes_nothing(device):
    q, k, v = (x.detach() for x in inputs(device, half(device)))
    out, lse = flash_attn_func(q, k, v, return_attn_probs=True)
    made = [torch.full_like(x, 7) for x in (q, k, v)]
    fa.prepare(_flash_attn_backward, out, q, k, v, out, lse, dq=made[0], dk=made[1], dv=made[2])
    assert all((x == 7).all() for x in made)


# MARK: - What autograd and compilers do


def options():
    return False, -1, 0, 0, 0.0, None


def test_operators_are_what_torch_expects(device):
    q, k, v = inputs(device, half(device), batch=1, queries=9, keys=12)
    sinks = torch.randn(q.shape[2], device=device, dtype=torch.bfloat16).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(_operators.forward_op, (q, k, v, sinks, *options()), test_utils=tests)
    qkv = torch.randn(1, 9, 3, 2, 64, device=device).to(half(device)).requires_grad_()
    torch.library.opcheck(_operators.packed_op, (qkv, 0, *options()), test_utils=tests)
    (a, b, c), (cu_q, cu_k) = packed(device, half(device), [(9, 12)])
    a, b, c = (x[:n].detach().requires_grad_() for x, n in ((a, 9), (b, 12), (c, 12)))
    lists = (cu_q, cu_k, None, None, 9, 12)
    torch.library.opcheck(_operators.varlen_op, (a, b, c, *lists, None, None, None, sinks, *options()), test_utils=tests)
    plain = ("test_schema", "test_faketensor")
    out, lse = (x.detach() for x in _operators.forward_op(q, k, v, None, *options()))
    own = [x.detach() for x in (q, k, v)]
    torch.library.opcheck(
        _operators.backward_op, (out, None, *own, sinks.detach(), out, lse, True, False, True, True, *options()), test_utils=plain)
    out, lse = (x.detach() for x in _operators.varlen_op(a, b, c, *lists, None, None, None, None, *options()))
    torch.library.opcheck(
        _operators.varlen_backward_op,
        (out, lse, a.detach(), b.detach(), c.detach(), sinks.detach(), out, lse, *lists, True, True, False, False, *options()), test_utils=plain)
    out, lse = (x.detach() for x in _operators.packed_op(qkv, 0, *options()))
    torch.library.opcheck(
        _operators.packed_backward_op, (out, None, qkv.detach(), out, lse, 0, *options()), test_utils=plain)


def test_under_compile_and_checkpointing(device):
    from torch.utils.checkpoint import checkpoint

    q, k, v = inputs(device, half(device))
    cu = int32([0, 20, 50], device)

    def function(q, k, v):
        out = flash_attn_func(q, k, v, causal=True) + fa.attention(q, k[:, :33], v[:, :33])
        return out.sum() + flash_attn_varlen_func(k[0], k[0], v[0], cu, cu, 30, 30, causal=True).square().sum()

    expected = torch.autograd.grad(function(q, k, v), (q, k, v))
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    own = torch.autograd.grad(compiled(q, k, v), (q, k, v))
    again = torch.autograd.grad(checkpoint(function, q, k, v, use_reentrant=False), (q, k, v))
    for a, b, c in zip(expected, own, again):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-3) and torch.equal(a, c)


def test_what_is_saved_and_changed_raises(device):
    q, k, v = inputs(device, half(device))
    out = fa.attention(q, k, v)
    with torch.no_grad():
        k.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_second_derivatives_raise(device):
    q, k, v = inputs(device, half(device))
    for function in (lambda: fa.attention(q, k, v), lambda: flash_attn_qkvpacked_func(torch.stack([q, q, q], 2))):
        (dq,) = torch.autograd.grad(function().square().sum(), q, create_graph=True)
        with pytest.raises(NotImplementedError, match="^Second derivatives of swift_flash_attention are not supported"):
            dq.sum().backward()


def test_caches_have_no_gradient(device):
    q, k, v = inputs(device, half(device))
    out = flash_attn_with_kvcache(q, k, v, cache_seqlens=int32([50, 50], device))
    with pytest.raises(NotImplementedError, match="^A cache of keys and values has no gradient"):
        out.sum().backward()


def test_autocast(device):
    q, k, v = inputs(device, torch.float32)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = fa.attention(q, k, v, causal=True)
        with torch.no_grad():
            assert flash_attn_func(q, k, v, causal=True).dtype == torch.bfloat16
    assert out.dtype == torch.bfloat16
    own = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    low = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(fa.attention(*low, causal=True).float().square().sum(), low)
    for a, b in zip(own, expected):
        assert a.dtype == torch.float32 and torch.equal(a, b.float())


def test_autocast_of_mixed_types(device):
    q, k, v = (x.detach() for x in inputs(device, torch.float32))
    with torch.autocast(device, dtype=torch.bfloat16):
        own = fa.attention(q, k.bfloat16(), v.bfloat16())
    assert torch.equal(own, fa.attention(q.bfloat16(), k.bfloat16(), v.bfloat16()))


def test_same_bits_every_time(device):
    q, k, v = inputs(device, half(device), queries=150, keys=170)
    weights = torch.randn_like(q)
    first = torch.autograd.grad(fa.attention(q, k, v, causal=True), (q, k, v), weights)
    for _ in range(20):
        again = torch.autograd.grad(fa.attention(q, k, v, causal=True), (q, k, v), weights)
        assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_of_many_keys_in_any_order(device):
    """Whose parts come from many blocks of a GPU."""
    q, k, v = inputs(device, half(device), queries=300, keys=700, dimension=128)
    weights = torch.randn(q.shape, device=device)
    fa.set_gradient_order("any")
    try:
        check(
            lambda q, k, v: fa.attention(q, k, v, causal=True, return_lse=True), lambda q, k, v: formula(q, k, v, causal=True),
            [q, k, v], weights)
    finally:
        fa.set_gradient_order("fixed")


def test_any_order_is_asked_for_and_not_deterministic(device):
    assert fa.gradient_order() == "fixed"
    for wrong in ("fastest", None, ["any"]):
        with pytest.raises(ValueError, match="it must be 'fixed' or 'any'"):
            fa.set_gradient_order(wrong)
    q, k, v = inputs(device, half(device))
    out = fa.attention(q, k, v)
    fa.set_gradient_order("any")
    try:
        assert fa.gradient_order() == "any"
        with pytest.raises(ValueError, match="deterministic=True asks for gradients of the same bits"):
            flash_attn_func(q, k, v, deterministic=True)
        torch.use_deterministic_algorithms(True)
        if device == "cpu":
            # Where there is one order always.
            torch.autograd.grad(out.sum(), q, retain_graph=True)
        else:
            with pytest.raises(RuntimeError, match="call set_gradient_order\\('fixed'\\)"):
                torch.autograd.grad(out.sum(), q, retain_graph=True)
            torch.use_deterministic_algorithms(True, warn_only=True)
            with pytest.warns(UserWarning, match="in no fixed order"):
                torch.autograd.grad(out.sum(), q, retain_graph=True)
        torch.use_deterministic_algorithms(True)
        fa.set_gradient_order("fixed")
        torch.autograd.grad(out.sum(), q)
    finally:
        torch.use_deterministic_algorithms(False)
        fa.set_gradient_order("fixed")


def test_replays_of_a_graph(device, order):
    if device != "cuda":
        pytest.skip("graphs are of GPUs")
    q, k, v = inputs(device, torch.float16)
    # Graphs of another test may not go while one is captured.
    gc.collect()

    class Block(torch.nn.Module):
        def forward(self, q, k, v):
            return fa.attention(q, k, v, causal=True)

    block = torch.cuda.make_graphed_callables(Block().cuda(), (q, k, v))
    weights = torch.randn_like(q)
    own = torch.autograd.grad(block(q, k, v), (q, k, v), weights)
    expected = torch.autograd.grad(fa.attention(q, k, v, causal=True), (q, k, v), weights)
    # So few keys are one block's.
    assert all(torch.equal(a, b) for a, b in zip(own, expected))


# MARK: - Training


class Layer(torch.nn.Module):
    def __init__(self, width, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads, self.dimension = heads, kv_heads, width // heads
        self.first, self.second = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv = torch.nn.Linear(width, (heads + 2 * kv_heads) * self.dimension)
        self.out = torch.nn.Linear(width, width)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(width, 2 * width), torch.nn.GELU(), torch.nn.Linear(2 * width, width))

    def forward(self, x, attend):
        parts = self.qkv(self.first(x)).unflatten(-1, (-1, self.dimension))
        q, k, v = parts.split([self.heads, self.kv_heads, self.kv_heads], 2)
        x = x + self.out(attend(q, k, v).flatten(2))
        return x + self.mlp(self.second(x))


def losses(model, attend, steps, text, device, dtype, cut=None):
    """
    Args:
        cut: What makes inputs and targets of ``[4, 65]`` tokens; the last is of the next tokens otherwise.
    """
    model = copy.deepcopy(model)
    embedding, layers, head = model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(steps):
        places = torch.randint(0, len(text) - 65, (4,), generator=generator)
        batch = torch.stack([text[p : p + 65] for p in places.tolist()]).to(device)
        tokens, targets = (batch[:, :-1], batch[:, 1:]) if cut is None else cut(batch)
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            x = embedding(tokens)
            for layer in layers:
                x = layer(x, attend)
            loss = torch.nn.functional.cross_entropy(head(x).flatten(0, 1).float(), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        made.append(loss.item())
    return torch.tensor(made)


HEADS, KV_HEADS = 4, 2


def small_model(device):
    """Embedding, two layers with grouped heads, head; and text that can be learnt: words of a small grammar."""
    torch.manual_seed(0)
    words = ["the", "cat", "dog", "sees", "hears", "a", "bird", "and", "sleeps", "now"]
    generator = torch.Generator().manual_seed(3)
    text = " ".join(words[i] for i in torch.randint(0, len(words), (2000,), generator=generator).tolist())
    tokens = torch.tensor([ord(c) - 32 for c in text])
    model = torch.nn.ModuleList([
        torch.nn.Embedding(96, 64), torch.nn.ModuleList([Layer(64, HEADS, KV_HEADS) for _ in range(2)]),
        torch.nn.Linear(64, 96)]).to(device)
    return model, tokens, torch.bfloat16 if device == "cuda" else torch.float32


def learns_as_with_sdpa(own, sdpa):
    """The losses differ from sdpa's by at most twice what two of its ways differ by."""
    from torch.nn.attention import SDPBackend

    own, math_way, other_way = own(), sdpa(SDPBackend.MATH), sdpa(SDPBackend.FLASH_ATTENTION)
    assert own[-1] < 0.6 * own[0]
    difference = (math_way - other_way).abs().max()
    distance = torch.minimum((own - math_way).abs().max(), (own - other_way).abs().max())
    assert distance <= 2 * difference, f"{distance} of {difference}"


def by_sdpa(backend, q, k, v, **mask):
    from torch.nn.attention import sdpa_kernel

    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 2) for x in (k, v))
    with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **mask).transpose(1, 2)


def test_a_small_transformer_learns_as_with_sdpa(device, order):
    model, text, dtype = small_model(device)
    run = lambda attend: losses(model, attend, 200, text, device, dtype)  # noqa: E731
    learns_as_with_sdpa(
        lambda: run(lambda q, k, v: flash_attn_func(q, k, v, causal=True)),
        lambda backend: run(lambda q, k, v: by_sdpa(backend, q, k, v, is_causal=True)))


def test_packed_documents_learn_as_with_sdpa(device):
    """Each row of four is three documents of 10, 33 and 21 tokens, of which none sees another's."""
    model, text, dtype = small_model(device)
    lengths = [10, 33, 21]
    starts = int32([0, *torch.tensor(lengths * 4).cumsum(0).tolist()], device)

    def cut(batch):
        return batch[:, :-1].reshape(1, -1), batch[:, 1:].reshape(1, -1)

    def packed(q, k, v):
        return flash_attn_varlen_func(q[0], k[0], v[0], starts, starts, 33, 33, causal=True)[None]

    def one_by_one(backend):
        def attend(q, k, v):
            parts = zip(*(x.split(lengths * 4, 1) for x in (q, k, v)))
            return torch.cat([by_sdpa(backend, *part, is_causal=True) for part in parts], 1)

        return losses(model, attend, 100, text, device, dtype, cut)

    learns_as_with_sdpa(lambda: losses(model, packed, 100, text, device, dtype, cut), one_by_one)


def one_of_two(rank, file, results):
    """A process of ``test_data_parallel``."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model, text, _ = small_model("cpu")
    layer = torch.nn.parallel.DistributedDataParallel(model[1][0])
    x = model[0](text[64 * rank : 64 * rank + 64][None]).detach()
    layer(x, lambda q, k, v: flash_attn_func(q, k, v, causal=True)).square().sum().backward()
    results[rank] = torch.cat([p.grad.flatten() for p in layer.parameters()])
    torch.distributed.destroy_process_group()


def test_data_parallel(device, tmp_path):
    """Two processes have the mean of what each would have alone."""
    if device == "cuda":
        pytest.skip("as on the CPU")
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(one_of_two, (str(tmp_path / "meeting"), results), nprocs=2)
        first, second = results[0], results[1]
    model, text, _ = small_model("cpu")
    for rank in range(2):
        x = model[0](text[64 * rank : 64 * rank + 64][None]).detach()
        loss = model[1][0](x, lambda q, k, v: flash_attn_func(q, k, v, causal=True)).square().sum() / 2
        loss.backward()
    alone = torch.cat([p.grad.flatten() for p in model[1][0].parameters()])
    assert torch.equal(first, second)
    assert torch.allclose(first, alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())
