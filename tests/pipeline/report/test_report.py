"""The report: what it says, that it is safe and bounded, and that nothing damaged costs it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_core.labels import LabelSet
from fcn_core.metrics import ConfusionMatrix
from pipeline.driver import run
from pipeline.finish import write_table
from pipeline.formats import read_parquet
from pipeline.inputs.sample import Failure
from pipeline.inputs.shard import ChunkLimits
from pipeline.manifest import Manifest
from pipeline.output.commit_index import CommitIndex, read_commit_index
from pipeline.output.commits import Commit, with_file, write_commit
from pipeline.output.quarantine import write_quarantine
from pipeline.output.shard_figures import MAX_CELLS
from pipeline.output.summary import summarize
from pipeline.paths import REPORT, quarantine_path
from pipeline.report import gallery as report_gallery
from pipeline.report.build import write_report
from pipeline.report.gallery import MAX_IMAGES
from pipeline.report.page import CHARTS, LICENSES, SCRIPTS, UNPACKER, asset, json_block, percent
from pipeline.stages.records import ImageResult, Preview, SegmentedChunk, record
from pipeline.stages.write import encode_previews
from pipeline.storage.store import Store
from tests.support import world

LABELS = LabelSet("farm", ("field", "cow & calf", "barn", "<tractor>"))
# Class 2 (barn) is in the truth and never found, class 3 in neither.
MATRIX = [[60, 10, 0, 0], [5, 20, 0, 0], [3, 2, 0, 0], [0, 0, 0, 0]]


class _Page(HTMLParser):
    """The text of a page, its addresses, its scripts and data, and how its elements nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.policy = ""
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open and len(self.ids) == len(set(self.ids))
        self.text = " ".join(" ".join(self.words).split())
        self.data = json.loads(self.scripts[0])
        self.images: list[dict[str, Any]] = self.data["pictures"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "input", "path", "circle"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "meta" and ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("path", "circle")  # of the icon

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def preview(
    key: str, seed: int = 0, labeled: bool = True, size: tuple[int, int] = (24, 32)
) -> Preview:
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 3, size).astype(np.uint8)
    label = np.where(rng.random(mask.shape) < 0.1, 255, mask).astype(np.uint8)
    image = rng.integers(0, 255, (*size, 3)).astype(np.uint8)
    return Preview(key, image, label if labeled else None, mask)


def result_of(shown: Preview) -> ImageResult:
    """What the network found, if the preview is all there is of the image."""
    pixels = tuple(np.bincount(np.minimum(shown.mask, 3).ravel(), minlength=4).tolist())
    if shown.label is None:
        return ImageResult(shown.key, shown.mask, 0.75, pixels)
    known = shown.label != 255
    correct = int((shown.label == shown.mask)[known].sum())
    iou = (1.0, 0.5, 0.0, float("nan"))
    return ImageResult(shown.key, shown.mask, 0.75, pixels, correct, int(known.sum()), iou)


def add_shard(
    output: Store,
    shard: str,
    *,
    matrix: list[list[int]] | None = MATRIX,
    previews: list[list[Preview]] | None = None,
    failures: list[Failure] | None = None,
) -> None:
    """Commit a shard of ten images, with a table of previews for every chunk."""
    files = []
    for seq, chunk in enumerate(previews or []):
        images = tuple(result_of(shown) for shown in chunk)
        found = SegmentedChunk(shard, seq, 1, images, (), tuple(chunk), ConfusionMatrix(4), {})
        data = encode_previews(found, LABELS)
        files.append(record(f"_previews/{shard}-{seq}.parquet", data))
        output.write(files[-1].path, data)
    counts = np.array(matrix) if matrix else np.zeros((4, 4), int)
    commit = Commit(
        shard=shard,
        commit_id="0",
        fingerprint="f",
        input={"location": f"mem/{shard}.tar", "etag": "e", "size": 1},
        files=tuple(files),
        masks=("parquet",),
        images=10,
        labeled_images=10 if matrix else 0,
        failures=len(failures or []),
        confusion=tuple(tuple(row) for row in counts.tolist()),
        class_pixels=(750, 250, 0, 0),
        confidence_sum=8.25,
        seconds={"decode": 1.0, "forward": 4.0, "read": 0.5, "write": 0.25},
    )
    write_commit(output, with_file(commit, write_quarantine(output, shard, failures or [])),
                 replaces=None)  # fmt: skip


def written(output: Store, failed: dict[str, str] | None = None) -> tuple[str, _Page]:
    write_report(output, summarize(output, LABELS)[1], failed or {})
    html = output.read(REPORT).decode()
    return html, _Page(html)


def test_its_numbers_are_those_of_the_commit_index(output: Store) -> None:
    add_shard(output, "a")
    add_shard(output, "b", matrix=[[1, 0, 0, 0], [9, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    _, page = written(output)
    matrix = summarize(output, LABELS)[1].confusion
    scores = matrix.scores()
    assert f"Mean IoU {percent(scores.mean_iou, 2)}" in page.text
    assert (
        f"{percent(matrix.scores('present').mean_iou, 2)} over the classes that occur" in page.text
    )
    assert f"Pixel accuracy {percent(scores.pixel_accuracy, 2)}" in page.text
    assert f"Mean accuracy {percent(scores.mean_accuracy, 2)}" in page.text
    assert f"Frequency-weighted IoU {percent(scores.frequency_weighted_iou, 2)}" in page.text
    assert f"field {percent(scores.iou[0])}" in page.text
    assert "Images 20" in page.text and "Shards 2" in page.text
    assert "Mean confidence 82.5%" in page.text
    assert "forward 8.0 69.6% 2.5" in page.text  # seconds, share, images per second
    worst = page.text[page.text.index("Lowest-scoring shards") :]
    assert re.search(r" b \d.* a \d", worst)
    assert page.data["confusion"] == matrix.matrix.tolist()
    mean_iou = (60 / 78 + 20 / 37 + 0) / 3
    assert page.data["shards"]["iou"]["mid"][0] == pytest.approx(mean_iou, abs=1e-5)
    assert page.data["shards"]["seconds"]["forward"] == [4.0, 4.0]


def test_scores_have_intervals_where_there_are_shards_enough(output: Store) -> None:
    for n in range(3):
        add_shard(output, f"s{n}")
    _, page = written(output)
    assert "No intervals" in page.text and "this output has 3" in page.text
    for n in range(3, 12):
        add_shard(
            output, f"s{n}", matrix=[[60 + n, 10, 0, 0], [5, 20, 0, 0], [n, 2, 0, 0], [0] * 4]
        )
    _, page = written(output)
    summary = summarize(output, LABELS)[1]
    low, high = summary.figures.intervals()["mean_iou"]
    assert low < summary.confusion.scores().mean_iou < high
    assert f"{percent(low)} to {percent(high)}" in page.text
    assert "bootstrap over 12 labeled shards" in page.text and "rough" in page.text


def test_a_class_in_neither_is_absent_and_a_missed_one_is_zero(output: Store) -> None:
    add_shard(output, "a")
    _, page = written(output)
    assert "<tractor> absent neither in the truth nor predicted" in page.text
    assert "barn 0.0% 0.0% 5.0% 0.0%" in page.text
    assert page.data["classes"][3] == "<tractor>" and page.data["confusion"][3] == [0] * 4


def test_a_predicted_class_that_is_not_in_the_truth_is_told_apart(output: Store) -> None:
    add_shard(output, "a", matrix=[[6, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    _, page = written(output)
    assert "cow & calf 0.0% not in the truth" in page.text
    assert "Mean IoU 42.86%" in page.text and "85.71% over the classes that occur" in page.text


def test_what_comes_from_data_is_escaped(output: Store) -> None:
    evil = "<script>alert('x')</script>\"'&\u2028<!--"
    add_shard(
        output,
        "<b>shard",
        previews=[[preview(evil)]],
        failures=[Failure(evil, evil, "ImageError", f"s3://b/{evil}")],
    )
    html, page = written(output, {"<u>failed": f"because of {evil}"})
    assert "u" not in page.tags and "<b>shard" not in html
    assert page.tags.count("script") == 1 + len(SCRIPTS)
    assert "<script>alert" not in html and "<tractor>" not in html
    squeezed = " ".join(evil.split())
    assert page.text.count(squeezed) >= 4 and "<b>shard" in page.text and "<u>failed" in page.text
    assert [p["key"] for p in page.images] == [evil]


def test_only_its_own_scripts_may_run_and_nothing_is_asked_of_another_host(output: Store) -> None:
    url = "https://user:secret@data.example/in"
    identity = Manifest(url, ChunkLimits(512, 1), LABELS, {"variant": "fcn8s", "precision": "bf16"})
    output.write("_run.json", identity.to_json())
    add_shard(output, "a", previews=[[preview("k")]])
    html, page = written(output, {"z": "s3://key:secret@bucket/z.tar: nothing there"})
    assert all(address.startswith("#") for address in page.addresses)
    (style,) = re.findall("<style>(.*?)</style>", html, re.DOTALL)
    assert "url(" not in style and "@import" not in style
    allowed = re.findall("'sha256-([^']+)'", page.policy)
    digests = [hashlib.sha256(text.encode()).digest() for text in page.scripts[1:]]
    assert allowed == [base64.b64encode(digest).decode() for digest in digests]
    assert page.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert page.images[0]["image"].startswith("data:image/jpeg;base64,")
    assert "secret" not in html and "https://data.example/in" in page.text
    assert identity.fingerprint in page.text and "bf16" in page.text and "fcn8s" in page.text
    assert "torch " in page.text and "Apache License" in page.text


def test_without_labels_it_says_so_and_shows_confidence(output: Store) -> None:
    add_shard(output, "a", matrix=None, previews=[[preview("k", labeled=False)]])
    _, page = written(output)
    assert "have no labels" in page.text and "Mean IoU" not in page.text
    assert "field 75.0%" in page.text and "barn absent" in page.text
    assert "Least confident shards" in page.text and "a 82.5% 10 0" in page.text
    assert not page.data["scored"] and page.images[0]["label"] is None
    assert page.images[0]["iou"] is None and page.images[0]["confidence"] == 0.75


def test_labels_that_are_all_void_are_no_scores(output: Store) -> None:
    add_shard(output, "a", matrix=[[0] * 4] * 4)
    _, page = written(output)
    assert "Every pixel of the labels is void" in page.text
    assert "With labels 10" in page.text


def test_an_output_without_commits_has_a_report(output: Store) -> None:
    _, page = written(output, {"a": "not a whole tar"})
    assert "Nothing is committed" in page.text and "not a whole tar" in page.text


def test_failed_shards_and_quarantined_images_are_listed(output: Store) -> None:
    bad = [Failure(f"k{n:03d}", "0 bytes", "ImageError", f"mem/a.tar#{n:03d}") for n in range(60)]
    add_shard(output, "a", failures=bad)
    add_shard(output, "b", failures=[replace(f, error="LabelError") for f in bad[:5]])
    _, page = written(output, {f"f{n:02d}": f"reason {n}" for n in range(23)})
    assert "Failed shards: 23" in page.text and "f19 reason 19" in page.text
    assert "f20" not in page.text and "and 3 more" in page.text
    assert "Quarantined images: 65" in page.text and "k049 a 0 bytes mem/a.tar#049" in page.text
    assert "k050" not in page.text and "and 15 more" in page.text
    assert "By kind: ImageError 60 LabelError 5" in page.text


def test_images_are_of_the_worst_shards_and_of_others(output: Store) -> None:
    for n in range(60):
        matrix = [[n + 1, 60 - n, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
        chunk = [preview(f"one-{n:02d}", n), preview(f"two-{n:02d}", n), preview(f"three-{n:02d}")]
        add_shard(output, f"s{n:02d}", matrix=matrix, previews=[chunk])
    _, page = written(output)
    assert len(page.images) == MAX_IMAGES
    shards = sorted({image["shard"] for image in page.images})
    assert shards[:24] == [f"s{n:02d}" for n in range(24)] and len(shards) == 48
    assert max(b - a for a, b in pairwise(int(name[1:]) for name in shards[24:])) <= 2
    first = [image["key"] for image in page.images[:48]]
    assert {key.split("-")[0] for key in first} == {"one"}  # one of each shard before a second
    assert "48 of 60 shards" in page.text


def test_an_image_holds_its_classes_and_figures(output: Store) -> None:
    shown = preview("k", 3)
    add_shard(output, "a", previews=[[replace(shown, why=("drawn by lot",))]])
    _, page = written(output)
    (found,) = page.images
    for name, values in (("mask", shown.mask), ("label", shown.label)):
        assert values is not None
        assert zlib.decompress(base64.b64decode(found[name])) == values.tobytes()
    assert found["small"] == found["size"] == [32, 24] and found["why"] == ["drawn by lot"]
    assert found["iou"] == 0.5 and found["accuracy"] == 1.0 and found["confidence"] == 0.75
    assert sorted(k for k, _, _ in found["classes"]) == [0, 1, 2]
    assert sum(share for _, share, _ in found["classes"]) == pytest.approx(1, abs=1e-4)
    assert {k: iou for k, _, iou in found["classes"]} == {0: 1.0, 1: 0.5, 2: 0.0}


def test_previews_of_older_outputs_are_shown(output: Store) -> None:
    add_shard(output, "a", previews=[[preview("k")]])
    table = read_parquet(output.read("_previews/a-0.parquet"))
    buffer = io.BytesIO()
    pq.write_table(table.select(["key", "image", "label", "mask"]), buffer)
    output.write("_previews/a-0.parquet", buffer.getvalue())
    _, page = written(output)
    (found,) = page.images
    assert found["accuracy"] == 1.0 and found["iou"] == 1.0 and found["confidence"] is None


def test_few_shards_fill_the_gallery_with_more_of_each(output: Store) -> None:
    chunks = [[preview(f"a{n}"), preview(f"b{n}")] for n in range(40)]
    add_shard(output, "a", previews=chunks)
    _, page = written(output)
    assert 16 <= len(page.images) <= 24


def test_images_stay_within_their_bytes(output: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add_shard(output, "a", previews=[[preview(f"k{n}", n) for n in range(8)]])
    sizes = [sum(len(p[n]) for n in ("image", "label", "mask")) for p in written(output)[1].images]
    monkeypatch.setattr(report_gallery, "MAX_BYTES", sum(sizes[:3]) + 1)
    assert [p["key"] for p in written(output)[1].images] == ["k0", "k1", "k2"]


def test_damaged_previews_and_tables_are_left_out_with_a_note(output: Store) -> None:
    failure = Failure("k", "0 bytes", "ImageError", "mem/a.tar#k")
    add_shard(output, "a", previews=[[preview("good")]])
    add_shard(output, "b", previews=[[preview("cut")]], failures=[failure])
    add_shard(output, "c", previews=[[preview("gone")]])
    wide = Preview("wide", np.zeros((4, 4, 3), np.uint8), None, np.full((4, 4), 9, np.uint8))
    add_shard(output, "d", previews=[[wide]])
    output.write("_previews/b-0.parquet", output.read("_previews/b-0.parquet")[:100])
    output.write(quarantine_path("b"), b"PAR1")
    output.delete("_previews/c-0.parquet")
    _, page = written(output)
    assert [image["key"] for image in page.images] == ["good"]
    assert "preview of shard b is unreadable" in page.text
    assert "preview of shard d is unreadable" in page.text  # class 9 of 4
    assert "_quarantine/b.parquet is unreadable" in page.text
    assert "shard c is unreadable" not in page.text  # gone is gone, not damaged


def test_an_output_without_previews_says_so(output: Store) -> None:
    add_shard(output, "a")
    _, page = written(output)
    assert "no previews" in page.text and "Left out" not in page.text


def test_numbers_that_json_has_not_are_no_numbers(output: Store) -> None:
    add_shard(output, "a", previews=[[preview("k")]])
    table = read_parquet(output.read("_previews/a-0.parquet"))
    place = table.schema.get_field_index("mean_confidence")
    table = table.set_column(place, "mean_confidence", pa.array([float("nan")]))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    output.write("_previews/a-0.parquet", buffer.getvalue())
    assert written(output)[1].images[0]["confidence"] is None


def test_three_thousand_shards_make_no_larger_report(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_shard(output, "s", failures=[Failure("k", "0 bytes", "ImageError", "mem/s.tar#k")])
    (entry,) = read_commit_index(output).entries()
    entry = replace(entry, images=100, failures=2)
    index = CommitIndex()
    for n in range(3000):
        index.add(replace(entry, shard=f"s{n:04d}"))
    summary = write_table(output, index, LABELS)
    reads: list[str] = []
    read = Store.read

    def counting(self: Store, path: str, start: int | None = None, end: int | None = None) -> bytes:
        reads.append(path)
        return read(self, path, start, end)

    monkeypatch.setattr(Store, "read", counting)
    write_report(output, summary, {f"failed-{n}": "x" * 10_000 for n in range(3000)})
    assert len(reads) < 120
    page = _Page(Path(output.url, REPORT).read_text())
    own = output.stat(REPORT).size - sum(len(asset(name).encode()) for name in SCRIPTS)
    assert own < 500_000
    assert len(page.data["shards"]["first"]) == MAX_CELLS
    assert sum(page.data["shards"]["images"]) == 300_000
    assert "Images 300,000" in page.text and "3,000 shards, in order, as 1,000 groups" in page.text
    assert "and 2,980 more" in page.text and "and 6,000 more" in page.text


def test_the_libraries_are_those_that_were_released() -> None:
    folder = files("pipeline") / "report/assets"
    sums = (folder / "vendored.sha256").read_text().split()
    listed = dict(zip(sums[1::2], sums[::2], strict=True))
    assert listed.keys() >= {*LICENSES, CHARTS, UNPACKER}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    for name in SCRIPTS:  # each stands in an element of its own
        assert "</script" not in asset(name).lower() and "<!--" not in asset(name)


@given(st.dictionaries(st.text(), st.lists(st.text() | st.none(), max_size=3), max_size=3))
def test_json_ends_no_script_and_is_read_back(value: Any) -> None:
    block = json_block(value)
    assert not set("<>&\u2028\u2029") & set(block)
    assert json.loads(block) == value


def test_runs_and_distributions_are_those_of_the_output(tmp_path: Path, weights: Path) -> None:
    source = world.write_shards(tmp_path / "in", shards=3)
    for limit in (1, None):
        config = world.config(source, tmp_path / "out", weights, input__limit_shards=limit)
        assert run(config).exit_code == 0
    page = _Page((tmp_path / "out" / REPORT).read_text())
    first, second = page.data["runs"]
    assert (first["shards"], first["images"]) == (1, 4)
    assert (second["shards"], second["images"]) == (2, 8)
    summary = summarize(Store(str(tmp_path / "out")), world.TINY)[1]
    assert second["total_iou"] == summary.scores()["mean_iou"]
    assert "The latest 2 runs" in page.text and first["started"] in page.text
    found = page.data["histograms"]
    assert found["images"] == 12
    for name in ("confidence", "size"):
        assert sum(found[name]["counts"]) == 12
        assert len(found[name]["bins"]) == len(found[name]["counts"])
    assert [sum(counts) for counts in found["share"]["counts"]] == [12] * 3
    assert found["size"]["counts"][0] == 12  # all below 32 px


def test_a_history_that_cannot_be_read_costs_no_report(output: Store) -> None:
    add_shard(output, "a")
    output.write("_runs/20261123T010203Z-1a2b3c4d.json", b"{}")
    _, page = written(output)
    assert page.data["runs"] == [] and "The history is unreadable" in page.text
