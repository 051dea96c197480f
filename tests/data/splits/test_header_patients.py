import dataclasses

import numpy as np
import pytest

from medmamba_jax.data import DataConfig, LabelledImages
from medmamba_jax.data.splits.header_patients import header_patients

PATIENTS = [f"{i // 3:07}" for i in range(30)]
FILES = [f"{patient} image {i}".encode() for i, patient in enumerate(PATIENTS)]
TAG = DataConfig(path="x", group_tag="PatientID")


def tag_of(content, tag):
    assert tag == "PatientID"
    return content.split()[0].decode() if b"image" in content else None


def found(files=FILES, **facts):
    return LabelledImages(list(files), np.arange(len(files)) % 2, ("a", "b"), **facts)


def test_groups_follow_the_header_and_do_not_show_it():
    groups = header_patients(found(), TAG, tag_of)
    assert len(set(groups)) == 10
    for one in range(30):
        for other in range(30):
            assert (groups[one] == groups[other]) == (PATIENTS[one] == PATIENTS[other])
    assert not any(patient in group for patient in PATIENTS for group in groups)
    assert (groups == header_patients(found(), TAG, tag_of)).all()
    fewer = header_patients(found(FILES[:-1]), TAG, tag_of)
    assert not set(fewer) & set(groups)  # another key: a table of hashes cannot be made ahead


def test_files_without_the_tag_and_other_patients_are_refused():
    with pytest.raises(ValueError, match="image 30 has no PatientID in a DICOM header"):
        header_patients(found([*FILES, b"png"]), TAG, tag_of)
    with pytest.raises(ValueError, match=r"names patients .* otherwise"):
        header_patients(found(groups=np.array(PATIENTS)), TAG, tag_of)


def test_headers_that_name_patients_are_told_of(tmp_path, caplog):
    off = dataclasses.replace(TAG, group_tag="")
    assert header_patients(found(root=tmp_path), off, tag_of) is None
    assert "data.group_tag=PatientID keeps" in caplog.text
