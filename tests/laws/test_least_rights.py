"""deploy/iam-policy.json is enough for everything, and each of its rights is needed."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StoreError
from pipeline.storage.store import Store
from tests.conftest import use_s3
from tests.support.s3_server import S3Server

pytestmark = pytest.mark.s3

Fcnseg = Callable[..., tuple[int, str, str]]
POLICY = json.loads((Path(__file__).parents[2] / "deploy/iam-policy.json").read_text())
RIGHTS = [(item["Sid"], action) for item in POLICY["Statement"] for action in item["Action"]]


@dataclass(frozen=True)
class Place:
    """Three buckets of the owner's, of which the reader has what the policy says."""

    server: S3Server
    images: str
    masks: str
    models: str

    def allow(self, policy: dict[str, Any]) -> None:
        """Each bucket's part of an IAM policy, as the policy of that bucket."""
        names = {"images": self.images, "masks": self.masks, "models": self.models}
        for kind, bucket in names.items():
            statements = []
            for item in copy.deepcopy(policy["Statement"]):
                own = [arn for arn in item["Resource"] if f":::example-{kind}" in arn]
                if own and item["Action"]:
                    arns = [arn.replace(f"example-{kind}", bucket) for arn in own]
                    who = {"AWS": [f"arn:aws:iam:::user/{self.server.reader.name}"]}
                    statements.append(item | {"Resource": arns, "Principal": who})
            document = {"Version": policy["Version"], "Statement": statements}
            client = self.server.client()
            if statements:
                client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(document))
            else:
                client.delete_bucket_policy(Bucket=bucket)

    def output(self) -> str:
        """A new OUTPUT."""
        return f"s3://{self.masks}/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def place(
    s3_server: S3Server, shards: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    use_s3(monkeypatch, s3_server.owner.environment(s3_server.url))
    found = Place(s3_server, *(s3_server.new_bucket() for _ in range(3)))
    for path in shards.iterdir():
        Store(f"s3://{found.images}").write(path.name, path.read_bytes())
    Store(f"s3://{found.models}").write("tiny.safetensors", weights.read_bytes())
    use_s3(monkeypatch, s3_server.reader.environment(s3_server.url))
    return found


def without(sid: str, action: str) -> dict[str, Any]:
    """The policy but for one right of one statement."""
    less = copy.deepcopy(POLICY)
    (statement,) = [item for item in less["Statement"] if item["Sid"] == sid]
    statement["Action"].remove(action)
    assert isinstance(less, dict)
    return less


def label(fcnseg: Fcnseg, place: Place, output: str) -> tuple[int, str]:
    weights = f"s3://{place.models}/tiny.safetensors"
    code, out, err = fcnseg(
        "run", f"s3://{place.images}", output, "--weights", weights, "--masks", "parquet,png",
        "--executor", "local", "--workers", 1, "--set", "compute.threads_per_worker=1",
    )  # fmt: skip
    return code, out + err


def test_the_policy_is_enough_for_every_command(fcnseg: Fcnseg, place: Place) -> None:
    place.allow(POLICY)
    output = place.output()
    weights = f"s3://{place.models}/tiny.safetensors"
    looks = ("--input", f"s3://{place.images}", "--output", output, "--weights", weights)
    code, out, _ = fcnseg("doctor", *looks)
    assert code == 0, out
    assert label(fcnseg, place, output)[0] == 0
    assert "nothing pending" in label(fcnseg, place, output)[1]
    for command in (("status",), ("report",), ("verify", "--deep"), ("failed",)):
        assert fcnseg(command[0], output, *command[1:])[0] == 0, command
    Store(output).write("masks/nobody.parquet", b"x")
    code, out, _ = fcnseg("gc", output, "--older-than", "0h", "--delete")
    assert (code, "masks/nobody.parquet" in out) == (0, True)


# Ceph lets the account that wrote an object read it, whatever the policy of the bucket says.
UNSEEN = {("WriteOutput", "s3:GetObject")}
GARBAGE = {("FindOutput", "s3:ListBucketMultipartUploads"),
           ("WriteOutput", "s3:AbortMultipartUpload")}  # fmt: skip


@pytest.mark.parametrize(("sid", "action"), [r for r in RIGHTS if r not in UNSEEN | GARBAGE])
def test_without_any_one_right_nothing_is_segmented(
    sid: str, action: str, fcnseg: Fcnseg, place: Place
) -> None:
    place.allow(without(sid, action))
    code, said = label(fcnseg, place, place.output())
    assert code in (1, 4) and "permission denied" in said, said


def test_gc_needs_its_two_rights(fcnseg: Fcnseg, place: Place) -> None:
    place.allow(POLICY)
    output = place.output()
    assert label(fcnseg, place, output)[0] == 0
    key = f"{output.partition(place.masks + '/')[2]}/masks/broken.parquet"
    place.server.client().create_multipart_upload(Bucket=place.masks, Key=key)
    place.allow(without("FindOutput", "s3:ListBucketMultipartUploads"))
    code, out, err = fcnseg("gc", output)
    assert (code, "permission denied" in out + err) == (1, True)
    # gc itself leaves so young an upload alone.
    place.allow(without("WriteOutput", "s3:AbortMultipartUpload"))
    store = Store(output)
    (upload,) = store.leftovers()
    with pytest.raises(StoreError, match="permission denied"):
        store.discard(upload)
    place.allow(POLICY)
    store.discard(upload)
    assert list(store.leftovers()) == []


def test_input_and_weights_cannot_be_written(fcnseg: Fcnseg, place: Place) -> None:
    place.allow(POLICY)
    for bucket in (place.images, place.models):
        with pytest.raises(StoreError, match="permission denied"):
            Store(f"s3://{bucket}").write("x", b"x")
