"""Makes the buckets that are missing, and sees that each is as it must be. Safe to run again; it never weakens a lock.

From the environment: AWS_ENDPOINT_URL_S3 and the credentials of one who may make buckets; the buckets' names; LEDGER_MODE,
GOVERNANCE or COMPLIANCE, and LEDGER_DAYS, for which a new entry of the ledger can not be removed.
"""

import os
import sys
from typing import Any

import boto3

VERSIONED = ("DATA_BUCKET", "ARTIFACTS_BUCKET", "BACKUPS_BUCKET")
LEDGER = "LEDGER_BUCKET"


def main() -> int:
    """Make them; tells on stdout what was done, and returns 1 where a bucket that is there can not be made right."""
    mode, days = os.environ["LEDGER_MODE"], int(os.environ["LEDGER_DAYS"])
    if mode not in ("GOVERNANCE", "COMPLIANCE") or days < 1:
        print(f"LEDGER_MODE={mode} LEDGER_DAYS={days}: must be GOVERNANCE or COMPLIANCE, and at least 1", file=sys.stderr)
        return 1
    client = boto3.client("s3")
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in (os.environ[variable] for variable in VERSIONED):
        if name not in there:
            client.create_bucket(Bucket=name)
            print(f"{name}: made")
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    ledger = os.environ[LEDGER]
    if ledger not in there:  # a lock is for buckets that had it from the start
        client.create_bucket(Bucket=ledger, ObjectLockEnabledForBucket=True)
        print(f"{ledger}: made")
    return _lock(client, ledger, mode, days)


def _lock(client: Any, ledger: str, mode: str, days: int) -> int:
    lock = _locked(client, ledger)
    if lock is None:
        print(f"{ledger} is there without object lock, so entries can be removed from it; move what it holds away, delete"
              " the bucket and run this again", file=sys.stderr)  # fmt: skip
        return 1
    rule = lock.get("Rule", {}).get("DefaultRetention", {})
    held = 365 * rule.get("Years", 0) + rule.get("Days", 0)
    mode = "COMPLIANCE" if rule.get("Mode") == "COMPLIANCE" else mode
    if (rule.get("Mode"), held) != (mode, max(days, held)):
        client.put_object_lock_configuration(
            Bucket=ledger,
            ObjectLockConfiguration={
                "ObjectLockEnabled": "Enabled",
                "Rule": {"DefaultRetention": {"Mode": mode, "Days": max(days, held)}},
            },
        )
    print(f"{ledger}: {mode}, {max(days, held)} days")
    return 0


def _locked(client: Any, ledger: str) -> dict[str, Any] | None:
    from botocore.exceptions import ClientError

    try:
        lock = client.get_object_lock_configuration(Bucket=ledger)["ObjectLockConfiguration"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ObjectLockConfigurationNotFoundError":
            raise
        return None
    return lock if lock.get("ObjectLockEnabled") == "Enabled" else None


if __name__ == "__main__":
    sys.exit(main())
