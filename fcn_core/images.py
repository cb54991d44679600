"""Bytes of an image to pixels, and class indices to bytes.

How every kind of image is read (docs/formats.md says the same for users):

- JPEG, PNG, WebP (whatever the file name says: the content decides);
- EXIF orientation is applied, so that the array is what a viewer shows. Labels are taken as they
  are stored and must have the size of the upright image;
- grey becomes three equal channels; palette colours are looked up;
- transparent pixels are laid over white, as a page would show them;
- CMYK is converted by Pillow without colour profiles (profiles are ignored throughout);
- 16-bit channels keep their high byte;
- of an animation the first frame counts.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

from fcn_core.errors import ImageError, LabelError
from fcn_core.labels import Colour, voc_palette

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")

MAX_PIXELS = 100_000_000
"""Default limit of height x width: past it a 'image' is more likely an attack or a mistake."""


# Mask PNGs are megabytes per shard, and level 1 costs a third of level 6 for a tenth more bytes.
PNG_LEVEL = 1


_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What makes an image of that EXIF orientation upright."""


def decode_image(
    data: bytes, where: str = "image", max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """The image as a viewer shows it.

    Args:
        data: a JPEG, PNG or WebP file.
        where: named in the error.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        (H, W, 3) uint8 RGB, 0-255, C-contiguous.

    Raises:
        ImageError: no image, a truncated one, or one over `max_pixels`.
    """
    with _open(data, where, max_pixels) as image:
        try:
            image.load()
            rgb = np.asarray(_to_rgb(_upright(image)))
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(data, where, error) from error
    return np.ascontiguousarray(rgb)


def decode_label(
    data: bytes, where: str = "label", max_pixels: int = MAX_PIXELS, *, colours: bool = False
) -> NDArray[np.uint16]:
    """What a ground-truth PNG holds: palette indices, grey values, or RGB codes where allowed.

    Args:
        data: a PNG file.
        where: named in the error.
        max_pixels: larger images are refused before they are decoded.
        colours: whether RGB is read, for label sets that have RGB codes. A palette is never looked
            up: of such images the indices count, whatever their colours.

    Returns:
        (H, W) values or (H, W, 3) RGB, uint16; `LabelSet.encode` turns both into class indices.

    Raises:
        ImageError: no image, or a truncated one.
        LabelError: a colour image that is not allowed or has see-through pixels, a lossy one, or
            one of 16-bit colours.
    """
    with _open(data, where, max_pixels) as image:
        _refuse_no_label(image, data, where, colours)
        try:
            values = np.asarray(image).astype(np.uint16)
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(data, where, error) from error
        mode = image.mode
    if mode == "RGBA" and (values[..., 3] != 255).any():
        raise LabelError(
            where=where,
            found="see-through pixels",
            expected="colours that are opaque",
            remedy="Save it without alpha.",
        )
    if values.ndim == 3:
        return values[..., :3]
    # Pillow stretches grey of 2 and 4 bits to 0-255; the stored values are the classes.
    stretch = {2: 85, 4: 17}.get(_bit_depth(data), 1) if mode == "L" else 1
    return values if stretch == 1 else values // np.uint16(stretch)


def _refuse_no_label(image: Image.Image, data: bytes, where: str, colours: bool) -> None:
    plain = ("P", "L", "1", "I", "I;16", "I;16B")
    coded = ("RGB", "RGBA") if colours else ()
    if image.format != "PNG" or image.mode not in plain + coded:
        more = ", or an RGB PNG of the label set's colours" if colours else ""
        raise LabelError(
            where=where,
            found=f"a {image.mode} {image.format}",
            expected=f"a label is a grey or palette PNG whose values are class indices{more}",
            remedy="Convert it, or name a --label-set that has RGB codes for its colours.",
        )
    if image.mode in coded and _bit_depth(data) != 8:
        raise LabelError(
            where=where,
            found=f"{_bit_depth(data)}-bit colours",
            expected="8-bit colours",
            remedy="Save it with 8 bits.",
        )


def _bit_depth(data: bytes) -> int:
    return data[24]  # byte 8 of IHDR, which is the first chunk of every PNG


def encode_mask(
    mask: NDArray[np.uint8], palette: Sequence[Colour], level: int = PNG_LEVEL
) -> bytes:
    """An 8-bit palette PNG of class indices; equal masks give equal bytes.

    Args:
        mask: (H, W) uint8, 255 = void.
        palette: (R, G, B) of the classes; the entries behind them are VOC's colours.
        level: zlib level, 0-9.
    """
    image = Image.fromarray(mask)
    image.putpalette(_palette_bytes(tuple(palette)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def encode_image(image: NDArray[np.uint8], level: int = PNG_LEVEL) -> bytes:
    """A PNG of (H, W, 3) RGB or (H, W) grey, uint8; equal images give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def overlay(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    palette: Sequence[Colour],
    opacity: float = 0.6,
) -> NDArray[np.uint8]:
    """The mask's colours over the image; class 0 and void stay see-through.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8.
        palette: (R, G, B) of the classes.
        opacity: 0-1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    mixed = image * (1 - opacity) + colour(mask, palette) * opacity
    painted = ((mask != 0) & (mask != 255))[..., None]
    return np.where(painted, np.rint(mixed), image).astype(np.uint8)


def colour(mask: NDArray[np.uint8], palette: Sequence[Colour]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of (H, W) uint8 class indices; void is in VOC's colour for 255."""
    table = np.frombuffer(_palette_bytes(tuple(palette)), np.uint8).reshape(256, 3)
    return table[mask]


@lru_cache(maxsize=16)
def _palette_bytes(palette: tuple[Colour, ...]) -> bytes:
    full = (*palette, *voc_palette()[len(palette) :])
    return bytes(value for colour in full for value in colour)


def _open(data: bytes, where: str, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError(
            where=where,
            found="a file of 0 bytes",
            expected="a JPEG, PNG or WebP image",
            remedy="Replace it.",
        )
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 Mpx on; our own limit, checked below, decides.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            where=where,
            found=f"{len(data)} bytes that begin with {data[:8]!r}",
            expected="a JPEG, PNG or WebP image",
            remedy="Replace or remove it.",
        ) from error
    except Image.DecompressionBombError as error:  # past 179 Mpx, whatever our own limit
        raise ImageError(
            where=where,
            found="more pixels than Pillow opens (178,956,970)",
            expected=f"at most {max_pixels:,} (limits.max_image_pixels)",
            remedy="Scale it down.",
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(data, where, error) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            where=where,
            found=f"{width}x{height} pixels",
            expected=f"at most {max_pixels:,} are read",
            remedy="Raise limits.max_image_pixels (of predict: --max-image-pixels) if it is meant.",
        )
    return image


def _unreadable(data: bytes, where: str, error: Exception) -> ImageError:
    return ImageError(
        where=where,
        found=f"{len(data)} bytes that do not decode ({error})",
        expected="a whole JPEG, PNG or WebP image",
        remedy="It is probably truncated: copy it again or remove it.",
    )


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF anew, and fails if other tags are damaged.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, struct.error):
        return image  # a viewer, too, shows the image of an unreadable EXIF as it is stored
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        grey = np.asarray(image).astype(np.uint16) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies, even then
