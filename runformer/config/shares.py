"""Shares of training, validation and test, as Megatron-LM writes them."""

from __future__ import annotations

import math
import re

PARTS = ("train", "valid", "test")


def split_numbers(split: str) -> list[float]:
    """The three numbers of a split such as ``"969, 30, 1"``; those left out are 0.

    Raises:
        ValueError: it is not one to three numbers from 0 on, with one above.
    """
    numbers = [float(word) for word in re.split(r"[\s,;/]+", split.strip(" []()"))]
    if len(numbers) > len(PARTS) or not all(0 <= number < math.inf for number in numbers) or sum(numbers) <= 0:
        raise ValueError(f"{split!r} is not one to three shares, such as '969, 30, 1'")
    return [*numbers, *[0.0] * (len(PARTS) - len(numbers))]
