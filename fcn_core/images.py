"""Decode images and labels to arrays; encode masks and images to PNG.

How image files are read (docs/formats.md has the same list for users):

- Accepted formats are JPEG, PNG and WebP. The content decides, not the file name.
- EXIF orientation is applied, so the array looks as in an image viewer. Labels are taken as
  stored and must have the size of the upright image.
- Gray becomes three equal channels; palette indices become their colors.
- Transparent pixels are drawn over white, as on a web page.
- CMYK is converted by Pillow; color profiles are ignored in all formats.
- Of 16-bit channels, the high byte is kept.
- Of an animation, the first frame is used.
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
"""Default limit of height x width. A larger image is probably an attack or a mistake."""


# Masks are megabytes per shard: level 1 takes a third of the time of level 6, for 10 % more bytes.
PNG_LEVEL = 1


_UPRIGHT_BY_ORIENTATION = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""The transposition that makes an image of this EXIF orientation upright."""


def decode_image(
    data: bytes, where: str = "image", max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode an image as a viewer shows it.

    Args:
        data: Content of a JPEG, PNG or WebP file.
        where: Name of the image in error messages.
        max_pixels: Limit of height x width, checked before decoding.

    Returns:
        (H, W, 3) uint8 RGB, 0-255, C-contiguous.

    Raises:
        ImageError: Data that is not an image, is truncated, or has more than `max_pixels` pixels.
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
    """Decode a ground-truth PNG: palette indices, gray values or, where allowed, RGB codes.

    Args:
        data: Content of a PNG file.
        where: Name of the label in error messages.
        max_pixels: Limit of height x width, checked before decoding.
        colours: Whether RGB images are accepted, for label sets that have RGB codes. Of palette
            images the indices are returned in any case, never the colors.

    Returns:
        (H, W) values or (H, W, 3) RGB, uint16. `LabelSet.encode` turns both into class indices.

    Raises:
        ImageError: Data that is not an image, or a truncated image.
        LabelError: A color image where none is allowed or with transparent pixels, a lossy format,
            or colors of 16 bits.
    """
    with _open(data, where, max_pixels) as image:
        _check_label_format(image, data, where, colours)
        try:
            values = np.asarray(image).astype(np.uint16)
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(data, where, error) from error
        mode = image.mode
    if mode == "RGBA" and (values[..., 3] != 255).any():
        raise LabelError(
            where=where,
            found="transparent pixels",
            expected="labels must be opaque",
            remedy="Save the label without an alpha channel.",
        )
    if values.ndim == 3:
        return values[..., :3]
    # Pillow scales gray of 2 and 4 bits up to 0-255; dividing gives the stored class values back.
    stretch = {2: 85, 4: 17}.get(_bit_depth(data), 1) if mode == "L" else 1
    return values if stretch == 1 else values // np.uint16(stretch)


def _check_label_format(image: Image.Image, data: bytes, where: str, colours: bool) -> None:
    plain = ("P", "L", "1", "I", "I;16", "I;16B")
    coded = ("RGB", "RGBA") if colours else ()
    if image.format != "PNG" or image.mode not in plain + coded:
        more = ", or an RGB PNG in the colors of the label set" if colours else ""
        raise LabelError(
            where=where,
            found=f"a {image.mode} {image.format}",
            expected=f"a label is a gray or palette PNG whose values are class indices{more}",
            remedy="Convert the label, or name a --label-set that has RGB codes for its colors.",
        )
    if image.mode in coded and _bit_depth(data) != 8:
        raise LabelError(
            where=where,
            found=f"{_bit_depth(data)}-bit colors",
            expected="labels have 8-bit colors",
            remedy="Save the label with 8 bits per channel.",
        )


def _bit_depth(data: bytes) -> int:
    return data[24]  # byte 8 of IHDR, which is the first chunk of every PNG


def encode_mask(
    mask: NDArray[np.uint8], palette: Sequence[Colour], level: int = PNG_LEVEL
) -> bytes:
    """Encode class indices as an 8-bit palette PNG; equal masks give equal bytes.

    Args:
        mask: (H, W) uint8 class indices, 255 = void.
        palette: (R, G, B) of each class. The remaining palette entries get VOC's colors.
        level: zlib compression level, 0-9.
    """
    image = Image.fromarray(mask)
    image.putpalette(_palette_bytes(tuple(palette)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def encode_image(image: NDArray[np.uint8], level: int = PNG_LEVEL) -> bytes:
    """Encode (H, W, 3) RGB or (H, W) gray, uint8, as PNG; equal images give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def overlay(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    palette: Sequence[Colour],
    opacity: float = 0.6,
) -> NDArray[np.uint8]:
    """Blend the colors of a mask over an image; class 0 and void stay transparent.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 class indices, 255 = void.
        palette: (R, G, B) of each class.
        opacity: Weight of the mask's colors, 0-1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    mixed = image * (1 - opacity) + colorize(mask, palette) * opacity
    painted = ((mask != 0) & (mask != 255))[..., None]
    return np.where(painted, np.rint(mixed), image).astype(np.uint8)


def colorize(mask: NDArray[np.uint8], palette: Sequence[Colour]) -> NDArray[np.uint8]:
    """Return the (H, W, 3) uint8 RGB colors of (H, W) uint8 class indices.

    Void (255) and indices beyond the palette get VOC's colors.
    """
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
            remedy="Replace the file.",
        )
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 Mpx on; the limit checked below decides instead.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            where=where,
            found=f"{len(data)} bytes that begin with {data[:8]!r}",
            expected="a JPEG, PNG or WebP image",
            remedy="Replace or remove the file.",
        ) from error
    except Image.DecompressionBombError as error:  # above 179 Mpx, independent of max_pixels
        raise ImageError(
            where=where,
            found="more pixels than Pillow can open (178,956,970)",
            expected=f"at most {max_pixels:,} (limits.max_image_pixels)",
            remedy="Scale the image down.",
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(data, where, error) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            where=where,
            found=f"{width}x{height} pixels",
            expected=f"at most {max_pixels:,} pixels",
            remedy="If the size is right, raise limits.max_image_pixels (predict: "
            "--max-image-pixels).",
        )
    return image


def _unreadable(data: bytes, where: str, error: Exception) -> ImageError:
    return ImageError(
        where=where,
        found=f"{len(data)} bytes that do not decode ({error})",
        expected="a complete JPEG, PNG or WebP image",
        remedy="The file is probably truncated: copy it again or remove it.",
    )


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose also rewrites the EXIF data, and fails if other tags are damaged.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, struct.error):
        return image  # image viewers also ignore EXIF data that they cannot read
    transposition = _UPRIGHT_BY_ORIENTATION.get(orientation)
    return image if transposition is None else image.transpose(transposition)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray; Pillow's own conversion would clip at 255
        gray = np.asarray(image).astype(np.uint16) >> 8
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    # convert() would copy an RGB image, too.
    return image if image.mode == "RGB" else image.convert("RGB")
