"""Pages in a real browser without network: what it says of them, and what they look like; screenshots are kept."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.workspace import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHOTS = ROOT / "build" / "screenshots"  # CI keeps them
IN_A_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium")
# Pictures that did not load, or are of one colour.
EMPTY = """[...page.images].filter((image) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  if (!image.complete || !image.naturalWidth) return true;
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const values = new Uint32Array(pen.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  return values.every((value) => value === values[0]);
}).map((image) => image.alt)"""
ASKED_FOR = "page.defaultView.performance.getEntriesByType('resource').map((entry) => entry.name)"


def chromium(tmp_path: Path, page: Path, width: int, *options: str, height: int = 2000) -> str:
    """Open a page without network, and print what is asked for; nothing may come to the console, where errors go."""
    quiet = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
        *("--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
    )
    own = (f"--user-data-dir={tmp_path / f'profile-{width}'}", f"--window-size={width},{height}")
    command = [str(CHROMIUM), *quiet, *own, *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.findall("^.*CONSOLE.*$", done.stderr, re.MULTILINE)
    return done.stdout


def asked(tmp_path: Path, report: Path, width: int, script: str) -> Any:
    """What JavaScript says of the report in a frame of this width; `page` is its document."""
    framed = f'<iframe id="frame" width="{width}" srcdoc="{escape(report.read_text())}"></iframe>'
    answer = f"frame.onload = () => {{ const page = frame.contentDocument; document.title = JSON.stringify({script}) }}"
    (tmp_path / "probe.html").write_text(f"<title></title>{framed}<script>{answer}</script>")
    found = re.search(r"<title>(.+)</title>", chromium(tmp_path, tmp_path / "probe.html", width, "--dump-dom"))
    assert found
    return json.loads(unescape(found[1]))


def shows_whole(tmp_path: Path, page: Path, width: int, name: str, sections: Sequence[str]) -> None:
    """A page at a width: every section is there, no picture is missing or empty, nothing is asked of the network.

    Parameters
    ----------
    name: begins the names of the screenshots, each of some of the sections.
    sections: their ids, after the header.
    """
    assert asked(tmp_path, page, width, EMPTY) == []
    assert asked(tmp_path, page, width, ASKED_FOR) == []
    parts = "[...page.body.querySelectorAll('header, section')].map((part) => [part.id, part.getBoundingClientRect().height])"
    heights = {part or "head": height for part, height in asked(tmp_path, page, width, parts)}
    assert list(heights) == ["head", *sections]
    assert min(heights.values()) > 100
    assert asked(tmp_path, page, width, "page.documentElement.scrollWidth") <= width  # tables and pictures scroll by themselves

    SHOTS.mkdir(parents=True, exist_ok=True)
    for names in _in_shots(heights):
        shot, some = SHOTS / f"{name}-{width}-{'-'.join(names)}.png", tmp_path / "part.html"
        others = ", ".join("header, nav" if part == "head" else f"#{part}" for part in heights if part not in names)
        some.write_text(page.read_text().replace("</style>", f"{others or 'x'} {{ display: none }}</style>", 1))
        chromium(tmp_path, some, width, f"--screenshot={shot}", height=round(sum(heights[part] for part in names)) + 300)
        with Image.open(shot) as taken:
            assert taken.width == width
            assert len(taken.convert("RGB").getcolors(1 << 24) or ()) > 50  # not a blank page


def _in_shots(heights: dict[str, float]) -> list[list[str]]:
    """The parts of a page in their order, on as few screenshots as are not higher than Chromium draws (16,384 pixels)."""
    shots: list[list[str]] = [[]]
    for name, height in heights.items():
        if shots[-1] and sum(heights[other] for other in shots[-1]) + height > 15_500:
            shots.append([])
        shots[-1].append(name)
    return shots
