"""The job that makes the buckets, and who may then do what in them: on a real S3 server, started as the manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.infra.stack import Stack, running_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack")) as made:
        yield made


@pytest.fixture(scope="module")
def buckets(stack: Stack) -> Stack:
    """The stack after the job, as overlays/dev runs it."""
    done = stack.job("buckets.py", "admin", LEDGER_MODE="GOVERNANCE", LEDGER_DAYS="1")
    assert done.returncode == 0, done.stderr
    return stack


def refused(call: object, **arguments: object) -> str:
    with pytest.raises(ClientError) as told:
        call(**arguments)
    return str(told.value.response["Error"]["Code"])


def test_buckets_are_made_with_versions(buckets: Stack):
    admin = buckets.client("admin")
    made = {bucket["Name"] for bucket in admin.list_buckets()["Buckets"]}
    assert made == {"dermaflow-data", "dermaflow-artifacts", "dermaflow-backups", "dermaflow-ledger"}
    for bucket in made:
        assert admin.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled", bucket


def test_entry_of_the_ledger_stays(buckets: Stack):
    """Who appends can not replace an entry nor remove it, and neither can an administrator who does not ask for it by name."""
    register, admin = buckets.client("register"), buckets.client("admin")
    entry = register.put_object(Bucket="dermaflow-ledger", Key="entries/1", Body=b"one", IfNoneMatch="*")
    named = {"Bucket": "dermaflow-ledger", "Key": "entries/1", "VersionId": entry["VersionId"]}
    assert refused(register.put_object, Bucket="dermaflow-ledger", Key="entries/1", Body=b"two", IfNoneMatch="*") == (
        "PreconditionFailed"
    )
    assert refused(register.delete_object, **named) == "AccessDenied"
    assert refused(register.delete_object, **named, BypassGovernanceRetention=True) == "AccessDenied"
    assert refused(admin.delete_object, **named) == "AccessDenied"
    assert register.get_object(**named)["Body"].read() == b"one"


@pytest.mark.parametrize(
    ("identity", "bucket", "reads", "writes"),
    [
        ("steps", "dermaflow-data", True, False),
        ("steps", "dermaflow-artifacts", True, True),
        ("steps", "dermaflow-ledger", False, False),
        ("steps", "dermaflow-backups", False, False),
        ("register", "dermaflow-ledger", True, True),
        ("register", "dermaflow-data", False, False),
        ("approver", "dermaflow-ledger", True, True),
        ("approver", "dermaflow-artifacts", False, False),
        ("auditor", "dermaflow-ledger", True, False),
        ("auditor", "dermaflow-artifacts", False, False),
        ("trigger", "dermaflow-data", True, False),
        ("trigger", "dermaflow-artifacts", True, True),
        ("mlflow", "dermaflow-artifacts", True, True),
        ("mlflow", "dermaflow-data", False, False),
        ("mlflow", "dermaflow-ledger", False, False),
        ("backup", "dermaflow-backups", True, True),
        ("backup", "dermaflow-artifacts", False, False),
    ],
)
def test_each_has_its_own_rights(buckets: Stack, identity: str, bucket: str, reads: bool, writes: bool):
    buckets.client("admin").put_object(Bucket=bucket, Key="there", Body=b"x")
    client = buckets.client(identity)
    calls = ((reads, client.get_object, {"Key": "there"}), (writes, client.put_object, {"Key": f"by-{identity}", "Body": b"y"}))
    for may, call, arguments in calls:
        if may:
            call(Bucket=bucket, **arguments)
        else:
            assert refused(call, Bucket=bucket, **arguments) == "AccessDenied"


def test_a_lock_is_asked_for_and_never_weakened(tmp_path: Path):
    with running_stack(tmp_path / "stack") as stack:
        admin = stack.client("admin")
        admin.create_bucket(Bucket="dermaflow-ledger")  # by hand, without a lock: it can not be given one any more
        done = stack.job("buckets.py", "admin", LEDGER_MODE="GOVERNANCE", LEDGER_DAYS="1")
        assert (done.returncode, "without object lock" in done.stderr) == (1, True)
        admin.delete_bucket(Bucket="dermaflow-ledger")
        wrong = stack.job("buckets.py", "admin", LEDGER_MODE="governance", LEDGER_DAYS="1")
        assert (wrong.returncode, "GOVERNANCE or COMPLIANCE" in wrong.stderr) == (1, True)

        def lock() -> dict[str, object]:
            return admin.get_object_lock_configuration(Bucket="dermaflow-ledger")["ObjectLockConfiguration"]["Rule"][
                "DefaultRetention"
            ]

        for mode, days in (("GOVERNANCE", "1"), ("COMPLIANCE", "30"), ("GOVERNANCE", "7")):
            done = stack.job("buckets.py", "admin", LEDGER_MODE=mode, LEDGER_DAYS=days)
            assert done.returncode == 0, done.stderr
            assert ("made" in done.stdout) == (days == "1")
        assert (lock()["Mode"], lock()["Days"]) == ("COMPLIANCE", 30)


def test_dumps_are_backed_up_and_compared(buckets: Stack, tmp_path: Path):
    for name in ("mlflow", "mlflow_auth"):
        (tmp_path / f"{name}.dump").write_bytes(name.encode() * 1000)
    done = buckets.job("upload.py", "backup", BACKUP_FOLDER=str(tmp_path))
    assert done.returncode == 0, done.stderr
    listed = buckets.client("backup").list_objects_v2(Bucket="dermaflow-backups", Prefix="postgres/")["Contents"]
    assert {item["Size"] for item in listed} == {6000, 11000}
    (tmp_path / "mlflow.dump").write_bytes(b"")
    empty = buckets.job("upload.py", "backup", BACKUP_FOLDER=str(tmp_path))
    assert empty.returncode == 1
    assert "pg_dump wrote nothing" in empty.stderr
