"""On whose threads the CPU computes."""

import os
import subprocess
import sys

import pytest

# Threads come and go where teams differ in size, so that their numbers are looked at, and not how many there are.
CODE = """
import os, torch, swift_flash_attention as fa

torch.set_num_threads({threads})
q, small = torch.randn(1, 512, 12, 64), torch.randn(1, 24, 12, 64)

def torchs():
    return torch.nn.functional.scaled_dot_product_attention(q, q, q)

torchs()
fa.attention(q, q, q)
before = set(os.listdir("/proc/self/task"))
for x in (q, small) * 10:
    fa.attention(x, x, x)
    torchs()
print(fa.plan(q, q, q).split(":")[0])
print(set(os.listdir("/proc/self/task")) == before)
if os.fork() == 0:
    # OpenMP's threads are not there.
    fa.attention(q.numpy(), q.numpy(), q.numpy())
    os._exit(0)
print(os.wait()[1])
"""


PROCESSORS = len(os.sched_getaffinity(0))


@pytest.mark.skipif(PROCESSORS < 2, reason="one processor")
@pytest.mark.parametrize("threads", sorted({2, min(4, PROCESSORS)}))
def test_the_threads_are_pytorchs(threads: int) -> None:
    """Where PyTorch has OpenMP's, as its wheels for Linux do, the library starts none of its own, and has none of these end; a child
    gets along without."""
    code = CODE.format(threads=threads)
    plan, are_the_same, child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert plan.endswith(" threads of the program's")
    assert (are_the_same, child) == ("True", "0")
