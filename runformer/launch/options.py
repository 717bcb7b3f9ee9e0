"""What a launch is told: how many workers, where, and what they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """One machine's part in a job.

    Attributes:
        command: the words that each worker runs; the first is a script, or a program such as ``python``.
        world_size: workers on all machines.
        local_world_size: workers on each machine.
        master_addr: address of the machine with node rank 0.
        master_port: where its store listens.
        node_rank: this machine's number, from 0; -1 numbers the machines as they come.
        log_dir: where workers' output and the agent's records go.
        join: whether the launcher stays, and shows what happens.
        cluster_timeout: seconds to wait for all machines.
        bind_core: True gives each worker cores of its own; a mapping gives each local rank these.
        worker_log_name: names log files: ``{ip}`` and ``{hostname}`` are filled in, ``_<rank>.log`` is added.
        tail: global ranks whose whole output a joined launcher shows; None: rank 0, and warnings of the others.
        fork_server: whether workers are forked from one process that has imported torch.
        hang_timeout: seconds that ranks may disagree about where they are; 0: for ever.
        max_restarts: how often the job is started again after a failure.
        grace_period: seconds that a training run gets to save when the job is told to end.
    """

    command: tuple[str, ...]
    world_size: int = 8
    local_world_size: int = 8
    master_addr: str = LOOPBACK
    master_port: int = 8118
    node_rank: int = -1
    log_dir: Path = Path("output/msrun_log")
    join: bool = False
    cluster_timeout: float = 600
    bind_core: bool | Mapping[int, tuple[int, ...]] = False
    worker_log_name: str = ""
    tail: tuple[int, ...] | Literal["all"] | None = None
    fork_server: bool = True
    hang_timeout: float = 600
    max_restarts: int = 0
    grace_period: float = 30

    @property
    def nodes(self) -> int:
        """How many machines there are."""
        return self.world_size // self.local_world_size

    def ranks(self, node_rank: int) -> range:
        """The global ranks of one machine's workers."""
        first = node_rank * self.local_world_size
        return range(first, first + self.local_world_size)
