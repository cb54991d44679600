"""`fcnseg weights`: list, show, convert, halve, calibrate and verify weights files."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

import typer

from fcn_core.networks.architecture import Variant
from fcn_core.weights.published import PUBLISHED, Published, SourceFormat, find_published
from pipeline.cli import console
from pipeline.cli.options import AsJson
from pipeline.errors import ConfigError

app = typer.Typer(
    help="List, show, convert, halve, calibrate and verify weights files.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

WeightsPath = Annotated[
    str, typer.Argument(help="A .safetensors file of this project (path or URL), or `demo`.")
]


@app.command("list")
def list_published(
    file: Annotated[
        str | None, typer.Argument(help="Print only this file, with every detail.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the published weights: purpose, scores, checksum."""
    chosen = PUBLISHED
    if file is not None:
        entry = find_published(file)
        if entry is None:
            raise ConfigError(
                where=file,
                found="not the name of published weights",
                expected="a name that `fcnseg weights list` prints",
                remedy="Check the spelling; other files can be converted too.",
            )
        chosen = (entry,)
    if as_json:
        console.print_json([entry.to_dict() for entry in chosen])
    elif file is not None:
        _print_published(chosen[0])
    else:
        _print_table()


def show(file: WeightsPath, as_json: AsJson = False) -> None:
    """Print network, classes, preprocessing, origin and tensors."""
    from pipeline.resolve import load_weights
    from pipeline.weights import describe

    description = describe(load_weights(file))
    if as_json:
        console.print_json(description)
        return
    _print_description(description)
    width = max(map(len, description["tensors"]), default=0)
    for name, tensor in description["tensors"].items():
        shape = " x ".join(map(str, tensor["shape"]))
        console.out.print(
            f"{name:{width}}  {tensor['dtype']:4} {shape:22} {tensor['parameters']:>11,}"
        )
    console.out.print(
        f"{len(description['tensors'])} tensors, {description['parameters']:,} parameters, "
        f"{console.format_size(description['bytes'])}, sha256 {description['sha256']}"
    )


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The file to convert; path or URL.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The .safetensors file to write; path or URL.")
    ],
    form: Annotated[SourceFormat, typer.Option("--from", help="Format of SRC.")],
    variant: Annotated[
        Variant, typer.Option(help="Network in SRC; a file alone does not always tell.")
    ],
    label_set: Annotated[
        list[str], typer.Option(help="Label set of SRC: name or YAML file; once per head.")
    ],
    preprocessing: Annotated[
        str | None,
        typer.Option(
            help="voc, context, siftflow, nyud, nyud-hha, nyud-color-d, nyud-color-hha or "
            "torchvision. Default: the one of the published file, else voc."
        ),
    ] = None,
    output_stride: Annotated[
        int, typer.Option(help="16 or 8 for dilated, denser scores; only for 32s networks.")
    ] = 32,
    md5: Annotated[str | None, typer.Option(help="Refuse SRC if its md5 differs.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Refuse SRC if its sha256 differs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Convert weights of Caffe, pytorch-fcn or torchvision."""
    from pipeline.weights import ConvertRequest
    from pipeline.weights import convert as convert_file

    request = ConvertRequest(
        source, destination, form, variant, label_set, preprocessing, output_stride, md5, sha256
    )
    result = convert_file(request)
    if as_json:
        console.print_json(result.to_dict())
        return
    if result.published:
        console.out.print(f"published weights, recognized by checksum: {result.published}")
    for note in result.notes:
        console.out.print(note)
    _print_description(result.description)
    console.out.print(
        f"{result.destination}: {result.description['parameters']:,} parameters, "
        f"{console.format_size(result.bytes)}, sha256 {result.sha256}"
    )


def verify(
    file: WeightsPath,
    sha256: Annotated[str | None, typer.Option(help="Fail if its sha256 differs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Load all of a file, segment a small image, print its sha256."""
    from pipeline.resolve import load_weights
    from pipeline.weights import TRIAL_SIZE, try_out

    trial = try_out(load_weights(file), sha256)
    if as_json:
        console.print_json(trial)
        return
    height, width = TRIAL_SIZE
    for head, (low, high) in trial["logits"].items():
        console.out.print(
            f"logits{f' of head {head}' if head else ''} of {width}x{height} px of noise: "
            f"{low:.4g} to {high:.4g}"
        )
    start = ", initial weights for a training only" if trial["initialisation"] else ""
    console.out.print(
        f"{file}: {trial['variant']}{start}, {trial['parameters']:,} parameters, all finite, "
        f"sha256 {trial['sha256']}"
    )


def halve(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A weights file; path or URL.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The .safetensors file to write; path or URL.")
    ],
) -> None:
    """Write a copy in float16: half the size."""
    from pipeline.weights import halve as halve_file

    written = halve_file(source, destination)
    console.out.print(
        f"{destination}: {console.format_size(len(written.data))}, sha256 {written.sha256}"
    )


def calibrate(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A weights file; path or URL.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The .safetensors file to write; path or URL.")
    ],
    images: Annotated[
        str, typer.Option("--input", help="Images like the ones to segment: an INPUT of `run`.")
    ],
    pictures: Annotated[int, typer.Option(min=1, help="Number of images to use.")] = 64,
) -> None:
    """Write a copy with the layer ranges that `--precision int8` needs."""
    from pipeline.weights import calibrate as calibrate_file

    written = calibrate_file(source, destination, images, pictures)
    seen = written.info.origin["int8_pictures"]
    console.out.print(
        f"{destination}: ranges of {len(written.info.int8_peaks)} layers on {seen} images, "
        f"{console.format_size(len(written.data))}, sha256 {written.sha256}"
    )


for command in (show, convert, halve, calibrate, verify):
    app.command()(command)


def _print_table() -> None:
    row = "  {:39} {:13} {:16} {:21} {:>7}  {}"
    head = row.format("file", "--from", "--variant", "--label-set", "mean IoU", "checksum")
    console.out.print(head)
    for purpose, entries in itertools.groupby(PUBLISHED, lambda entry: entry.purpose):
        console.out.print(purpose)
        for entry in entries:
            sets = " ".join(entry.label_sets) or "(your own)"
            score = entry.scores.get("mean_iou")
            percent = "-" if score is None else f"{score:.2f} %"
            variant = entry.variant or "(VGG-16 nets)"
            line = row.format(entry.file, entry.format, variant, sets, percent, entry.checksum)
            console.out.print(line.rstrip())
    console.out.print(
        "mean IoU: as published, on PASCAL VOC seg11valid; the source: `fcnseg weights list FILE`"
    )


def _print_published(entry: Published) -> None:
    from fcn_core.preprocessing import PREPROCESSINGS

    pre = PREPROCESSINGS[entry.preprocessing]
    lines = [
        f"{entry.file}: {entry.purpose}",
        f"from {entry.source}",
        entry.checksum.replace(":", " ", 1) + (
            " (the beginning)" if entry.checksum.startswith("sha256:") else ""
        ) if entry.checksum else "no checksum was published",
        f"reads {pre.channels}, mean {_numbers(pre.mean)}, std {_numbers(pre.std)}",
    ]  # fmt: skip
    if entry.scores:
        scores = ", ".join(f"{name} {value:g} %" for name, value in entry.scores.items())
        lines.append(f"{scores} ({entry.scores_from})")
    options = [f"--from {entry.format}", f"--variant {entry.variant or 'fcn32s'}"]
    options += [f"--label-set {name}" for name in entry.label_sets or ("voc",)]
    lines.append(f"fcnseg weights convert {entry.file} DST {' '.join(options)}")
    for line in lines:
        console.out.print(line)


def _print_description(description: dict[str, Any]) -> None:
    console.out.print(
        f"{description['variant']}, width {description['width']:g}, "
        f"{description['upsampling']} upsampling, "
        f"output stride {description['output_stride']}"
    )
    for head in description["heads"]:
        name = f"head {head['name']}: " if head["name"] else ""
        classes = ", ".join(head["classes"])
        console.out.print(
            f"{name}{len(head['classes'])} classes of label set {head['label_set']}: {classes}"
        )
    pre = description["preprocessing"]
    console.out.print(
        f"reads {pre['channels']}, mean {_numbers(pre['mean'])}, std {_numbers(pre['std'])}"
    )
    if description["initialisation"]:
        console.out.print("initial weights for a training only: all scores are zero")
    if description["int8"]:
        console.out.print("has the layer ranges that int8 needs")
    for key, value in description["origin"].items():
        console.out.print(f"origin: {key} {value}")


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.9g}" for value in values)
