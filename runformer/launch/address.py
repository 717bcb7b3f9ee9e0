"""Which address and network interface this machine uses for a job, and the port that its store listens on."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass

import psutil

from runformer.errors import LaunchError

_PORTS_TRIED = 100


def resolve(master_addr: str) -> str:
    """The numeric address of ``master_addr``; names are looked up, numbers are not.

    Raises:
        OSError: the name is not known (yet).
    """
    try:
        return str(ipaddress.ip_address(master_addr))
    except ValueError:
        return str(socket.getaddrinfo(master_addr, None, family=socket.AF_INET, type=socket.SOCK_STREAM)[0][4][0])


def route_to(address: str, port: int = 9) -> str:
    """The address of this machine on the way to another: what the routing table says, without sending anything.

    Raises:
        LaunchError: there is no way there.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))
        except OSError as error:
            raise LaunchError(
                f"MASTER_ADDR {address}: this machine has no route there: {error.strerror}",
                hint="check its network interfaces: python -m runformer doctor lists them",
            ) from error
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The name of the network interface that has this address."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return name
    return None


def is_own(address: str) -> bool:
    """Whether this machine has that address."""
    return ipaddress.ip_address(address).is_loopback or interface_of(address) is not None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a job's store is, and how this machine gets there: through which of its addresses and interfaces."""

    address: str
    port: int
    own_address: str
    interface: str | None


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens, and what to tell about its port: empty where it is the one asked for."""

    socket: socket.socket
    port: int
    notice: str = ""


def listen(address: str, port: int, *, any_port: bool) -> Listener:
    """Listen on an address and port; where the port is taken and ``any_port`` allows it, on the next free one.

    Raises:
        LaunchError: the port is taken, or the address is not this machine's.
    """
    try:
        return Listener(_bound(address, port), port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise LaunchError(f"cannot listen on {address} port {port}: {error.strerror}") from error
        taken = f"port {port} of {address} is taken by {holder(port)}"
        free = _next_free(address, port)
        if free is not None and any_port:
            return Listener(free, free.getsockname()[1], f"{taken}; using port {free.getsockname()[1]}")
        hint = "give another port"
        if free is not None:
            hint = f"port {free.getsockname()[1]} is free: give it on every machine"
            free.close()
        raise LaunchError(taken, hint=hint) from error


def _bound(address: str, port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(1024)
    except OSError:
        server.close()
        raise
    return server


def _next_free(address: str, port: int) -> socket.socket | None:
    for candidate in range(port + 1, min(port + _PORTS_TRIED, 65536)):
        try:
            return _bound(address, candidate)
        except OSError:
            continue
    return None


def holder(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        connections = []
    for connection in connections:
        if connection.laddr and connection.laddr.port == port and connection.pid:
            return f"process {connection.pid} ({_command_of(connection.pid)})"
    return "another program"


def _command_of(pid: int) -> str:
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        return "which has just ended"
    text = " ".join(words) or "a kernel thread"
    return text if len(text) <= 80 else text[:77] + "…"
