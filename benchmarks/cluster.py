"""Ray nodes on this machine."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

# A busy machine starts Ray slowly; a cluster of one's own needs a password, too.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "of-a-cluster-for-tests-on-one-machine",
    "RAY_raylet_start_wait_time_s": "240",
    "RAY_agent_register_timeout_ms": "240000",
}


def free_ports(names: tuple[str, ...]) -> dict[str, int]:
    servers = [socket.create_server(("", 0)) for _ in names]
    ports = {name: server.getsockname()[1] for name, server in zip(names, servers, strict=True)}
    for server in servers:
        server.close()
    return ports


def add_node(cluster: Any, cpus: int) -> Any:
    """Start a Ray node with so many CPUs. Its ports are named, for a node ends that waits 15
    seconds for its agents to tell them."""
    names = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    return cluster.add_node(
        num_cpus=cpus, object_store_memory=10**8, include_dashboard=False, **free_ports(names)
    )


@contextmanager
def ray_cluster(nodes: int) -> Iterator[Any]:
    """A cluster of a head without CPUs and nodes of one, whose address is `.address`.

    Commands that use it need the environment that is set meanwhile.
    """
    with patch.dict(os.environ, ENVIRONMENT):
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        try:
            add_node(cluster, cpus=0)
            for _ in range(nodes):
                add_node(cluster, cpus=1)
            yield cluster
        finally:
            cluster.shutdown()
