"""Every kind of image is read as a viewer shows it; everything else is an ImageError."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import ExifTags, Image

from fcn_core.errors import ImageError, LabelError
from fcn_core.images import decode_image, decode_label, encode_mask, overlay
from fcn_core.labels import VOC, VOID, voc_palette

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (17, 23, 3), np.uint8)
GREY = RGB[..., 0]
ALPHA = RNG.integers(0, 256, (17, 23), np.uint8)
SMOOTH = np.linspace(0, 255, 17 * 23 * 3).reshape(17, 23, 3).astype(np.uint8)  # survives JPEG


def encoded(image, file_format="PNG", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits, colour_type, rows, *chunks):
    """A PNG by its specification: grey is colour type 0, RGB 2, palette 3, LA 4, RGBA 6."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def over_white(colours, alpha):
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def near(found, expected, tolerance):
    return np.abs(found.astype(float) - expected).max() <= tolerance


# --- Kinds of images -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [encoded(RGB), encoded(RGB, "WEBP", lossless=True)], ids=["PNG", "WebP"]
)
def test_lossless_colours_are_read_exactly(data):
    image = decode_image(data)
    assert (image.dtype, image.flags.c_contiguous) == (np.uint8, True)
    assert np.array_equal(image, RGB)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_lossy_colours_are_read_closely(file_format):
    assert near(decode_image(encoded(SMOOTH, file_format, quality=100)), SMOOTH, 12)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_grey_becomes_three_equal_channels(file_format):
    image = decode_image(encoded(SMOOTH[..., 0], file_format, quality=100))
    assert near(image, SMOOTH[..., [0, 0, 0]], 2)
    assert (image == image[..., :1]).all()


def test_palette_colours_are_looked_up():
    mask = GREY % 21
    assert np.array_equal(decode_image(encode_mask(mask, VOC.palette)), np.array(VOC.palette)[mask])


def test_transparent_palette_entries_are_laid_over_white():
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60, 70, 80, 90]))
    data = png(3, 1, 8, 3, [[0, 1, 2]], palette, chunk(b"tRNS", bytes([0, 255, 51])))
    colours = np.array([[[10, 20, 30], [40, 50, 60], [70, 80, 90]]])
    assert near(decode_image(data), over_white(colours, np.array([[0, 255, 51]])), 1)


def test_a_transparent_colour_is_laid_over_white():
    data = png(2, 1, 8, 2, [[1, 2, 3, 4, 5, 6]], chunk(b"tRNS", bytes([0, 1, 0, 2, 0, 3])))
    assert decode_image(data).tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize(("file_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_rgba_is_laid_over_white(file_format, options):
    data = encoded(np.dstack([RGB, ALPHA]), file_format, exact=True, **options)
    assert near(decode_image(data), over_white(RGB, ALPHA), 1)


def test_grey_with_alpha_is_laid_over_white():
    image = decode_image(encoded(np.dstack([GREY, ALPHA])))
    assert near(image, over_white(GREY[..., None].repeat(3, 2), ALPHA), 1)


def test_cmyk_is_converted_without_a_profile():
    cyan_to_red = np.zeros((16, 16, 4), np.uint8)
    cyan_to_red[:, :8, 0] = 255
    cyan_to_red[:, 8:, 1:3] = 255
    image = decode_image(encoded(Image.fromarray(cyan_to_red, "CMYK"), "JPEG", quality=100))
    assert near(image[:, 2], [0, 255, 255], 3)
    assert near(image[:, -2], [255, 0, 0], 3)


def test_black_ink_darkens_every_colour():
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[..., 3] = 155
    image = decode_image(encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=100))
    assert near(image, 100, 3)


@pytest.mark.parametrize(
    ("colour_type", "samples", "expected"),
    [
        (0, [(1, 255)], [1, 1, 1]),
        (0, [(200, 3)], [200, 200, 200]),
        (2, [(1, 255), (128, 0), (254, 9)], [1, 128, 254]),
        (4, [(7, 255), (255, 255)], [7, 7, 7]),
        (4, [(7, 255), (0, 0)], [255, 255, 255]),
        (6, [(1, 255), (128, 0), (254, 9), (255, 255)], [1, 128, 254]),
    ],
    ids=["dark grey", "light grey", "RGB", "LA", "transparent LA", "RGBA"],
)
def test_16_bit_channels_keep_their_high_byte(colour_type, samples, expected):
    data = png(1, 1, 16, colour_type, [[byte for sample in samples for byte in sample]])
    assert decode_image(data).tolist() == [[expected]]


def test_grey_of_few_bits_is_stretched_to_white():
    assert decode_image(png(4, 1, 2, 0, [[0b00011011]]))[0, :, 0].tolist() == [0, 85, 170, 255]
    assert decode_image(png(8, 1, 1, 0, [[0b00011011]]))[0, :, 0].tolist() == [
        255 * bit for bit in (0, 0, 0, 1, 1, 0, 1, 1)
    ]


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(file_format):
    second = [Image.fromarray(255 - RGB)]
    data = encoded(RGB, file_format, save_all=True, append_images=second, lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.array_equal(decode_image(data), RGB)


# --- Orientation -------------------------------------------------------------------------------

# EXIF 2.3, tag 0x0112: the side of the upright image at which row 0 and column 0 are stored.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored(upright, orientation):
    row_0, column_0 = SIDES[orientation]
    pixels = upright.swapaxes(0, 1) if row_0 in ("left", "right") else upright
    pixels = pixels[::-1] if row_0 in ("bottom", "right") else pixels
    return np.ascontiguousarray(pixels[:, ::-1] if column_0 in ("bottom", "right") else pixels)


def exif(orientation):
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, file_format):
    tags = exif(orientation)
    data = encoded(stored(RGB, orientation), file_format, exif=tags, lossless=True)
    assert np.array_equal(decode_image(data), RGB)


@pytest.mark.parametrize("orientation", SIDES)
def test_exif_orientation_of_a_jpeg_is_applied(orientation):
    data = encoded(stored(SMOOTH, orientation), "JPEG", exif=exif(orientation), quality=100)
    assert near(decode_image(data), SMOOTH, 12)


def test_16_bit_grey_is_turned_too():
    data = encoded(stored(GREY.astype(np.uint16) << 8, 6), exif=exif(6))
    assert np.array_equal(decode_image(data), GREY[..., None].repeat(3, 2))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_impossible_orientation_is_no_orientation(orientation):
    assert np.array_equal(decode_image(encoded(RGB, exif=exif(orientation))), RGB)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_unreadable_exif_does_not_cost_the_image(file_format):
    data = encoded(RGB, file_format, exif=b"Exif\0\0no TIFF header")
    assert decode_image(data).shape == RGB.shape


def test_damaged_exif_tags_do_not_cost_the_orientation():
    width = struct.pack(">HHI4s", ExifTags.Base.ImageWidth, 2, 2, b"a")  # a number that is a text
    orientation = struct.pack(">HHIHH", ExifTags.Base.Orientation, 3, 1, 6, 0)
    tags = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + width + orientation + bytes(4)
    data = encoded(stored(RGB, 6), exif=tags)
    assert np.array_equal(decode_image(data), RGB)


def test_labels_are_taken_as_they_are_stored():
    assert np.array_equal(decode_label(encoded(GREY, exif=exif(6))), GREY)


# --- No images -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "a file of 0 bytes"),
        (b"\0" * 100, "100 bytes that begin with"),
        (b"<html>404</html>", "16 bytes that begin with b'<html>40'"),
        (encoded(RGB, "GIF"), "GIF89a|GIF87a"),
        (encoded(RGB, "BMP"), "BM"),
        (encoded(RGB, "TIFF"), "II"),
    ],
    ids=["empty", "zeros", "text", "GIF", "BMP", "TIFF"],
)
@pytest.mark.parametrize("decode", [decode_image, decode_label])
def test_what_is_no_image_is_refused(data, found, decode):
    with pytest.raises(ImageError, match=rf"^sample 3: .*({found})"):
        decode(data, "sample 3")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_image_is_refused_or_whole(file_format):
    data = encoded(RGB, file_format)
    whole, refused = decode_image(data), 0
    for length in range(len(data)):
        try:
            assert np.array_equal(decode_image(data[:length]), whole)
        except ImageError:
            refused += 1
    assert refused > len(data) - 25  # the last bytes say only that this was all


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@given(st.data())
def test_a_damaged_image_is_refused_or_read_but_never_another_error(file_format, data):
    damaged = bytearray(encoded(SMOOTH, file_format, exif=exif(6)))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for decode in (decode_image, decode_label):
        try:
            decode(bytes(damaged), max_pixels=10_000)
        except (ImageError, LabelError, UserWarning):  # Pillow warns of damaged EXIF
            continue


def test_an_image_over_the_limit_is_refused():
    data = encoded(RGB)
    assert decode_image(data, max_pixels=17 * 23).shape == RGB.shape
    for decode in (decode_image, decode_label):
        with pytest.raises(ImageError, match=r"23x17 pixels; at most 390 pixels.*max_image_pix"):
            decode(data, max_pixels=17 * 23 - 1)


@pytest.mark.parametrize("limit", [100_000_000, 10**9])
def test_an_image_that_only_claims_to_be_huge_is_refused_as_too_large(limit):
    with pytest.raises(ImageError, match=r"more pixels than Pillow|20000x20000 pixels"):
        decode_image(png(20_000, 20_000, 8, 0, []), max_pixels=limit)


# --- Labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "colour_type", "row", "expected"),
    [
        (1, 0, [0b00011011], [0, 0, 0, 1, 1, 0, 1, 1]),
        (2, 0, [0b00011011], [0, 1, 2, 3]),
        (4, 0, [0x1F], [1, 15]),
        (8, 0, [7, 255], [7, 255]),
        (16, 0, [1, 2, 0, 255], [258, 255]),
        (1, 3, [0b00011011], [0, 0, 0, 1, 1, 0, 1, 1]),
        (2, 3, [0b00011011], [0, 1, 2, 3]),
        (4, 3, [0x1F], [1, 15]),
        (8, 3, [7, 255], [7, 255]),
    ],
)
def test_label_values_are_the_stored_ones_at_every_depth(bits, colour_type, row, expected):
    palette = [chunk(b"PLTE", bytes(3 * 2**bits))] if colour_type == 3 else []
    label = decode_label(png(len(expected), 1, bits, colour_type, [row], *palette))
    assert (label.dtype, label.tolist()) == (np.uint16, [expected])


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (encoded(RGB), "a RGB PNG"),
        (encoded(np.dstack([RGB, ALPHA])), "a RGBA PNG"),
        (encoded(np.dstack([GREY, ALPHA])), "a LA PNG"),
        (encoded(GREY, "JPEG"), "a L JPEG"),
        (encoded(RGB, "WEBP"), "a RGB WEBP"),
    ],
    ids=["RGB", "RGBA", "LA", "JPEG", "WebP"],
)
def test_a_label_of_colours_or_with_losses_is_refused(data, found):
    with pytest.raises(LabelError, match=f"^label 5: {found}; "):
        decode_label(data, "label 5")


def test_a_truncated_label_is_refused():
    with pytest.raises(ImageError, match="truncated"):
        decode_label(encoded(GREY)[:-60])


# --- Masks -------------------------------------------------------------------------------------

masks = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))


@given(masks, st.integers(0, 9))
def test_a_mask_survives_its_file(mask, level):
    assert np.array_equal(decode_label(encode_mask(mask, VOC.palette, level)), mask)


@given(masks)
def test_equal_masks_are_equal_bytes(mask):
    assert encode_mask(mask, VOC.palette) == encode_mask(mask.copy(order="F"), list(VOC.palette))


def test_a_mask_shows_the_palette_and_the_void_of_voc():
    data = encode_mask(np.array([[0, 1, 2, VOID]], np.uint8), [(9, 9, 9), (1, 2, 3)])
    assert Image.open(io.BytesIO(data)).mode == "P"
    colours = [(9, 9, 9), (1, 2, 3), voc_palette()[2], voc_palette()[VOID]]
    assert decode_image(data).tolist() == [[list(colour) for colour in colours]]


def test_an_overlay_paints_only_classes():
    mask = np.array([[0, 1, VOID]], np.uint8)
    image = np.full((1, 3, 3), 100, np.uint8)
    painted = overlay(image, mask, [(9, 9, 9), (200, 0, 100)], opacity=0.5)
    assert painted.tolist() == [[[100] * 3, [150, 50, 100], [100] * 3]]


@pytest.mark.parametrize(("opacity", "expected"), [(0, RGB), (1, np.array(voc_palette())[GREY])])
def test_opacity_runs_from_the_image_to_the_colours(opacity, expected):
    inner = (GREY != 0) & (GREY != VOID)
    assert np.array_equal(overlay(RGB, GREY, VOC.palette, opacity)[inner], expected[inner])
