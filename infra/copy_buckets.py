"""Copies buckets of S3 into a folder, and back into empty ones: python infra/copy_buckets.py save|restore FOLDER BUCKET...

Who reads and writes, and where, comes from the environment (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID and so on). Of each object
its newest version is copied; of a bucket with object lock, the ledger's, the first, which is the one that counts. `save` goes
on where an earlier one ended and fetches what is new; `restore` replaces nothing that is there. Both compare digests.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

LIST = "objects.json"  # in the folder of each bucket: of every object its version and SHA-256


def main() -> int:
    """Copy; tells on stdout what was done, and returns 1 where something is not as it must be: nothing is replaced then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=["save", "restore"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("bucket", nargs="+")
    told = parser.parse_args()
    client = boto3.client("s3")
    try:
        for bucket in told.bucket:
            (save if told.work == "save" else restore)(client, told.folder / bucket, bucket)
    except (ClientError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def save(client: Any, folder: Path, bucket: str) -> None:
    """Copy a bucket's objects into a folder; raises ValueError where a key is no path below it."""
    folder.mkdir(parents=True, exist_ok=True)
    known = json.loads((folder / LIST).read_text()) if (folder / LIST).exists() else {}
    there = dict(versions(client, bucket))
    fetched = 0
    for key, version in there.items():
        if known.get(key, {}).get("version") == version and place(folder, key).exists():
            continue
        target = place(folder, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        client.download_file(bucket, key, str(part), ExtraArgs={"VersionId": version})
        known[key] = {"version": version, "sha256": digest(part)}
        part.replace(target)
        fetched += 1
    listed = folder / f"{LIST}.part"
    listed.write_text(json.dumps({key: known[key] for key in sorted(there)}, indent=1) + "\n")
    listed.replace(folder / LIST)
    print(f"s3://{bucket}: {len(there)} objects, {fetched} of them new")


def restore(client: Any, folder: Path, bucket: str) -> None:
    """Put what was saved into a bucket; raises ValueError where a file was changed since, or another object is there."""
    listed = json.loads((folder / LIST).read_text())
    there = dict(versions(client, bucket))
    for key, entry in listed.items():
        source = place(folder, key)
        if digest(source) != entry["sha256"]:
            raise ValueError(f"{source} is not what was saved; nothing more was restored. Look for another copy")
        if key in there:
            body = client.get_object(Bucket=bucket, Key=key, VersionId=there[key])["Body"].read()
            if hashlib.sha256(body).hexdigest() != entry["sha256"]:
                raise ValueError(f"s3://{bucket}/{key} is another object than was saved; restore into an empty bucket")
            continue
        client.upload_file(str(source), bucket, key)
    print(f"s3://{bucket}: {len(listed)} objects, {len(listed.keys() - there.keys())} of them restored")


def versions(client: Any, bucket: str) -> Iterator[tuple[str, str]]:
    """The version of each object that is copied, by its key; an object that was deleted and is not locked has none."""
    locked = is_locked(client, bucket)
    pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket)
    for page in pages:
        for item in page.get("Versions", ()):  # of a key the newest comes first
            if locked or item["IsLatest"]:
                yield item["Key"], item["VersionId"]


def is_locked(client: Any, bucket: str) -> bool:
    """Whether a bucket has object lock."""
    try:
        client.get_object_lock_configuration(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] != "ObjectLockConfigurationNotFoundError":
            raise
        return False
    return True


def place(folder: Path, key: str) -> Path:
    """The file of an object."""
    if key != os.path.normpath(key) or key.startswith(("/", "..")):
        raise ValueError(f"{key!r} is no path below a folder; it was not copied")
    return folder / "objects" / key


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
