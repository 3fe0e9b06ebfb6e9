"""The functions of FlashAttention 3 and 2 under their names."""

from __future__ import annotations

import importlib
import sys
from typing import Literal

# The modules of a version, beside this one, and what each is imported as.
_MODULES = {
    3: {".flash_attn_interface": "flash_attn_interface"},
    2: {
        ".flash_attn": "flash_attn", ".flash_attn.flash_attn_interface": "flash_attn.flash_attn_interface",
        ".flash_attn.bert_padding": "flash_attn.bert_padding",
    },
}


def install(version: Literal[2, 3] = 3) -> None:
    """Makes ``import flash_attn_interface`` (3) or ``import flash_attn`` (2) mean ours, unless FlashAttention itself is there already."""
    if version not in _MODULES:
        raise ValueError(f"version is {version!r}; it must be 3, for flash_attn_interface, or 2, for flash_attn.")
    own = {name: importlib.import_module(place, __name__) for place, name in _MODULES[version].items()}
    for name, module in own.items():
        if sys.modules.get(name, module) is not module:
            raise ImportError(f"{name} has been imported before, and is not ours; call install({version}) first.")
    sys.modules.update(own)
