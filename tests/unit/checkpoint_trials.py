"""Many savers killed, and many checkpoints damaged: for tests, and for the tables of what became of them."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from checkpoint_states import assert_intact, state

from runformer.checkpoint import CheckpointStore, Keep, complete_checkpoints, open_checkpoint
from runformer.errors import CheckpointError

LARGE = 100_000  # rows of the tensors that the kills hit in the middle


@dataclass
class Kills:
    """What became of the checkpoints of killed savers.

    Attributes:
        torn: kills that hit a save in the middle.
        unloadable: kills after which some checkpoint under its plain name was not whole.
        lost: kills after which the last step that was reported as saved was not there.
    """

    torn: int = 0
    unloadable: int = 0
    lost: int = 0


def kill_savers(folder: Path, kills: int, seed: int = 20260711) -> Kills:
    """Let children save step after step, and kill each at a random moment."""
    chance, found = random.Random(seed), Kills()
    checkpoints = CheckpointStore(folder, "tiny", Keep(2))
    checkpoints.save(state(1))
    step = 1
    for _ in range(kills):
        finished = save_until_killed(checkpoints, step, chance.uniform(0.0, 0.06))
        found.torn += any(entry.name.startswith(".") for entry in folder.iterdir())
        try:
            step = assert_intact(folder, LARGE)
        except (AssertionError, CheckpointError):
            found.unloadable += 1
            step = max(complete_checkpoints(folder), default=finished)
        found.lost += step not in {finished, finished + 1}  # killed after the commit, before it could tell
    return found


def save_until_killed(checkpoints: CheckpointStore, step: int, seconds: float) -> int:
    """Let a child save each step twice, from ``step`` on; kill it ``seconds`` after its first save.

    Returns the last step that it finished.
    """
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)  # the threads that this process computes with did not come along
        for number in range(2 * step, 2 * step + 10**6):
            checkpoints.save(state(number // 2, LARGE))
            os.write(writing, b"%9d\n" % (number // 2))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert select.select([pipe], [], [], 60)[0], "the child did not save once in a minute"
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return int(pipe.read().split()[-1])


def flip_a_bit(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def cut_short(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def zero_the_end(path: Path, chance: random.Random) -> None:
    """As a disk leaves a file whose last pages did not reach it; at least one byte changes."""
    content = path.read_bytes()
    used = len(content.rstrip(b"\0"))
    begin = chance.randrange(max(0, used - 200), used)
    path.write_bytes(content[:begin] + bytes(len(content) - begin))


def remove(path: Path, chance: random.Random) -> None:  # noqa: ARG001
    path.unlink()


def swap(path: Path, chance: random.Random) -> None:
    """With another file of the same checkpoint, whose content differs."""
    others = [file for file in path.parent.iterdir() if file.read_bytes() != path.read_bytes()]
    other = chance.choice(sorted(others))
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    "one bit flipped": flip_a_bit,
    "cut short": cut_short,
    "zeroed at the end": zero_the_end,
    "removed": remove,
    "swapped with another": swap,
}


def damage_and_read(whole: Path, trials: int, seed: int = 6) -> dict[str, list[int]]:
    """Damage one file of copies of a checkpoint, once each; by kind: trials, those found, those with the file named."""
    chance, found = random.Random(seed), {kind: [0, 0, 0] for kind in DAMAGE}
    copy = whole.with_name("damaged")
    for number in range(trials):
        kind = list(DAMAGE)[number % len(DAMAGE)]
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        file = chance.choice(sorted(copy.iterdir()))
        DAMAGE[kind](file, chance)
        found[kind][0] += 1
        try:
            checkpoint = open_checkpoint(copy)
            assert checkpoint.common["step"]
            for name in checkpoint:
                checkpoint[name]
        except CheckpointError as error:
            found[kind][1] += 1
            found[kind][2] += any(name.name in error.message for name in (file, *_swapped(whole, copy)))
    return found


def _swapped(whole: Path, copy: Path) -> list[Path]:
    """Files that are not as they were: of two that changed places the first one that is read is named."""
    return [
        file
        for file in whole.iterdir()
        if not (copy / file.name).exists() or (copy / file.name).read_bytes() != file.read_bytes()
    ]
