"""What callers hand over, as types: for those who read or check the code. No program imports this module."""

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar

from torch import Tensor


class ElementType(Protocol):
    """The type of an array's elements."""

    @property
    def itemsize(self) -> int: ...


class AnyArray(Protocol):
    """An array of torch, NumPy, CuPy, JAX or another library that speaks DLPack."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> ElementType: ...

    def __dlpack__(self, *, max_version: tuple[int, int] | None = None) -> Any: ...


# What a library's arrays are, where results are of the same library.
A = TypeVar("A", bound=AnyArray)
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_Lists: TypeAlias = Sequence["int | _Lists"]
# A list of whole numbers, or of lists of them: best an int32 tensor; what else it may be is converted.
WholeNumbers: TypeAlias = Tensor | AnyArray | _Lists
# The keys before and after a query's own that it sees; None is unlimited.
Window: TypeAlias = tuple[int | None, int | None]
# (causal, left, right, chunk, softcap, scale); a side of the window below 0 is unlimited, a chunk or softcap of 0 is none.
Options: TypeAlias = tuple[bool, int, int, int, float, float | None]
# Ranges of keys of each query [batch or 1, queries, 1 or 2, 2], or prefixes [batch], or None; and the first keys that all see.
KeyRanges: TypeAlias = tuple[Tensor | None, int]
# A tensor, or None: which of them, the caller knows from other arguments, and is not asked to show.
Known: TypeAlias = Tensor | Any
# A caller's words for the library's.
Phrases: TypeAlias = tuple[tuple[str, str], ...]


class Operator(Protocol[P, R_co]):
    """A function that a trace holds, one of ``torch.library``."""

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> R_co: ...

    def register_vmap(self, function: Callable[..., object], /) -> object: ...
