"""PAD-UFES-20: photographs of skin lesions, taken with smartphones."""

from medmamba_jax.data.public.facts import Archive, PublicSet, Scores
from medmamba_jax.data.public.listing import Entry
from medmamba_jax.data.public.tables import Row, table_reader

_COUNTS = {"ACK": 730, "BCC": 845, "MEL": 52, "NEV": 244, "SCC": 192, "SEK": 235}


def _entry(row: Row) -> Entry:
    return Entry(row.cells["img_id"], row.cells["diagnostic"], patient=row.cells["patient_id"])


PAD_UFES_20 = PublicSet(
    name="pad_ufes_20",
    title="PAD-UFES-20, smartphone photographs of skin lesions of 1,373 patients",
    page="https://data.mendeley.com/datasets/zr7vgbcyr2/1",
    archive=Archive(
        "https://prod-dcd-datasets-cache-zipfiles.s3.eu-west-1.amazonaws.com/zr7vgbcyr2-1.zip",
        about="3.6 GB",
    ),
    licence="CC BY 4.0",
    citation="A. G. C. Pacheco et al., PAD-UFES-20, Data in Brief 32:106221, 2020.",
    class_counts=_COUNTS,
    split_sizes={"train": 1384, "val": 227, "test": 687},
    scores=Scores(38.4, 36.9, 89.9, 35.8, 58.8, 0.808),
    splits=("paper", "patient"),
    read=table_reader(
        tuple(_COUNTS),
        table="metadata.csv",
        delimiter=",",
        columns=("patient_id", "img_id", "diagnostic"),
        entry=_entry,
    ),
)
