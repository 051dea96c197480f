"""Kvasir, version 1: endoscopy of the digestive tract."""

from pathlib import Path

from medmamba_jax.data.public.class_folders import class_folder_reader, count_by_class_folder
from medmamba_jax.data.public.facts import Archive, PublicSet, Scores

_CLASS_NAMES = (
    "dyed-lifted-polyps",
    "dyed-resection-margins",
    "esophagitis",
    "normal-cecum",
    "normal-pylorus",
    "normal-z-line",
    "polyps",
    "ulcerative-colitis",
)


def _second_version(location: Path) -> str | None:
    """Recognises version 2, which has the same folders with twice as many images."""
    if count_by_class_folder(location, _CLASS_NAMES) != dict.fromkeys(_CLASS_NAMES, 1000):
        return None
    return (
        "it holds 8,000 images, as version 2 of Kvasir does (kvasir-dataset-v2.zip): get version 1,"
        " kvasir-dataset.zip, with 4,000"
    )


KVASIR = PublicSet(
    name="kvasir",
    title="Kvasir v1, endoscopic images of the digestive tract, 720x576 to 1920x1072 px",
    page="https://datasets.simula.no/kvasir",
    archive=Archive(
        "https://datasets.simula.no/downloads/kvasir/kvasir-dataset.zip", about="1.2 GB"
    ),
    licence="no named one; the page allows research and teaching, all else by written permission",
    citation=(
        "K. Pogorelov et al., KVASIR: A Multi-Class Image Dataset for Computer Aided"
        " Gastrointestinal Disease Detection, MMSys 2017, doi:10.1145/3083187.3083212."
    ),
    class_counts=dict.fromkeys(_CLASS_NAMES, 500),
    split_sizes={"train": 2408, "val": 392, "test": 1200},
    scores=Scores(78.7, 78.8, 97.0, 78.6, 78.8, 0.973),
    splits=("paper",),
    read=class_folder_reader(_CLASS_NAMES),
    mistaken=_second_version,
)
