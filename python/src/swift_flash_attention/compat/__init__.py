"""The functions of FlashAttention 3 under their names."""

import sys


def install():
    """Makes ``import flash_attn_interface`` mean ours, unless FlashAttention 3 is there already."""
    from . import flash_attn_interface

    present = sys.modules.get("flash_attn_interface")
    if present is not None and present is not flash_attn_interface:
        raise ImportError("flash_attn_interface has been imported before, and is not ours; call install() first.")
    sys.modules["flash_attn_interface"] = flash_attn_interface
