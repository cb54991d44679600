"""Export to a folder that `datasets.load_dataset` reads: Parquet files and a card."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.export.format import ExportBatch, ExportImage, ExportSubject
from pipeline.formats import HUB_IMAGE, hub_list, hub_metadata, hub_value

_ROW_GROUP_BYTES = 64 * 2**20
"""Encoded bytes per row group, at most. Data set viewers refuse groups over 300 MB."""


HubObject = tuple[int, int]
"""(number of images, bytes of their columns)."""


class HuggingFace:
    """Writes `data/SPLIT-000000.parquet`, …, and the card `README.md`."""

    def __init__(self, subject: ExportSubject) -> None:
        self.subject = subject
        self.images = self.bytes = self.compressed = 0
        self.features = _features(subject)

    def write(self, batch: ExportBatch) -> tuple[int, int, int]:
        """Write a batch as one file; return (images, bytes of its columns, bytes of the file)."""
        rows = [self._row(image) for image in batch.images]
        table = pa.Table.from_pylist(rows, schema=self._schema())
        size = sum(len(p.row.image or b"") + len(p.row.png) for p in batch.images)
        buffer = io.BytesIO()
        pq.write_table(
            table,
            buffer,
            row_group_size=max(1, len(rows) * _ROW_GROUP_BYTES // max(size, _ROW_GROUP_BYTES)),
            compression="NONE",  # images are compressed; the rest is small
            write_page_index=True,
        )
        split = self.subject.options.split
        path = f"data/{split}-{batch.index:06d}.parquet"
        self.subject.target.store.write(path, buffer.getvalue())
        return len(rows), table.nbytes, buffer.tell()

    def add(self, written: tuple[int, int, int]) -> None:
        """Add the counts of a batch to the totals of the card."""
        self.images += written[0]
        self.bytes += written[1]
        self.compressed += written[2]

    def finish(self) -> None:
        """Write the card."""
        self.subject.target.store.write("README.md", self._card().encode())

    def _row(self, image: ExportImage) -> dict[str, Any]:
        kept = list(range(self.subject.labels.num_classes))
        row: dict[str, Any] = {
            "key": image.row.key,
            "shard": image.shard,
            "mask": {"bytes": image.row.png, "path": f"{image.name}.png"},
            "classes": [k for k, _ in image.classes(kept)],
            "mean_confidence": image.row.mean_confidence,
        }
        if image.row.image is not None:
            row["image"] = {"bytes": image.row.image, "path": image.file_name}
        return row

    def _schema(self) -> pa.Schema:
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        types = {
            "image": image,
            "mask": image,
            "key": pa.string(),
            "shard": pa.string(),
            "classes": pa.list_(pa.int64()),
            "mean_confidence": pa.float64(),
        }
        schema = pa.schema([(name, types[name]) for name in self.features])
        return schema.with_metadata(hub_metadata(self.features))

    def _card(self) -> str:
        labels, about, split = self.subject.labels, self.subject.about, self.subject.options.split
        head = {
            "pretty_name": f"{labels.name} masks",
            "task_categories": ["image-segmentation"],
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [{"split": split, "path": f"data/{split}-*.parquet"}],
                }
            ],
            "dataset_info": {
                "features": _yaml_features(self.features),
                "splits": [{"name": split, "num_bytes": self.bytes, "num_examples": self.images}],
                "download_size": self.compressed,
                "dataset_size": self.bytes,
            },
        }
        front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
        rows = "\n".join(
            f"| {k} | {name} | {', '.join(map(str, colour))} |"
            for k, (name, colour) in enumerate(zip(labels.classes, labels.palette, strict=True))
        )
        return f"""---
{front}---

# {labels.name} masks

{self.images} images with predicted class masks: what a network says, not ground truth.

- `mask`: a palette PNG of class indices (below); 255, where it occurs, is void.
- `classes`: the classes that occur in the mask.
- `mean_confidence`: mean over pixels of the softmax probability of the chosen class, 0-1.
- `key`, `shard`: where the image stands in the input.

Made by fcn-pipeline with {about["variant"]} from `{about["input"]}`; weights sha256
`{about["weights_sha256"]}`, fingerprint `{about["fingerprint"]}`.

| index | class | colour (RGB) |
| --- | --- | --- |
{rows}
"""


def _features(subject: ExportSubject) -> dict[str, Any]:
    """Return the features as the metadata of a Parquet file spells them."""
    names = list(subject.labels.classes)
    image = {"image": HUB_IMAGE} if subject.options.images else {}
    return {
        **image,
        "mask": HUB_IMAGE,
        "key": hub_value("string"),
        "shard": hub_value("string"),
        "classes": hub_list({"names": names, "_type": "ClassLabel"}),
        "mean_confidence": hub_value("float64"),
    }


def _yaml_features(features: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the features as the YAML head of a card spells them."""
    found: list[dict[str, Any]] = []
    for name, kind in features.items():
        if kind["_type"] == "Image":
            found.append({"name": name, "dtype": "image"})
        elif kind["_type"] == "List":
            classes = {str(k): text for k, text in enumerate(kind["feature"]["names"])}
            found.append({"name": name, "list": {"class_label": {"names": classes}}})
        else:
            found.append({"name": name, "dtype": kind["dtype"]})
    return found
