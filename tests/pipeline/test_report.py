"""The report: what it says, that it is safe and bounded, and that nothing damaged costs it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fcn_core.labels import LabelSet
from fcn_core.metrics import ConfusionMatrix
from pipeline.chunks import ChunkLimits
from pipeline.commits import Commit, quarantine_path, with_file, write_commit, write_quarantine
from pipeline.finish import write_table
from pipeline.identity import Identity
from pipeline.ledger import Ledger, read_ledger
from pipeline.report import MAX_PICTURES, REPORT_PATH, percent, write_report
from pipeline.results import ImageResult, Preview, Segmented
from pipeline.samples import Failure
from pipeline.store import Store
from pipeline.summary import summarize
from pipeline.writers import _preview_table, record

LABELS = LabelSet("farm", ("field", "cow & calf", "barn", "<tractor>"))
# Class 2 (barn) is in the truth and never found, class 3 in neither.
MATRIX = [[60, 10, 0, 0], [5, 20, 0, 0], [3, 2, 0, 0], [0, 0, 0, 0]]


class _Page(HTMLParser):
    """The text of a page, its addresses, its pictures' texts, and how its elements nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.addresses.append(value or "")
            if name == "alt":
                self.alts.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def preview(key: str, seed: int = 0, labelled: bool = True) -> Preview:
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 3, (24, 32)).astype(np.uint8)
    label = np.where(rng.random(mask.shape) < 0.1, 255, mask).astype(np.uint8)
    image = rng.integers(0, 255, (24, 32, 3)).astype(np.uint8)
    return Preview(key, image, label if labelled else None, mask)


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
        found = Segmented(shard, seq, 1, images, (), tuple(chunk), ConfusionMatrix(4), {})
        data = _preview_table(found, LABELS)
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
    html = output.read(REPORT_PATH).decode()
    return html, _Page(html)


def test_its_numbers_are_those_of_the_ledger(output: Store) -> None:
    add_shard(output, "a")
    add_shard(output, "b", matrix=[[1, 0, 0, 0], [9, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    _, page = written(output)
    matrix = summarize(output, LABELS)[1].confusion
    scores = matrix.scores()
    assert f"Mean IU {percent(scores.mean_iou, 2)}" in page.text
    assert f"{percent(matrix.scores('present').mean_iou, 2)} over the classes" in page.text
    assert f"Pixel accuracy {percent(scores.pixel_accuracy, 2)}" in page.text
    assert f"Mean accuracy {percent(scores.mean_accuracy, 2)}" in page.text
    assert f"Frequency-weighted IU {percent(scores.frequency_weighted_iou, 2)}" in page.text
    assert f"field {percent(scores.iou[0])}" in page.text
    assert "Images 20" in page.text and "Shards 2" in page.text
    assert "Mean confidence 82.5%" in page.text
    assert "forward 8.0 2.5" in page.text  # seconds, images per second
    worst = page.text[page.text.index("Lowest-scoring shards") :]
    assert re.search(r" b \d.* a \d", worst)


def test_a_class_in_neither_is_absent_and_a_missed_one_is_zero(output: Store) -> None:
    add_shard(output, "a")
    _, page = written(output)
    assert "<tractor> absent neither in the truth nor predicted" in page.text
    assert "barn 0.0% 5.0% 0.0%" in page.text
    assert "<tractor> not in the truth" in page.text  # its row of the confusion matrix
    assert "cow & calf 20 80 · ·" in page.text


def test_a_predicted_class_that_is_not_in_the_truth_is_told_apart(output: Store) -> None:
    add_shard(output, "a", matrix=[[6, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    _, page = written(output)
    assert "cow & calf 0.0% not in the truth" in page.text
    assert "Mean IU 42.86% 85.71% over the classes" in page.text


def test_what_comes_from_data_is_escaped(output: Store) -> None:
    evil = "<script>alert('x')</script>\"'&"
    add_shard(
        output,
        "<b>shard",
        previews=[[preview(evil)]],
        failures=[Failure(evil, evil, "ImageError", f"s3://b/{evil}")],
    )
    html, page = written(output, {"<u>failed": f"because of {evil}"})
    assert not {"script", "b", "u"} & set(page.tags)
    assert "<script" not in html and "<tractor>" not in html
    assert page.text.count(evil) >= 4 and "<b>shard" in page.text and "<u>failed" in page.text


def test_nothing_is_asked_of_another_host(output: Store) -> None:
    url = "https://user:secret@data.example/in"
    identity = Identity(url, ChunkLimits(512, 1), LABELS, {"variant": "fcn8s", "precision": "bf16"})
    output.write("_run.json", identity.to_json())
    add_shard(output, "a", previews=[[preview("k")]])
    html, page = written(output, {"z": "s3://key:secret@bucket/z.tar: nothing there"})
    assert page.addresses and all(a.startswith("data:image/") for a in page.addresses)
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html
    assert "secret" not in html and "https://data.example/in" in page.text
    assert identity.fingerprint in page.text and "bf16" in page.text and "fcn8s" in page.text
    assert "torch of this report" in page.text


def test_without_labels_it_says_so_and_shows_confidence(output: Store) -> None:
    add_shard(output, "a", matrix=None, previews=[[preview("k", labelled=False)]])
    _, page = written(output)
    assert "have no labels" in page.text and "Mean IU" not in page.text
    assert "field 75.0%" in page.text and "barn absent" in page.text
    assert "Least confident shards" in page.text and "a 82.5% 10 0" in page.text
    assert [alt.split(":")[0] for alt in page.alts] == ["image", "mask", "overlay"]


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
    add_shard(output, "b", failures=bad[:5])
    _, page = written(output, {f"f{n:02d}": f"reason {n}" for n in range(23)})
    assert "Failed shards: 23" in page.text and "f19 reason 19" in page.text
    assert "f20" not in page.text and "and 3 more" in page.text
    assert "Quarantined images: 65" in page.text and "k049 0 bytes mem/a.tar#049" in page.text
    assert "k050" not in page.text and "and 15 more" in page.text


def test_the_gallery_mixes_the_worst_shards_with_others(output: Store) -> None:
    for n in range(30):
        matrix = [[n + 1, 30 - n, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
        chunk = [preview(f"worst-{n:02d}", n), preview(f"first-{n:02d}", n)]
        add_shard(output, f"s{n:02d}", matrix=matrix, previews=[chunk])
    _, page = written(output)
    shown = re.findall(r"(worst|first)-(\d\d) in shard", page.text)
    assert [n for kind, n in shown if kind == "worst"] == [f"{n:02d}" for n in range(6)]
    assert [n for kind, n in shown if kind == "first"] == ["08", "12", "16", "20", "24", "28"]
    assert "100% of the pixels are right" in page.text
    assert len(page.alts) == 4 * MAX_PICTURES
    assert re.match(r"label: \w+.* \d+%, ", page.alts[1])


def test_few_shards_fill_the_gallery_with_more_of_each(output: Store) -> None:
    chunks = [[preview(f"a{n}"), preview(f"b{n}")] for n in range(40)]
    add_shard(output, "a", previews=chunks)
    _, page = written(output)
    assert page.text.count("in shard a") == MAX_PICTURES


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
    assert "good in shard a" in page.text
    assert all(f"{key} in shard" not in page.text for key in ("cut", "gone", "wide"))
    assert "preview of shard b is unreadable" in page.text
    assert "preview of shard d is unreadable" in page.text  # class 9 of 4
    assert "_quarantine/b.parquet is unreadable" in page.text
    assert "shard c is unreadable" not in page.text  # gone is gone, not damaged


def test_an_output_without_previews_says_so(output: Store) -> None:
    add_shard(output, "a")
    _, page = written(output)
    assert "no previews" in page.text and "Left out" not in page.text


def test_three_thousand_shards_make_no_larger_report(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_shard(output, "s", failures=[Failure("k", "0 bytes", "ImageError", "mem/s.tar#k")])
    (entry,) = read_ledger(output).entries()
    entry = replace(entry, images=100, failures=2)
    ledger = Ledger()
    for n in range(3000):
        ledger.add(replace(entry, shard=f"s{n:04d}"))
    summary = write_table(output, ledger, LABELS)
    reads: list[str] = []
    read = Store.read

    def counting(self: Store, path: str, start: int | None = None, end: int | None = None) -> bytes:
        reads.append(path)
        return read(self, path, start, end)

    monkeypatch.setattr(Store, "read", counting)
    write_report(output, summary, {f"failed-{n}": "x" * 10_000 for n in range(3000)})
    assert len(reads) < 100
    assert output.stat(REPORT_PATH).size < 100_000
    page = _Page(Path(output.url, REPORT_PATH).read_text())
    assert "Images 300,000" in page.text and "The 20 lowest of 3,000" in page.text
    assert "and 2,980 more" in page.text and "and 6,000 more" in page.text
