"""Gradients against float64 autograd of the formula, and what autograd, compilers and trainers do with them."""

import copy
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


def formula(q, k, v, causal=False, window=(-1, -1), chunk=0, softcap=0.0, scale=None):
    """Attention as it is defined, in the type of its inputs; returns the output and the log-sum-exp."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    s = torch.einsum("bnhd,bmhd->bhnm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    queries, keys = s.shape[-2:]
    seen = visible(queries, keys, causal, window, chunk, q.device)
    s = s.masked_fill(~seen, -math.inf)
    p = torch.softmax(s.float() if s.dtype != torch.float64 else s, -1).nan_to_num(0).to(v.dtype)
    # A row that sees nothing gives no gradient, not NaN.
    lse = torch.logsumexp(torch.where(seen.any(-1)[:, None], s, 0.0), -1)
    return torch.einsum("bhnm,bmhd->bnhd", p, v), lse


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
    for name, a, b, c in zip("qkv", own, exact, plain):
        assert a.dtype == tensors[0].dtype and torch.isfinite(a).all(), name
        near = b.to(a.dtype).double()
        allowed = 2 * (c.double() - b).abs().max() + 2 * ((near + 0.3).to(a.dtype).double() - 0.3 - near).abs().max()
        # What is saved of a row's sum has 24 bits.
        allowed += 1e-5 if a.dtype == torch.float32 else 1e-6
        assert (a.double() - b).abs().max() <= allowed, f"d{name}: {(a.double() - b).abs().max()} of {allowed}"
    return own


CLAUSES = [
    {}, {"causal": True}, {"window": (7, 3)}, {"window": (5, 0)}, {"causal": True, "softcap": 3.0}, {"scale": 0.3}, {"chunk": 9, "causal": True},
    {"scale": -0.2},
]


@pytest.mark.parametrize("options", CLAUSES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_are_those_of_the_formula(device, dtype, options):
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
def test_of_packed_sequences(device, causal):
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
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(_operators.forward_op, (q, k, v, *options()), test_utils=tests)
    qkv = torch.randn(1, 9, 3, 2, 64, device=device).to(half(device)).requires_grad_()
    torch.library.opcheck(_operators.packed_op, (qkv, 0, *options()), test_utils=tests)
    (a, b, c), (cu_q, cu_k) = packed(device, half(device), [(9, 12)])
    a, b, c = (x[:n].detach().requires_grad_() for x, n in ((a, 9), (b, 12), (c, 12)))
    lists = (cu_q, cu_k, None, None, 9, 12)
    torch.library.opcheck(_operators.varlen_op, (a, b, c, *lists, None, None, None, *options()), test_utils=tests)
    plain = ("test_schema", "test_faketensor")
    out, lse = (x.detach() for x in _operators.forward_op(q, k, v, *options()))
    own = [x.detach() for x in (q, k, v)]
    torch.library.opcheck(
        _operators.backward_op, (out, None, *own, out, lse, True, False, True, *options()), test_utils=plain)
    out, lse = (x.detach() for x in _operators.varlen_op(a, b, c, *lists, None, None, None, *options()))
    torch.library.opcheck(
        _operators.varlen_backward_op,
        (out, lse, a.detach(), b.detach(), c.detach(), out, lse, *lists, True, True, False, *options()), test_utils=plain)
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


def test_replays_of_a_graph(device):
    if device != "cuda":
        pytest.skip("graphs are of GPUs")
    q, k, v = inputs(device, torch.float16)

    class Block(torch.nn.Module):
        def forward(self, q, k, v):
            return fa.attention(q, k, v, causal=True)

    block = torch.cuda.make_graphed_callables(Block().cuda(), (q, k, v))
    weights = torch.randn_like(q)
    own = torch.autograd.grad(block(q, k, v), (q, k, v), weights)
    expected = torch.autograd.grad(fa.attention(q, k, v, causal=True), (q, k, v), weights)
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


def losses(model, attend, steps, text, device, dtype):
    model = copy.deepcopy(model)
    embedding, layers, head = model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(steps):
        places = torch.randint(0, len(text) - 65, (4,), generator=generator)
        batch = torch.stack([text[p : p + 65] for p in places.tolist()]).to(device)
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            x = embedding(batch[:, :-1])
            for layer in layers:
                x = layer(x, attend)
            loss = torch.nn.functional.cross_entropy(head(x).flatten(0, 1).float(), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        made.append(loss.item())
    return torch.tensor(made)


def test_a_small_transformer_learns_as_with_sdpa(device):
    """Two layers with grouped heads, 200 steps: the losses differ from sdpa's by at most twice what two of its ways differ by."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.manual_seed(0)
    # Text that can be learnt: words of a small grammar.
    words = ["the", "cat", "dog", "sees", "hears", "a", "bird", "and", "sleeps", "now"]
    generator = torch.Generator().manual_seed(3)
    text = " ".join(words[i] for i in torch.randint(0, len(words), (2000,), generator=generator).tolist())
    tokens = torch.tensor([ord(c) - 32 for c in text])
    width, heads, kv_heads = 64, 4, 2
    model = torch.nn.ModuleList([
        torch.nn.Embedding(96, width), torch.nn.ModuleList([Layer(width, heads, kv_heads) for _ in range(2)]),
        torch.nn.Linear(width, 96)]).to(device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def sdpa(backend):
        def attend(q, k, v):
            k, v = (x.repeat_interleave(heads // kv_heads, 2) for x in (k, v))
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True).transpose(1, 2)

        return attend

    run = lambda attend: losses(model, attend, 200, tokens, device, dtype)  # noqa: E731
    math_way, flash_way = run(sdpa(SDPBackend.MATH)), run(sdpa(SDPBackend.FLASH_ATTENTION))
    own = run(lambda q, k, v: flash_attn_func(q, k, v, causal=True))
    assert own[-1] < 0.6 * own[0]
    difference = (math_way - flash_way).abs().max()
    distance = torch.minimum((own - math_way).abs().max(), (own - flash_way).abs().max())
    assert distance <= 2 * difference, f"{distance} of {difference}"
