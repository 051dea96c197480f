"""FETAL_PLANES_DB: maternal-fetal ultrasound by plane."""

from medmamba_jax.data.public.facts import Archive, PublicSet, Scores
from medmamba_jax.data.public.listing import Entry
from medmamba_jax.data.public.tables import Row, table_reader
from medmamba_jax.errors import UserError

_COUNTS = {
    "Fetal abdomen": 711,
    "Fetal brain": 3092,
    "Fetal femur": 1040,
    "Fetal thorax": 1718,
    "Maternal cervix": 1626,
    "Other": 4213,
}
_SPLITS = {"1": "train", "0": "test"}


def _entry(row: Row) -> Entry:
    cells = row.cells
    if cells["Train"] not in _SPLITS:
        raise UserError(f"{row.where}: the column Train holds {cells['Train']!r}, not 0 or 1")
    return Entry(
        filename=f"{cells['Image_name']}.png",
        label=cells["Plane"],
        patient=cells["Patient_num"],
        split=_SPLITS[cells["Train"]],
    )


FETAL_PLANES_DB = PublicSet(
    name="fetal_planes_db",
    title="FETAL_PLANES_DB, maternal-fetal ultrasound planes of 1,792 patients",
    page="https://zenodo.org/records/3904280",
    archive=Archive(
        "https://zenodo.org/records/3904280/files/FETAL_PLANES_ZENODO.zip",
        about="1.2 or 2.1 GB",  # sources differ
    ),
    licence="CC BY 4.0",
    citation=(
        "X. P. Burgos-Artizzu et al., Evaluation of deep convolutional neural networks for"
        " automatic classification of common maternal fetal ultrasound planes, Sci Rep 10:10200,"
        " 2020, doi:10.1038/s41598-020-67076-5."
    ),
    class_counts=_COUNTS,
    split_sizes={"train": 7446, "val": 1237, "test": 3717},
    scores=Scores(92.2, 93.9, 98.7, 93.0, 94.0, 0.993),
    splits=("paper", "official", "patient"),
    read=table_reader(
        tuple(_COUNTS),
        table="FETAL_PLANES_DB_data.csv",
        delimiter=";",
        columns=("Image_name", "Patient_num", "Plane", "Train"),
        entry=_entry,
    ),
)
