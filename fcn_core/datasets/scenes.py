"""Render small synthetic images with exact labels, for the demo, the tests and the demo weights.

They replace photographs where these cannot be distributed. Only the shape of an object determines
its class. Colors and textures come from the same distributions for all classes and for the
background, so that no mapping from color to class solves the task.

Shapes are signed distances in pixels (negative inside), evaluated at pixel centers. One distance
gives the label (its sign), the void border (near zero) and the anti-aliased edge (a ramp), so that
the three always agree.

Internally, a field is (H, W) and an image (3, H, W), both float32, because numpy is slow if the
last axis has length 3. Scalars are Python numbers, because numpy scalars would turn arrays into
float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fcn_core.errors import FcnError
from fcn_core.labels import SCENES, VOID

Field = NDArray[np.float32]


SIDES = (96, 224)
"""Smallest and largest side of a scene of random size, px."""


RADII = (18.0, 48.0)
"""Smallest and largest circumscribed radius of an object, px."""


BORDER = 1.25
"""Pixels with centers this close to an outline, px, are void: a band 2-3 px wide, as in VOC."""


AREA_PER_OBJECT = 6000.0
"""Target number of pixels per object; there are fewer objects if no more fit."""


MARGIN = 12
"""Pixels around an object's circle that its patch includes for the border and the shadow."""


CONTRAST = 70.0
"""Smallest RGB distance between the mean colors of an object and of each background."""


POINTS = {"triangle": 3, "square": 4, "star": 5}


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and its ground truth.

    Attributes:
        image: (H, W, 3) uint8 RGB, 0-255.
        label: (H, W) uint8 index into `SCENES.classes`, 255 on the outlines of objects.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]


@dataclass(frozen=True)
class _Object:
    kind: int  # class index
    x: float  # center, px from the left edge of the image
    y: float
    radius: float


def render_scene(seed: int, size: tuple[int, int] | None = None) -> Scene:
    """Render the scene of a seed.

    Args:
        seed: Number from 0 up; equal seeds and sizes give equal scenes.
        size: (height, width) in px, at least 1x1. Default: sides of 96-224 px, drawn from the seed.

    Returns:
        The scene. Objects overlap slightly, and the edge of the image cuts some of them.

    Raises:
        FcnError: A negative seed or an empty size.
    """
    if seed < 0 or (size is not None and min(size) < 1):
        raise FcnError(
            where="scene",
            found=f"seed {seed}, size {size}",
            expected="seeds start at 0 and sides at 1",
        )
    rng = np.random.default_rng(seed)
    sides = rng.integers(SIDES[0], SIDES[1], 2, endpoint=True).tolist()
    height, width = size or (sides[0], sides[1])
    image, colours = _background(rng, height, width)
    label = np.zeros((height, width), np.uint8)
    light = rng.uniform(0, 2 * math.pi)
    for item in _place(rng, height, width):
        colour = _far_colour(rng, colours)
        _paint(rng, item, (colour, light), (image, label))
    return Scene(_photograph(rng, image, light), label)


def render_training_scenes(seeds: Iterable[int], side: int) -> Iterator[Scene]:
    """Yield one scene per seed: seven squares of one side, then one of random size, and so on.

    A network pads every image by 100 px, so large images give more labeled pixels per second. The
    smaller ones train the network for a field of view that is mostly padding.
    """
    for seed in seeds:
        yield render_scene(seed, None if seed % 8 == 7 else (side, side))


def _place(rng: np.random.Generator, height: int, width: int) -> list[_Object]:
    """Choose objects from back to front so that no object hides the shape of another."""
    placed: list[_Object] = []
    largest = max(RADII[0], min(RADII[1], 0.36 * min(height, width)))
    wanted = 1 + rng.poisson(height * width / AREA_PER_OBJECT)
    for _ in range(4 * wanted):
        # Uniform in the logarithm: every octave of sizes has the same share.
        radius = math.exp(rng.uniform(math.log(RADII[0]), math.log(largest)))
        inset = min(0.35 * radius, 0.5 * min(height, width))
        x, y = rng.uniform(inset, width - inset), rng.uniform(inset, height - inset)
        kind = int(rng.integers(1, SCENES.num_classes))
        if all(math.hypot(x - o.x, y - o.y) > 0.8 * (radius + o.radius) for o in placed):
            placed.append(_Object(kind, x, y, radius))
        if len(placed) == wanted:
            break
    return placed


def _paint(
    rng: np.random.Generator,
    item: _Object,
    look: tuple[Field, float],
    canvas: tuple[Field, NDArray[np.uint8]],
) -> None:
    """Draw an object with look (color, direction of light) and its shadow into (image, label)."""
    colour, light = look
    image, label = canvas
    reach = int(item.radius) + MARGIN
    left, top = int(item.x) - reach, int(item.y) - reach
    # Compute the whole patch, then cut it at the edges of the image.
    steps = np.arange(2 * reach + 1, dtype=np.float32)
    x, y = steps + (left + 0.5 - item.x), (steps + (top + 0.5 - item.y))[:, None]
    distance = _distance(rng, SCENES.classes[item.kind], item.radius, (x, y))
    skin = _surface(rng, colour, distance.shape)
    # A soft bulge, whose depth does not depend on the class.
    bulge = rng.uniform(-0.25, 0.25) / item.radius
    skin *= 1 + (bulge * math.cos(light)) * x + (bulge * math.sin(light)) * y
    length = rng.uniform(0, 5)
    fall = (round(-length * math.sin(light)), round(-length * math.cos(light)))
    depth = rng.uniform(0, 0.5)
    shade = 1 - depth * np.clip(0.5 - np.roll(distance, fall, axis=(0, 1)) / 4, 0, 1)

    rows = slice(max(0, -top), min(distance.shape[0], label.shape[0] - top))
    cols = slice(max(0, -left), min(distance.shape[1], label.shape[1] - left))
    there = (slice(top + rows.start, top + rows.stop), slice(left + cols.start, left + cols.stop))
    distance = distance[rows, cols]
    pixels = image[:, *there] * shade[rows, cols]
    image[:, *there] = pixels + np.clip(0.5 - distance, 0, 1) * (skin[:, rows, cols] - pixels)
    patch = label[there]
    patch[distance < 0] = item.kind
    patch[np.abs(distance) <= BORDER] = VOID


def _distance(
    rng: np.random.Generator, shape: str, radius: float, where: tuple[Field, Field]
) -> Field:
    """Return the signed distance, px, to the outline of a shape around the origin."""
    out = np.hypot(*where)
    if shape == "disc":
        return np.asarray(out - 0.85 * radius, np.float32)
    if shape == "ring":
        half = rng.uniform(0.18, 0.25) * radius
        return np.asarray(np.abs(out - (radius - half)) - half)
    points = POINTS[shape]
    turn = math.pi / points
    # A regular polygon is a star whose inner corners lie on the lines between its outer corners.
    inner = radius * (rng.uniform(0.4, 0.5) if shape == "star" else math.cos(turn))
    # Fold the plane into half of one point: one edge remains, from the outer corner (radius, 0).
    angle = np.arctan2(where[1], where[0]) + rng.uniform(0, 2 * math.pi)
    angle = np.abs((angle + turn) % (2 * turn) - turn)
    u, v = out * np.cos(angle) - radius, out * np.sin(angle)
    edge_u, edge_v = inner * math.cos(turn) - radius, inner * math.sin(turn)
    along = np.clip((u * edge_u + v * edge_v) / (edge_u**2 + edge_v**2), 0, 1)
    away = np.hypot(u - along * edge_u, v - along * edge_v)
    outside = u * edge_v > v * edge_u
    return np.asarray(np.where(outside, away, -away), np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> tuple[Field, list[Field]]:
    """Render a textured background; most scenes have a second one beyond a slanted line.

    Returns:
        The image in 0-255, and the mean colors of its backgrounds.
    """
    colours = [_colour(rng)]
    image = _surface(rng, colours[0], (height, width))
    if rng.random() < 0.6:
        colours.append(_colour(rng))
        x, y = _axes(height, width)
        angle, shift = rng.uniform(0, 2 * math.pi), rng.uniform(-0.6, 0.6)
        side = math.cos(angle) * x + math.sin(angle) * y + shift
        beyond = np.clip(0.5 + side * (max(height, width) / 2), 0, 1)
        image += beyond * (_surface(rng, colours[1], (height, width)) - image)
    return image, colours


def _axes(height: int, width: int) -> tuple[Field, Field]:
    """Return (1, W) and (H, 1) coordinates, each from -1 to 1 across the image."""
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    return x, np.linspace(-1, 1, height, dtype=np.float32)[:, None]


def _colour(rng: np.random.Generator) -> Field:
    """Return a random (3,) color in 20-235; gray colors are as likely as bright ones."""
    grey = rng.uniform(20, 235)
    return (grey + rng.uniform(0, 1) * (rng.uniform(20, 235, 3) - grey)).astype(np.float32)


def _far_colour(rng: np.random.Generator, others: Sequence[Field]) -> Field:
    """Return a color that is distinct from all others; two spheres never fill the cube."""
    while True:
        colour = _colour(rng)
        if all(math.dist(colour, other) > CONTRAST for other in others):
            return colour


def _surface(rng: np.random.Generator, colour: Field, shape: tuple[int, ...]) -> Field:
    """Return a (3, H, W) texture around a color, in slightly more than 0-255."""
    # The texture varies along one direction of the RGB cube, as paint and shadow do.
    direction = 0.6 + 0.4 * rng.standard_normal(3)
    direction *= rng.uniform(5, 45) / max(0.1, math.hypot(*direction))
    texture = _texture(rng, shape)
    return colour[:, None, None] + direction.astype(np.float32)[:, None, None] * texture


def _texture(rng: np.random.Generator, shape: tuple[int, ...]) -> Field:
    """Return an (H, W) texture in about -1 to 1."""
    kind = rng.choice(["cloud", "grain", "stripes", "checks", "dots"])
    if kind == "cloud":
        return 0.8 * _noise(rng, shape, 24) + 0.4 * _noise(rng, shape, 8)
    if kind == "grain":
        return _noise(rng, shape, 3)
    angle, pace = rng.uniform(0, math.pi), 2 * math.pi / rng.uniform(5, 14)
    cos, sin = pace * math.cos(angle), pace * math.sin(angle)
    x = np.arange(shape[1], dtype=np.float32)
    y = np.arange(shape[0], dtype=np.float32)[:, None]
    across: Field = np.sin(cos * x + sin * y)
    if kind == "stripes":
        return across
    woven: Field = across * np.sin(cos * y - sin * x)
    # The factors sharpen the product of sines into areas with soft edges.
    return np.clip(3 * woven, -1, 1) if kind == "checks" else np.clip(4 * woven - 1, -1, 1) + 0.4


def _noise(rng: np.random.Generator, shape: tuple[int, ...], grain: int) -> Field:
    """Return (H, W) white noise in about -1 to 1, interpolated from cells of `grain` px."""
    height, width = shape
    cells = rng.uniform(-1, 1, (height // grain + 2, width // grain + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))


def _photograph(rng: np.random.Generator, image: Field, light: float) -> NDArray[np.uint8]:
    """Add uneven light, slight blur and sensor noise; return (H, W, 3)."""
    height, width = image.shape[1:]
    x, y = _axes(height, width)
    slope = rng.uniform(0, 0.3)
    image *= 1 + slope * math.cos(light) * x + slope * math.sin(light) * y
    image *= rng.uniform(0.9, 1.1, (3, 1, 1)).astype(np.float32)
    np.clip(image, 0, 255, out=image)
    soft = Image.fromarray(np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0)))
    soft = soft.filter(ImageFilter.BoxBlur(rng.uniform(0, 0.7)))
    noise = rng.standard_normal((height, width, 3), dtype=np.float32) * rng.uniform(1, 9)
    noise += np.asarray(soft)
    return np.clip(noise, 0, 255, out=noise).astype(np.uint8)
