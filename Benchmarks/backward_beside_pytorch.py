#!/usr/bin/env python3
"""Time the gradients of this library beside PyTorch's, in one process and by one loop.

    python3 backward_beside_pytorch.py [--device cpu|cuda] [--threads N] [--dtypes bf16,f32] [--hdims 64,128] [--seqlens 1024,4096]
        [--causal 0,1] [--tokens 16384] [--columns 2048] [--seconds 2] [--json OUT.jsonl]

Ours twice on a GPU: with the same bits in every run, and in any order. PyTorch's there are FlashAttention-2 and cuDNN; each call is timed by events after the L2 cache was filled with something else by
reading. On the CPU, its own flash attention. Only the backward pass is timed (autograd.grad with the graph kept). TFLOPS count five
products, half of them where causal.
"""
import argparse
import json
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from swift_flash_attention import set_gradient_order
from swift_flash_attention.compat.flash_attn_interface import flash_attn_func

TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
PEERS = {
    "cuda": {"sdpa_flash": SDPBackend.FLASH_ATTENTION, "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION},
    "cpu": {"sdpa_flash": SDPBackend.FLASH_ATTENTION},
}


def once(function, device, flusher):
    """A call's time, in seconds."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    flusher.sum()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    function()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000


def measure(function, device, seconds, flusher):
    """The median of a call's times, in seconds."""
    times = []
    for _ in range(3):
        function()
    end = time.time() + seconds
    while len(times) < 5 or time.time() < end:
        times.append(once(function, device, flusher))
    return statistics.median(times)


def main():
    numbers = lambda text: [int(x) for x in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtypes", default="bf16")
    parser.add_argument("--hdims", type=numbers, default=[64, 128])
    parser.add_argument("--seqlens", type=numbers, default=[1024, 4096])
    parser.add_argument("--causal", type=numbers, default=[0, 1])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    flusher = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda") if options.device == "cuda" else None
    lines, ratios = [], {}
    for dtype in options.dtypes.split(","):
        for d in options.hdims:
            for causal in options.causal:
                for n in options.seqlens:
                    b, h = max(options.tokens // n, 1), max(options.columns // d, 1)
                    q, k, v = (
                        torch.randn(b, n, h, d, device=options.device).to(TYPES[dtype]).requires_grad_() for _ in range(3))
                    weights = torch.randn_like(q)
                    found = {}

                    def timed(name, out):
                        run = lambda: torch.autograd.grad(out, (q, k, v), weights, retain_graph=True)  # noqa: E731
                        found[name] = measure(run, options.device, options.seconds, flusher)

                    out = flash_attn_func(q, k, v, causal=bool(causal))
                    timed("ours", out)
                    if options.device == "cuda":
                        set_gradient_order("any")
                        timed("ours_any", out)
                        set_gradient_order("fixed")
                    for name, backend in PEERS[options.device].items():
                        with sdpa_kernel(backend):
                            out = torch.nn.functional.scaled_dot_product_attention(
                                *(x.transpose(1, 2) for x in (q, k, v)), is_causal=bool(causal)).transpose(1, 2)
                        timed(name, out)
                    flops = 10 * b * h * n * n * d / (2 if causal else 1)
                    text = f"{dtype} B{b} H{h} N{n} D{d} causal {causal}: ours {found['ours'] * 1e3:9.3f} ms {flops / found['ours'] / 1e12:7.2f} TFLOPS"
                    if "ours_any" in found:
                        text += f"  in any order {found['ours_any'] * 1e3:9.3f} ms {flops / found['ours_any'] / 1e12:7.2f}"
                    for name in PEERS[options.device]:
                        text += f"  {name} {found[name] * 1e3:9.3f}"
                        for own in ("ours", "ours_any"):
                            if own in found:
                                ratio = found[name] / found[own]
                                ratios.setdefault(f"{name} to {own}", []).append(ratio)
                                text += f" {ratio:5.2f}"
                    print(text, flush=True)
                    lines.append(dict(dtype=dtype, B=b, H=h, N=n, D=d, causal=causal, flops=flops, seconds=found))
    for name, values in ratios.items():
        mean = statistics.geometric_mean(values)
        print(f"{name}: {mean:.3f} times as long, geometric mean of {len(values)} cases; from {min(values):.2f} to {max(values):.2f}")
    if options.json:
        with open(options.json, "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
