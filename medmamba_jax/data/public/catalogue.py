"""The table of public sets: where they are, whose they are, and how their files are laid out.

The classes, sizes, licences and MD5s of MedMNIST come from the package `medmnist` 3.0.2.
"""

from collections.abc import Iterator

from medmamba_jax.data.public.facts import Archive, ClassFolders, Npz, PublicSet, Scores, Table
from medmamba_jax.data.split_names import SPLITS

_MENDELEY = "https://prod-dcd-datasets-cache-zipfiles.s3.eu-west-1.amazonaws.com"
_MEDMNIST = "https://zenodo.org/records/10519652"
_MEDMNIST_PIXELS = (28, 64, 128, 224)
_ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver"),
    *("lung-left", "lung-right", "pancreas", "spleen"),
)


def _medmnist(
    name: str,
    title: str,
    class_names: tuple[str, ...],
    sizes: tuple[int, int, int],
    scores: Scores,
    *md5s: str,
    channels: int = 3,
    licence: str = "CC BY 4.0",
) -> Iterator[PublicSet]:
    """Yields a set of MedMNIST in every size; `pathmnist` has 28 px, `pathmnist_224` has 224 px.

    Args:
        name, title, class_names, scores, licence: as in `PublicSet`.
        sizes: the number of images for training, validation and testing.
        md5s: the checksums of the files with 28, 64, 128 and 224 px.
        channels: 1 or 3.
    """
    for pixels, md5 in zip(_MEDMNIST_PIXELS, md5s, strict=True):
        full_name = name if pixels == 28 else f"{name}_{pixels}"
        url = f"{_MEDMNIST}/files/{full_name}.npz?download=1"
        yield PublicSet(
            name=full_name,
            title=f"{title}, {pixels} px",
            page=_MEDMNIST,
            archive=_PNEUMONIA_28 if md5 == _PNEUMONIA_28.md5 else Archive(url, md5=md5),
            layout=Npz((pixels, pixels) if channels == 1 else (pixels, pixels, channels)),
            licence=licence,
            citation=(
                "J. Yang et al., MedMNIST v2, Sci Data 10:41, 2023, and the source of the images,"
                " which the page names."
            ),
            class_counts=dict.fromkeys(class_names),
            split_sizes=dict(zip(SPLITS, sizes, strict=True)),
            scores=scores,
            splits=("paper", "official"),
            paper_is_official=True,
        )


# TFDS records the size and the SHA-256.
_PNEUMONIA_28 = Archive(
    f"{_MEDMNIST}/files/pneumoniamnist.npz?download=1",
    about="4.2 MB",
    size=4170669,
    md5="28209eda62fecd6e6a2d98b1501bb15f",
    sha256="e1792d3f03751cb101e99f19a63b3c1941436c988665f47853417b05be250cd8",
)

_SETS = (
    PublicSet(
        name="kvasir",
        title="Kvasir v1, endoscopic images of the digestive tract, 720x576 to 1920x1072 px",
        page="https://datasets.simula.no/kvasir",
        archive=Archive(
            "https://datasets.simula.no/downloads/kvasir/kvasir-dataset.zip", about="1.2 GB"
        ),
        layout=ClassFolders(),
        licence=(
            "no named one; the page allows research and teaching, all else by written permission"
        ),
        citation=(
            "K. Pogorelov et al., KVASIR: A Multi-Class Image Dataset for Computer Aided"
            " Gastrointestinal Disease Detection, MMSys 2017, doi:10.1145/3083187.3083212."
        ),
        class_counts={
            "dyed-lifted-polyps": 500,
            "dyed-resection-margins": 500,
            "esophagitis": 500,
            "normal-cecum": 500,
            "normal-pylorus": 500,
            "normal-z-line": 500,
            "polyps": 500,
            "ulcerative-colitis": 500,
        },
        split_sizes={"train": 2408, "val": 392, "test": 1200},
        scores=Scores(78.7, 78.8, 97.0, 78.6, 78.8, 0.973),
        splits=("paper",),
        mistaken={
            8000: "it holds 8,000 images, as version 2 of Kvasir does (kvasir-dataset-v2.zip): get"
            " version 1, kvasir-dataset.zip, with 4,000"
        },
    ),
    PublicSet(
        name="fetal_planes_db",
        title="FETAL_PLANES_DB, maternal-fetal ultrasound planes of 1,792 patients",
        page="https://zenodo.org/records/3904280",
        archive=Archive(
            "https://zenodo.org/records/3904280/files/FETAL_PLANES_ZENODO.zip",
            about="1.2 or 2.1 GB",  # sources differ
        ),
        layout=Table(
            "FETAL_PLANES_DB_data.csv",
            delimiter=";",
            image="Image_name",
            suffix=".png",
            label="Plane",
            patient="Patient_num",
            split="Train",
            split_names={"0": "test", "1": "train"},
        ),
        licence="CC BY 4.0",
        citation=(
            "X. P. Burgos-Artizzu et al., Evaluation of deep convolutional neural networks for"
            " automatic classification of common maternal fetal ultrasound planes, Sci Rep"
            " 10:10200, 2020, doi:10.1038/s41598-020-67076-5."
        ),
        class_counts={
            "Fetal abdomen": 711,
            "Fetal brain": 3092,
            "Fetal femur": 1040,
            "Fetal thorax": 1718,
            "Maternal cervix": 1626,
            "Other": 4213,
        },
        split_sizes={"train": 7446, "val": 1237, "test": 3717},
        scores=Scores(92.2, 93.9, 98.7, 93.0, 94.0, 0.993),
        splits=("paper", "official", "patient"),
    ),
    PublicSet(
        name="cpn_xray",
        title="CPN, chest X-rays (COVID-19, pneumonia, normal), 256x256 px",
        page="https://data.mendeley.com/datasets/dvntn9yhd2/1",
        archive=Archive(f"{_MENDELEY}/dvntn9yhd2-1.zip"),
        layout=ClassFolders(),
        licence=None,
        citation=(
            "S. Kumar, S. Shastri et al., Covid19-Pneumonia-Normal Chest X-Ray Images, Mendeley"
            " Data, V1, 2022, doi:10.17632/dvntn9yhd2.1."
        ),
        class_counts={"COVID": 1626, "NORMAL": 1802, "PNEUMONIA": 1800},
        split_sizes={"train": 3140, "val": 521, "test": 1567},
        scores=Scores(97.2, 97.2, 98.5, 97.2, 97.1, 0.995),
        splits=("paper",),
    ),
    PublicSet(
        name="pad_ufes_20",
        title="PAD-UFES-20, smartphone photographs of skin lesions of 1,373 patients",
        page="https://data.mendeley.com/datasets/zr7vgbcyr2/1",
        archive=Archive(f"{_MENDELEY}/zr7vgbcyr2-1.zip", about="3.6 GB"),
        layout=Table(
            "metadata.csv",
            delimiter=",",
            image="img_id",
            label="diagnostic",
            patient="patient_id",
        ),
        licence="CC BY 4.0",
        citation="A. G. C. Pacheco et al., PAD-UFES-20, Data in Brief 32:106221, 2020.",
        class_counts={"ACK": 730, "BCC": 845, "MEL": 52, "NEV": 244, "SCC": 192, "SEK": 235},
        split_sizes={"train": 1384, "val": 227, "test": 687},
        scores=Scores(38.4, 36.9, 89.9, 35.8, 58.8, 0.808),
        splits=("paper", "patient"),
    ),
    *_medmnist(
        "pathmnist",
        "PathMNIST, colorectal cancer histology",
        (
            *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle"),
            *("normal colon mucosa", "cancer-associated stroma"),
            "colorectal adenocarcinoma epithelium",
        ),
        (89996, 10004, 7180),
        Scores(94.0, 94.7, 99.4, 94.2, 95.3, 0.997),
        *("a8b06965200029087d5bd730944a56c1", "55aa9c1e0525abe5a6b9d8343a507616"),
        *("ac42d08fb904d92c244187169d1fd1d9", "2c51a510bcdc9cf8ddb2af93af1eadec"),
    ),
    *_medmnist(
        "dermamnist",
        "DermaMNIST, dermatoscopy of pigmented skin lesions",
        (
            *("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma"),
            *("benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi"),
            "vascular lesions",
        ),
        (7007, 1003, 2005),
        Scores(67.3, 50.1, 93.6, 51.6, 77.9, 0.917),
        *("0744692d530f8e62ec473284d019b0c7", "b70a2f5635c6199aeaa28c31d7202e1f"),
        *("2defd784463fa5243564e855ed717de1", "8974907d8e169bef5f5b96bc506ae45d"),
        licence="CC BY-NC 4.0",
    ),
    *_medmnist(
        "octmnist",
        "OCTMNIST, optical coherence tomography of the retina",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        (97477, 10832, 1000),
        Scores(92.8, 91.8, 97.3, 91.8, 91.8, 0.992),
        *("c68d92d5b585d8d81f7112f81e2d0842", "e229e9440236b774d9f0dfef9d07bdaf"),
        *("0a97e76651ace45c5d943ee3f65b63ae", "abc493b6d529d5de7569faaef2773ba3"),
        channels=1,
    ),
    *_medmnist(
        "pneumoniamnist",
        "PneumoniaMNIST, chest X-rays of children",
        ("normal", "pneumonia"),
        (4708, 524, 624),
        Scores(92.1, 87.0, 87.0, 88.6, 89.9, 0.965),
        *("28209eda62fecd6e6a2d98b1501bb15f", "8f4eceb4ccffa70c672198ea285246c6"),
        *("05b46931834c231683c68f40c47b2971", "d6a3c71de1b945ea11211b03746c1fe1"),
        channels=1,
    ),
    *_medmnist(
        "retinamnist",
        "RetinaMNIST, fundus photographs by grade of diabetic retinopathy",
        ("0", "1", "2", "3", "4"),
        (1080, 120, 400),
        Scores(35.9, 37.7, 87.5, 36.1, 54.3, 0.747),
        *("bd4c0672f1bba3e3a89f0e4e876791e4", "afda852cc34dcda56f86ad2b2457dbcc"),
        *("e48e916a24454daf90583d4e6efb1a18", "eae7e3b6f3fcbda4ae613ebdcbe35348"),
    ),
    *_medmnist(
        "breastmnist",
        "BreastMNIST, breast ultrasound",
        ("malignant", "normal, benign"),
        (546, 78, 156),
        Scores(91.6, 72.6, 72.6, 76.6, 85.3, 0.825),
        *("750601b1f35ba3300ea97c75c52ff8f6", "742edef2a1fd1524b2efff4bd7ba9364"),
        *("363e4b3f8d712e9b5de15470a2aaadf1", "b56378a6eefa9fed602bb16d192d4c8b"),
        channels=1,
    ),
    *_medmnist(
        "bloodmnist",
        "BloodMNIST, single normal blood cells",
        (
            *("basophil", "eosinophil", "erythroblast"),
            *("immature granulocytes (myelocytes, metamyelocytes and promyelocytes)", "lymphocyte"),
            *("monocyte", "neutrophil", "platelet"),
        ),
        (11959, 1712, 3421),
        Scores(97.7, 97.7, 99.7, 97.7, 97.8, 0.999),
        *("7053d0359d879ad8a5505303e11de1dc", "2b94928a2ae4916078ca51e05b6b800b"),
        *("adace1e0ed228fccda1f39692059dd4c", "b718ff6835fcbdb22ba9eacccd7b2601"),
    ),
    *_medmnist(
        "organamnist",
        "OrganAMNIST, abdominal CT, axial",
        _ORGANS,
        (34561, 6491, 17778),
        Scores(94.4, 93.3, 99.5, 93.8, 94.6, 0.998),
        *("68e3f8846a6bd62f0c9bf841c0d9eacc", "2dcccc29b88e6da5a01161ef20cda288"),
        *("eeae80d0a227a8d099027e1b3cfd3b60", "50747347e05c87dd3aaf92c49f9f3170"),
        channels=1,
    ),
    *_medmnist(
        "organcmnist",
        "OrganCMNIST, abdominal CT, coronal",
        _ORGANS,
        (12975, 2392, 8216),
        Scores(92.2, 91.6, 99.3, 91.7, 92.7, 0.997),
        *("b9ceb9546e10131b32923c5bbeaea2b1", "3ce34a8724ea6f548e6db4744d03b6a9"),
        *("773c1f009daa3fe5d9a2a201b2a7ed94", "050f5e875dc056f6768abf94ec9995d1"),
        channels=1,
    ),
    *_medmnist(
        "organsmnist",
        "OrganSMNIST, abdominal CT, sagittal",
        _ORGANS,
        (13932, 2452, 8827),
        Scores(78.0, 77.4, 98.2, 76.3, 81.9, 0.982),
        *("9ab87b696fb54e2a387ebe992d6ed5f1", "53a6d115339d874c25e309a994ff46d3"),
        *("ded0c5fa01a95dc4978b956f613e9b8e", "b354719e553fbbb2513d5533f52a4cb1"),
        channels=1,
    ),
)

# To add a set, write a row above.
CATALOGUE: dict[str, PublicSet] = {public_set.name: public_set for public_set in _SETS}
