"""Several nodes: the faults of `tests.support.cluster_faults`, on one cluster, in order.

The first test needs a cluster without w2, which joins in it; the last ones kill nodes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import use_s3
from tests.support import networks
from tests.support.cluster import ROOT, Cluster
from tests.support.cluster_faults import CHUNKS, PAUSE, Figures, Scenarios
from tests.support.cluster_trace import Trace, places, redone
from tests.support.namespaces import is_possible
from tests.support.s3_server import S3Server

pytestmark = [
    pytest.mark.cluster, pytest.mark.s3, pytest.mark.slow, pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not is_possible(), reason="needs root, iproute2 and network namespaces"),
]  # fmt: skip


@pytest.fixture(scope="module")
def scenarios(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenarios]:
    """A head without GPUs and a node w1 with one logical GPU."""
    folder = tmp_path_factory.mktemp("cluster")
    trace = Trace(folder, PAUSE)
    weights = networks.write_tiny_weights(folder / "tiny.safetensors")
    more = {**trace.environment, "PYTHONPATH": f"{trace.site}:{ROOT}"}
    with pytest.MonkeyPatch.context() as patch:
        use_s3(patch, s3_server.owner.environment(s3_server.url))
        with Cluster.started(s3_server, more) as cluster:
            cluster.join("w1")
            yield Scenarios(s3_server, cluster, trace, weights)


def told(figures: Figures) -> Figures:
    print(figures.line())
    assert figures.differences == [], figures.said
    return figures


def test_the_pool_grows_onto_a_node_that_joins_late(scenarios: Scenarios) -> None:
    figures = told(scenarios.node_joins("w2"))
    assert figures.exit_codes == [0], figures.said
    assert places(figures.steps, "compute")["w2"] > 0
    assert redone(figures.steps) == {"read": 0, "compute": 0, "write": 0}


def test_networks_run_where_gpus_are_and_the_rest_elsewhere(scenarios: Scenarios) -> None:
    figures = told(scenarios.undisturbed())
    assert figures.exit_codes == [0], figures.said
    assert set(places(figures.steps, "compute")) == {"w1", "w2"}
    assert set(places(figures.steps, "read")) == set(places(figures.steps, "write")) == {"head"}
    assert places(figures.steps, "compute").total() == CHUNKS


def test_a_cluster_that_can_hold_no_network_is_told_at_once(scenarios: Scenarios) -> None:
    figures = scenarios.run("none", "--gpus-per-worker", "2")
    assert figures.exit_codes == [1]
    assert "asks for 2 GPUs per worker, no node has more than 1" in figures.said
    assert figures.steps == []


def test_a_node_that_does_not_reach_the_store_for_a_while(scenarios: Scenarios) -> None:
    figures = told(scenarios.store_is_parted("w2", 15))
    assert figures.exit_codes == [0], figures.said
    # Which of the two writes is Ray's choice; the one that was parted had to reach the store.
    assert "w2" in places(figures.steps, "read") + places(figures.steps, "write")


def test_a_node_that_does_not_reach_the_store_for_long(scenarios: Scenarios) -> None:
    figures = told(scenarios.store_stays_parted("w2"))
    assert figures.exit_codes == [1, 0], figures.said
    assert redone(figures.steps)["write"] < CHUNKS // 2


def test_a_node_that_dies(scenarios: Scenarios) -> None:
    figures = told(scenarios.node_dies("w2"))
    assert figures.exit_codes == [0], figures.said
    assert 0 < redone(figures.steps)["compute"] <= 4


def test_a_head_that_dies(scenarios: Scenarios) -> None:
    figures = told(scenarios.head_dies())
    assert figures.exit_codes == [0, 0], figures.said
    assert redone(figures.steps)["compute"] < CHUNKS // 2
