"""Predicting single images: finding them, naming the results, and drawing in a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fcn_core.images import decode_image, decode_label
from fcn_core.predictor import Predictor
from pipeline.errors import InputError
from pipeline.predict.find_images import find_images
from pipeline.predict.show import find_terminal_display
from pipeline.storage.store import Store
from tests.support import world

Fcnseg = Callable[..., tuple[int, str, str]]
NAMES = ("a.jpg", "a.png", "b.JPG", "sub/a.jpg", "sub/deep/c.webp", "_hidden/d.jpg", "e[1].jpg")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(world.jpeg(world.image(index)))
    (tmp_path / "photos/notes.txt").write_text("x")
    return tmp_path / "photos"


def names(*arguments: str | Path, output: str | Path = "/elsewhere") -> list[str]:
    return [
        p.name for p in find_images([str(argument) for argument in arguments], Store(str(output)))
    ]


def test_names_keep_subfolders_and_the_extension_only_where_stems_collide(
    photos: Path,
) -> None:
    everything = ["a.jpg", "a.png", "b", "e[1]", "sub/a", "sub/deep/c"]
    assert names(photos) == everything == names(f"file://{photos}/")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a", "e[1]"]),
        ("*", ["a.jpg", "a.png", "b", "e[1]"]),
        ("**/*.jpg", ["a", "e[1]", "sub/a"]),
        ("s?b/*", ["sub/a"]),
        ("e[1].jpg", ["e[1]"]),
        ("[ab].png", ["a"]),
    ],
)
def test_globs(pattern: str, expected: list[str], photos: Path) -> None:
    assert [name for name in names(photos / pattern) if "hidden" not in name] == expected


def test_globs_and_folders_of_other_stores() -> None:
    store = Store("memory://predict")
    for name in ("in/a.jpg", "in/b.png", "in/sub/c.jpg", "in/d.txt"):
        store.write(name, b"x")
    assert names("memory://predict/in") == ["a", "b", "sub/c"]
    assert names("memory://predict/in/*.jpg") == ["a"]
    assert names("memory://predict/**/*.jpg") == ["in/a", "in/sub/c"]
    assert names("memory://predict/in/missing.jpg") == ["missing"]
    assert names("https://host/x/pic.jpg?size=1") == ["pic"]


@pytest.mark.parametrize("pattern", ["", "**/*.jpg", "**", "**/**/*.jpg", "*/**/*.jpg"])
def test_globs_do_not_follow_links_to_a_parent_folder(pattern: str, tmp_path: Path) -> None:
    """Two links to a parent folder: `**` of `glob` would visit 2**40 folders."""
    inner = tmp_path / "in" / "sub"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "a.jpg").write_bytes(b"x")
        (folder / "up").symlink_to(tmp_path / "in")
        (folder / "here").symlink_to(".")
    (tmp_path / "else").mkdir()
    (tmp_path / "else/b.jpg").write_bytes(b"x")
    inner.joinpath("other").symlink_to(tmp_path / "else")
    expected = ["a", "sub/a", "sub/other/b"]
    if pattern.startswith("*/"):  # a link that `*` matches is followed: here/, up/
        found = names(tmp_path / "in" / pattern)
        assert set(expected[1:]) < set(found) and len(found) < 20
    else:
        assert names(tmp_path / "in" / pattern) == expected


def test_relative_globs_and_stars_within_names(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    (photos / "sub/deep/.dot").mkdir()
    (photos / "sub/deep/.dot/x.jpg").write_bytes(b"x")
    assert names("**/[a]*.jpg") == ["a", "sub/a"] == names("./**/a.jpg")
    assert names("s**/*.jpg") == ["sub/a"] and names("sub/**.jpg") == ["a"]
    assert names("sub/**") == ["a", "deep/c"] == names("sub/**/") == names("sub")


IRREGULAR = ["a pipe", "a socket", "a link to nothing"]


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Path]:
    """Make a folder with one image, and with irregular files that have image names."""
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(world.jpeg(world.image(1)))
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "a pipe.jpg")
    (folder / "a link to nothing.jpg").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(folder):
        listener.bind("a socket.jpg")  # relative, because paths of sockets must be short
        yield folder


@pytest.mark.parametrize("pattern", ["", "*.jpg", "**/*.jpg"])
def test_irregular_files_are_ignored_with_a_warning(
    pattern: str, odd: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert names(odd / pattern) == ["good"]
    warnings = [f"ignored {odd}/{kind}.jpg: {kind}" for kind in sorted(IRREGULAR)]
    assert [record.getMessage() for record in caplog.records] == warnings


def test_a_pipe_given_by_name_is_an_error(
    odd: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    arguments = [odd / "a pipe.jpg", odd / "good.jpg"]
    code, out, err = fcnseg("predict", *arguments, "--output", tmp_path / "o", "--weights", weights)
    assert code == 1 and "good.jpg: " in out
    assert "a pipe.jpg: a pipe; an image in a regular file. Save" in err
    with pytest.raises(InputError, match="no images"):
        names(odd / "*pipe.jpg")


def test_each_image_is_predicted_once_and_results_are_ignored(photos: Path) -> None:
    assert names(photos / "a.jpg", photos / "*.jpg", photos / "a.jpg") == ["a", "e[1]"]
    assert names(photos, output=photos / "sub") == ["a.jpg", "a.png", "b", "e[1]"]


def test_empty_arguments_and_shared_names_are_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", photos / "*.gif"):
        with pytest.raises(InputError, match="no images"):
            names(nothing)
    with pytest.raises(InputError, match="no images except those below --output"):
        names(photos / "sub", output=photos)
    with pytest.raises(InputError, match="has the same name"):
        names(photos / "a.jpg", photos / "sub/a.jpg")


def test_results_equal_those_of_the_predictor(
    photos: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    out = tmp_path / "out"
    code, text, _ = fcnseg("predict", photos, "--output", out, "--weights", weights, "--json")
    rows = json.loads(text)
    assert code == 0 and len(rows) == 6
    assert len(list(out.rglob("*.png"))) == 18
    predictor = Predictor.load(weights)
    for row in rows:
        image = decode_image(Path(row["image"]).read_bytes())
        expected = predictor.predict([image])[0]
        mask = decode_label(Path(row["mask"]).read_bytes())
        assert np.array_equal(mask, expected.mask)
        assert row["mean_confidence"] == expected.mean_confidence
        with Image.open(row["overlay"]) as overlay, Image.open(row["side_by_side"]) as side:
            height, width = mask.shape
            assert side.size == (3 * width + 8, height)
            assert np.array_equal(np.asarray(side)[:, :width], image)
            assert np.array_equal(np.asarray(side)[:, -width:], np.asarray(overlay))


def test_a_small_class_is_printed_as_below_one_percent(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fcnseg: Fcnseg
) -> None:
    mask = np.zeros((20, 100), np.uint8)
    mask[0, :8], mask[1, :20] = 1, 2  # 0.4 %, 1 %
    guess = SimpleNamespace(mask=mask, mean_confidence=0.5)
    monkeypatch.setattr(Predictor, "predict", lambda *_: [guess])
    (tmp_path / "a.jpg").write_bytes(world.jpeg(np.zeros((*mask.shape, 3), np.uint8)))
    words = ("predict", tmp_path / "a.jpg", "--output", tmp_path / "o", "--weights", weights)
    line, shares = fcnseg(*words)[1], json.loads(fcnseg(*words, "--json")[1])[0]["shares"]
    first, second, third = shares
    assert f": {first} 99%, {second} 1%, {third} <1% -> " in line
    assert list(shares.values()) == [1972 / 2000, 20 / 2000, 8 / 2000]


@pytest.mark.parametrize(
    ("terminal", "term", "word"),
    [(False, "xterm", "not a terminal"), (True, "dumb", "cannot draw"), (True, "", "cannot draw")],
)
def test_the_reason_is_returned_where_the_terminal_cannot_draw(
    terminal: bool, term: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    show, why = find_terminal_display(Console(file=io.StringIO(), force_terminal=terminal))
    assert show is None and word in why


def test_show_without_a_terminal_prints_the_reason_and_predicts(
    photos: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    words = ("predict", photos / "b.JPG", "--output", tmp_path / "o", "--weights", weights)
    code, out, err = fcnseg(*words, "--show")
    assert code == 0 and "b.JPG" in out and "the output is not a terminal" in err


def on_a_terminal(command: list[str], answer: bytes, **environment: str) -> bytes:
    """Return what a command writes to a pseudo terminal that answers queries with `answer`."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 480, 800))
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the terminal is closed
            break
        if not piece:
            break
        seen += piece
        for question in (b"\x1b[c", b"\x1b[16t"):
            if question in piece:
                os.write(ours, {b"\x1b[c": answer, b"\x1b[16t": b"\x1b[6;20;10t"}[question])
    _, err = process.communicate()
    os.close(ours)
    assert process.returncode == 0, err.decode()
    return seen + err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "sign", "words"),
    [(b"\x1b[?62;4;22c", b"\x1bP", b"Sixel"), (b"\x1b[?62;22c", "▀".encode(), b"half blocks")],
)
def test_show_uses_the_best_method_of_the_terminal(
    answer: bytes, sign: bytes, words: bytes, photos: Path, weights: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "pipeline", "predict", str(photos / "b.JPG"), "--output",
        str(tmp_path / "o"), "--weights", str(weights), "--show",
    ]  # fmt: skip
    seen = on_a_terminal(command, answer)
    assert sign in seen and words in seen


def test_the_maximum_number_of_pixels_is_an_option(
    photos: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    height, width, _ = decode_image((photos / "a.jpg").read_bytes()).shape
    words = ("predict", photos / "a.jpg", "--output", tmp_path / "out", "--weights", weights)
    code, _, err = fcnseg(*words, "--max-image-pixels", height * width - 1)
    assert code == 1 and f"{width}x{height} pixels" in err and "limits.max_image_pixels" in err
    assert fcnseg(*words, "--max-image-pixels", height * width)[0] == 0


def test_pipes_of_a_shell_are_read(weights: Path, tmp_path: Path, fcnseg: Fcnseg) -> None:
    """`… | fcnseg predict /dev/stdin`, `fcnseg predict <(…)`: these pipes have a writer."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(world.jpeg(world.image(1)))
    words = ("--output", tmp_path / "out", "--weights", weights)
    try:
        code, _, err = fcnseg("predict", f"/dev/fd/{reading}", *words)
    finally:
        os.close(reading)
    assert code == 0, err
    assert len(list((tmp_path / "out").iterdir())) == 3
