"""TODO docstring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fcn_core.errors import FcnError
from pipeline.cli import console
from pipeline.cli.options import (
    AsJson,
    PlainForward,
)
from pipeline.storage.store import Store
from pipeline.text import percent

if TYPE_CHECKING:
    from pipeline.predict.show import Show


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
    from pipeline.predict.find_images import find_images
    from pipeline.predict.predict import PredictOptions, predict_files
    from pipeline.resolve import check_can_segment, load_weights

    file = load_weights(weights)
    check_can_segment(file, precision)
    target = Store(output)
    pictures = find_images(images, target)
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
    from pipeline.predict.show import terminal_pictures

    draw, words = terminal_pictures(console.out)
    said = f"--show: {words}" if draw else f"--show: pictures are not drawn: {words}"
    console.err.print(said, markup=False)
    return draw
