"""The commands that label: demo, shard, plan, run, predict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fcn_core.errors import FcnError
from pipeline.commands import console
from pipeline.commands.options import (
    AsJson,
    ConfigFile,
    Exclude,
    Include,
    Input,
    Labels,
    LabelSetName,
    Layout,
    LimitShards,
    LogFormat,
    Masks,
    Output,
    PlainForward,
    Sets,
    ShardSize,
    Since,
    Split,
    Weights,
    load_logged_config,
    load_run_config,
    run_flags,
    selected,
)
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.store import Store
from pipeline.words import percent, plural

if TYPE_CHECKING:  # numpy
    from pipeline.show import Show


def demo(
    directory: Annotated[
        str, typer.Argument(help="Made if missing: shards/ and output/ go there.")
    ],
    as_json: AsJson = False,
) -> None:
    """Label rendered scenes with the shipped weights; show the scores."""
    from pipeline.demo import demo_config, make_scene_shards

    make_scene_shards(Store(f"{directory}/shards"))
    _run(demo_config(directory), as_json)


def shard(
    images: Annotated[str, typer.Argument(help="Folder of images, or a dataset; any URL.")],
    output: Annotated[str, typer.Argument(help="Empty place for the tars; any URL.")],
    labels: Labels = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="A dataset as distributed: voc, sbd, nyudv2, siftflow, siftflow-geo or camvid."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="With --layout: its name, or a file or URL of ids.")
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Samples per tar.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Pack a folder, or a split of a dataset, into WebDataset tars."""
    from pipeline.inputs.packing import pack_folder

    source, target = Store(images), Store(output)
    if layout is None:
        _refuse_alone("--split", split, "--layout")
        packed = pack_folder(source, Store(labels) if labels else None, target, shard_size)
    else:
        from pipeline.inputs.layouts import pack_dataset

        _refuse_beside("--labels", labels, f"--layout {layout}")
        packed = pack_dataset(layout, source, split, target, shard_size)
    for path, reason in packed.left_out:
        console.err.print(f"left out {path}: {reason}", markup=False)
    if as_json:
        console.print_json(vars(packed))
    else:
        console.out.print(
            f"{plural(packed.shards, 'shard')}, {plural(packed.images, 'image')}, "
            f"{packed.labeled_images} labelled, "
            f"{len(packed.left_out)} left out",
            markup=False,
        )
    if packed.left_out:
        raise typer.Exit(3)


def _refuse_alone(name: str, value: str | None, needed: str) -> None:
    if value is not None:
        raise ConfigError(name, f"{value!r} alone", f"it goes with {needed}", f"Add {needed}.")


def _refuse_beside(name: str, value: str | None, other: str) -> None:
    if value is not None:
        raise ConfigError(
            name, f"{value!r} beside {other}", "the labels of the dataset", f"Leave {name} out."
        )


def plan(
    input: Input,
    output: Output,
    weights: Weights = None,
    labels: Labels = None,
    label_set: LabelSetName = None,
    layout: Layout = None,
    split: Split = None,
    masks: Masks = None,
    config: ConfigFile = None,
    sets: Sets = None,
    limit_shards: LimitShards = None,
    include: Include = None,
    exclude: Exclude = None,
    since: Since = None,
    exact: Annotated[
        bool, typer.Option(help="Open every pending shard to count its images.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do: shards, bytes, pending. Loads no network, writes nothing."""
    flags = run_flags(input, output, weights, labels, label_set, masks)
    flags |= {"input.layout": layout, "input.split": split}
    flags |= selected(limit_shards, include, exclude, since)
    _print_plan(load_run_config(config, sets, flags), as_json, exact)


def run(
    input: Input,
    output: Output,
    weights: Weights = None,
    labels: Labels = None,
    label_set: LabelSetName = None,
    layout: Layout = None,
    split: Split = None,
    masks: Masks = None,
    executor: Annotated[str | None, typer.Option(help="local or ray.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to run on.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Copies of the network.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPU share of one copy.")] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Most memory of all copies on a machine, like 8GiB.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, tf32, bf16, fp16 or int8.")] = None,
    plain_forward: PlainForward = None,
    limit_shards: LimitShards = None,
    include: Include = None,
    exclude: Exclude = None,
    since: Since = None,
    shard_size: ShardSize = None,
    config: ConfigFile = None,
    sets: Sets = None,
    log_format: LogFormat = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, help="Serve metrics to Prometheus there meanwhile.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only plan.")] = False,
    as_json: AsJson = False,
) -> None:
    """Label INPUT into OUTPUT. Running the same command again resumes."""
    flags = run_flags(input, output, weights, labels, label_set, masks)
    flags |= {
        "compute.executor": executor or ("ray" if address else None),
        "compute.ray_address": address,
        "compute.workers": workers,
        "compute.gpus_per_worker": gpus_per_worker,
        "limits.memory": memory_limit,
        "model.precision": precision,
        "compute.plain_forward": plain_forward,
        "input.shard_size": shard_size,
        "monitoring.log_format": log_format,
        "monitoring.metrics_port": metrics_port,
        "input.layout": layout,
        "input.split": split,
        **selected(limit_shards, include, exclude, since),
    }
    loaded = load_logged_config(config, sets, flags)
    if dry_run:
        _print_plan(loaded, as_json)
    else:
        _run(loaded, as_json)


def predict(
    images: Annotated[
        list[str], typer.Argument(help="Pictures: files, folders, globs in quotes, or URLs.")
    ],
    output: Annotated[str, typer.Option(help="Where masks and overlays go; any URL.")],
    weights: Annotated[str, typer.Option(help="Weights file or URL, or `demo`.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16, fp16 or int8.")] = "fp32",
    plain_forward: PlainForward = None,
    max_image_pixels: Annotated[
        int | None, typer.Option(min=1, help="Larger pictures are refused. Default: 100 million.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Draw them in the terminal.")] = False,
    as_json: AsJson = False,
) -> None:
    """Label single pictures: masks, overlays, all side by side."""
    from fcn_core.images import MAX_PIXELS
    from pipeline.pictures import find_pictures
    from pipeline.predict import PredictOptions, predict_files
    from pipeline.prepare import check_can_label, load_weights

    file = load_weights(weights)
    check_can_label(file, precision)
    target = Store(output)
    pictures = find_pictures(images, target)
    draw = _drawing() if show and not as_json else None
    bad, done = 0, []
    options = PredictOptions(
        device,
        precision,  # type: ignore[arg-type]  # the predictor refuses what it does not know
        bool(plain_forward),
        max_image_pixels or MAX_PIXELS,
    )
    for found in predict_files(pictures, target, file, options):
        if isinstance(found, FcnError):
            bad += 1
            console.err.print(f"error: {found}", markup=False)
            continue
        if as_json:
            done.append(vars(found.written))
            continue
        one = found.written
        shares = ", ".join(f"{k} {percent(share)}" for k, share in one.shares.items())
        console.out.print(f"{one.image}: {shares} -> {one.mask}", markup=False)
        if draw is not None:
            draw(found.side_by_side)
    if as_json:
        console.print_json(done)
    if bad:
        raise typer.Exit(1)


def _drawing() -> Show | None:
    from pipeline.show import terminal_pictures

    draw, words = terminal_pictures(console.out)
    said = f"--show: {words}" if draw else f"--show: pictures are not drawn: {words}"
    console.err.print(said, markup=False)
    return draw


def _run(config: RunConfig, as_json: bool) -> NoReturn:
    from pipeline.run import run as run_pipeline

    with console.progress_display() as progress:
        result = run_pipeline(config, progress, finish_on_interrupt=True)
    console.print_result(result, as_json=as_json)
    raise typer.Exit(result.exit_code)


def _print_plan(config: RunConfig, as_json: bool, exact: bool = False) -> None:
    from pipeline.plan import MOST_OPENED
    from pipeline.run import plan as plan_run

    found = plan_run(config)
    count = found.count_images(None if exact else MOST_OPENED)
    console.print_passed_over(found.passed_over)
    console.print_vanished(found.vanished, found.vanished_names)
    for shard_id, reason in count.unreadable.items():
        console.err.print(f"unreadable {shard_id}: {reason}", markup=False)
    if as_json:
        console.print_json(
            {
                "shards": found.total,
                "images": count.images,
                "images_are_exact": count.is_exact,
                "unreadable": count.unreadable,
                "bytes": found.bytes,
                "pending": [shard.id for shard in found.pending],
                "pending_bytes": found.pending_bytes,
                "outdated": found.outdated_ids(),
                "left": found.left,
                "unpacked": found.unpacked,
                "committed": len(found.ledger),
                "vanished": found.vanished,
                "vanished_names": list(found.vanished_names),
                "passed_over": list(found.passed_over),
            }
        )
        return
    console.out.print(
        f"{plural(found.total, 'shard')}, {'' if count.is_exact else 'about '}"
        f"{plural(count.images, 'image')}, "
        f"{console.size(found.bytes)}; "
        f"{len(found.pending)} pending, {console.size(found.pending_bytes)}"
        + (f"; {found.outdated} of them changed" if found.outdated else "")
        + (f"; {found.left} more left out now" if found.left else "")
        + (f"; {plural(found.unpacked, 'image')} left out now" if found.unpacked else ""),
        markup=False,
    )
