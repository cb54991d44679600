"""Rendered scenes: little pictures whose every label is exact, because they are drawn from it.

They stand in for photographs where those cannot travel: the demo, the tests and the demo weights.
The class of an object is its shape alone. Colours and textures are drawn from the same pots for
every class and for the background, so that no table from colour to class solves them.

Shapes are signed distances in pixels (negative inside), evaluated at pixel centres. One distance
gives the label (its sign), the void border (near zero) and the anti-aliased edge (a ramp), so that
the three cannot disagree.

Shape suffixes are left out: every field is (H, W) float32, every picture (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fcn_core.errors import FcnError
from fcn_core.labels import SCENES, VOID

Field = NDArray[np.float32]

SIDES = (96, 224)
"""Sides of a scene of drawn size, px, both ends included."""

RADII = (16.0, 46.0)
"""Circumscribed radius of an object, px."""

BORDER = 1.25
"""Pixels with centres this near to an outline, px, are void: a band 2-3 px wide, as in VOC."""

AREA_PER_OBJECT = 5500.0
"""Pixels per object aimed at; fewer fit where placing fails."""

MARGIN = 12
"""Pixels around an object's circle that its patch holds for the border and the shadow."""

CONTRAST = 70.0
"""Least distance in RGB between the mean colours of an object and of either background."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and its truth.

    Attributes:
        image: (H, W, 3) uint8 RGB, 0-255.
        label: (H, W) uint8 index into `SCENES.classes`, 255 on the outlines of objects.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]


@dataclass(frozen=True)
class _Object:
    kind: int  # class index
    x: float
    y: float
    radius: float


def render_scene(seed: int, size: tuple[int, int] | None = None) -> Scene:
    """The scene of that number.

    Args:
        seed: 0 or more; equal seeds and sizes give equal scenes.
        size: (height, width) in px, at least 1x1. Default: drawn from the seed, sides 96-224.

    Returns:
        The scene. Objects overlap, and the picture's edge cuts some.

    Raises:
        FcnError: the seed is negative or the size is empty.
    """
    if seed < 0 or (size is not None and min(size) < 1):
        raise FcnError(
            "render_scene", f"seed {seed}, size {size}", "seed >= 0 and sides >= 1 are needed"
        )
    rng = np.random.default_rng(seed)
    drawn = rng.integers(SIDES[0], SIDES[1], 2, endpoint=True)
    height, width = size or (int(drawn[0]), int(drawn[1]))
    image, colours = _background(rng, height, width)
    label = np.zeros((height, width), np.uint8)
    light = rng.uniform(0, 2 * np.pi)
    for thing in _place(rng, height, width):
        _paint(rng, thing, _far_colour(rng, colours), light, (image, label))
    return Scene(_photograph(rng, image, light), label)


def _place(rng: np.random.Generator, height: int, width: int) -> list[_Object]:
    """Objects back to front, none hiding so much of another that its shape cannot be told."""
    placed: list[_Object] = []
    largest = max(RADII[0], min(RADII[1], 0.36 * min(height, width)))
    wanted = 1 + rng.poisson(height * width / AREA_PER_OBJECT)
    for _ in range(4 * wanted):
        # Drawn evenly in the logarithm: as many small ones per octave as large ones.
        radius = float(np.exp(rng.uniform(np.log(RADII[0]), np.log(largest))))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        kind = int(rng.integers(1, SCENES.num_classes))
        if all(np.hypot(x - o.x, y - o.y) > 0.8 * (radius + o.radius) for o in placed):
            placed.append(_Object(kind, x, y, radius))
        if len(placed) == wanted:
            break
    return placed


def _paint(
    rng: np.random.Generator,
    thing: _Object,
    colour: Field,
    light: float,
    canvas: tuple[Field, NDArray[np.uint8]],
) -> None:
    """Draw the object and its shadow into (image, label), in place."""
    image, label = canvas
    reach = int(thing.radius) + MARGIN
    left, top = int(thing.x) - reach, int(thing.y) - reach
    # The whole patch is computed, then cut at the picture's edge.
    ys, xs = np.ogrid[0 : 2 * reach + 1, 0 : 2 * reach + 1]
    x = (xs + (left + 0.5 - thing.x)).astype(np.float32)
    y = (ys + (top + 0.5 - thing.y)).astype(np.float32)
    distance = _distance(rng, SCENES.classes[thing.kind], thing.radius, (x, y))
    skin = _colour_field(rng, colour, distance.shape)
    # A soft bulge towards the light, whose depth has nothing to do with the class.
    slope = (x * np.cos(light) + y * np.sin(light)) / thing.radius
    skin *= (1 + rng.uniform(-0.25, 0.25) * slope)[..., None]
    length = rng.uniform(0, 5)
    fall = (round(-length * np.sin(light)), round(-length * np.cos(light)))
    shade = np.clip(0.5 - np.roll(distance, fall, axis=(0, 1)) / 4, 0, 1) * rng.uniform(0, 0.5)

    height, width = label.shape
    rows = slice(max(0, -top), max(0, min(distance.shape[0], height - top)))
    cols = slice(max(0, -left), max(0, min(distance.shape[1], width - left)))
    there = (slice(top + rows.start, top + rows.stop), slice(left + cols.start, left + cols.stop))
    distance, cover = distance[rows, cols], np.clip(0.5 - distance[rows, cols], 0, 1)[..., None]
    pixels = image[there] * (1 - shade[rows, cols])[..., None]
    image[there] = pixels + cover * (skin[rows, cols] - pixels)
    patch = label[there]
    patch[distance < 0] = thing.kind
    patch[np.abs(distance) <= BORDER] = VOID


def _distance(
    rng: np.random.Generator, shape: str, radius: float, where: tuple[Field, Field]
) -> Field:
    """Signed distance to the outline of a shape around the origin, in px."""
    x, y = where
    out = np.hypot(x, y)
    if shape == "disc":
        return out - np.float32(0.9 * radius)
    if shape == "ring":
        half = 0.5 * rng.uniform(0.36, 0.5) * radius
        return np.abs(out - np.float32(radius - half)) - np.float32(half)
    points = {"triangle": 3, "square": 4, "star": 5}[shape]
    turn = np.pi / points
    # A regular polygon is a star whose inner corners lie on the straight line between the outer.
    inner = rng.uniform(0.4, 0.5) if shape == "star" else np.cos(turn)
    # Fold the plane into half a point of the star: one edge is left, from (radius, 0) inwards.
    angle = np.arctan2(y, x) + np.float32(rng.uniform(0, 2 * np.pi))
    angle = np.abs((angle + turn) % (2 * turn) - turn)
    u, v = out * np.cos(angle) - np.float32(radius), out * np.sin(angle)
    edge_u, edge_v = radius * (inner * np.cos(turn) - 1), radius * inner * np.sin(turn)
    along = np.clip((u * edge_u + v * edge_v) / (edge_u**2 + edge_v**2), 0, 1)
    away = np.hypot(u - along * edge_u, v - along * edge_v)
    return np.where(u * edge_v > v * edge_u, away, -away).astype(np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> tuple[Field, list[Field]]:
    """A textured ground, in most scenes with a second one beyond a slanted line.

    Returns:
        The picture in 0-255, and the mean colours it is made of.
    """
    colours = [_colour(rng)]
    image = _colour_field(rng, colours[0], (height, width))
    if rng.random() < 0.6:
        colours.append(_colour(rng))
        x = np.linspace(-0.5, 0.5, width, dtype=np.float32)
        y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
        angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3)
        side = np.cos(angle) * x + np.sin(angle) * y + shift
        beyond = np.clip(0.5 + side * max(height, width), 0, 1)[..., None]
        image += beyond * (_colour_field(rng, colours[1], (height, width)) - image)
    return image, colours


def _colour(rng: np.random.Generator) -> Field:
    """Any colour in 20-235, greys being as likely as bright ones."""
    grey = rng.uniform(20, 235)
    return (grey + rng.uniform(0, 1) * (rng.uniform(20, 235, 3) - grey)).astype(np.float32)


def _far_colour(rng: np.random.Generator, others: Sequence[Field]) -> Field:
    """A colour that can be told from all others; some distance always exists in the RGB cube."""
    while True:
        colour = _colour(rng)
        if all(float(np.linalg.norm(colour - other)) > CONTRAST for other in others):
            return colour


def _colour_field(rng: np.random.Generator, colour: Field, shape: tuple[int, ...]) -> Field:
    """(H, W, 3) around a colour, in 0-255 and a little beyond."""
    # Texture moves along one direction of the RGB cube, as paint and shadow do; the mean stays.
    direction = 0.6 + 0.4 * rng.standard_normal(3)
    direction *= rng.uniform(5, 45) / max(1e-3, float(np.linalg.norm(direction)))
    return colour + _texture(rng, shape)[..., None] * direction.astype(np.float32)


def _texture(rng: np.random.Generator, shape: tuple[int, ...]) -> Field:
    """(H, W) in about -1 to 1 with mean about 0."""
    kind = rng.choice(["cloud", "stripes", "checks", "dots", "grain"])
    height, width = shape
    if kind == "cloud":
        return 0.8 * _noise(rng, shape, 24) + 0.4 * _noise(rng, shape, 8)
    if kind == "grain":
        return _noise(rng, shape, 3)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x = np.arange(width, dtype=np.float32) * np.float32(2 * np.pi / period)
    y = np.arange(height, dtype=np.float32)[:, None] * np.float32(2 * np.pi / period)
    across = np.sin(cos * x + sin * y)
    if kind == "stripes":
        return across
    woven = across * np.sin(cos * y - sin * x)
    # The factors steepen a product of sines into checks or dots without jagged edges.
    return np.clip(3 * woven, -1, 1) if kind == "checks" else np.clip(4 * woven - 1.6, -1, 1) + 0.5


def _noise(rng: np.random.Generator, shape: tuple[int, ...], grain: int) -> Field:
    """(H, W) in -1 to 1: white noise of that many px per cell, interpolated."""
    height, width = shape
    cells = rng.uniform(-1, 1, (height // grain + 2, width // grain + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))


def _photograph(rng: np.random.Generator, image: Field, light: float) -> NDArray[np.uint8]:
    """Uneven light, a lens that is a little soft, a sensor that is a little noisy."""
    height, width = image.shape[:2]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    slope = np.float32(rng.uniform(0, 0.3))
    gradient = 1 + slope * (np.float32(np.cos(light)) * x + np.float32(np.sin(light)) * y)
    tint = rng.uniform(0.9, 1.1, 3).astype(np.float32)
    lit = image * gradient[..., None] * tint
    soft = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    soft = soft.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1, 9))
    return np.clip(np.asarray(soft) + noise, 0, 255).astype(np.uint8)
