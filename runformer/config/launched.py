"""Which of several processes this is: what torchrun, msrun, srun or mpirun say in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from runformer.errors import ConfigError

_LOOPBACK = "127.0.0.1"
_DEFAULT_PORT = 8118
_FIRST_JOB_PORT, _JOB_PORTS = 10000, 20000


@dataclass(frozen=True, slots=True)
class Launched:
    """One process among those of a job.

    Attributes:
        rank: its number, from 0.
        world_size: how many there are.
        local_rank: its number among those of its machine.
        local_world_size: how many those are.
        master_addr: where rank 0 (or the launcher's store) is.
        master_port: and on which port.
        by: the variable that says so.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int
    by: str


@dataclass(frozen=True, slots=True)
class _Names:
    """How one launcher calls its variables; ``by_hand`` where people set them, who may forget one."""

    rank: str
    size: str
    local_rank: str
    local_size: str | None = None
    by_hand: bool = False


_LAUNCHERS = (
    _Names("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", by_hand=True),
    _Names("RANK_ID", "RANK_SIZE", "DEVICE_ID", by_hand=True),
    # Of srun only inside a step: a shell of salloc, or the script of sbatch itself, is one process.
    _Names("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    _Names("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    _Names("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


def launched(environment: Mapping[str, str] = os.environ, *, planning: bool = False) -> Launched | None:
    """This process's place among those that a launcher started; None where there is no launcher.

    Args:
        environment: the variables.
        planning: nothing is started, so that the number of processes is enough.

    Raises:
        ConfigError: the variables contradict each other, or one is not a number.
    """
    for names in _LAUNCHERS:
        if environment.get(names.size):
            if environment.get(names.rank):
                return _read(names, environment)
            if planning:
                return _read(names, {**environment, names.rank: "0"})
            if names.by_hand:
                hint = f"start all ranks with msrun or torchrun, or unset {names.size}"
                raise ConfigError(f"{names.size} is set in the environment, and {names.rank} is not", hint=hint)
    return None


def _read(names: _Names, environment: Mapping[str, str]) -> Launched:
    size = _number(names.size, environment[names.size], least=1)
    rank = _number(names.rank, environment[names.rank], least=0)
    if rank >= size:
        raise ConfigError(f"{names.rank} is {rank}, but {names.size} is {size}: ranks count from 0")
    local_rank = _local(names.local_rank, environment, rank)
    local_size = _local(names.local_size, environment, size)
    address, port = _master(names, environment, all_here=local_size == size)
    return Launched(rank, size, local_rank, local_size, address, port, names.size)


def _local(name: str | None, environment: Mapping[str, str], default: int) -> int:
    value = environment.get(name or "")
    # Slurm writes "4(x2),3" for four tasks on each of two machines and three on one more.
    return _number(name, re.split(r"[(,]", value)[0], least=0) if name and value else default


def _number(name: str, text: str, *, least: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise ConfigError(f"{name} is {text!r} in the environment, which is not a whole number from {least}")
    return int(text)


def _master(names: _Names, environment: Mapping[str, str], *, all_here: bool) -> tuple[str, int]:
    address = environment.get("MASTER_ADDR")
    port_text = environment.get("MASTER_PORT")
    port = None if port_text is None else _number("MASTER_PORT", port_text, least=1)
    if names.rank == "SLURM_PROCID":
        address = address or _first_host(environment.get("SLURM_STEP_NODELIST", ""))
        port = port or _port_of_job(environment)
    if address is None and not all_here:
        raise ConfigError(
            f"{names.size} says that there are other machines, and MASTER_ADDR does not say where rank 0 is",
            hint="export MASTER_ADDR, the address of the machine with rank 0",
        )
    return address or _LOOPBACK, port or _DEFAULT_PORT


def _port_of_job(environment: Mapping[str, str]) -> int:
    """A port that all tasks of a step compute alike, and steps beside it compute otherwise."""
    job, step = (_digits(environment.get(name, "")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return _FIRST_JOB_PORT + (job * 31 + step) % _JOB_PORTS


def _digits(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def _first_host(nodelist: str) -> str | None:
    """The first name of a list as Slurm writes it: ``node[01-03,7],login`` gives ``node01``."""
    match = re.match(r"([^\[\],]+)(?:\[([^\]]+)\])?", nodelist)
    if match is None:
        return None
    prefix, numbers = match.groups()
    return prefix if numbers is None else prefix + re.split(r"[-,]", numbers)[0]
