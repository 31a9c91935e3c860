"""The diagnoses: HAM10000's seven classes, their order, and their clinical grouping.

Order and abbreviations follow Tschandl, Rosendahl and Kittler, Sci Data 5, 180161 (2018), table 1.
"""

NORMAL = "normal"  # the study's eighth class: no diagnosis, cut from images of lesions (components/balance)
HAM10000_CLASSES: tuple[str, ...] = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

MELANOMA = "mel"
MALIGNANT = ("akiec", "bcc", "mel")  # akiec is carcinoma in situ or its precursor; Tschandl et al., Lancet Oncol 20 (2019)

CLASS_TITLES: dict[str, str] = {
    "akiec": "actinic keratosis / Bowen's disease",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis-like lesion",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
    "normal": "skin beside a lesion",
}
