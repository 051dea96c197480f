"""The facts of the catalogue against each other and against what others record."""

import pytest

from medmamba_jax.data.public.catalogue import CATALOGUE
from medmamba_jax.data.split_names import PUBLIC_SPLITS

_MODALITIES = "path derma oct pneumonia retina breast blood organa organc organs"
MEDMNIST = [f"{modality}mnist" for modality in _MODALITIES.split()]


def test_the_sets_are_those_of_the_paper_that_are_public():
    in_sizes = {f"{name}{size}" for name in MEDMNIST for size in ("", "_64", "_128", "_224")}
    assert set(CATALOGUE) == {"kvasir", "fetal_planes_db", "cpn_xray", "pad_ufes_20"} | in_sizes


@pytest.mark.parametrize("name", CATALOGUE)
def test_facts_agree_with_each_other(name):
    public_set = CATALOGUE[name]
    assert public_set.name == name
    assert set(public_set.splits) <= set(PUBLIC_SPLITS) and "paper" in public_set.splits
    counts = public_set.class_counts.values()
    if None not in counts:
        assert sum(counts) == public_set.num_images
    archive = public_set.archive
    assert archive.url.startswith("https://") and public_set.page.startswith("https://")
    assert archive.md5 is None or len(archive.md5) == 32
    assert archive.sha256 is None or len(archive.sha256) == 64
    assert all(0 < score <= 100 for score in vars(public_set.scores).values())
    assert public_set.scores.auc <= 1
    assert "\n" not in public_set.notice() and public_set.page in public_set.notice()


def test_what_is_not_known_is_said():
    assert "Licence: not known" in CATALOGUE["cpn_xray"].notice()
    assert not any(CATALOGUE[name].archive.identified for name in ("kvasir", "cpn_xray"))


def test_medmnist_against_its_own_package():
    info = pytest.importorskip("medmnist", reason="needs the package medmnist").INFO
    for name in MEDMNIST:
        for suffix in ("", "_64", "_128", "_224"):
            ours = CATALOGUE[name + suffix]
            assert ours.archive.url == info[name][f"url{suffix}"]
            assert ours.archive.md5 == info[name][f"MD5{suffix}"]
            assert ours.split_sizes == info[name]["n_samples"]
            assert ours.licence == info[name]["license"]
            names = [label.replace("(", " (") for label in info[name]["label"].values()]
            assert list(ours.class_names) == names


def test_pneumoniamnist_against_the_record_of_tfds():
    import tensorflow_datasets as tfds

    root = tfds.core.tfds_path("datasets/pneumonia_mnist/checksums.tsv")
    archive = CATALOGUE["pneumoniamnist"].archive
    rows = [line.split("\t") for line in root.read_text().splitlines()]
    sizes = {url: (int(size), sha256) for url, size, sha256, _ in rows}
    assert sizes[archive.url] == (archive.size, archive.sha256)
