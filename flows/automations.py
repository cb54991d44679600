"""Create automations on a Prefect server for flow runs that stop responding and that fail.

Usage: python -m flows.automations [--notify BLOCK] [--silence SECONDS]

Run the command again to update the automations; they are found by name. BLOCK is a notification
block of the server, for example slack-webhook/operations (see `prefect block ls`). Without a block,
a failure is visible only in the Prefect UI.
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
"""Longest time without a heartbeat: more than three, of which a flow run sends one every 180 s."""


_ENDS = ("Completed", "CompletedWithQuarantine", "CompletedWithDrift", "Failed", "Crashed",
         "Cancelled", "TimedOut")  # fmt: skip

_OF_OUR_FLOWS: dict[str, str | list[str]] = {
    "prefect.resource.role": "flow",
    "prefect.resource.name": FLOWS,
}


def zombies(silence: int = SILENCE_SECONDS) -> AutomationCore:
    """Return the automation that sets a flow run without a heartbeat to Crashed.

    A crashed run can be retried, and its concurrency slot is free. Its process is gone, so the
    hooks of the flow do not run: its Ray job continues, and the retried run or the next scheduled
    run attaches to it.

    Args:
        silence: longest time without a heartbeat, in seconds.
    """
    return AutomationCore(
        name=ZOMBIES,
        description="Sets a flow run to Crashed if it sends no heartbeat: its process is gone.",
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
                message="no heartbeat: the process is gone; retry the run to resume it",
                force=False,
            )
        ],
    )


def failures(block: str) -> AutomationCore:
    """Return the automation that notifies of runs that failed, crashed, timed out or drifted.

    Args:
        block: notification block of the server, TYPE/NAME.

    Raises:
        ValueError: the block does not exist.
    """
    return AutomationCore(
        name=FAILURES,
        description="Sends a notification if a flow run fails, crashes, times out or drifts.",
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
                "`prefect block ls`, or create one on the page Blocks of the server."
            ) from None


def put(automation: AutomationCore) -> bool:
    """Create an automation, or update the one of the same name; return whether it is new."""
    with get_client(sync_client=True) as client:
        existing = client.read_automations_by_name(automation.name)
        if existing:
            client.update_automation(existing[0].id, automation)
        else:
            client.create_automation(automation)
    return not existing


def main(words: Sequence[str]) -> int:
    """Create or update the automations.

    Returns:
        The exit code: 0, or 2 if the notification block does not exist.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.automations", description=__doc__)
    parser.add_argument("--notify", help="notification block, TYPE/NAME")
    parser.add_argument(
        "--silence", type=int, default=SILENCE_SECONDS, help="seconds without a heartbeat"
    )
    given = parser.parse_args(words)
    try:
        automations = [zombies(given.silence)]
        if given.notify:
            automations.append(failures(given.notify))
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for automation in automations:
        print(f"{'created' if put(automation) else 'updated'}: {automation.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
