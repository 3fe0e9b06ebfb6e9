#!/usr/bin/env python3
"""What a decode call from PyTorch costs the host, beside an operator that does nothing; on a GPU.

    python3 Benchmarks/call_overhead.py

Medians of the fastest of rounds, in microseconds: of a shared machine, whose figures vary by half.
"""

import statistics
import time

import torch

from swift_flash_attention.compat.flash_attn_interface import flash_attn_with_kvcache


def seconds(function, count=2000, rounds=15):
    for _ in range(100):
        function()
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(count // rounds):
            function()
        times.append((time.perf_counter() - begin) / (count // rounds))
        torch.cuda.synchronize()
    return min(times), statistics.median(times)


def main():
    device = "cuda"
    q = torch.randn(1, 1, 32, 128, dtype=torch.bfloat16, device=device)
    k, v = (torch.randn(1, 1024, 8, 128, dtype=torch.bfloat16, device=device) for _ in range(2))
    lengths = torch.tensor([1024], dtype=torch.int32, device=device)
    nothing = torch.empty(1, device=device)
    with torch.no_grad():
        for name, function in (
            ("flash_attn_with_kvcache", lambda: flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True)),
            ("an operator that does nothing", nothing.zero_),
        ):
            least, median = seconds(function)
            print(f"{name:32} {least * 1e6:6.1f} us at the least, {median * 1e6:6.1f} us in the median")
    print(torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
