"""FlashAttention 2's ``flash_attn``: the same names, arguments, defaults and results.

``compat.install(2)`` makes ``import flash_attn`` mean it. ``dropout_p`` above 0 and ``alibi_slopes`` raise ``NotImplementedError``;
``deterministic=True`` asks for gradients of the same bits in every run, which the others have, too, unless any order was asked for.
"""

from .flash_attn_interface import *  # noqa: F403
from .flash_attn_interface import __all__

# Of which the names and arguments are.
__version__ = "2.8.3"
