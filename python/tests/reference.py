"""The definition of attention in float64, and how far a result may be from it: twice what a plain computation of the same
precision errs, plus half an ulp of the largest value."""

import math

import torch


def turned(x, cos, sin, positions, interleaved):
    """x ``[n, h, d]`` turned by the angles of its positions ``[n]``."""
    half = cos.shape[1]
    c, s = (table[positions][:, None, :].to(x.dtype) for table in (cos, sin))
    first, second = (x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]) if interleaved else (x[..., :half], x[..., half : 2 * half])
    a, b = first * c - second * s, first * s + second * c
    result = x.clone()
    if interleaved:
        result[..., 0 : 2 * half : 2], result[..., 1 : 2 * half : 2] = a, b
    else:
        result[..., :half], result[..., half : 2 * half] = a, b
    return result


def visible(n, s, causal, window, chunk, device):
    """Which keys each query sees ``[n, s]``."""
    place = torch.arange(n, device=device)[:, None] + s - n
    key = torch.arange(s, device=device)[None]
    left, right = window
    if causal:
        right = 0
    see = torch.ones(n, s, dtype=torch.bool, device=device)
    if left >= 0:
        see &= key >= place - left
    if right >= 0:
        see &= key <= place + right
    if chunk:
        see &= torch.div(key, chunk, rounding_mode="floor") == torch.div(place, chunk, rounding_mode="floor")
    return see


def attention(q, k, v, *, causal=False, window=(-1, -1), chunk=0, softcap=0.0, scale=None, sinks=None, plain=None):
    """q ``[n, h, d]``, k ``[s, h_k, d]``, v ``[s, h_k, dv]``; returns out ``[n, h, dv]`` and lse ``[h, n]``.

    Args:
        sinks: ``[h]``, a key of every query that has no value.
        plain: The type that a plain computation rounds weights and results to; None for float64.
    """
    work = torch.float64 if plain is None else torch.float32
    group = q.shape[1] // k.shape[1]
    q, k, v = q.to(work), k.to(work).repeat_interleave(group, 1), v.to(work).repeat_interleave(group, 1)
    scores = torch.einsum("nhd,shd->hns", q, k) * (scale if scale is not None else 1 / math.sqrt(q.shape[-1]))
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    see = visible(q.shape[0], k.shape[0], causal, window, chunk, q.device)
    scores = scores.masked_fill(~see, -math.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(work)[:, None, None].expand(*scores.shape[:2], 1)], -1)
        v = torch.cat([v, torch.zeros_like(v[:1]) if len(v) else v.new_zeros((1, *v.shape[1:]))])
    lse = torch.logsumexp(scores, dim=-1)
    top = scores.amax(-1, keepdim=True) if scores.shape[-1] else scores.new_zeros((*scores.shape[:2], 1))
    weights = torch.exp(scores - torch.where(top == -math.inf, torch.zeros_like(top), top))
    total = weights.sum(-1, keepdim=True)
    if plain is not None:
        weights = weights.to(plain).to(work)
    out = torch.einsum("hns,shd->nhd", weights, v)
    out = torch.where(total.transpose(0, 1) == 0, torch.zeros_like(out), out / total.transpose(0, 1))
    return (out if plain is None else out.to(plain)), lse


def check(out, exact, plain, dtype):
    """Asserts that ``out`` is as near to ``exact`` as the tolerance has it."""
    out, exact, plain = out.double(), exact.double(), plain.double()
    assert out.shape == exact.shape
    assert torch.equal(torch.isinf(out), torch.isinf(exact)) and not out.isnan().any()
    if out.numel() == 0:
        return
    finite = ~torch.isinf(exact)
    error, allowed = (out - exact)[finite].abs(), (plain - exact)[finite].abs()
    if error.numel() == 0:
        return
    top = exact[finite].abs().max().item()
    digits = {torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}[dtype]
    half_ulp = 2.0 ** (math.floor(math.log2(max(top, 1e-30))) - digits) / 2
    assert error.max() <= 2 * allowed.max() + half_ulp, (error.max().item(), allowed.max().item(), half_ulp)
    assert error.mean() <= 2 * allowed.mean() + half_ulp


def check_lse(lse, exact):
    """Log-sum-exps are float32, whatever the inputs are."""
    lse, exact = lse.double(), exact.double()
    assert torch.equal(lse == -math.inf, exact == -math.inf)
    finite = exact != -math.inf
    assert ((lse - exact)[finite].abs() <= 2e-5 * (1 + exact[finite].abs())).all()
