"""Read labels from the MATLAB files of published datasets.

Sources of the formats: data/pascal/convert_sbdd.py, nyud_layers.py and siftflow_layers.py of
shelhamer/fcn.berkeleyvision.org; the page of the NYU Depth Dataset V2; classMapping40.mat of Gupta
et al. 2013.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fcn_core.errors import FcnError, LabelError, MissingPackageError

_HDF5 = b"\x89HDF\r\n\x1a\n"

_MATRIX, _COMPRESSED = 14, 15


def read_sbd_label(data: bytes, where: str) -> NDArray[np.uint8]:
    """Read `GTcls.Segmentation` of a file in SBD's `cls/`.

    Args:
        data: Content of the `.mat` file.
        where: Name of the file in error messages.

    Returns:
        (H, W) uint8, 0-20.

    Raises:
        LabelError: Data that is not such a file.
    """
    with _as_label_error(where, "GTcls.Segmentation"):
        truth = _load(data)["GTcls"][0, 0]["Segmentation"]
        return _matrix(truth).astype(np.uint8)


def read_siftflow_label(data: bytes, where: str) -> NDArray[np.uint8]:
    """Read `S` of a file in SIFT Flow's `SemanticLabels/` or `GeoLabels/`.

    Returns:
        (H, W) uint8, 0 = void. The -1 of geometric labels becomes 0, as in siftflow_layers.py.

    Raises:
        LabelError: Data that is not such a file.
    """
    with _as_label_error(where, "S"):
        label = _matrix(_load(data)["S"]).astype(np.int64)
        return np.where(label == -1, 0, label).astype(np.uint8)


def read_nyud_label(data: bytes, where: str) -> NDArray[np.uint8]:
    """Read `segmentation` of a file in `segmentation/` of the NYUDv2 folder of the FCN code.

    Returns:
        (H, W) uint8: 1-40, 0 = void.

    Raises:
        LabelError: Data that is not such a file.
    """
    with _as_label_error(where, "segmentation"):
        return _matrix(_load(data)["segmentation"]).astype(np.uint8)


def read_nyud_splits(data: bytes, where: str) -> dict[str, tuple[int, ...]]:
    """Read NYUDv2's `splits.mat`: image numbers, from 1, by "train" (795) and "test" (654).

    Raises:
        LabelError: Data that is not such a file.
    """
    with _as_label_error(where, "trainNdxs and testNdxs"):
        file = _load(data)
        return {
            name: tuple(int(n) for n in np.ravel(file[f"{name}Ndxs"])) for name in ("train", "test")
        }


def read_nyud_class_mapping(data: bytes, where: str) -> NDArray[np.uint8]:
    """Read `mapClass` of classMapping40.mat: the 40-class value of each of the 894 labels.

    Returns:
        (895,) uint8; index 0 is 0, so that unlabeled pixels stay void.

    Raises:
        LabelError: Data that is not such a file.
    """
    with _as_label_error(where, "mapClass"):
        classes = np.ravel(_load(data)["mapClass"]).astype(np.int64)
        if classes.size < 1 or not 0 <= classes.min() <= classes.max() <= 40:
            raise ValueError(f"mapClass of {classes.size} values that are not all 0-40")
        return np.concatenate([[0], classes]).astype(np.uint8)


def read_nyud_labels40(data: bytes, where: str, count: int) -> Callable[[int], NDArray[np.uint8]]:
    """Read `labels40` of labels40.mat and return a function from image index, from 0, to label.

    Args:
        data: Content of the `.mat` file.
        where: Name of the file in error messages.
        count: Required number of images.

    Raises:
        LabelError: Data that is not such a file, or has another number of images.
    """
    with _as_label_error(where, f"labels40 of {count} images"):
        labels = np.asarray(_load(data)["labels40"])
        if labels.ndim != 3 or labels.shape[2] != count:
            raise ValueError(f"labels40 of shape {labels.shape}")
    return lambda index: labels[:, :, index].astype(np.uint8)


class NyudLabeled:
    """nyu_depth_v2_labeled.mat: 1449 images, and their labels of up to 894 classes.

    A MATLAB 7.3 file is HDF5 with MATLAB's axes in reverse order: `images` is (N, 3, W, H) and
    `labels` is (N, W, H). Images are read one at a time.

    Args:
        handle: Open, seekable file.
        where: Address of the file in error messages.

    Raises:
        LabelError: Data that is not such a file, or a damaged file.
        MissingPackageError: h5py is not installed.
    """

    def __init__(self, handle: IO[bytes], where: str) -> None:
        h5py = _h5py()
        self.where = where
        with _as_label_error(where, "images and labels"):
            self._file = h5py.File(handle, "r")
            self._images = self._file["images"]
            self._labels = self._file["labels"]
            if self._images.ndim != 4 or self._images.shape[::2] != self._labels.shape[:2]:
                shapes = f"{self._images.shape} and {self._labels.shape}"
                raise ValueError(f"images and labels of shapes {shapes}")

    def __len__(self) -> int:
        return int(self._images.shape[0])

    def close(self) -> None:
        """Close the HDF5 file, but not the handle."""
        self._file.close()

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the image with an index from 0: (H, W, 3) uint8 RGB."""
        with _as_label_error(self.where, "images"):
            return np.ascontiguousarray(np.transpose(self._images[index], (2, 1, 0)))

    def label(self, index: int, mapping: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the (H, W) uint8 label of an image, mapped as by `read_nyud_class_mapping`."""
        with _as_label_error(self.where, "labels"):
            label = np.transpose(self._labels[index])
            if label.max(initial=0) >= mapping.size:
                raise ValueError(f"image {index + 1} has label {label.max()}")
            mapped: NDArray[np.uint8] = mapping[label]
            return mapped


def _load(data: bytes) -> Any:
    import scipy.io  # slow to import, so only where it is used

    _check_mat_file(data)
    return scipy.io.loadmat(io.BytesIO(data))


def _check_mat_file(data: bytes) -> None:
    """Check lengths and checksums, because scipy's reader crashes on some damaged files.

    Source: "MAT-File Format", MathWorks: 128 bytes of header, then elements of type, size and body.
    Compressed elements (MATLAB's default) have a checksum; in other files only lengths can be
    checked.
    """
    if data.startswith((_HDF5, b"MATLAB 7.3")):
        raise ValueError("a MATLAB 7.3 file; save it with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if not data.startswith(b"MATLAB 5.0") or order is None:
        raise ValueError(f"{len(data)} bytes that begin with {data[:8]!r}")
    at = 128
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        body = data[at + 8 : at + 8 + size]
        if len(body) != size or kind not in (_MATRIX, _COMPRESSED):
            raise ValueError(f"{len(data)} bytes, damaged or truncated at {at}")
        if kind == _COMPRESSED:
            zlib.decompress(body)
        at += 8 + size


def _matrix(value: Any) -> NDArray[Any]:
    matrix = np.asarray(value)
    if matrix.ndim != 2 or matrix.dtype.kind not in "iufb" or not matrix.size:
        raise ValueError(f"a matrix of shape {matrix.shape} and type {matrix.dtype}")
    if (matrix != np.round(matrix)).any() or matrix.min() < -1 or matrix.max() > 255:
        raise ValueError(
            f"values from {matrix.min()} to {matrix.max()}, expected integers from -1 to 255"
        )
    return matrix


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingPackageError(
            where="package h5py",
            found="not installed",
            expected="MATLAB files of version 7.3 need this package",
            remedy="Install it: pip install 'fcn-pipeline[matlab]'.",
        ) from error
    return h5py


@contextmanager
def _as_label_error(where: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except (FcnError, MemoryError):
        raise
    except Exception as error:  # scipy's reader raises many types on damaged files
        detail = f"{type(error).__name__}: {error}".strip().rstrip(".")
        raise LabelError(
            where=where,
            found=f"not readable ({detail})",
            expected=f"a MATLAB file with {wanted}",
            remedy="The file is damaged or has another format: copy it again.",
        ) from error
