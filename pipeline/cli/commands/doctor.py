"""The command that says what is missing: doctor."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, ConfigFile, Sets, Weights, load_run_config, read_text
from pipeline.config import parse_yaml
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.doctor.checks import DoctorInput


def doctor(
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster: HOST:6379, auto, or http://HOST:8265 for its Jobs API."),
    ] = None,
    input: Annotated[str | None, typer.Option(help="INPUT of the run.")] = None,
    output: Annotated[
        str | None, typer.Option(help="OUTPUT of the run; small objects are written and removed.")
    ] = None,
    weights: Weights = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Say what is missing for a run. Versions, resources, stores, weights, token."""
    from pipeline.doctor.examine import examine

    flags = {
        "input.url": input,
        "output.url": output,
        "model.weights": weights,
        "compute.ray_address": address,
    }
    findings = []
    for finding in examine(_doctor_input(config, sets or [], flags)):
        findings.append(finding)
        if not as_json:
            console.out.print(str(finding), markup=False)
    blocking = sum(finding.blocks for finding in findings)
    if as_json:
        rows = [asdict(finding) for finding in findings]
        console.print_json({"ready": not blocking, "findings": rows})
    else:
        warnings = sum(finding.level == "warning" for finding in findings)
        verdict = plural(blocking, "problem") if blocking else "nothing blocks a run"
        count = plural(warnings, "warning")
        console.err.print(f"{verdict}; {count} among {len(findings)} findings", markup=False)
    if blocking:
        raise typer.Exit(1)


def _doctor_input(config: str | None, sets: list[str], flags: dict[str, Any]) -> DoctorInput:
    """Return the configuration to check; unlike a run, it may lack INPUT and OUTPUT."""
    from pipeline.doctor.checks import DoctorInput

    text = read_text(config)
    tree = parse_yaml(text, config or "") if text else {}
    named = {}
    for section in ("input", "output"):
        inside = tree.get(section)
        in_file = isinstance(inside, dict) and inside.get("url") is not None
        in_sets = any(item.startswith(f"{section}.url=") for item in sets)
        named[section] = in_file or in_sets or flags[f"{section}.url"] is not None
        if not named[section]:
            flags = {**flags, f"{section}.url": "none"}
    loaded = load_run_config(config, sets, flags)
    return DoctorInput(loaded, has_input=named["input"], has_output=named["output"])
