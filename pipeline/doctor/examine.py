"""Run all checks of `fcnseg doctor`, in order: machine, weights, stores, cluster.

A check yields findings (`finding.py`) and raises no exception for what it finds. The checks of one
machine are in `machine.py`, of weights and stores in `checks.py`, of a cluster in `ray_cluster.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.doctor.checks import DoctorInput, examine_input, examine_output, examine_weights
from pipeline.doctor.finding import Finding
from pipeline.doctor.machine import examine_device, examine_machine, examine_packages
from pipeline.storage.store import Store


def examine(doctor_input: DoctorInput) -> Iterator[Finding]:
    """Yield the findings of every check that needs no segmentation.

    Writes two small objects below OUTPUT and removes them.

    Args:
        doctor_input: configuration to check.
    """
    config = doctor_input.config
    address = config.ray_address()
    yield from examine_packages()
    yield from examine_machine(embeds_ray=config.resolved_executor() == "ray" and not address)
    if address is None:
        yield from examine_device(config.compute.device)
    yield from examine_weights(config)
    if doctor_input.has_input:
        yield from examine_input(config.input)
    if doctor_input.has_output:
        yield from examine_output(Store(config.output.url, config.output.store))
    if address is not None:
        from pipeline.doctor.ray_cluster import examine_cluster

        yield from examine_cluster(address, doctor_input)
