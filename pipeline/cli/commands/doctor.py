"""`fcnseg doctor`: report what is missing for a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, GivenOptions, OptionSpec, read_text, takes
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.doctor.checks import DoctorInput


@takes(
    "address input output weights config sets as_json",
    address=OptionSpec(
        Annotated[
            str | None,
            typer.Option(
                help="Ray cluster: HOST:6379, auto, or http://HOST:8265 for its Jobs API."
            ),
        ],
        "compute.ray_address",
    ),
    input=OptionSpec(
        Annotated[str | None, typer.Option(help="INPUT of the run.")],
        "input.url",
    ),
    output=OptionSpec(
        Annotated[
            str | None,
            typer.Option(help="OUTPUT of the run; small test objects are written and deleted."),
        ],
        "output.url",
    ),
)
def doctor(given: GivenOptions, as_json: AsJson = False) -> None:
    """Report what is missing for a run. Checks versions, resources, stores, weights, token."""
    from pipeline.doctor.examine import examine

    findings = []
    for finding in examine(_doctor_input(given)):
        findings.append(finding)
        if not as_json:
            console.out.print(str(finding))
    blocking = sum(finding.blocks for finding in findings)
    if as_json:
        rows = [asdict(finding) for finding in findings]
        console.print_json({"ready": not blocking, "findings": rows})
    else:
        warnings = sum(finding.level == "warning" for finding in findings)
        verdict = plural(blocking, "problem") if blocking else "nothing blocks a run"
        count = plural(warnings, "warning")
        console.err.print(f"{verdict}; {count} among {len(findings)} findings")
    if blocking:
        raise typer.Exit(1)


def _doctor_input(given: GivenOptions) -> DoctorInput:
    """Return what to check; INPUT and OUTPUT may both be missing, unlike in a configuration."""
    from pipeline.config import parse_yaml
    from pipeline.doctor.checks import DoctorInput

    text = read_text(given.config)
    tree = parse_yaml(text, given.config or "") if text else {}
    has, missing = {}, {}
    for section in ("input", "output"):
        inside = tree.get(section)
        in_file = isinstance(inside, dict) and inside.get("url") is not None
        in_sets = any(item.startswith(f"{section}.url=") for item in given.sets)
        has[section] = in_file or in_sets or given.fields[f"{section}.url"] is not None
        if not has[section]:
            missing[f"{section}.url"] = "none"
    config = given.load_run_config(missing)
    return DoctorInput(config, has_input=has["input"], has_output=has["output"])
