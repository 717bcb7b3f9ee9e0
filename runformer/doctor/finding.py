"""What an examination finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: what.
        state: ``ok``; ``note``: it works, and may surprise; ``problem``: runs will fail.
        text: what was found.
        advice: what to do about it; empty where there is nothing to do.
    """

    topic: str
    state: State
    text: str
    advice: str = ""


def ok(topic: str, text: str) -> Finding:
    """All is well."""
    return Finding(topic, "ok", text)


def note(topic: str, text: str, advice: str = "") -> Finding:
    """It works, and may surprise."""
    return Finding(topic, "note", text, advice)


def problem(topic: str, text: str, advice: str) -> Finding:
    """Runs will fail."""
    return Finding(topic, "problem", text, advice)
