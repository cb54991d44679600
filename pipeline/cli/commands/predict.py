"""`fcnseg predict`: segment single images, without a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fcn_core.errors import FcnError
from pipeline.cli import console
from pipeline.cli.options import AsJson, PlainForward
from pipeline.text import percent

if TYPE_CHECKING:
    from pipeline.predict.show import Show


def predict(
    images: Annotated[
        list[str], typer.Argument(help="Images: files, folders, patterns in quotes, or URLs.")
    ],
    output: Annotated[str, typer.Option(help="Folder for masks and overlays; path or URL.")],
    weights: Annotated[str, typer.Option(help="Weights file (path or URL), or `demo`.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16, fp16 or int8.")] = "fp32",
    plain_forward: PlainForward = None,
    max_image_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Refuse images with more pixels. Default: 100 million."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Draw the results in the terminal.")] = False,
    as_json: AsJson = False,
) -> None:
    """Segment single images: write masks and overlays."""
    from fcn_core.images import MAX_PIXELS
    from pipeline.predict.find_images import find_images
    from pipeline.predict.predict import PredictOptions, predict_files
    from pipeline.resolve import check_can_segment, load_weights
    from pipeline.storage.store import Store

    file = load_weights(weights)
    check_can_segment(file, precision)
    target = Store(output)
    found_images = find_images(images, target)
    draw = _drawing() if show and not as_json else None
    bad, rows = 0, []
    options = PredictOptions(
        device,
        precision,  # type: ignore[arg-type]  # the predictor refuses what it does not know
        bool(plain_forward),
        max_image_pixels or MAX_PIXELS,
    )
    for prediction in predict_files(found_images, target, file, options):
        if isinstance(prediction, FcnError):
            bad += 1
            console.err.print(f"error: {prediction}")
            continue
        if as_json:
            rows.append(vars(prediction.written))
            continue
        written = prediction.written
        shares = ", ".join(f"{k} {percent(share)}" for k, share in written.shares.items())
        console.out.print(f"{written.image}: {shares} -> {written.mask}")
        if draw is not None:
            draw(prediction.side_by_side)
    if as_json:
        console.print_json(rows)
    if bad:
        raise typer.Exit(1)


def _drawing() -> Show | None:
    from pipeline.predict.show import find_terminal_display

    draw, reason = find_terminal_display(console.out.rich)
    line = f"--show: {reason}" if draw else f"--show: images are not drawn: {reason}"
    console.err.print(line)
    return draw
