"""Before a run writes anything: what does the store of its output really hold?"""

from __future__ import annotations

import logging

from pipeline.store import Store

log = logging.getLogger("fcnseg")


def preflight(output: Store) -> None:
    """Try the guarantees that runs rest on, and warn of those that the store does not give.

    Raises:
        StoreError: nothing can be written there.
    """
    held = output.probe()
    if not held.create_only:
        log.warning(
            "%s does not refuse to create an object that exists already (no If-None-Match): two "
            "drivers that start in the same moment may both work; keep to one by other means",
            output.location(""),
        )
    if not held.compare_and_swap:
        log.warning(
            "%s cannot replace one version of an object only (no If-Match): two drivers that find "
            "the lease of a dead one run out in the same moment may both take it; keep to one by "
            "other means",
            output.location(""),
        )
