"""The compiled part of this room, where there is one: installing without a compiler leaves it out.

Everything in it is also written in Python, which is slower: reading rows of 4,096 tokens, about ten times.
"""

from __future__ import annotations

try:
    from runformer.data import _native as native
except ImportError:
    native = None  # type: ignore[assignment]

__all__ = ["native"]
