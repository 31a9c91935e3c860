"""An ingest that is killed, or loses its store for a while, ends as if nothing had happened.

At full size: tests/proofs/issue3_line4.py.
"""

from __future__ import annotations

from pathlib import Path

from tests.faults.disturbed import Ingest, digest_after_outage, digests_after_kills
from tests.s3_server import s3_server


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path, phantoms: Path):
    ingest = Ingest.of(str(phantoms), tmp_path, "data.image_size=256", "data.shard_megabytes=2")
    undisturbed, found, met = digests_after_kills(ingest, kills=3)
    assert found == [undisturbed] * 3
    assert met > 0, "no kill met the process at work"


def test_cut_off_from_its_store_it_waits_and_completes(tmp_path: Path, phantoms: Path):
    with s3_server(tmp_path / "s3") as server:  # its own: it is stopped in the middle
        server.make_bucket("images")
        server.upload(phantoms, "images", "phantom")
        ingest = Ingest.of("s3://images/phantom", tmp_path / "w", "data.image_size=256", **server.environment)
        calm, stormy, _ = digest_after_outage(ingest, server, outage=3)
    assert calm == stormy
