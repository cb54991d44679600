"""Laws of the review queue: the worst of everything, found without looking at everything."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_core.images import encode_mask
from pipeline.driver import run
from pipeline.errors import OutputError
from pipeline.formats import encode_parquet
from pipeline.output import shard_table
from pipeline.output.commit_index import read_commit_index
from pipeline.output.commits import Commit, write_commit
from pipeline.output.review import Shortlist, choose, read_review, write_review
from pipeline.paths import review_path
from pipeline.stages.histograms import Histograms
from pipeline.stages.records import Candidate
from pipeline.storage.store import Store
from tests.support import world

SCORES = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5])
CANDIDATES = st.lists(
    st.builds(lambda score, labeled: (score, labeled), SCORES, st.booleans()), max_size=5
)
RUN = "20260101T000000Z-00000000"


def commit(shard: str, found: list[tuple[float, bool]]) -> Commit:
    candidates = tuple(
        Candidate(f"k{n}", score, score if labeled else None, f"_previews/{shard}.parquet")
        for n, (score, labeled) in enumerate(found)
    )
    return Commit(
        shard=shard, commit_id=shard, fingerprint="f", input={"location": "", "etag": ""},
        files=(), masks=("parquet",), images=5, labeled_images=0, failures=0,
        confusion=((0, 0, 0),) * 3, class_pixels=(1, 2, 3), confidence_sum=1.0, seconds={},
        run=RUN, histograms=Histograms.zero(3), candidates=candidates,
    )  # fmt: skip


def slow_choice(commits: list[Commit], count: int) -> list[tuple[str, str]]:
    """All candidates of all commits, sorted, by hand."""
    every = [(c.shard, x) for c in commits for x in c.candidates]
    ranked = sorted(every, key=lambda item: (item[1].score, item[0], item[1].key))
    labeled = [item for item in ranked if item[1].mean_iou is not None]
    others = [item for item in ranked if item[1].mean_iou is None]
    first = -(-count // 2)
    if len(others) < count - first:
        first = count - len(others)
    first = min(first, len(labeled))
    return [(shard, c.key) for shard, c in labeled[:first] + others[: count - first]]


@settings(deadline=None, max_examples=40)
@given(st.lists(CANDIDATES, max_size=7), st.integers(0, 9), st.randoms())
def test_the_queue_is_the_worst_of_all_candidates_though_few_commits_are_opened(
    found: list[list[tuple[float, bool]]], count: int, random: Any
) -> None:
    commits = [commit(f"s{n}", candidates) for n, candidates in enumerate(found)]
    shortlist = Shortlist(count)
    for start in range(0, len(commits), 2):  # in batches, as the table gives them
        entries = [shard_table.Entry.of(c, "tag") for c in commits[start : start + 2]]
        shortlist.add(shard_table.batch_of(entries))
    assert len(shortlist.shards()) <= 2 * count
    opened = [c for c in commits if c.shard in shortlist.shards()]
    candidates = [(c.shard, candidate) for c in opened for candidate in c.candidates]
    random.shuffle(candidates)
    chosen = choose(candidates, count)
    assert [(shard, c.key) for shard, c in chosen] == slow_choice(commits, count)


@pytest.mark.parametrize(("count", "most_images"), [(7, 5), (40, 100), (1, 3)])
def test_the_queue_is_exactly_the_worst_images_of_the_run(
    tmp_path: Path, weights: Path, count: int, most_images: int
) -> None:
    """Against every row of every table of masks; a third of the images has labels."""
    for shard in range(3):
        members = world.samples(shard, 13)
        unlabeled = [f"img{n}.png" for n in range(13) if (n + shard) % 3]
        kept = {name: data for name, data in members.items() if name not in unlabeled}
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/s{shard}.tar").write_bytes(world.tar(kept))
    config = world.config(
        tmp_path / "in", tmp_path / "out", weights,
        drift__review_images=count, limits__chunk_images=most_images,
    )  # fmt: skip
    result = run(config)
    assert result.record is not None
    every = ds.dataset(str(tmp_path / "out/masks")).to_table().to_pylist()
    assert len(every) == 39

    def iou(row: dict[str, Any]) -> float:
        known = [value for value in row["iou"] if value is not None]
        return sum(known) / len(known)

    labeled = sorted((iou(r), r["shard"], r["key"]) for r in every if r["iou"] is not None)
    others = sorted((r["mean_confidence"], r["shard"], r["key"]) for r in every if r["iou"] is None)
    half = max((count + 1) // 2, count - len(others))
    wanted = labeled[:half] + others[: count - len(labeled[:half])]
    found = read_review(Store(config.output.url), result.record.run)
    assert [(r.shard, r.key) for r in found] == [(shard, key) for _, shard, key in wanted]
    assert all(r.overlay and r.image and r.mask for r in found)
    assert all((r.label is None) == (r.mean_iou is None) for r in found)


def preview(key: str, *, damaged: bool = False) -> dict[str, Any]:
    image = world.jpeg(world.image(1, (6, 8)))
    mask = encode_mask(np.zeros((6, 8), np.uint8), world.TINY.palette)
    return {"key": key, "image": b"no" if damaged else image, "label": None, "mask": mask}


@pytest.fixture
def output(tmp_path: Path) -> Store:
    """Three shards; of the second the previews are gone, of the third one is damaged."""
    store = Store(str(tmp_path / "out"))
    for n in range(3):
        write_commit(store, commit(f"s{n}", [(0.1 * n + 0.1, False), (0.9, False)]), replaces=None)
    good = pa.Table.from_pylist([preview("k0"), preview("k1")])
    bad = pa.Table.from_pylist([preview("k0", damaged=True), preview("k1")])
    store.write("_previews/s0.parquet", encode_parquet(good))
    store.write("_previews/s2.parquet", encode_parquet(bad))
    return store


def written(output: Store, count: int) -> Any:
    shortlist = Shortlist(count)
    for batch in read_commit_index(output).batches():
        shortlist.add(batch)
    return write_review(output, RUN, shortlist, world.TINY)


def test_what_is_written_is_read_and_missing_images_cost_nothing_else(output: Store) -> None:
    record = written(output, 4)
    assert record.path == review_path(RUN) and record.size == len(output.read(record.path))
    found = read_review(output, RUN)
    assert [(r.shard, r.key) for r in found] == [("s0", "k0"), ("s1", "k0"), ("s2", "k0"),
                                                ("s0", "k1")]  # fmt: skip
    assert [r.image is not None for r in found] == [True, False, False, True]
    assert all(r.reason == "least confident" and r.label is None for r in found)
    assert found[0].overlay is not None
    assert Image.open(io.BytesIO(found[0].overlay)).size == (8, 6)
    first = output.read(review_path(RUN))
    assert written(output, 4) == record and output.read(review_path(RUN)) == first


def test_hugging_face_reads_the_queue_as_images(output: Store, tmp_path: Path) -> None:
    written(output, 2)
    path = str(Path(output.url, review_path(RUN)))
    found = datasets.load_dataset("parquet", data_files=path, split="train",
                                  cache_dir=str(tmp_path / "cache"))  # fmt: skip
    assert found[0]["overlay"].size == (8, 6) and found[0]["mask"].mode == "P"
    assert found[1]["image"] is None and found[0]["key"] == "k0"


def test_no_images_wanted_or_there_leave_no_queue(output: Store) -> None:
    assert written(output, 0) is None and output.objects("review") == []
    assert read_review(output, RUN) == ()


def test_a_damaged_queue_is_named(output: Store) -> None:
    output.write(review_path(RUN), b"no table")
    with pytest.raises(OutputError, match="no review queue"):
        read_review(output, RUN)
