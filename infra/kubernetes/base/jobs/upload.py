"""Puts finished dumps of Postgres into the bucket of backups, by their time and digest, and reads each back.

From the environment: AWS_ENDPOINT_URL_S3, the credentials, BACKUP_FOLDER with the *.dump files, and BACKUPS_BUCKET.
"""

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import boto3


def main() -> int:
    """Upload, then compare what the store has with what was sent; 1 where a dump is missing, empty, or came back otherwise."""
    folder, bucket = Path(os.environ["BACKUP_FOLDER"]), os.environ["BACKUPS_BUCKET"]
    dumps = sorted(folder.glob("*.dump"))
    if not dumps or any(dump.stat().st_size == 0 for dump in dumps):
        print(f"{folder}: no dump, or an empty one: pg_dump wrote nothing; see the container dump of this pod", file=sys.stderr)
        return 1
    client, started = boto3.client("s3"), time.strftime("%Y/%m/%d/%H%M%S", time.gmtime())
    for dump in dumps:
        with dump.open("rb") as stream:
            digest = _sha256(stream)
        key = f"postgres/{started}-{dump.stem}-{digest[:16]}.dump"
        client.upload_file(str(dump), bucket, key)
        if _sha256(client.get_object(Bucket=bucket, Key=key)["Body"]) != digest:
            print(f"s3://{bucket}/{key} is not what was sent: do not rely on it; run the job again", file=sys.stderr)
            return 1
        print(f"s3://{bucket}/{key}: {dump.stat().st_size} bytes, sha256 {digest}")
    return 0


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
