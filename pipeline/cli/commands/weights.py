"""The commands about weights files: weights list, show, convert, halve, calibrate, verify."""

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
    help="Weights files: list the published ones, convert, show, verify.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[str, typer.Argument(help="A .safetensors file of this project; any URL; `demo`.")]


@app.command("list")
def list_published(
    file: Annotated[
        str | None, typer.Argument(help="Only this one, with everything known of it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the published weights: what each is for, its scores, its checksum."""
    chosen = PUBLISHED
    if file is not None:
        entry = find_published(file)
        if entry is None:
            raise ConfigError(
                where=file, found="no published weights", expected="a name that `fcnseg weights list` prints",
                remedy="Check the spelling; any other file can be converted as well.",
            )  # fmt: skip
        chosen = (entry,)
    if as_json:
        console.print_json([entry.to_dict() for entry in chosen])
    elif file is not None:
        _print_published(chosen[0])
    else:
        _print_table()


def show(file: File, as_json: AsJson = False) -> None:
    """Print what a weights file is: network, classes, preprocessing, origin, tensors."""
    from pipeline.resolve import load_weights
    from pipeline.weights import describe

    found = describe(load_weights(file))
    if as_json:
        console.print_json(found)
        return
    _print_description(found)
    width = max(map(len, found["tensors"]), default=0)
    for name, tensor in found["tensors"].items():
        shape = " x ".join(map(str, tensor["shape"]))
        console.out.print(
            f"{name:{width}}  {tensor['dtype']:4} {shape:22} {tensor['parameters']:>11,}",
            markup=False,
        )
    console.out.print(
        f"{len(found['tensors'])} tensors, {found['parameters']:,} parameters, "
        f"{console.size(found['bytes'])}, sha256 {found['sha256']}",
        markup=False,
    )


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The file to convert; any URL.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The .safetensors file to write; any URL.")
    ],
    form: Annotated[SourceFormat, typer.Option("--from", help="What SRC is.")],
    variant: Annotated[
        Variant, typer.Option(help="Its network: two of them can look the same in a file.")
    ],
    label_set: Annotated[
        list[str], typer.Option(help="Its classes, name or YAML file; once per head.")
    ],
    preprocessing: Annotated[
        str | None,
        typer.Option(
            help="voc, context, siftflow, nyud, nyud-hha, nyud-color-d, nyud-color-hha or "
            "torchvision. Default: that of the published file, else voc."
        ),
    ] = None,
    output_stride: Annotated[
        int, typer.Option(help="16 or 8: dilated, with denser scores. Only of 32s networks.")
    ] = 32,
    md5: Annotated[str | None, typer.Option(help="Refuse SRC if its md5 is another.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Refuse SRC if its sha256 is another.")] = None,
    as_json: AsJson = False,
) -> None:
    """Convert weights of Caffe, pytorch-fcn or torchvision to a .safetensors file."""
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
        console.out.print(f"by its checksum the published {result.published}", markup=False)
    for note in result.notes:
        console.out.print(note, markup=False)
    _print_description(result.description)
    console.out.print(
        f"{result.destination}: {result.description['parameters']:,} parameters, "
        f"{console.size(result.bytes)}, sha256 {result.sha256}",
        markup=False,
    )


def verify(
    file: File,
    sha256: Annotated[str | None, typer.Option(help="Fail if its sha256 is another.")] = None,
    as_json: AsJson = False,
) -> None:
    """Load a weights file wholly, label a small picture with it, print its sha256."""
    from pipeline.resolve import load_weights
    from pipeline.weights import TRIAL_SIZE, try_out

    found = try_out(load_weights(file), sha256)
    if as_json:
        console.print_json(found)
        return
    height, width = TRIAL_SIZE
    for head, (low, high) in found["logits"].items():
        console.out.print(
            f"logits{f' of head {head}' if head else ''} of {width}x{height} px of noise: "
            f"{low:.4g} to {high:.4g}",
            markup=False,
        )
    start = ", which only starts a training" if found["initialisation"] else ""
    console.out.print(
        f"{file}: {found['variant']}{start}, {found['parameters']:,} parameters, all finite, "
        f"sha256 {found['sha256']}",
        markup=False,
    )


def halve(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A weights file; any URL.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The .safetensors file to write; any URL.")
    ],
) -> None:
    """Write a weights file again with its numbers in float16: half the size."""
    from pipeline.weights import halve as halve_file

    written = halve_file(source, destination)
    console.out.print(
        f"{destination}: {console.size(len(written.data))}, sha256 {written.sha256}", markup=False
    )


def calibrate(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A weights file; any URL.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The .safetensors file to write; any URL.")
    ],
    images: Annotated[
        str, typer.Option("--input", help="Pictures like those to come: an input of `run`.")
    ],
    pictures: Annotated[int, typer.Option(min=1, help="How many of them.")] = 64,
) -> None:
    """Write a weights file again with what `--precision int8` needs: the ranges of its layers."""
    from pipeline.weights import calibrate as calibrate_file

    written = calibrate_file(source, destination, images, pictures)
    seen = written.info.origin["int8_pictures"]
    console.out.print(
        f"{destination}: ranges of {len(written.info.int8_peaks)} layers on {seen} pictures, "
        f"{console.size(len(written.data))}, sha256 {written.sha256}",
        markup=False,
    )


for command in (show, convert, halve, calibrate, verify):
    app.command()(command)


def _print_table() -> None:
    """The files by what they are for, one line each."""
    row = "  {:39} {:13} {:16} {:21} {:>7}  {}"
    head = row.format("file", "--from", "--variant", "--label-set", "mean IU", "checksum")
    console.out.print(head, markup=False)
    for purpose, entries in itertools.groupby(PUBLISHED, lambda entry: entry.purpose):
        console.out.print(purpose, markup=False)
        for entry in entries:
            sets = " ".join(entry.label_sets) or "(your own)"
            score = entry.scores.get("mean_iou")
            percent = "-" if score is None else f"{score:.2f} %"
            variant = entry.variant or "(VGG-16 nets)"
            line = row.format(entry.file, entry.format, variant, sets, percent, entry.checksum)
            console.out.print(line.rstrip(), markup=False)
    console.out.print(
        "mean IU: as published, on PASCAL VOC seg11valid; `fcnseg weights list FILE` says by whom",
        markup=False,
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
        console.out.print(line, markup=False)


def _print_description(found: dict[str, Any]) -> None:
    console.out.print(
        f"{found['variant']}, width {found['width']:g}, {found['upsampling']} upsampling, "
        f"output stride {found['output_stride']}",
        markup=False,
    )
    for head in found["heads"]:
        name = f"head {head['name']}: " if head["name"] else ""
        classes = ", ".join(head["classes"])
        console.out.print(
            f"{name}{len(head['classes'])} classes of label set {head['label_set']}: {classes}",
            markup=False,
        )
    pre = found["preprocessing"]
    console.out.print(
        f"reads {pre['channels']}, mean {_numbers(pre['mean'])}, std {_numbers(pre['std'])}",
        markup=False,
    )
    if found["initialisation"]:
        console.out.print("only starts a training: its scores are zero", markup=False)
    if found["int8"]:
        console.out.print("has the ranges that int8 needs", markup=False)
    for key, value in found["origin"].items():
        console.out.print(f"origin: {key} {value}", markup=False)


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.9g}" for value in values)
