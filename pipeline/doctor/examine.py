"""TODO docstring."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.doctor.checks import DoctorInput, examine_input, examine_output, examine_weights
from pipeline.doctor.finding import Finding
from pipeline.doctor.machine import examine_device, examine_machine, examine_packages
from pipeline.storage.store import Store


def examine(patient: DoctorInput) -> Iterator[Finding]:
    """Everything that can be known without labelling anything.

    Writes two small objects below OUTPUT and removes them.
    """
    config = patient.config
    address = config.ray_address()
    yield from examine_packages()
    yield from examine_machine(embeds_ray=config.resolved_executor() == "ray" and not address)
    if address is None:
        yield from examine_device(config.compute.device)
    yield from examine_weights(config)
    if patient.has_input:
        yield from examine_input(config.input)
    if patient.has_output:
        yield from examine_output(Store(config.output.url, config.output.store))
    if address is not None:
        from pipeline.doctor.ray_cluster import examine_cluster

        yield from examine_cluster(address, patient)
