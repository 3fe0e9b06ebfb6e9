"""On whose threads the CPU computes."""

import ctypes
import os
import subprocess
import sys

import pytest

CODE = """
import os, torch, swift_flash_attention as fa

torch.set_num_threads(2)

def threads():
    return len(os.listdir("/proc/self/task"))

q = torch.randn(1, 512, 12, 64)
torch.nn.functional.scaled_dot_product_attention(q, q, q)
torch.randn(512, 512) @ torch.randn(512, 512)
before = threads()
for _ in range(20):
    fa.attention(q, q, q)
print(before, threads())
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "GOMP_parallel"), reason="PyTorch has threads of another kind")
def test_the_threads_are_pytorchs() -> None:
    """Where PyTorch has OpenMP's, the library starts none of its own beside them."""
    said = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == said[1]
