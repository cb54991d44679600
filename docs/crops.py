"""Print the position of every layer of the networks, and the crops: python docs/crops.py."""

from __future__ import annotations

from fractions import Fraction

from fcn_core.networks.architecture import VARIANTS, Architecture, Variant
from fcn_core.networks.crops import CropPosition, crops, layer_positions
from fcn_core.networks.layers import decoder

WALKS: tuple[tuple[Variant, str], ...] = (
    ("fcn8s", "conv1_1 pool1 pool2 pool3 pool4 pool5 fc6 score_fr"),
    ("fcn-alexnet", "conv1 pool1 pool2 pool5 fc6 score_fr"),
    (
        "fcn-googlenet32s",
        "conv1/7x7_s2 pool1/3x3_s2 pool2/3x3_s2 pool3/3x3_s2 pool4/3x3_s2 score_fr",
    ),
)


def main() -> None:
    """Print the center of cell 0 and the stride of each layer, then the crops of each variant."""
    for variant, names in WALKS:
        architecture = Architecture(variant, 21)
        positions = layer_positions(architecture)
        print(f"{variant:<20}  cell 0 at px   one cell per px")
        for name in ("data", *names.split()):
            _line(name, positions[name])
        place = positions["score_fr"]
        plan = decoder(architecture)
        for skip in plan.skips:
            place = place.upsampled(4, 2)
            _line(skip.upscore, place)
        _line(plan.upscore, place.upsampled(plan.kernel, plan.stride))
        print()
    print("crops")
    for variant in VARIANTS:
        _crops(variant, Architecture(variant, 21))
    for stride in (16, 8):
        name = f"fcn32s, output stride {stride}"
        _crops(name, Architecture("fcn32s", 21, output_stride=stride))


def _line(name: str, place: CropPosition) -> None:
    print(f"  {name:<18}  {_number(place.shift):>12}  {_number(place.scale):>15}")


def _crops(name: str, architecture: Architecture) -> None:
    offsets = ", ".join(f"{layer} {crop}" for layer, crop in crops(architecture).items())
    print(f"  {name:<24}  {offsets}")


def _number(value: Fraction) -> str:
    return f"{float(value):g}"


if __name__ == "__main__":
    main()
