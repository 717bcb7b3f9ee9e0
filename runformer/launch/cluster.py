"""How the machines of a job find each other and hear of each other, over one TCP store.

The machine with node rank 0 listens; the others come to it. Each machine's agent keeps one document in the store,
which tells how its workers are (``NodeState``); machine 0 reads them all and publishes what is decided. Everything lies
under a nonce that machine 0 draws, so that what an earlier job left, or another job writes, is never read.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from runformer.errors import ClusterTimeoutError, LaunchError
from runformer.launch import address as addresses
from runformer.launch.address import Endpoint
from runformer.launch.judge import NodeState
from runformer.launch.options import LOOPBACK, LaunchOptions
from runformer.launch.watch import Watch

PROTOCOL = 1
_HELLO = "runformer/hello"
_TICK_SECONDS = 0.05
_RETRY_SECONDS = 0.5
_STORE_TIMEOUT = timedelta(seconds=10)

Say = Callable[[str], None]
Check = Callable[[], None]
Facts = Mapping[str, str]


class Cluster:
    """This machine's place among the job's machines.

    Args:
        options: the launch.
        facts: what must be the same on all machines: names and values.
        say: tells the user something.
        check: called while waiting; it raises to end that.

    Raises:
        LaunchError: the store cannot be reached or opened, or the job there refuses this machine.
        ClusterTimeoutError: machine 0 did not come in time.
    """

    def __init__(self, options: LaunchOptions, facts: Facts, say: Say, check: Check) -> None:
        self._options = options
        self._say = say
        self._check = check
        self._patience = Patience(options.cluster_timeout, say)
        self.nodes = options.nodes
        self.node_rank = max(0, options.node_rank)
        self.hosts: dict[int, str] = {}
        if self.nodes == 1:
            self._host(LOOPBACK, facts)
        else:
            self._meet(facts)
        host = socket.gethostname()
        self.state = NodeState(host, self.endpoint.own_address)
        self.watch = Watch(self._connect_again, self.node_rank, self.nodes)

    @property
    def is_host(self) -> bool:
        """Whether the job's store is here."""
        return self.node_rank == 0

    def _meet(self, facts: Facts) -> None:
        address = self._resolve()
        numbered = self._options.node_rank >= 0
        hosts = self._options.node_rank == 0 if numbered else addresses.is_own(address)
        if hosts and addresses.is_own(address):
            self._host(address, facts)
        elif hosts:  # the name stands for a machine that passes connections on, as a service of Kubernetes does
            self._refuse_second_first(address)
            own = addresses.route_to(address)
            self._say(f"MASTER_ADDR {self._options.master_addr} is not an address of this machine: listening on {own}")
            self._host(own, facts)
        else:
            self._join(address, facts)

    def _resolve(self) -> str:
        name = self._options.master_addr
        while True:
            try:
                return addresses.resolve(name)
            except OSError as error:
                self._patience.wait(f"MASTER_ADDR {name} is not known here ({error.strerror})")
                self._check()

    def _host(self, address: str, facts: Facts) -> None:
        listener = addresses.listen(address, self._options.master_port, any_port=self.nodes == 1)
        if listener.notice:
            self._say(listener.notice)
        port = listener.port
        self._raw = TCPStore(
            address, port, None, True, _STORE_TIMEOUT, wait_for_workers=False, master_listen_fd=listener.socket.detach()
        )
        self.nonce = secrets.token_hex(8)
        self.endpoint = Endpoint(address, port, address, addresses.interface_of(address))
        self.store: Store = PrefixStore(self.nonce, self._raw)
        for node in range(self.nodes):
            self.store.set(f"node/{node}", "")
        self.store.set("news", "")
        self.store.set("claim/0", socket.gethostname())
        hello = {"protocol": PROTOCOL, "nonce": self.nonce, "facts": dict(facts)}
        self._raw.set(_HELLO, json.dumps(hello))

    def _refuse_second_first(self, address: str) -> None:
        port = self._options.master_port
        if _answers(address, port):
            where = f"{address} port {port}"
            self._raw = TCPStore(address, port, None, False, _STORE_TIMEOUT, wait_for_workers=False)
            self._read_hello(where)
            raise LaunchError(f"NODE_RANK 0 is {where} already: give this machine another NODE_RANK")

    def _join(self, address: str, facts: Facts) -> None:
        port = self._options.master_port
        own = addresses.route_to(address, port)
        self.endpoint = Endpoint(address, port, own, addresses.interface_of(own))
        where = f"{address} port {port}"
        while not _answers(address, port):
            self._patience.wait(f"NODE_RANK 0 does not answer at {where}")
            self._check()
        self._raw = TCPStore(address, port, None, False, _STORE_TIMEOUT, wait_for_workers=False)
        hello = self._read_hello(where)
        self.nonce = str(hello["nonce"])
        self.store = PrefixStore(self.nonce, self._raw)
        self._compare(facts, hello["facts"], where)
        self._claim(where)

    def _read_hello(self, where: str) -> dict[str, Any]:
        try:
            hello: dict[str, Any] = json.loads(self._raw.get(_HELLO))
        except (RuntimeError, ValueError) as error:
            raise LaunchError(f"what answers at {where} is not a job of this launcher") from error
        if hello["protocol"] != PROTOCOL:
            raise LaunchError(f"NODE_RANK 0 at {where} runs another version of this program")
        return hello

    def _compare(self, ours: Facts, theirs: Facts, where: str) -> None:
        different = [
            f"{name} is {ours.get(name, 'missing')} here and {theirs.get(name, 'missing')} there"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if different:
            self._refuse(f"it differs from the job at {where}: {'; '.join(different)}")

    def _claim(self, where: str) -> None:
        """Take the place with our node rank, or the first free one."""
        me = f"{socket.gethostname()} ({self.endpoint.own_address}) {secrets.token_hex(4)}"
        asked = self._options.node_rank
        for node in range(1, self.nodes) if asked < 0 else (asked,):
            holder = self.store.compare_set(f"claim/{node}", "", me).decode()
            if holder == me:
                self.node_rank = node
                return
        if asked < 0:
            self._refuse(f"the job at {where} has all of its {self.nodes} machines")
        self._refuse(f"NODE_RANK {asked} is {holder.rpartition(' ')[0]} already, in the job at {where}")

    def _refuse(self, reason: str) -> None:
        number = self.store.add("refused", 1)
        self.store.set(f"refused/{number}", f"{socket.gethostname()} ({self.endpoint.own_address}): {reason}")
        raise LaunchError(f"this machine cannot take part: {reason}")

    def _connect_again(self) -> Store:
        """A connection of its own, for another thread."""
        raw = TCPStore(self.endpoint.address, self.endpoint.port, None, False, _STORE_TIMEOUT, wait_for_workers=False)
        return PrefixStore(self.nonce, raw)

    def gather(self, attempt: int) -> None:
        """Wait until all machines are ready to start an attempt.

        Raises:
            ClusterTimeoutError: naming the machines that did not come.
            LaunchError: a machine came and was lost.
        """
        self.state.begin(attempt)
        self.publish(at_once=True)
        patience = Patience(self._options.cluster_timeout, self._say)
        refused = 0
        while not self._all_ready(attempt):
            refused = self._tell_refused(refused)
            try:
                patience.wait(self._missing(attempt), _TICK_SECONDS)
            except ClusterTimeoutError as error:
                self.announce({"gone": error.message})
                self.watch.flush()
                raise
            self._check()

    def _all_ready(self, attempt: int) -> bool:
        if lost := self.watch.lost():
            silent = f"it has been silent for {lost[1]:.0f} s" if lost[1] else "the connection to it broke"
            raise LaunchError(f"{self.name_of(lost[0])} is lost: {silent}")
        if not self.is_host:
            news = self.watch.news
            if "gone" in news:
                raise ClusterTimeoutError(f"NODE_RANK 0 gave up: {news['gone']}")
            self.hosts = {int(node): host for node, host in news.get("hosts", {}).items()}
            return bool(news.get("go") == attempt)
        states = self.states(attempt)
        if any(state.ready != attempt for state in states.values()):
            return False
        self._forget_workers()
        self.hosts = {node: f"{state.host} ({state.address})" for node, state in states.items()}
        self.announce({"go": attempt, "hosts": self.hosts})
        return True

    def _forget_workers(self) -> None:
        """Remove what workers of an earlier attempt left in the store: the next ones use the same keys."""
        for key in self._raw.list_keys():
            if key != _HELLO and not key.startswith(f"{self.nonce}/"):
                self._raw.delete_key(key)

    def _missing(self, attempt: int) -> str:
        if not self.is_host:
            return "NODE_RANK 0 waits for other machines"
        missing = [str(node) for node, state in self.states(attempt).items() if state.ready != attempt]
        return f"{self.nodes - len(missing)} of {self.nodes} machines are here; missing: NODE_RANK {', '.join(missing)}"

    def _tell_refused(self, told: int) -> int:
        if self.is_host:
            for number in range(told + 1, self.store.add("refused", 0) + 1):
                told = number
                self._say(f"a machine was refused: {self.store.get(f'refused/{number}').decode()}")
        return told

    def states(self, attempt: int) -> dict[int, NodeState]:
        """All machines' states in this attempt; a blank one for a machine that is not there yet. Only on machine 0."""
        blank = NodeState()
        seen = {node: self.watch.states.get(node, blank) for node in range(self.nodes)} | {self.node_rank: self.state}
        return {node: state if state.ready == attempt else blank for node, state in seen.items()}

    def publish(self, *, at_once: bool = False) -> None:
        """Let the other machines see ``state``, soon or at once."""
        if self.nodes > 1:
            self.watch.publish(json.dumps(self.state.to_json()), at_once=at_once)

    def announce(self, news: Mapping[str, Any]) -> None:
        """Tell all machines something; only machine 0 does."""
        self.watch.announce(json.dumps(news))

    def name_of(self, node: int) -> str:
        """A machine as messages name it."""
        host = self.hosts.get(node)
        return f"NODE_RANK {node}" + (f" ({host})" if host else "")

    def leave(self, attempt: int) -> None:
        """See that all machines know how the attempt ended, as far as they still answer; then stop listening."""
        self.state.acknowledged = True
        self.publish(at_once=True)
        self.watch.flush()
        deadline = time.monotonic() + 2
        while self.is_host and time.monotonic() < deadline and not self.watch.lost():
            if all(state.acknowledged or state.ready < 0 for state in self.states(attempt).values()):
                break
            time.sleep(_TICK_SECONDS)
        self.watch.stop()


class Patience:
    """Waits for something up to a time limit, and says what for: after 5 s, then ever more rarely.

    Args:
        seconds: the limit.
        say: tells the user something.
    """

    def __init__(self, seconds: float, say: Say) -> None:
        self._start = time.monotonic()
        self._limit = seconds
        self._say = say
        self._next_report = 5.0

    def wait(self, reason: str, seconds: float = _RETRY_SECONDS) -> None:
        """Wait a little.

        Raises:
            ClusterTimeoutError: the limit is reached.
        """
        waited = time.monotonic() - self._start
        if waited >= self._limit:
            raise ClusterTimeoutError(
                f"{reason}, after {self._limit:.0f} s (CLUSTER_TIME_OUT)",
                hint="start the launcher on every machine, with its own NODE_RANK and the same MASTER_ADDR and port",
            )
        if waited >= self._next_report:
            self._say(f"{reason} (for {waited:.0f} s; giving up after {self._limit:.0f} s)")
            self._next_report *= 2
        time.sleep(min(seconds, self._limit - waited))


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True
