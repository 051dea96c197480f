"""The splits of every public set are those of version 0.1.0, image by image.

The hashes were made by the code of commit f1c17df, from the archives that this file builds. A
published result names a split by set, kind and seed, so these must give the same images for ever.
"""

import hashlib
import io

import numpy as np
import pytest

from medmamba_jax.data.public.catalogue import CATALOGUE

MEDMNIST = [name for name in CATALOGUE if name.endswith("mnist")]
SEEDS = (0, 7)


def noise(i):
    return np.random.default_rng(i).integers(0, 256, (6, 5), np.uint8)


def class_folders(name, zipped, encode):
    """Classes of 13, 17, 21 ... images."""
    sizes = {label: 13 + 4 * k for k, label in enumerate(CATALOGUE[name].class_names)}
    names = [f"{label}/{i}x.png" for label, size in sizes.items() for i in range(size)]
    return zipped({f"top/{name}": encode(noise(i)) for i, name in enumerate(names)})


def drawn(name):
    """300 labels and 70 patients."""
    rng = np.random.default_rng(5)
    classes = CATALOGUE[name].class_names
    return rng.choice(classes, 300).tolist(), rng.integers(0, 70, 300).tolist()


def fetal_planes(name, zipped, encode):
    labels, patients = drawn(name)
    rows = [
        f"im{i};{p};{c};{int(p % 3 > 0)}"
        for i, (c, p) in enumerate(zip(labels, patients, strict=True))
    ]
    table = "\n".join(["Image_name;Patient_num;Plane;Train ", *rows])
    images = {f"Images/im{i}.png": encode(noise(i)) for i in range(len(rows))}
    return zipped({"FETAL_PLANES_DB_data.csv": table.encode()} | images)


def pad_ufes(name, zipped, encode):
    labels, patients = drawn(name)
    rows = [f"PAT_{p},{i}.png,{c}" for i, (c, p) in enumerate(zip(labels, patients, strict=True))]
    table = "\n".join(["patient_id,img_id,diagnostic", *rows])
    images = {f"imgs/{i}.png": encode(noise(i)) for i in range(len(rows))}
    return zipped({"metadata.csv": table.encode(), "a.zip": zipped(images)})


def medmnist(name, zipped, encode):
    public_set = CATALOGUE[name]
    rng = np.random.default_rng(5)
    pixels = int(public_set.title.split(", ")[-1].removesuffix(" px"))
    colour = name.startswith(("path", "derma", "retina", "blood"))
    arrays = {}
    for split, size in {"train": 23, "val": 12, "test": 14}.items():
        shape = (size, pixels, pixels, *[3] * colour)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, np.uint8)
        labels = np.arange(size) % len(public_set.class_names)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)[:, None]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


MAKE = {
    "kvasir": class_folders,
    "cpn_xray": class_folders,
    "fetal_planes_db": fetal_planes,
    "pad_ufes_20": pad_ufes,
} | dict.fromkeys(MEDMNIST, medmnist)


def hash_of(dataset):
    """Of every image's split, place in it, name, class and patient."""
    lines = []
    for split_name, split in dataset.splits.items():
        groups = split.groups
        for i in range(len(split)):
            label = dataset.class_names[split.labels[i]]
            patient = "" if groups is None else groups[i]
            lines.append(f"{split_name} {i} {split.names[i]} {label} {patient}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# Set -> kind -> the hash for each seed of SEEDS.
GOLDEN = {
    "kvasir": {
        "paper": ("528682278811664e", "7518cd04ffe27ae9"),
    },
    "cpn_xray": {
        "paper": ("42ff94783aecd46b", "84cf41b6b8d256c5"),
    },
    "fetal_planes_db": {
        "paper": ("a9d32ee5b811a237", "4a120a2b88ef8c93"),
        "official": ("2c8d79f1f79bc21d", "2c8d79f1f79bc21d"),
        "patient": ("ca350a6823bcdc88", "8ea4331d2a62762f"),
    },
    "pad_ufes_20": {
        "paper": ("15d8376bc44ee5df", "accc70806bffbd8e"),
        "patient": ("3233dce56ec05791", "b174e7eb4e9bcdae"),
    },
}
# The publisher's split, which "paper" and "official" both mean, whatever the seed.
PUBLISHED = {
    "pathmnist": "fc63227f7efb1e06",
    "dermamnist": "6375b65950455ab7",
    "octmnist": "9fad145404989d03",
    "pneumoniamnist": "fb68c3421d44c7fa",
    "retinamnist": "ffc91ab495d0563f",
    "breastmnist": "2e30154dab3f8e70",
    "bloodmnist": "0f10dd35e56995e0",
    "organamnist": "d6b45d66a41f00e8",
    "organcmnist": "d6b45d66a41f00e8",
    "organsmnist": "d6b45d66a41f00e8",
}
for _name, _hash in PUBLISHED.items():
    GOLDEN[_name] = dict.fromkeys(("paper", "official"), (_hash, _hash))


@pytest.mark.parametrize("name", MAKE)
def test_the_splits_are_those_of_before(publish, build, zipped, encode, name):
    publish(name, MAKE[name](name, zipped, encode))
    found = {
        kind: tuple(hash_of(build(name, splits=kind, split_seed=seed)) for seed in SEEDS)
        for kind in CATALOGUE[name].splits
    }
    assert found == GOLDEN[name]
