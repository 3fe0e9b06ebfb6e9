import pytest
import torch

from swift_flash_attention import _operators as own
from swift_flash_attention.compat.flash_attn_interface import (
    flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache)


def inputs(device):
    q = torch.randn(2, 3, 8, 64, dtype=torch.float16, device=device)
    k, v = (torch.randn(2, 50, 2, 64, dtype=torch.float16, device=device) for _ in range(2))
    return q, k, v


def backend(device):
    return "aot_eager" if device == "cpu" else "inductor"


def test_compiles_without_a_break(device):
    q, k, v = inputs(device)
    function = torch.compile(
        lambda q, k, v: flash_attn_func(q * 2, k, v, causal=True) + 1, fullgraph=True, backend=backend(device))
    assert torch.equal(function(q, k, v), flash_attn_func(q * 2, k, v, causal=True) + 1)
    cu_q, cu_k = (torch.tensor([0, n, 2 * n], dtype=torch.int32, device=device) for n in (3, 50))

    def varlen(q, k, v):
        return flash_attn_varlen_func(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), cu_q, cu_k, 3, 50, causal=True)

    assert torch.equal(torch.compile(varlen, fullgraph=True, backend=backend(device))(q, k, v), varlen(q, k, v))


def test_compiled_calls_change_the_cache(device):
    q, k, v = inputs(device)
    new = torch.randn(2, 1, 2, 64, dtype=torch.float16, device=device)
    lengths = torch.tensor([20, 49], dtype=torch.int32, device=device)

    def step(q, k, v, new):
        out = flash_attn_with_kvcache(q, k, v, k=new, v=new, cache_seqlens=lengths, causal=True)
        return out, k[:, 20].clone()

    eager_k, eager_v, own_k, own_v = k.clone(), v.clone(), k.clone(), v.clone()
    expected = step(q, eager_k, eager_v, new)
    result = torch.compile(step, fullgraph=True, backend=backend(device))(q, own_k, own_v, new)
    assert all(torch.equal(a, b) for a, b in zip(result, expected))
    assert torch.equal(own_k, eager_k) and torch.equal(own_v, eager_v) and torch.equal(own_k[0, 20], new[0, 0])


def test_operators_are_what_they_say(device):
    q, k, v = inputs(device)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(own.forward_op, (q, k, v, None, True, -1, -1, 0, 0.0, None), test_utils=checks)
    new = torch.randn(2, 1, 2, 64, dtype=torch.float16, device=device)
    lengths = torch.tensor([20, 49], dtype=torch.int32, device=device)
    torch.library.opcheck(
        own.append_op,
        (q, k, v, new, new, None, None, lengths, *[None] * 11, True, True, -1,
         -1, 0, 0.0, None), test_utils=checks)


@pytest.mark.gpu
def test_a_graph_replays_with_other_lengths(gpu):
    q, k, v = inputs(gpu)
    lengths = torch.tensor([1, 1], dtype=torch.int32, device=gpu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(gpu), torch.cuda.graph(graph):
        out = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True)
    for values in ([50, 3], [0, 17], [50, 50]):
        lengths.copy_(torch.tensor(values, dtype=torch.int32))
        graph.replay()
        assert torch.equal(out, flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True))
