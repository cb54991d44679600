"""What all are given to do. Imports nothing: ours is started as `fcnseg run` is, without torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """Label `folder`/images (JPEG), score against `folder`/labels (PNG), write into `output`.

    Attributes:
        folder: of the images and labels.
        weights: a file of this project.
        output: gets png/KEY.png and rows/*.parquet.
        precision: of the network, "fp32" or "bf16".
        given: whether a peer takes over our precision, memory layout (channels-last) and threads;
            otherwise it computes in fp32, in torch's usual layout and its own usual threads.
        threads: of one copy of the network.
        pillow: whether Daft, too, decodes with Pillow: to tell its decoder from the rest of it.
    """

    folder: str
    weights: str
    output: str
    precision: str
    given: bool
    threads: int
    pillow: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def images(self) -> list[Path]:
        return sorted(Path(self.folder, "images").glob("*.jpg"))

    def image(self, key: str) -> Path:
        return Path(self.folder, "images", f"{key}.jpg")

    def label(self, key: str) -> Path:
        return Path(self.folder, "labels", f"{key}.png")

    def rows(self) -> Path:
        """Folder for Parquet files, made."""
        return self._made("rows")

    def png(self, key: str) -> Path:
        return self._made("png") / f"{key}.png"

    def _made(self, name: str) -> Path:
        path = Path(self.output, name)
        path.mkdir(parents=True, exist_ok=True)
        return path
