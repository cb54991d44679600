"""The nodes of the cluster that this process is connected to, and those its autoscaler may add."""

from __future__ import annotations

import ray
import ray._private.state

from pipeline.cluster.placement import Node


def live_nodes() -> list[Node]:
    """The nodes that live now."""
    rows = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Node(row["NodeID"], row["NodeManagerAddress"], row["Resources"], row.get("Labels") or {})
        for row in rows
        if row["Alive"]
    ]


def nodes_to_come() -> list[Node]:
    """One node of each kind that an autoscaler may add; none where there is no autoscaler.

    Autoscalers (KubeRay's, that of `ray up`) report their node types; Ray Data reads them there.
    """
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    return [
        Node(group.name, "", dict(group.resources))
        for group in groups
        if group.resources and group.max_count != 0
    ]
