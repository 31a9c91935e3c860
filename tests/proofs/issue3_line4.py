"""Issue 3, line 4: an ingest that is killed, or loses its store, ends as if nothing had happened."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.faults.disturbed import Ingest, digest_after_outage, digests_after_kills
from tests.proofs.clone import SHARED
from tests.s3_server import s3_server

BOUND = (
    "kill -9 at 20 random moments of an ingest of 10,015 images, each followed by a restart: equal digest every time; "
    "from S3 with the server stopped for 10 s in the middle: it waits, retries, completes, equal digest"
)
REAL = SHARED / "data" / "ham10000"


def prove() -> tuple[str, bool]:
    """Both, at full size."""
    if not REAL.exists():
        return "the real images (../shared) are not here", False
    with tempfile.TemporaryDirectory(prefix="dermaflow-proof-") as scratch:
        folder = Path(scratch)
        ingest = Ingest.of(str(REAL), folder / "killed")
        undisturbed, found, met = digests_after_kills(ingest, kills=20)
        equal = sum(digest == undisturbed for digest in found)
        with s3_server(folder / "s3") as server:
            server.make_bucket("images")
            server.upload(REAL / "images_224", "images", "ham10000/images")
            server.client().upload_file(str(REAL / "HAM10000_metadata.csv"), "images", "ham10000/HAM10000_metadata.csv")
            cut_off = Ingest.of("s3://images/ham10000", folder / "cut_off", **server.environment)
            calm, stormy, seconds = digest_after_outage(cut_off, server, outage=10)
    return (
        f"{equal} of {len(found)} digests equal, {met} kills met the process at work; S3 outage: digest "
        f"{'equal' if calm == stormy else 'DIFFERENT'} after {seconds:.0f} s with 10 s of outage"
    ), equal == 20 and met >= 15 and calm == stormy
