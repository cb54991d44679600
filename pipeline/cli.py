"""The command line. Every command prints its result to stdout and everything else to stderr."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from fcn_core.errors import FcnError
from pipeline import console
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError
from pipeline.store import Store, read_url


class _Commands(TyperGroup):
    """Our errors as one line and an exit code, whichever command raises them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FcnError as error:
            console.err.print(f"error: {error}", markup=False)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            console.err.print("interrupted: run the same command again to resume", markup=False)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `fcnseg status | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


app = typer.Typer(
    cls=_Commands,
    help="Label image datasets with FCN-8s: exactly once, resumable, on a laptop or a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Input = Annotated[str, typer.Argument(help="Tars, Parquet files or a folder of images; any URL.")]
Output = Annotated[str, typer.Argument(help="Where the results are; any URL.")]
Weights = Annotated[str | None, typer.Option(help="Weights file or URL, or `demo`.")]
Labels = Annotated[str | None, typer.Option(help="Folder of label PNGs parallel to the images.")]
LabelSetName = Annotated[
    str | None, typer.Option(help="scenes, voc, camvid or a YAML file. Default: the weights' own.")
]
Masks = Annotated[str | None, typer.Option(help="Comma-separated: parquet,png,tar.")]
ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file of a RunConfig.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value; may be repeated.")
]
ShardSize = Annotated[int | None, typer.Option(min=1, help="Images per shard of a folder.")]
LimitShards = Annotated[int | None, typer.Option(min=1, help="At most this many pending shards.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command()
def demo(
    directory: Annotated[
        str, typer.Argument(help="Made if missing: shards/ and output/ go there.")
    ],
    as_json: AsJson = False,
) -> None:
    """Make rendered scenes, label them with the shipped weights, show the scores."""
    from pipeline.demo import demo_config, make_scene_shards

    make_scene_shards(Store(f"{directory}/shards"))
    _run(demo_config(directory), as_json)


@app.command()
def shard(
    images: Annotated[str, typer.Argument(help="Folder of images; any URL.")],
    output: Annotated[str, typer.Argument(help="Empty place for the tars; any URL.")],
    labels: Labels = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Samples per tar.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Pack a folder of images, and their labels, into WebDataset tars."""
    from pipeline.packing import pack_folder

    packed = pack_folder(
        Store(images), Store(labels) if labels else None, Store(output), shard_size
    )
    for path, reason in packed.left_out:
        console.err.print(f"left out {path}: {reason}", markup=False)
    if as_json:
        console.print_json(vars(packed))
    else:
        console.out.print(
            f"{packed.shards} shards, {packed.images} images, {packed.labeled_images} labelled, "
            f"{len(packed.left_out)} left out",
            markup=False,
        )
    if packed.left_out:
        raise typer.Exit(3)


@app.command()
def plan(
    input: Input,
    output: Output,
    weights: Weights = None,
    labels: Labels = None,
    label_set: LabelSetName = None,
    masks: Masks = None,
    config: ConfigFile = None,
    sets: Sets = None,
    limit_shards: LimitShards = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do: shards, bytes, pending. Loads no network, writes nothing."""
    flags = _flags(input, output, weights, labels, label_set, masks)
    flags["input.limit_shards"] = limit_shards
    _print_plan(_load(config, sets, flags), as_json)


@app.command()
def run(
    input: Input,
    output: Output,
    weights: Weights = None,
    labels: Labels = None,
    label_set: LabelSetName = None,
    masks: Masks = None,
    executor: Annotated[str | None, typer.Option(help="local or ray.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to run on.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Copies of the network.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPU share of one copy.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    limit_shards: LimitShards = None,
    shard_size: ShardSize = None,
    config: ConfigFile = None,
    sets: Sets = None,
    dry_run: Annotated[bool, typer.Option(help="Only plan.")] = False,
    as_json: AsJson = False,
) -> None:
    """Label INPUT into OUTPUT. Running the same command again resumes."""
    flags = _flags(input, output, weights, labels, label_set, masks)
    flags |= {
        "compute.executor": executor or ("ray" if address else None),
        "compute.ray_address": address,
        "compute.workers": workers,
        "compute.gpus_per_worker": gpus_per_worker,
        "model.precision": precision,
        "input.limit_shards": limit_shards,
        "input.shard_size": shard_size,
    }
    loaded = _load(config, sets, flags)
    if dry_run:
        _print_plan(loaded, as_json)
    else:
        _run(loaded, as_json)


@app.command()
def status(output: Output, as_json: AsJson = False) -> None:
    """Say how an output stands, from its commits alone; works while a run is on."""
    from pipeline.status import read_status

    found = read_status(Store(output))
    if as_json:
        console.print_json(found.to_dict())
        return
    running = "no driver" if found.holder is None else f"driver {found.holder.describe()}"
    of = found.marker_document.get("shards")
    console.out.print(
        f"{len(found.ledger)} shards committed{f' of {of}' if of is not None else ''}, "
        f"{found.scores['images']} images, {found.scores['failures']} quarantined, "
        f"mean IU {console.number(found.scores['mean_iou'])}\n"
        f"{running}; {found.marker or 'no marker'}",
        markup=False,
    )
    for shard_id, reason in found.marker_document.get("failed_shards", {}).items():
        console.out.print(f"failed {shard_id}: {reason}", markup=False)


@app.command()
def report(output: Output, as_json: AsJson = False) -> None:
    """Print merged scores, the per-class table and the worst shards; rewrite report.html."""
    from pipeline.ledger import worst_shards
    from pipeline.report import REPORT_PATH, write_report
    from pipeline.status import read_status

    store = Store(output)
    found = read_status(store)
    failed = found.marker_document.get("failed_shards", {})
    write_report(store, found.ledger, found.identity.labels, failed)
    if as_json:
        console.print_json(found.to_dict())
        return
    console.print_scores(found.scores, found.identity.labels)
    for entry in worst_shards(found.ledger)[:5]:
        iou = console.number(entry.confusion.scores().to_dict()["mean_iou"])
        console.out.print(f"{entry.shard}: mean IU {iou}, {entry.images} images", markup=False)
    console.out.print(store.location(REPORT_PATH), markup=False)


@app.command()
def verify(
    output: Output,
    deep: Annotated[bool, typer.Option(help="Decode every mask too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Re-read every object against its commit; exit 1 if anything differs."""
    from pipeline.verify import verify as verify_output

    found = verify_output(Store(output), deep=deep)
    if as_json:
        console.print_json(vars(found))
    else:
        for path, problem in found.problems:
            console.out.print(f"{path}: {problem}", markup=False)
        console.out.print(
            f"{found.shards} shards, {found.files} objects, {console.size(found.bytes)}: "
            f"{len(found.problems)} problems",
            markup=False,
        )
        if found.problems:
            console.err.print(
                "to label a shard again, delete its _commits/<shard>.json and run again",
                markup=False,
            )
    if found.problems:
        raise typer.Exit(1)


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help="Pictures: files or URLs.")],
    output: Annotated[str, typer.Option(help="Directory for masks and overlays.")],
    weights: Annotated[str, typer.Option(help="Weights file or URL, or `demo`.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    as_json: AsJson = False,
) -> None:
    """Label single pictures: a mask and an overlay each."""
    from pipeline.predict import predict_files
    from pipeline.prepare import load_weights

    file = load_weights(weights)
    bad, done = 0, []
    options: dict[str, Any] = {"device": device, "precision": precision}
    for found in predict_files(images, Store(output), file, **options):
        if isinstance(found, FcnError):
            bad += 1
            console.err.print(f"error: {found}", markup=False)
        elif as_json:
            done.append(vars(found))
        else:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in found.shares.items())
            console.out.print(f"{found.image}: {shares} -> {found.mask}", markup=False)
    if as_json:
        console.print_json(done)
    if bad:
        raise typer.Exit(1)


def _flags(
    input: str,
    output: str,
    weights: str | None,
    labels: str | None,
    label_set: str | None,
    masks: str | None,
) -> dict[str, Any]:
    return {
        "input.url": input,
        "output.url": output,
        "model.weights": weights,
        "input.labels": labels,
        "input.label_set": label_set,
        "output.masks": masks.split(",") if masks is not None else None,
    }


def _load(config: str | None, sets: list[str] | None, flags: dict[str, Any]) -> RunConfig:
    try:
        text = read_url(config).decode() if config else None
    except UnicodeDecodeError:
        raise ConfigError(
            f"--config {config}", "bytes that are no UTF-8", "a YAML file", "Check the file."
        ) from None
    return load_config(text, sets or [], flags, config or "--config")


def _run(config: RunConfig, as_json: bool) -> NoReturn:
    from pipeline.report import REPORT_PATH
    from pipeline.run import run as run_pipeline

    with console.progress_display() as progress:
        result = run_pipeline(config, progress)
    if as_json:
        console.print_json(result.to_dict())
    else:
        console.print_result(result)
        if result.images:
            console.print_scores(result.scores, result.labels)
        console.out.print(f"report: {result.output}/{REPORT_PATH}", markup=False)
    raise typer.Exit(result.exit_code)


def _print_plan(config: RunConfig, as_json: bool) -> None:
    from pipeline.run import plan as plan_run

    found = plan_run(config)
    images, unreadable = found.count_images()
    console.print_passed_over(found.passed_over)
    for shard_id, reason in unreadable.items():
        console.err.print(f"unreadable {shard_id}: {reason}", markup=False)
    summary = {
        "shards": len(found.shards),
        "images": images,
        "unreadable": unreadable,
        "bytes": found.bytes,
        "pending": [shard.id for shard in found.pending],
        "pending_bytes": found.pending_bytes,
        "outdated": list(found.outdated),
        "committed": len(found.ledger),
        "vanished": found.vanished,
        "passed_over": list(found.passed_over),
    }
    if as_json:
        console.print_json(summary)
        return
    console.out.print(
        f"{len(found.shards)} shards, {images} images, {console.size(found.bytes)}; "
        f"{len(found.pending)} pending, {console.size(found.pending_bytes)}"
        + (f"; {len(found.outdated)} of them changed" if found.outdated else ""),
        markup=False,
    )


def _terminate(signum: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signum)


def main() -> NoReturn:
    """Run a command and exit with its code."""
    console.set_up_logging()
    signal.signal(signal.SIGTERM, _terminate)
    app()
    raise AssertionError("unreachable")
