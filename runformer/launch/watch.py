"""A thread that keeps this machine's document in the store, and reads what the others say.

It has a connection of its own: where the network is gone, a call into the store may take very long, and only this
thread waits for it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from torch.distributed.distributed_c10d import Store

from runformer.launch.judge import LOST_SECONDS, NodeState

_CYCLE_SECONDS = 0.2


class Watch:
    """Publishes and reads, five times a second. With one machine there is nobody to tell, and no thread.

    Args:
        connect: makes a connection to the store.
        node_rank: this machine's number.
        nodes: how many there are.
    """

    def __init__(self, connect: Callable[[], Store], node_rank: int, nodes: int) -> None:
        self.states: dict[int, NodeState] = {}
        self.news: dict[str, Any] = {}
        self._node_rank, self._nodes = node_rank, nodes
        self._document, self._news = "", ""
        self._raw: dict[int, bytes] = {}
        self._heard = dict.fromkeys(range(nodes), time.monotonic())
        self._broken = False
        self._stopping = False
        self._wake = threading.Event()
        self._cycles = 0
        if nodes > 1:
            self._store = connect()
            threading.Thread(target=self._run, name="watch", daemon=True).start()

    def publish(self, document: str, *, at_once: bool = False) -> None:
        """Let the others see this machine's state, with the next cycle or at once."""
        self._document = document
        if at_once:
            self._wake.set()

    def announce(self, news: str) -> None:
        """Tell the others what was decided (machine 0)."""
        self._news = news
        self._wake.set()

    def silence(self, node: int) -> float:
        """Seconds since a machine was last heard of; of one that has not come yet 0."""
        if node == self._node_rank or (node not in self._raw and node != 0):
            return 0.0
        return time.monotonic() - self._heard[node]

    def lost(self) -> tuple[int, float] | None:
        """A machine that was here and is not heard of any more, and for how long; 0: the connection to it broke.

        Machine 0 watches all others, which watch machine 0.
        """
        if self._nodes == 1:
            return None
        if self._broken and self._node_rank != 0:
            return 0, 0.0
        for node in range(self._nodes) if self._node_rank == 0 else (0,):
            if (seconds := self.silence(node)) >= LOST_SECONDS:
                return node, seconds
        return None

    def flush(self, seconds: float = 1.0) -> None:
        """Wait until what was published last has been sent, if that works at all."""
        deadline = time.monotonic() + seconds
        wanted = self._cycles + 2
        while self._nodes > 1 and self._cycles < wanted and not self._broken and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.01)

    def stop(self) -> None:
        """End the thread after what it is at."""
        self._stopping = True
        self._wake.set()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._cycle()
                self._wake.wait(_CYCLE_SECONDS)
                self._wake.clear()
        except Exception:  # whatever the store raises: it cannot be reached any more
            self._broken = True

    def _cycle(self) -> None:
        self._cycles += 1
        self._store.set(f"node/{self._node_rank}", json.dumps([self._cycles, self._document]))
        if self._node_rank == 0:
            self._store.set("news", self._news)
            others = [node for node in range(self._nodes) if node != 0]
            values = self._store.multi_get([f"node/{node}" for node in others])
            for node, value in zip(others, values, strict=True):
                self._note(node, value)
        else:
            news, value = self._store.multi_get(["news", "node/0"])
            self._note(0, value)
            if news:
                self.news = json.loads(news)

    def _note(self, node: int, value: bytes) -> None:
        if value and value != self._raw.get(node):
            self._raw[node] = value
            self._heard[node] = time.monotonic()
            document = json.loads(value)[1]
            if document:
                self.states[node] = NodeState.from_json(json.loads(document))
