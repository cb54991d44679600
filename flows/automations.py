"""Automations of a Prefect server for our flows: runs that fell silent, and runs that failed.

Usage: python -m flows.automations [--notify BLOCK] [--silence SECONDS]

Run it again to change them; they are known by their names. BLOCK is a notification block of the
server, for example slack-webhook/operations (`prefect block ls`); without one, a failure is told
nobody but the server's own pages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

FLOWS = ["label-dataset", "train-network"]

ZOMBIES = "fcn-pipeline: crashed without a word"

FAILURES = "fcn-pipeline: failed or drifted"


SILENCE_SECONDS = 600
"""More than three heartbeats, of which a flow run sends one every 180 s by itself."""


_ENDS = ("Completed", "CompletedWithQuarantine", "CompletedWithDrift", "Failed", "Crashed",
         "Cancelled", "TimedOut")  # fmt: skip

_OF_OUR_FLOWS: dict[str, str | list[str]] = {
    "prefect.resource.role": "flow",
    "prefect.resource.name": FLOWS,
}


def zombies(silence: int = SILENCE_SECONDS) -> AutomationCore:
    """A run without heartbeat becomes Crashed: then it can be retried, and its slot is free.

    Nobody is left then who could run the flow's hooks: a Ray job of it goes on, and the retried
    run, or that of the next night, attaches to it.
    """
    return AutomationCore(
        name=ZOMBIES,
        description="Its process is gone, and had no time to say so.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in _ENDS)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=_OF_OUR_FLOWS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                message="no heartbeat: its process is gone; retry it, and it goes on where it was",
                force=False,
            )
        ],
    )


def failures(block: str) -> AutomationCore:
    """Somebody is told of a run that failed, crashed or drifted.

    Raises:
        ValueError: no such block.
    """
    return AutomationCore(
        name=FAILURES,
        description="Tell somebody.",
        trigger=EventTrigger(
            expect={
                "prefect.flow-run.Failed",
                "prefect.flow-run.Crashed",
                "prefect.flow-run.TimedOut",
                "prefect.flow-run.CompletedWithDrift",
            },
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=_OF_OUR_FLOWS,
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=_block_id(block),
                subject="{{ flow.name }}: {{ flow_run.state.name }}",
                body="{{ flow_run.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
            )
        ],
    )


def _block_id(block: str) -> UUID:
    kind, _, name = block.partition("/")
    with get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(name, kind).id
        except ObjectNotFound:
            raise ValueError(
                f"no block {block}; expected TYPE/NAME of a notification block. See "
                "`prefect block ls`, or make one on the page Blocks of the server."
            ) from None


def put(automation: AutomationCore) -> bool:
    """Create it, or bring the one of its name up to date; whether it was created."""
    with get_client(sync_client=True) as client:
        there = client.read_automations_by_name(automation.name)
        if there:
            client.update_automation(there[0].id, automation)
        else:
            client.create_automation(automation)
    return not there


def main(words: Sequence[str]) -> int:
    """Create or update the automations.

    Returns:
        The exit code: 0, or 2 for a block that is not there.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.automations", description=__doc__)
    parser.add_argument("--notify", help="notification block to tell, TYPE/NAME")
    parser.add_argument(
        "--silence", type=int, default=SILENCE_SECONDS, help="seconds without a heartbeat"
    )
    given = parser.parse_args(words)
    try:
        wanted = [zombies(given.silence)]
        if given.notify:
            wanted.append(failures(given.notify))
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for automation in wanted:
        print(f"{'created' if put(automation) else 'updated'}: {automation.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
