"""Laws of the history: one record per run that did something, whichever process
finishes it; and three nights of rendered scenes, the last of which is dark."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipeline.committer
import pipeline.driver
import pipeline.finish
from fcn_core.datasets.scenes import render_scene
from fcn_core.images import encode_mask
from fcn_core.labels import SCENES
from fcn_core.metrics import ConfusionMatrix
from pipeline.driver import run
from pipeline.errors import ConfigError, OutputError
from pipeline.formats import add_to_tar
from pipeline.output.commit_index import read_commits
from pipeline.output.gc import find_garbage
from pipeline.output.history import RECORD_NAME, RunRecord, begin_run, list_runs, read_history
from pipeline.output.quarantine import find_retry_list, quarantined
from pipeline.output.review import read_review
from pipeline.output.status import read_status
from pipeline.output.verify import verify
from pipeline.paths import OPEN_RUN, SCORES, record_path, review_path
from pipeline.storage.store import Store
from tests.support import world

OLD = Path(__file__).parent / "data/output-format-1.tar.xz"


def add_shard(root: Path, number: int, images: int = 4, *, labels: bool = True) -> None:
    root.mkdir(exist_ok=True)
    members = world.samples(number, images)
    if not labels:
        members = {name: data for name, data in members.items() if name.endswith(".jpg")}
    (root / f"s{number}.tar").write_bytes(world.tar(members))


def plain(record: RunRecord) -> dict[str, Any]:
    """All of a record that follows from input, weights and configuration."""
    document = json.loads(record.to_json())
    for name in ("run", "ended", "seconds"):
        document.pop(name)
    if document["review"]:
        document["review"].pop("path")
    return document  # type: ignore[no-any-return]


def test_each_run_that_did_something_leaves_one_record(tmp_path: Path, weights: Path) -> None:
    source, out = tmp_path / "in", Store(str(tmp_path / "out"))
    config = world.config(source, out.url, weights, output__masks=("parquet",))
    add_shard(source, 0)
    first = run(config).record
    again = run(config)
    assert again.record is None and again.drifted == ()
    add_shard(source, 1, labels=False)
    second = run(config).record
    assert first is not None and second is not None
    assert read_history(out) == (first, second) and read_history(out, 1) == (second,)
    assert (first.shards, first.images, first.labeled_images) == (1, 4, 4)
    assert (second.shards, second.images, second.labeled_images) == (1, 4, 0)
    assert second.totals["shards"] == 2 and second.scores["mean_iou"] is None
    assert out.objects("_runs")[-1].path != OPEN_RUN and len(out.objects("_runs")) == 2
    by_shard = {commit.shard: commit for commit in read_commits(out)}
    assert by_shard["s0"].run == first.run and by_shard["s1"].run == second.run
    matrix = by_shard["s0"].matrix
    assert first.scores["mean_iou"] == matrix.scores().to_dict()["mean_iou"]
    assert first.window.class_pixels == by_shard["s0"].class_pixels
    assert "no earlier run" in first.comparison.note and "min_images" in second.comparison.note


def test_records_are_read_back_and_damage_is_named(tmp_path: Path, weights: Path) -> None:
    add_shard(tmp_path / "in", 0)
    out = Store(str(tmp_path / "out"))
    record = run(world.config(tmp_path / "in", out.url, weights)).record
    assert record is not None
    assert RunRecord.from_json(record.to_json(), "here") == record
    json.dumps(record.to_dict(), allow_nan=False)
    for data, found in ((b"{", "no readable record"), (b'{"format": 9}', "record format 9")):
        out.write(record_path(record.run), data)
        with pytest.raises(OutputError, match=found):
            read_history(out)
        (problem,) = verify(out).problems
        assert problem[0] == record_path(record.run)


@pytest.mark.parametrize("place", ["write_table", "write_review", "end_run", "write_results"])
def test_a_run_killed_at_its_end_is_told_once_and_whole(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    for number in range(3):
        add_shard(tmp_path / "in", number)
    config = world.config(tmp_path / "in", tmp_path / "out", weights)
    calm = run(world.config(tmp_path / "in", tmp_path / "calm", weights)).record
    where: Any = pipeline.finish
    before = getattr(where, place)

    def killed(*args: Any) -> None:
        if place in ("write_review", "end_run"):
            before(*args)  # after it, as well as could be
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where, place, killed)
        run(config)
    out = Store(str(tmp_path / "out"))
    assert len(list_runs(out)) == (1 if place in ("end_run", "write_results") else 0)
    run(config)
    (record,) = read_history(out)
    assert calm is not None and plain(record) == plain(calm)
    assert (tmp_path / "out/_SUCCESS").exists() and not (tmp_path / "out" / OPEN_RUN).exists()
    assert (
        out.read(review_path(record.run))
        == (tmp_path / "calm" / review_path(calm.run)).read_bytes()
    )
    assert verify(out).problems == () and list(find_garbage(out, 0)) == []


def test_a_run_killed_in_the_middle_is_finished_under_its_name(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        add_shard(tmp_path / "in", number)
    config = world.config(tmp_path / "in", tmp_path / "out", weights)
    out = Store(str(tmp_path / "out"))
    commits = 0

    def write_commit(*args: Any, **named: Any) -> str:
        nonlocal commits
        commits += 1
        if commits == 3:
            raise KeyboardInterrupt
        return real(*args, **named)

    real = pipeline.committer.write_commit
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline.committer, "write_commit", write_commit)
        run(config)
    begun = json.loads(out.read(OPEN_RUN))["run"]
    assert read_history(out) == ()
    record = run(config).record
    assert record is not None and record.run == begun and record.shards == 4
    assert {commit.run for commit in read_commits(out)} == {begun}


def test_a_run_that_found_nothing_to_keep_is_no_history(tmp_path: Path, weights: Path) -> None:
    source, out = tmp_path / "in", Store(str(tmp_path / "out"))
    add_shard(source, 0)
    config = world.config(source, out.url, weights)
    run(config)
    out.write(OPEN_RUN, json.dumps({"run": "20260101T000000Z-00000000"}).encode())
    assert run(config).record is None and len(out.objects("_runs")) == 1
    (source / "s1.tar").write_bytes(b"no tar")
    failed = run(config).record
    assert failed is not None and (failed.shards, failed.failed, failed.images) == (0, 1, 0)
    assert "this run has 0 images" in failed.comparison.note


# --- Three nights -----------------------------------------------------------------------------


def scene_tar(seeds: range, light: float, labeled: int) -> bytes:
    """Rendered scenes, some of them with their exact labels."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for seed in seeds:
            scene = render_scene(seed, (96, 112))
            image = io.BytesIO()
            dark = (scene.image * light).astype(np.uint8)
            Image.fromarray(dark).save(image, "JPEG", quality=92)
            add_to_tar(tar, f"scene-{seed}.jpg", image.getvalue())
            if seed < seeds.start + labeled:
                add_to_tar(tar, f"scene-{seed}.png", encode_mask(scene.label, SCENES.palette))
    return buffer.getvalue()


NIGHT = 48


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """An output after three nights of new scenes; the third night's are dark."""
    root = tmp_path_factory.mktemp("nights")
    (root / "in").mkdir()
    results = []
    for night, light in enumerate((1.0, 1.0, 0.12)):
        first = 6_000_000 + NIGHT * night
        for half in range(2):
            seeds = range(first + NIGHT // 2 * half, first + NIGHT // 2 * (half + 1))
            labeled = 12 if half == 0 and night != 1 else 0
            (root / f"in/night{night}-{half}.tar").write_bytes(scene_tar(seeds, light, labeled))
        config = world.config(
            root / "in", root / "out", "demo", output__masks=("parquet",),
            drift__review_images=10,
        )  # fmt: skip
        results.append(run(config))
    return root, results


def test_each_night_does_the_new_shards_and_the_third_is_drift(
    nights: tuple[Path, list[Any]],
) -> None:
    root, results = nights
    assert [result.done_now for result in results] == [2, 2, 2]
    assert [result.exit_code for result in results] == [0, 0, 0]
    assert [bool(result.drifted) for result in results] == [False, False, True]
    names = [drift.quantity for drift in results[2].drifted]
    assert "confidence" in names and "size" not in names and "aspect" not in names
    calm = {drift.quantity: drift for drift in results[1].record.comparison.quantities}
    assert len(calm) == SCENES.num_classes + 4 and calm["size"].psi == 0
    assert results[2].record.comparison.reference_images == 2 * NIGHT
    history = read_history(Store(str(root / "out")))
    assert history == tuple(result.record for result in results)
    # Some shards have labels: their IU, night by night; the second night has none.
    ious = [record.scores["mean_iou"] for record in history]
    assert ious[1] is None and ious[0] > ious[2]


def test_what_a_night_says_is_what_its_masks_say(nights: tuple[Path, list[Any]]) -> None:
    """Every sum of the record, from the masks' own rows."""
    root, results = nights
    for night, result in enumerate(results):
        rows = [
            row
            for path in sorted((root / "out/masks").glob(f"night{night}-*.parquet"))
            for row in pq.read_table(path).to_pylist()
        ]
        record = result.record
        assert record.images == len(rows) == record.window.histograms.images
        pixels = np.array([row["class_pixels"] for row in rows])
        assert record.window.class_pixels == tuple(pixels.sum(axis=0).tolist())
        absent = tuple((pixels == 0).sum(axis=0).tolist())
        assert tuple(row[0] for row in record.window.histograms.shares) == absent
        confidence = [row["mean_confidence"] for row in rows]
        assert record.mean_confidence == pytest.approx(np.mean(confidence))
        matrix = ConfusionMatrix(SCENES.num_classes)
        for commit in read_commits(Store(str(root / "out"))):
            if commit.run == record.run:
                matrix += commit.matrix
        scores = matrix.scores().to_dict()
        assert {name: record.scores[name] for name in scores} == scores


def test_the_worst_images_of_the_night_are_in_its_review_queue(
    nights: tuple[Path, list[Any]],
) -> None:
    root, results = nights
    store = Store(str(root / "out"))
    for night, result in enumerate(results):
        rows = {}
        for path in (root / "out/masks").glob(f"night{night}-*.parquet"):
            rows |= {(row["shard"], row["key"]): row for row in pq.read_table(path).to_pylist()}
        found = read_review(store, result.record.run)
        assert 0 < len(found) <= 10 and len({(r.shard, r.key) for r in found}) == len(found)
        least = min(rows.values(), key=lambda r: (r["iou"] is not None, r["mean_confidence"]))
        assert least["key"] in [r.key for r in found]
        for item in found:
            row = rows[item.shard, item.key]
            assert item.mean_confidence == row["mean_confidence"]
            assert (item.mean_iou is None) == (row["iou"] is None)
            for image in (item.image, item.mask, item.overlay):
                assert image is not None
                assert Image.open(io.BytesIO(image)).size == (112, 96)


def test_another_output_can_be_the_reference(nights: tuple[Path, list[Any]]) -> None:
    root, _ = nights
    (root / "other").mkdir(exist_ok=True)
    seeds = range(7_000_000, 7_000_000 + NIGHT)
    (root / "other/dark.tar").write_bytes(scene_tar(seeds, 0.12, 0))
    reference = {"drift__reference": str(root / "out"), "output__masks": ("parquet",)}
    result = run(world.config(root / "other", root / "out-other", "demo", **reference))
    assert result.record is not None
    assert result.record.comparison.reference_images == 3 * NIGHT
    assert "confidence" in [drift.quantity for drift in result.drifted]


def test_a_reference_of_other_classes_is_refused_before_anything_is_done(
    nights: tuple[Path, list[Any]], tmp_path: Path, weights: Path
) -> None:
    add_shard(tmp_path / "in", 0)
    reference = {"drift__reference": str(nights[0] / "out")}
    with pytest.raises(ConfigError, match=r"drift.reference .* the classes background"):
        run(world.config(tmp_path / "in", tmp_path / "out", weights, **reference))
    assert not (tmp_path / "out").exists()


def test_history_is_printed_for_people_and_for_machines(
    nights: tuple[Path, list[Any]], fcnseg: Callable[..., tuple[int, str, str]]
) -> None:
    out = nights[0] / "out"
    code, stdout, _ = fcnseg("history", out)
    lines = stdout.splitlines()
    assert code == 0 and len(lines) == 4
    assert "no earlier run" in lines[1] and "\tnone against the run before" in lines[2]
    assert "confidence" in lines[3] and "against the 2 runs before, 96 images" in lines[3]
    code, stdout, _ = fcnseg("history", out, "--last", 1, "--json")
    (record,) = json.loads(stdout)
    assert record["shards"] == 2 and record["drifted"] and "window" not in record
    code, stdout, _ = fcnseg("status", out)
    assert code == 0 and "latest run 20" in stdout and "confidence" in stdout
    code, _, stderr = fcnseg("history", nights[0] / "in")
    assert code == 2 and "no _run.json" in stderr


def test_runs_that_begin_within_a_second_sort_by_time(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    names = [begin_run(store) for _ in range(50)]
    assert names == sorted(names) and len(set(names)) == 50
    assert all(RECORD_NAME.fullmatch(record_path(name)) for name in names)


def test_gc_keeps_the_review_queues_of_runs_that_are_recorded(
    nights: tuple[Path, list[Any]],
) -> None:
    store = Store(str(nights[0] / "out"))
    store.write("review/20260101T000000Z-00000000.parquet", b"of nobody")
    assert [found.path for found in find_garbage(store, 0)] == [
        "review/20260101T000000Z-00000000.parquet"
    ]
    store.delete("review/20260101T000000Z-00000000.parquet")
    run_name = list_runs(store)[0]
    before = store.read(review_path(run_name))
    store.write(review_path(run_name), before[:-1])
    assert [path for path, _ in verify(store).problems] == [review_path(run_name)]
    store.delete(review_path(run_name))
    assert verify(store).problems == () and read_review(store, run_name) == ()
    store.write(review_path(run_name), before)


# --- Outputs of format 1 ----------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Store:
    """An output that was written by the version before histories: two shards, one bad image."""
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path / "old", filter="data")
    return Store(str(tmp_path / "old"))


def test_an_output_of_format_1_is_read_by_every_command_that_reads(
    old: Store, fcnseg: Callable[..., tuple[int, str, str]]
) -> None:
    found = read_status(old)
    assert found.identity.format == 1 and found.summary.images == 6
    assert found.scores == {**json.loads(old.read("stats/scores.json"))}
    assert [q.key for q in quarantined(old, found)] == ["bad"]
    assert find_retry_list(found).shards == {"s0"}
    assert verify(old, deep=True).problems == () and list(find_garbage(old, 0)) == []
    assert read_history(old) == ()
    for command in ("status", "report", "verify", "failed", "gc", "history"):
        assert fcnseg(command, old.url)[0] == 0, command
    assert (Path(old.url) / SCORES).exists()


def test_a_run_refuses_an_output_of_format_1_and_leaves_it_as_it_is(
    old: Store, tmp_path: Path, weights: Path
) -> None:
    before = {info.path: old.read(info.path) for info in old.objects()}
    add_shard(tmp_path / "in", 0)
    with pytest.raises(OutputError, match=r"output format 1.*format 2.*new OUTPUT"):
        run(world.config(tmp_path / "in", old.url, weights))
    assert {info.path: old.read(info.path) for info in old.objects()} == before


def test_an_output_of_format_1_is_no_reference(old: Store, tmp_path: Path, weights: Path) -> None:
    add_shard(tmp_path / "in", 0)
    with pytest.raises(ConfigError, match="format 1, which keeps no histograms"):
        run(world.config(tmp_path / "in", tmp_path / "out", weights, drift__reference=old.url))


def test_commits_of_both_formats_give_one_table(old: Store) -> None:
    commits = list(read_commits(old))
    assert all(commit.histograms is None and commit.run == "" for commit in commits)
    assert replace(commits[0], shard="x").to_json()  # and are written again as they are
