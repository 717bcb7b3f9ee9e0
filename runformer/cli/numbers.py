"""Whole numbers of command lines."""

from __future__ import annotations

import argparse


def whole(text: str) -> int:
    """A number from 0 on, as argparse's ``type``."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """A number from 1 on."""
    return _at_least(1, text)


def _at_least(least: int, text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from {least} on")
    return number
