"""What a worker finds in its environment: torch's variables, the original's, and ours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from runformer.launch.address import Endpoint
from runformer.launch.command import REPOSITORY
from runformer.launch.options import LaunchOptions
from runformer.observe import error_file, pulse
from runformer.observe.log import WORKER_LOG_VARIABLE


def available_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def threads_per_worker(local_world_size: int) -> int:
    """How many threads each worker may compute with, so that together they fill the machine and not more."""
    return max(1, len(available_cores()) // local_world_size)


def prepare_environment(local_world_size: int) -> None:
    """Set what libraries read when they are loaded, where the user has not.

    numpy's OpenBLAS makes its threads at once, which the fork server must not have. Torch's C++ warnings are about
    connections: that hosts have no names, that one broke. The agent says that in its own words.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_worker(local_world_size)))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def worker_environment(
    options: LaunchOptions,
    endpoint: Endpoint,
    *,
    node_rank: int,
    local_rank: int,
    attempt: int,
    run_id: str,
    error_path: str,
    pulse_path: str,
) -> dict[str, str]:
    """The variables of one worker."""
    rank = options.ranks(node_rank)[local_rank]
    values = {
        "RANK": rank,
        "WORLD_SIZE": options.world_size,
        "LOCAL_RANK": local_rank,
        "LOCAL_WORLD_SIZE": options.local_world_size,
        "GROUP_RANK": node_rank,
        "GROUP_WORLD_SIZE": options.nodes,
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": options.world_size,
        "MASTER_ADDR": endpoint.address,
        "MASTER_PORT": endpoint.port,
        "TORCHELASTIC_RESTART_COUNT": attempt,
        "TORCHELASTIC_MAX_RESTARTS": options.max_restarts,
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_USE_AGENT_STORE": True,
        error_file.VARIABLE: error_path,
        "RANK_ID": rank,
        "RANK_SIZE": options.world_size,
        "DEVICE_ID": local_rank,
        pulse.VARIABLE: f"{pulse_path}:{local_rank}",
        WORKER_LOG_VARIABLE: 1,
    }
    return {name: str(value) for name, value in values.items()} | _inherited(endpoint, os.environ)


def _inherited(endpoint: Endpoint, environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker gets unless the user has set it."""
    values = {"PYTHONUNBUFFERED": "1"}
    if endpoint.interface is not None:
        values |= {"GLOO_SOCKET_IFNAME": endpoint.interface, "NCCL_SOCKET_IFNAME": endpoint.interface}
    chosen = {name: value for name, value in values.items() if name not in environment}
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    if str(REPOSITORY) not in paths:
        chosen["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, paths)])
    return chosen


def cores_of(options: LaunchOptions, local_rank: int) -> tuple[int, ...] | None:
    """The cores that one worker is bound to; None: it may use all."""
    if options.bind_core is False:
        return None
    if options.bind_core is not True:
        return options.bind_core.get(local_rank)
    shares = share_out(available_cores(), options.local_world_size)
    return shares[local_rank] if shares else None


def share_out(cores: Sequence[int], workers: int) -> list[tuple[int, ...]]:
    """Equal runs of neighbouring cores, one a worker; none where there are fewer cores than workers."""
    size = len(cores) // workers
    return [tuple(cores[size * worker : size * (worker + 1)]) for worker in range(workers)] if size else []
