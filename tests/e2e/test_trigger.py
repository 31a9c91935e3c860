"""`dermaflow trigger --on local`: a real run of the pipeline for new data, and none for the same."""

from __future__ import annotations

import csv
import shutil

from tests.workspace import TINY, Workspace, sets

OPTIONS = ["--on", "local", "--at-least", "4", "--profile", "phantom", *sets(*TINY)]


def triggered(place: Workspace, *arguments: str):
    done = place.run("trigger", *OPTIONS, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def add_lesions(place: Workspace, count: int) -> None:
    """New lesions at the source: copies of images that are there, under other names and one pixel apart."""
    import cv2

    source = place.path / "data" / "phantom"
    real = source.resolve()
    source.unlink()
    shutil.copytree(real, source)
    metadata = source / "HAM10000_metadata.csv"
    rows = list(csv.DictReader(metadata.open()))
    folder = next(path.parent for path in source.rglob(f"{rows[0]['image_id']}.*") if "seg" not in path.parent.name.lower())
    with metadata.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        for number, row in enumerate(rows[:count]):
            image = cv2.imread(str(next(folder.glob(f"{row['image_id']}.*"))))
            image[0, 0] ^= 255
            name = f"ISIC_99{number:05d}"
            cv2.imwrite(str(folder / f"{name}.jpg"), image)
            writer.writerow({**row, "image_id": name, "lesion_id": f"HAM_99{number:05d}"})


def test_new_data_are_run_once_and_the_same_data_never_again(continued: Workspace):
    said = triggered(continued)
    assert said.startswith("started: ")
    run_id = said.rsplit(" ", 1)[-1]
    assert (continued.path / "runs" / run_id / "register" / "registration").exists()
    assert triggered(continued).startswith("nothing new: data/phantom is what dermaflow-candidate version 1 was made from")
    assert len(continued.versions()) == 1
    add_lesions(continued, 3)
    assert triggered(continued).startswith("too few: 3 new lesions since dermaflow-candidate version 1")
    assert [path.name for path in (continued.path / "runs").glob("2*")] == [run_id]
