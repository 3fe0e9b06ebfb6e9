#!/usr/bin/env python3
"""Times the example of a product of matrices on Hopper and cuBLAS (through PyTorch) by one loop, in turns.

    flash-attention emit --example hopper-gemm > gemm.ptx
    python3 Benchmarks/gemm_beside_cublas.py gemm.ptx [--sizes 4096,8192] [--rounds 3]

Needs an H100 or H200, and PyTorch. C = A B^T in bf16 with random normal numbers; each run is timed by events after the L2
cache was evicted by reading 512 MiB. The result is compared with PyTorch's, and 20 runs with one another, bit for bit.
"""
import argparse
import ctypes
import re
import statistics

import torch

ROWS, COLUMNS, DEPTH, STAGES, SHARED = 128, 256, 64, 4, 4 * 48 * 1024 + 2 * 16 * 1024 + 64


class Driver:
    """The few functions of the CUDA driver that launch a kernel with tensor maps."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")

    def check(self, status, what):
        if status:
            name = ctypes.c_char_p()
            self.cuda.cuGetErrorName(status, ctypes.byref(name))
            raise RuntimeError(f"{what}: {name.value.decode()}")

    def load(self, ptx):
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self.cuda.cuModuleLoadData(ctypes.byref(module), ptx.encode() + b"\0"), "cuModuleLoadData")
        name = re.search(r"\.entry (\w+)", ptx).group(1)
        self.check(self.cuda.cuModuleGetFunction(ctypes.byref(function), module, name.encode()), "cuModuleGetFunction")
        self.check(self.cuda.cuFuncSetAttribute(function, 8, SHARED), "cuFuncSetAttribute")
        return function

    def tensor_map(self, tensor, rows):
        """A box of `rows` rows and 64 columns, with the swizzle of 128 bytes: 128 bytes, and where they lie."""
        raw = ctypes.create_string_buffer(192)
        place = (ctypes.addressof(raw) + 63) & ~63
        height, width = tensor.shape
        status = self.cuda.cuTensorMapEncodeTiled(
            ctypes.c_void_p(place), 9, 2, ctypes.c_void_p(tensor.data_ptr()), (ctypes.c_uint64 * 2)(width, height),
            (ctypes.c_uint64 * 1)(width * 2), (ctypes.c_uint32 * 2)(64, rows), (ctypes.c_uint32 * 2)(1, 1), 0, 3, 3, 0)
        self.check(status, "cuTensorMapEncodeTiled")
        return raw, place


def product(driver, kernel, a, b, c):
    """A function that launches C = A B^T on PyTorch's stream."""
    maps = [driver.tensor_map(a, ROWS), driver.tensor_map(b, COLUMNS), driver.tensor_map(c, 64)]
    tiles = [-(-a.shape[0] // ROWS), -(-b.shape[0] // COLUMNS)]
    numbers = [ctypes.c_uint32(n) for n in tiles + [-(-a.shape[1] // DEPTH)]]
    places = [place for _, place in maps] + [ctypes.addressof(number) for number in numbers]
    arguments = (ctypes.c_void_p * 6)(*places)
    blocks = min(tiles[0] * tiles[1], torch.cuda.get_device_properties(0).multi_processor_count)

    def launch():
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        driver.check(
            driver.cuda.cuLaunchKernel(kernel, blocks, 1, 1, 384, 1, 1, SHARED, stream, arguments, None), "cuLaunchKernel")
        return maps, numbers  # kept as long as the function is

    return launch


def seconds(run, evict, count=11):
    run()
    times = []
    for _ in range(count):
        evict.sum()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ptx")
    parser.add_argument("--sizes", default="2048,4096,8192,16384")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    driver = Driver()
    torch.manual_seed(1)
    evict = torch.zeros(128 << 20, dtype=torch.float32, device="cuda")
    kernel = driver.load(open(options.ptx).read())
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; TFLOPS, medians of {options.rounds} rounds")
    print(f"{'M = N = K':>10} {'ours':>8} {'cuBLAS':>8} {'ratio':>7}   largest difference, bits of 20 runs")
    for size in map(int, options.sizes.split(",")):
        a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        c = torch.full((size, size), float("nan"), dtype=torch.bfloat16, device="cuda")
        ours = product(driver, kernel, a, b, c)
        ours()
        expected = a @ b.T
        worst = ((c.float() - expected.float()).abs().max() / expected.float().abs().max()).item()
        first, equal = c.clone(), True
        for _ in range(20):
            c.fill_(float("nan"))
            ours()
            equal = equal and torch.equal(c, first)
        times = [(seconds(ours, evict), seconds(lambda: torch.matmul(a, b.T, out=expected), evict)) for _ in range(options.rounds)]
        mine, theirs = (2 * size**3 / statistics.median(column) / 1e12 for column in zip(*times))
        print(f"{size:>10} {mine:>8.0f} {theirs:>8.0f} {mine / theirs:>7.3f}   {worst:.1e}, {'equal' if equal else 'DIFFER'}", flush=True)


if __name__ == "__main__":
    main()
