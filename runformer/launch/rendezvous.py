"""The cluster as ``torch.distributed.elastic`` sees it: a rendezvous with fixed node ranks."""

from __future__ import annotations

from torch.distributed.elastic.rendezvous.api import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from runformer.launch.cluster import Cluster


class JobRendezvous(RendezvousHandler):
    """Gathers the machines once for every attempt.

    The handlers that come with torch either choose ranks themselves (``c10d``) or know neither members nor restarts
    (``static``); here a machine's number is the one that it was given.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._closed = False
        self.attempt = -1

    def get_backend(self) -> str:
        """Its name."""
        return "runformer"

    @property
    def use_agent_store(self) -> bool:
        """Workers use the agent's store to find each other."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all machines to be ready for the next attempt."""
        self.attempt += 1
        cluster = self._cluster
        cluster.gather(self.attempt)
        place = RendezvousStoreInfo(cluster.endpoint.address, cluster.endpoint.port)
        return RendezvousInfo(cluster.store, cluster.node_rank, cluster.nodes, place)

    def is_closed(self) -> bool:
        """Whether no further attempt is made."""
        return self._closed

    def set_closed(self) -> None:
        """Make no further attempt."""
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """Machines that wait to be let in: none, their number is fixed."""
        return 0

    def get_run_id(self) -> str:
        """What tells this job from others."""
        return self._cluster.nonce

    def shutdown(self) -> bool:
        """Leaving is the agent's work."""
        return True
