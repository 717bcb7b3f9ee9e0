"""Ports, interfaces, and the variables that decide about them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping

import psutil

from runformer.config.launched import launched
from runformer.doctor.finding import Finding, note, ok, problem
from runformer.errors import ConfigError, LaunchError
from runformer.launch import address as addresses

_DEFAULT_PORT = 8118

_TELLING = {
    "NCCL_P2P_DISABLE": "GPUs of this machine then talk through host memory",
    "NCCL_IB_DISABLE": "machines then talk over TCP, not InfiniBand",
    "CUDA_LAUNCH_BLOCKING": "every kernel is waited for: good for debugging, slow",
    "TORCH_DISTRIBUTED_DEBUG": "collectives are checked, which takes time",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "every tensor is allocated anew, which is very slow",
}
"""Variables that change runs without a word, and what they do."""


def port(number: int = _DEFAULT_PORT) -> Iterator[Finding]:
    """Whether the port that a job's store listens on by default is free."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("0.0.0.0", number))
        yield ok("port", f"{number} is free")
    except OSError as error:
        text = f"{number} cannot be used ({error.strerror}): {addresses.holder(number)} has it"
        yield note("port", text, "on one machine the next free one is taken; for several give another MASTER_PORT")


def interfaces(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """The interfaces that are up, and the one that leads to MASTER_ADDR where that is set."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = [
        f"{name} {entry.address}"
        for name, entries in sorted(psutil.net_if_addrs().items())
        for entry in entries
        if name in up and entry.family == socket.AF_INET
    ]
    if not any(text.startswith("lo ") for text in found):
        yield problem("interfaces", f"loopback is down; up are: {', '.join(found) or 'none'}", "ip link set lo up")
    else:
        yield ok("interfaces", ", ".join(found))
    if master := environment.get("MASTER_ADDR"):
        yield _route(master)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        wanted = environment.get(name, "").lstrip("^=").split(",")[0]
        if wanted and not environment[name].startswith("^") and not any(have.startswith(wanted) for have in up):
            advice = f"unset {name}: the launcher finds the interface by itself"
            yield problem("interfaces", f"{name} is {environment[name]}, and no interface is called so", advice)


def _route(master: str) -> Finding:
    try:
        own = addresses.route_to(addresses.resolve(master))
    except OSError as error:
        return problem(
            "route", f"MASTER_ADDR {master} is not known here: {error.strerror}", "give its address as numbers"
        )
    except LaunchError as error:
        return problem("route", error.message, "check the network interfaces")
    return ok(
        "route", f"to MASTER_ADDR {master} from {own} through {addresses.interface_of(own) or 'an unnamed interface'}"
    )


def variables(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """What launchers' variables say, and those that change runs without a word."""
    try:
        place = launched(environment)
    except ConfigError as error:
        yield problem("variables", error.message, error.hint or "unset it")
    else:
        if place is not None and place.world_size > 1:
            text = f"{place.by} says that this is rank {place.rank} of {place.world_size}"
            yield note("variables", text, "unset it, unless you are inside such a job")
    for name, effect in _TELLING.items():
        if environment.get(name, "0").upper() not in ("0", "", "OFF"):
            yield note("variables", f"{name} is {environment[name]}: {effect}")
