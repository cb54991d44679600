"""Laws of the identity: an output belongs to one input, one network and one way of cutting."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_core.errors import FcnError
from fcn_core.labels import LabelSet
from fcn_core.weights.weights_file import read_weights
from pipeline.driver import run
from pipeline.errors import OutputError
from pipeline.inputs.shard import ChunkLimits
from pipeline.manifest import (
    OUTPUT_FORMAT,
    Manifest,
    check_output,
    claim_output,
    first_difference,
    make_manifest,
    read_manifest,
)
from pipeline.output.status import read_status
from pipeline.output.verify import verify
from pipeline.paths import MANIFEST
from pipeline.storage.store import Store
from tests.support import world

LIMITS = ChunkLimits(512, 64 * 2**20)
PARTS = {"weights_sha256": "ab", "precision": "fp32", "labels": {"classes": ["a", "é"]}}
MINE = Manifest("s3://b/in", LIMITS, world.TINY, PARTS)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none()))
def test_json_carries_an_identity(parts: dict) -> None:
    mine = replace(MINE, parts=parts)
    copy = Manifest.from_json(mine.to_json(), "here")
    assert (copy, copy.fingerprint) == (mine, mine.fingerprint)


def test_the_fingerprint_is_short_and_does_not_depend_on_order() -> None:
    assert len(MINE.fingerprint) == 16 and int(MINE.fingerprint, 16)
    reordered = replace(MINE, parts=dict(reversed(PARTS.items())))
    assert reordered.fingerprint == MINE.fingerprint
    assert {replace(MINE, parts={**PARTS, name: "x"}).fingerprint for name in PARTS}.isdisjoint(
        {MINE.fingerprint}
    )


def test_place_and_limits_are_no_part_of_the_fingerprint() -> None:
    moved = replace(MINE, input="elsewhere", chunk_limits=ChunkLimits(1, 1))
    assert moved.fingerprint == MINE.fingerprint


def test_the_fingerprint_has_all_that_changes_a_result(weights: Path) -> None:
    file = read_weights(weights)
    other = LabelSet("other", ("a", "b", "c"))

    def fingerprint(labels: LabelSet = world.TINY, precision: str = "fp32") -> str:
        return make_manifest("in", file, labels, precision, LIMITS).fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(other), fingerprint(precision="bf16")}) == 3
    assert (
        make_manifest("in", file, world.TINY, "fp32", LIMITS).parts["weights_sha256"] == file.sha256
    )


def test_an_empty_place_is_claimed_once(output: Store) -> None:
    check_output(output, MINE)
    assert output.objects() == []
    claim_output(output, MINE)
    written = output.objects()
    claim_output(output, MINE)
    assert output.objects() == written and [info.path for info in written] == [MANIFEST]
    assert read_manifest(output) == MINE


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=8,
)


@given(JSON, JSON)
def test_what_differs_is_found(then: object, now: object) -> None:
    found = first_difference({"part": then}, {"part": now})
    assert (found is None) == (then == now)
    if found is not None:
        first, *steps = found.name.split(".")
        assert first == "part" and found.then != found.now
        for step in steps:
            then, now = (
                side.get(step) if isinstance(side, dict) else side[int(step)]
                for side in (then, now)
            )
        assert (then, now) == (found.then, found.now)


CHANGES = [
    ({"input": "s3://b/other"}, "it holds the masks of s3://b/in; this run segments s3://b/other"),
    ({"parts": {**PARTS, "precision": "bf16"}}, "made with precision fp32; this run has bf16"),
    ({"parts": {**PARTS, "weights_sha256": "cd"}}, "weights_sha256 ab; this run has cd"),
    ({"parts": {**PARTS, "labels": {"classes": ["x"] * 99}}}, "…"),
    ({"parts": {**PARTS, "labels": {"classes": ["a", "b"]}}}, "labels.classes.1 é; this run has b"),
    ({"parts": {"precision": "fp32"}}, "this run has null"),
    ({"parts": {**PARTS, "dilation": 2}}, "made with dilation null; this run has 2"),
    ({"chunk_limits": ChunkLimits(8, 64 * 2**20)}, "with limits.chunk_images 512; this run has 8"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_another_identity_is_refused_and_named(output: Store, change: dict, message: str) -> None:
    claim_output(output, MINE)
    output.write("_commits/s0.json", b"{}")
    before = output.objects()
    for verb in (check_output, claim_output):
        with pytest.raises(OutputError) as caught:
            verb(output, replace(MINE, **change))
        assert message in str(caught.value) and caught.value.exit_code == 2
        assert "Nothing was changed. Use a new OUTPUT" in caught.value.remedy
        assert len(str(caught.value)) < 400
    assert output.objects() == before


def test_a_newer_format_is_refused_with_the_way_out(output: Store) -> None:
    document = {**json.loads(MINE.to_json()), "format": OUTPUT_FORMAT + 1}
    output.write(MANIFEST, json.dumps(document).encode())
    verbs = (
        lambda: check_output(output, MINE),
        lambda: claim_output(output, MINE),
        lambda: verify(output),
        lambda: read_status(output),
    )
    for verb in verbs:
        with pytest.raises(OutputError, match=f"output format {OUTPUT_FORMAT + 1};") as caught:
            verb()
        assert "version of fcnseg that wrote it, or a new OUTPUT" in caught.value.remedy


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b'{"format": 1}', b"\xff\xfe"])
def test_what_is_no_identity_is_refused(output: Store, data: bytes) -> None:
    output.write(MANIFEST, data)
    for verb in (read_manifest, lambda output: check_output(output, MINE)):
        with pytest.raises(
            OutputError, match=rf"{MANIFEST}: unreadable .*; the _run.json of a run"
        ):
            verb(output)


def test_a_place_without_an_output_is_said_so(output: Store) -> None:
    with pytest.raises(OutputError, match=r"no _run\.json; the OUTPUT of a run. Check the address"):
        read_manifest(output)


def test_an_output_without_a_commit_belongs_to_no_run(tmp_path: Path, weights: Path) -> None:
    for index in range(3):
        for source in ("first", "second"):
            (tmp_path / source).mkdir(exist_ok=True)
            seed = index + 10 * (source == "second")
            (tmp_path / source / f"{source}{index}.jpg").write_bytes(world.jpeg(world.image(seed)))
    out = tmp_path / "out"
    with pytest.raises(FcnError, match="fp16 on a CPU"):
        run(world.config(tmp_path / "first", out, weights, model__precision="fp16"))
    assert not (out / "_progress.json").exists() and not (out / "_lease.json").exists()
    run(world.config(tmp_path / "second", out, weights))
    run(world.config(tmp_path / "second", tmp_path / "calm", weights))
    assert world.tree(out) == world.tree(tmp_path / "calm")
    with pytest.raises(OutputError, match="Use a new OUTPUT"):
        run(world.config(tmp_path / "first", out, weights))
