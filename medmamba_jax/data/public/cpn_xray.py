"""CPN: chest X-rays with COVID-19, with pneumonia, and normal ones."""

from medmamba_jax.data.public.class_folders import class_folder_reader
from medmamba_jax.data.public.facts import Archive, PublicSet, Scores

_COUNTS = {"COVID": 1626, "NORMAL": 1802, "PNEUMONIA": 1800}

CPN_XRAY = PublicSet(
    name="cpn_xray",
    title="CPN, chest X-rays (COVID-19, pneumonia, normal), 256x256 px",
    page="https://data.mendeley.com/datasets/dvntn9yhd2/1",
    archive=Archive(
        "https://prod-dcd-datasets-cache-zipfiles.s3.eu-west-1.amazonaws.com/dvntn9yhd2-1.zip"
    ),
    licence=None,
    citation=(
        "S. Kumar, S. Shastri et al., Covid19-Pneumonia-Normal Chest X-Ray Images, Mendeley Data,"
        " V1, 2022, doi:10.17632/dvntn9yhd2.1."
    ),
    class_counts=_COUNTS,
    split_sizes={"train": 3140, "val": 521, "test": 1567},
    scores=Scores(97.2, 97.2, 98.5, 97.2, 97.1, 0.995),
    splits=("paper",),
    read=class_folder_reader(tuple(_COUNTS)),
)
