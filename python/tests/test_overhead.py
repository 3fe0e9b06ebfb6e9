"""What a call costs the host, beside an operator that does nothing."""

import time

import pytest
import torch

from swift_flash_attention.compat.flash_attn_interface import flash_attn_with_kvcache


def seconds(function, count=2000):
    for _ in range(100):
        function()
    torch.cuda.synchronize()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(count // 5):
            function()
        times.append((time.perf_counter() - begin) / (count // 5))
        torch.cuda.synchronize()
    return min(times)


@pytest.mark.gpu
def test_a_decode_call_costs_the_host_little(gpu):
    q = torch.randn(1, 1, 32, 128, dtype=torch.bfloat16, device=gpu)
    k, v = (torch.randn(1, 1024, 8, 128, dtype=torch.bfloat16, device=gpu) for _ in range(2))
    lengths = torch.tensor([1024], dtype=torch.int32, device=gpu)
    nothing = torch.empty(1, device=gpu)
    with torch.no_grad():
        own = seconds(lambda: flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True))
        empty = seconds(nothing.zero_)
    print(f"{own * 1e6:.1f} us, an operator that does nothing {empty * 1e6:.1f} us")
    assert own - empty < 15e-6
