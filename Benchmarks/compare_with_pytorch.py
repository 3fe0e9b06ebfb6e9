#!/usr/bin/env python3
"""Times `flash-attention bench` and PyTorch's CPU scaled_dot_product_attention in turns, on the same threads.

    swift build -c release
    python3 -m venv .venv && .venv/bin/pip install torch numpy
    .venv/bin/python Benchmarks/compare_with_pytorch.py [--threads N] [--rounds 5] [--dtypes f32,bf16] [--vectors avx2]

Prints three Markdown tables: prefill in GFLOPS (4*B*H*N*N*D, halved when causal), decode in GB/s of K and V, beside what
a probe reads from a buffer of the same size in the same round, and small problems in microseconds. Each figure is the median over all rounds; a ratio above
1 means that ours is faster. Rounds alternate, because the speed of a shared machine changes from minute to minute.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

TOOL = Path(__file__).resolve().parent.parent / ".build/release/flash-attention"
COMMAND = []
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def ours(case, threads):
    """Seconds (median) and the probe's GB/s, from one run of the tool."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bench.json")
        arguments = COMMAND + ["--json", path, "--threads", str(threads), "--dtype", case["dtype"]]
        arguments += ["--query-heads", str(case["hq"]), "--kv-heads", str(case["hk"]), "--dim", str(case["d"])]
        arguments += ["--queries", str(case["nq"]), "--keys", str(case["nk"]), "--iterations", str(case.get("calls", 9))]
        arguments += ["--causal"] if case["causal"] else []
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        result = json.loads(Path(path).read_text())["cases"][0]
    return statistics.median(result["seconds"]), result["readGigabytesPerSecond"]


def torchs(case):
    """Seconds (median of as many calls after a warm-up)."""
    dtype = TYPES[case["dtype"]]
    q = torch.randn(1, case["hq"], case["nq"], case["d"]).to(dtype)
    k, v = (torch.randn(1, case["hk"], case["nk"], case["d"]).to(dtype) for _ in "kv")
    times = []
    for _ in range(case.get("calls", 9) + 1):
        start = time.perf_counter()
        F.scaled_dot_product_attention(q, k, v, is_causal=case["causal"], enable_gqa=case["hq"] != case["hk"])
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(case, threads, rounds):
    samples = [(ours(case, threads), torchs(case)) for _ in range(rounds)]
    return (
        statistics.median(o[0] for o, _ in samples),
        statistics.median(o[1] for o, _ in samples),
        statistics.median(t for _, t in samples),
        statistics.median(o[1] * o[0] for o, _ in samples),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", default="f32,bf16,f16")
    parser.add_argument("--tool", type=Path, default=TOOL, help="the executable to measure")
    parser.add_argument("--vectors", help="the instructions it uses, such as avx2; hold PyTorch to them by ATEN_CPU_CAPABILITY=avx2")
    options = parser.parse_args()
    global COMMAND
    COMMAND = [str(options.tool), "bench", "--device", "cpu"] + (["--vectors", options.vectors] if options.vectors else [])
    torch.set_num_threads(options.threads)
    dtypes = options.dtypes.split(",")

    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {options.threads} threads, PyTorch {torch.__version__} "
          f"({torch.backends.cpu.get_cpu_capability()}), {options.rounds} rounds\n")
    print("| prefill | D | causal | ours, GFLOPS | PyTorch, GFLOPS | ratio |\n|---|---|---|---|---|---|")
    for dtype in dtypes:
        for d in (64, 128):
            for causal in (False, True):
                case = dict(dtype=dtype, hq=8, hk=8, nq=2048, nk=2048, d=d, causal=causal)
                mine, _, theirs, _ = measure(case, options.threads, options.rounds)
                flops = 4 * 8 * 2048 * 2048 * d / (2 if causal else 1) / 1e9
                print(f"| {dtype} | {d} | {'yes' if causal else 'no'} | {flops / mine:.0f} | {flops / theirs:.0f} | "
                      f"{theirs / mine:.2f} |", flush=True)
    print("\n| decode | heads | context | ours, GB/s | PyTorch, GB/s | ratio | probe, GB/s | ours of probe |"
          "\n|---|---|---|---|---|---|---|---|")
    for dtype in dtypes:
        for hq in (8, 32):
            case = dict(dtype=dtype, hq=hq, hk=8, nq=1, nk=16384, d=128, causal=False)
            mine, probe, theirs, product = measure(case, options.threads, options.rounds)
            size = 2 * 8 * 16384 * 128 * TYPES[dtype].itemsize / 1e9
            # Of the probe: the median of the rounds' own quotients, each of one minute.
            print(f"| {dtype} | {hq}/8 | 16384 | {size / mine:.1f} | {size / theirs:.1f} | {theirs / mine:.2f} | {probe:.1f} | "
                  f"{100 * size / product:.0f}% |", flush=True)
    print("\n| 12 heads, D 64 | tokens | causal | ours, us | PyTorch, us | ratio |\n|---|---|---|---|---|---|")
    for dtype in dtypes:
        for tokens in (16, 32, 64, 128, 256):
            for causal in (False, True):
                case = dict(dtype=dtype, hq=12, hk=12, nq=tokens, nk=tokens, d=64, causal=causal, calls=200)
                mine, _, theirs, _ = measure(case, options.threads, options.rounds)
                print(f"| {dtype} | {tokens} | {'yes' if causal else 'no'} | {1e6 * mine:.0f} | {1e6 * theirs:.0f} | {theirs / mine:.2f} |",
                      flush=True)


if __name__ == "__main__":
    main()
