"""Worker processes that encode blocks. Results come in the order of the blocks, whoever was first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import NoReturn

from runformer.data.prepare.blocks import Block
from runformer.data.prepare.encode import BlockEncoder, Result
from runformer.errors import DataError, RunformerError

_IN_FLIGHT = 64 << 20  # bytes of blocks
_SMALL = 4 << 20  # bytes: starting processes takes longer than encoding these

Make = Callable[[], BlockEncoder]

_encoder: BlockEncoder | None = None


def encoded_blocks(blocks: Iterator[Block], make: Make, workers: int) -> Iterator[tuple[Block, Result]]:
    """Each block with its result, in order. What is in memory at a time is bounded.

    Args:
        blocks: an error that they raise is raised behind the results of the blocks before.
        make: makes an encoder, in each process; must be picklable.
        workers: processes; with 1, or where there is little to do, it is done in this one.

    Raises:
        RunformerError: the blocks cannot be read, or a worker dies.
    """
    with _one_thread():
        first, size = [], 0
        failure: RunformerError | None = None
        try:
            while workers > 1 and size < _SMALL and (block := next(blocks, None)) is not None:
                first.append(block)
                size += len(block.data)
        except RunformerError as error:
            failure = error
        if workers == 1 or size < _SMALL:
            encoder = make()
            for block in first:
                yield block, encoder.encode(block)
            if failure is not None:
                raise failure
            for block in blocks:
                yield block, encoder.encode(block)
        else:
            yield from _in_processes(first, blocks, make, workers)


def _in_processes(
    first: list[Block], blocks: Iterator[Block], make: Make, workers: int
) -> Iterator[tuple[Block, Result]]:
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (make,))
    waiting: deque[tuple[Block, Future[Result]]] = deque()
    size = 0
    failure: RunformerError | None = None
    try:
        ended = False
        while waiting or not ended:
            while not ended and len(waiting) < 2 * workers + 2 and (size < _IN_FLIGHT or len(waiting) <= workers):
                try:
                    block = first.pop(0) if first else next(blocks, None)
                except RunformerError as error:
                    block, failure = None, error
                if block is None:
                    ended = True
                else:
                    waiting.append((block, pool.submit(_encode, block)))
                    size += len(block.data)
            if waiting:
                block, future = waiting.popleft()
                size -= len(block.data)
                yield block, future.result()
        if failure is not None:
            raise failure
    except BrokenProcessPool as error:
        _raise_lost(error)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _raise_lost(error: BrokenProcessPool) -> NoReturn:
    raise DataError(
        "a worker process died; the system may have killed it for want of memory",
        hint="run the same command with fewer --workers: it goes on where it stopped",
    ) from error


def _begin(make: Make) -> None:
    """In a new worker."""
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the work
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = make()


def _die_with_parent() -> None:
    """A killed main process closes no queue: its workers would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _encode(block: Block) -> Result:
    if _encoder is None:
        raise RuntimeError("a worker has no encoder")
    return _encoder.encode(block)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The processes share the cores; threads of the tokenizers library would come on top."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
