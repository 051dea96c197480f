"""Ten sets of MedMNIST v2 and MedMNIST+, at 28, 64, 128 and 224 pixels.

The classes, sizes, licences and MD5s come from the package `medmnist` 3.0.2.
"""

import dataclasses
import functools
from typing import Any

from medmamba_jax.data.public.facts import Archive, PublicSet, Scores
from medmamba_jax.data.public.npz_images import read_npz
from medmamba_jax.data.split_names import SPLITS

_PAGE = "https://zenodo.org/records/10519652"

_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)


@dataclasses.dataclass(frozen=True)
class _Facts:
    """The facts about one set. `md5s`: pixels -> MD5 of the file with images of this size."""

    title: str
    class_names: tuple[str, ...]
    sizes: tuple[int, int, int]
    scores: Scores
    md5s: dict[int, str]
    channels: int = 3
    licence: str = "CC BY 4.0"


_FACTS = {
    "pathmnist": _Facts(
        "PathMNIST, colorectal cancer histology",
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        (89996, 10004, 7180),
        Scores(94.0, 94.7, 99.4, 94.2, 95.3, 0.997),
        {
            28: "a8b06965200029087d5bd730944a56c1",
            64: "55aa9c1e0525abe5a6b9d8343a507616",
            128: "ac42d08fb904d92c244187169d1fd1d9",
            224: "2c51a510bcdc9cf8ddb2af93af1eadec",
        },
    ),
    "dermamnist": _Facts(
        "DermaMNIST, dermatoscopy of pigmented skin lesions",
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        (7007, 1003, 2005),
        Scores(67.3, 50.1, 93.6, 51.6, 77.9, 0.917),
        {
            28: "0744692d530f8e62ec473284d019b0c7",
            64: "b70a2f5635c6199aeaa28c31d7202e1f",
            128: "2defd784463fa5243564e855ed717de1",
            224: "8974907d8e169bef5f5b96bc506ae45d",
        },
        licence="CC BY-NC 4.0",
    ),
    "octmnist": _Facts(
        "OCTMNIST, optical coherence tomography of the retina",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        (97477, 10832, 1000),
        Scores(92.8, 91.8, 97.3, 91.8, 91.8, 0.992),
        {
            28: "c68d92d5b585d8d81f7112f81e2d0842",
            64: "e229e9440236b774d9f0dfef9d07bdaf",
            128: "0a97e76651ace45c5d943ee3f65b63ae",
            224: "abc493b6d529d5de7569faaef2773ba3",
        },
        channels=1,
    ),
    "pneumoniamnist": _Facts(
        "PneumoniaMNIST, chest X-rays of children",
        ("normal", "pneumonia"),
        (4708, 524, 624),
        Scores(92.1, 87.0, 87.0, 88.6, 89.9, 0.965),
        {
            28: "28209eda62fecd6e6a2d98b1501bb15f",
            64: "8f4eceb4ccffa70c672198ea285246c6",
            128: "05b46931834c231683c68f40c47b2971",
            224: "d6a3c71de1b945ea11211b03746c1fe1",
        },
        channels=1,
    ),
    "retinamnist": _Facts(
        "RetinaMNIST, fundus photographs by grade of diabetic retinopathy",
        ("0", "1", "2", "3", "4"),
        (1080, 120, 400),
        Scores(35.9, 37.7, 87.5, 36.1, 54.3, 0.747),
        {
            28: "bd4c0672f1bba3e3a89f0e4e876791e4",
            64: "afda852cc34dcda56f86ad2b2457dbcc",
            128: "e48e916a24454daf90583d4e6efb1a18",
            224: "eae7e3b6f3fcbda4ae613ebdcbe35348",
        },
    ),
    "breastmnist": _Facts(
        "BreastMNIST, breast ultrasound",
        ("malignant", "normal, benign"),
        (546, 78, 156),
        Scores(91.6, 72.6, 72.6, 76.6, 85.3, 0.825),
        {
            28: "750601b1f35ba3300ea97c75c52ff8f6",
            64: "742edef2a1fd1524b2efff4bd7ba9364",
            128: "363e4b3f8d712e9b5de15470a2aaadf1",
            224: "b56378a6eefa9fed602bb16d192d4c8b",
        },
        channels=1,
    ),
    "bloodmnist": _Facts(
        "BloodMNIST, single normal blood cells",
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes (myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        (11959, 1712, 3421),
        Scores(97.7, 97.7, 99.7, 97.7, 97.8, 0.999),
        {
            28: "7053d0359d879ad8a5505303e11de1dc",
            64: "2b94928a2ae4916078ca51e05b6b800b",
            128: "adace1e0ed228fccda1f39692059dd4c",
            224: "b718ff6835fcbdb22ba9eacccd7b2601",
        },
    ),
    "organamnist": _Facts(
        "OrganAMNIST, abdominal CT, axial",
        _ORGANS,
        (34561, 6491, 17778),
        Scores(94.4, 93.3, 99.5, 93.8, 94.6, 0.998),
        {
            28: "68e3f8846a6bd62f0c9bf841c0d9eacc",
            64: "2dcccc29b88e6da5a01161ef20cda288",
            128: "eeae80d0a227a8d099027e1b3cfd3b60",
            224: "50747347e05c87dd3aaf92c49f9f3170",
        },
        channels=1,
    ),
    "organcmnist": _Facts(
        "OrganCMNIST, abdominal CT, coronal",
        _ORGANS,
        (12975, 2392, 8216),
        Scores(92.2, 91.6, 99.3, 91.7, 92.7, 0.997),
        {
            28: "b9ceb9546e10131b32923c5bbeaea2b1",
            64: "3ce34a8724ea6f548e6db4744d03b6a9",
            128: "773c1f009daa3fe5d9a2a201b2a7ed94",
            224: "050f5e875dc056f6768abf94ec9995d1",
        },
        channels=1,
    ),
    "organsmnist": _Facts(
        "OrganSMNIST, abdominal CT, sagittal",
        _ORGANS,
        (13932, 2452, 8827),
        Scores(78.0, 77.4, 98.2, 76.3, 81.9, 0.982),
        {
            28: "9ab87b696fb54e2a387ebe992d6ed5f1",
            64: "53a6d115339d874c25e309a994ff46d3",
            128: "ded0c5fa01a95dc4978b956f613e9b8e",
            224: "b354719e553fbbb2513d5533f52a4cb1",
        },
        channels=1,
    ),
}
# TFDS records these of the file with 28 px.
_PNEUMONIA_28: dict[str, Any] = {
    "about": "4.2 MB",
    "size": 4170669,
    "sha256": "e1792d3f03751cb101e99f19a63b3c1941436c988665f47853417b05be250cd8",
}


def medmnist_sets() -> list[PublicSet]:
    """Returns every set in every size; `pathmnist` has 28 px, `pathmnist_224` has 224 px."""
    return [
        _public_set(name, facts, pixels) for name, facts in _FACTS.items() for pixels in facts.md5s
    ]


def _public_set(name: str, facts: _Facts, pixels: int) -> PublicSet:
    full_name = name if pixels == 28 else f"{name}_{pixels}"
    archive = Archive(
        f"{_PAGE}/files/{full_name}.npz?download=1",
        md5=facts.md5s[pixels],
        **(_PNEUMONIA_28 if full_name == "pneumoniamnist" else {}),
    )
    shape = (pixels, pixels) if facts.channels == 1 else (pixels, pixels, facts.channels)
    return PublicSet(
        name=full_name,
        title=f"{facts.title}, {pixels} px",
        page=_PAGE,
        archive=archive,
        licence=facts.licence,
        citation=(
            "J. Yang et al., MedMNIST v2, Sci Data 10:41, 2023, and the source of the images,"
            " which the page names."
        ),
        class_counts=dict.fromkeys(facts.class_names),
        split_sizes=dict(zip(SPLITS, facts.sizes, strict=True)),
        scores=facts.scores,
        splits=("paper", "official"),
        read=functools.partial(
            read_npz, file_name=archive.name, shape=shape, num_classes=len(facts.class_names)
        ),
        paper_is_official=True,
    )
