"""The structs and numbers of ``_library`` are those of the header, as a C compiler lays them out."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from swift_flash_attention import _library

HEADER = Path(__file__).parents[2] / "Sources/FlashAttentionHeader/include/flash_attention.h"
STRUCTS = {
    "fa_tensor": _library.Tensor,
    "fa_scores": _library.Scores,
    "fa_forward_params": _library.ForwardParams,
    "fa_sequences_params": _library.SequencesParams,
    "fa_combine_params": _library.CombineParams,
    "fa_backward_params": _library.BackwardParams,
}
NUMBERS = "OK INVALID UNAVAILABLE FAILED F32 F16 BF16 E4M3 CPU GPU MASK_NONE MASK_CAUSAL MASK_WINDOW".split()
CACHES = ["CONTIGUOUS", "PAGED", "PACKED"]


@pytest.mark.skipif(not HEADER.exists() or shutil.which("cc") is None, reason="needs the repository and a C compiler")
def test_structs_and_numbers_are_those_of_the_header(tmp_path):
    lines, expected = [], []
    for name, struct in STRUCTS.items():
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        expected.append(ctypes.sizeof(struct))
        for field, _ in struct._fields_:
            lines.append(f'printf("%zu\\n", offsetof({name}, {field}));')
            lines.append(f'printf("%zu\\n", sizeof((({name} *)0)->{field}));')
            expected += [getattr(struct, field).offset, getattr(struct, field).size]
    for prefix, numbers in (("FA_", NUMBERS), ("FA_CACHE_", CACHES)):
        for number in numbers:
            lines.append(f'printf("%d\\n", (int){prefix}{number});')
            expected.append(getattr(_library, number))
    source = tmp_path / "layout.c"
    body = "\n  ".join(lines)
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{\n  {body}\n  return 0;\n}}\n'
    )
    subprocess.run(["cc", str(source), "-o", str(tmp_path / "layout")], check=True)
    printed = subprocess.run([str(tmp_path / "layout")], check=True, capture_output=True, text=True).stdout
    assert [int(line) for line in printed.split()] == expected
