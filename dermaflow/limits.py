"""What a model's test images can not show, in sentences: the same in the run report, the evidence and the dossier."""

from __future__ import annotations


def limits(*, synthetic: bool, classes: int | None, fewest_lesions: int | None) -> list[str]:
    """What nobody may read out of the figures.

    Parameters
    ----------
    synthetic: whether the images were drawn by a program.
    classes: number of classes that the model knows; None where that is not known.
    fewest_lesions: of the smallest class in test; None where nothing was judged.
    """
    drawn = "Anything about patients: the images are drawn by a program. A model of them shows that the pipeline works."
    elsewhere = (
        "How it does elsewhere: test images come from the same source as training images. Other cameras, clinics, ages and "
        "skin types were not measured; HAM10000 comes from two centres, in Austria and Australia, and shows mostly light skin."
    )
    others = (
        f"Other lesions: the model answers with one of {classes or 'its'} classes for every image, also for a lesion of "
        "another kind, or for none."
    )
    patients = (
        "Two lesions of one patient: the split keeps lesions together. Which lesions are of the same patient is not known."
    )
    often = "Looking too often: each further run that is judged on the same images makes figures a little less honest."
    rare = [] if fewest_lesions is None else [_rare(fewest_lesions)]
    return [*([drawn] if synthetic else []), elsewhere, others, patients, *rare, often]


def _rare(lesions: int) -> str:
    counted = f"{lesions:,} lesion" + ("" if lesions == 1 else "s")
    return f"Rare classes: the smallest class in test has {counted}; its figures say little."
