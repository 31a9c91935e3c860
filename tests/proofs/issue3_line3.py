"""Issue 3, line 3: what 100 more images cost."""

from __future__ import annotations

from tests.proofs.measuring import benchmark

BOUND = (
    "100 images on top of 50,000: at most 5 % of the full ingest's work; on top of 10,015: at most 3 s after imports; "
    "only new shard files are written, and dvc push moves only those"
)


def prove() -> tuple[str, bool]:
    """`benchmarks/incremental.py` at both sizes, with a push to a real S3 server at the smaller one."""
    large, large_passed = benchmark("incremental", "--base", "50000")
    small, small_passed = benchmark("incremental", "--base", "10015", "--push")
    ratios = large["ratios"]
    return (
        f"50,000: {large['growth']['seconds']:.1f} of {large['full']['seconds']:.1f} s "
        f"({ratios['growth / full, seconds']:.1%}; processor {ratios['growth / full, processor']:.1%}); "
        f"10,015: {small['growth']['seconds']:.2f} s; new array files {', '.join(small['new_array_files'])}, changed "
        f"{', '.join(small['rewritten_array_files']) or 'none'}; pushed {small['pushed_bytes']['growth']:,} bytes after "
        f"{small['pushed_bytes']['first']:,}"
    ), large_passed and small_passed
