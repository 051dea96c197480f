"""Patients in the headers of DICOM files, which pydicom writes."""

import io

import numpy as np
import pytest

from medmamba_jax.data import DataConfig, LabelledImages
from medmamba_jax.data.build import find, prepare
from medmamba_jax.data.config import FolderConfig

pydicom = pytest.importorskip("pydicom")
PATIENTS = [f"{i // 3:07}" for i in range(36)]


def dicom(patient, seed, frames=1):
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = pydicom.uid.CTImageStorage
    header.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(seed)])
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.Rows = header.Columns = 8
    header.NumberOfFrames = frames
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    if patient is not None:
        header.PatientID = patient
    header.PixelData = np.random.default_rng(seed).integers(0, 256, 64 * frames, np.uint8).tobytes()
    content = io.BytesIO()
    header.save_as(content, enforce_file_format=True)
    return content.getvalue()


FILES = [dicom(patient, seed) for seed, patient in enumerate(PATIENTS)]


class Counting(list):
    """Counts how often an image is read."""

    def __init__(self, files):
        super().__init__(files)
        self.reads = np.zeros(len(files), int)

    def __getitem__(self, place):
        self.reads[place] += 1
        return super().__getitem__(place)


@pytest.fixture
def ready(tmp_path):
    def ready(files=FILES, groups=None, **settings):
        config = DataConfig(cache_dir=str(tmp_path / "cache"), image_size=8, **settings)
        images = LabelledImages(files, np.arange(len(files)) % 2, ("a", "b"), groups=groups)
        found = find(config, images)
        return prepare(found, config, config.preprocessing(1))

    return ready


def groups_by_place(ready):
    parts = ready.dataset.splits.values()
    return {
        int(place): str(group)
        for part in parts
        for place, group in zip(part.places, part.groups, strict=True)
    }


@pytest.mark.parametrize("tag", ["PatientID", "00100020"])
def test_groups_follow_the_header_and_do_not_show_it(ready, tag):
    groups = groups_by_place(ready(group_tag=tag))
    assert len(groups) == len(FILES) and len(set(groups.values())) == 12
    for one in range(len(FILES)):
        for other in range(len(FILES)):
            assert (groups[one] == groups[other]) == (PATIENTS[one] == PATIENTS[other])
    assert not any(patient in group for patient in PATIENTS for group in groups.values())
    assert groups == groups_by_place(ready(group_tag=tag, fold="1/2"))
    fewer = groups_by_place(ready(FILES[:-1], group_tag=tag))
    assert not set(fewer.values()) & set(groups.values())  # another key


def test_patients_stay_in_one_split(ready):
    splits = ready(group_tag="PatientID").dataset.splits.values()
    assert sum(len(set(part.groups)) for part in splits) == 12


def test_files_without_the_tag_and_other_patients_are_refused(ready, noise_png):
    with pytest.raises(ValueError, match="image 36 has no PatientID in a DICOM header"):
        ready([*FILES, noise_png(0)], group_tag="PatientID")
    several = [*FILES[:5], *(dicom(None, i) for i in range(7)), *FILES[5:]]
    with pytest.raises(ValueError, match=r"7 of 43 images have no .*image 5; .*and 2 more") as told:
        ready(several, group_tag="PatientID")
    assert "data.exclude" in str(told.value) and "image 4;" not in str(told.value)
    with pytest.raises(ValueError, match=r"names patients .* otherwise"):
        ready(groups=PATIENTS, group_tag="PatientID")


def test_a_tag_that_does_not_exist_fails_before_the_files_are_read(ready):
    files = Counting(FILES)
    with pytest.raises(ValueError, match="'PatientNumber' is no tag of DICOM"):
        ready(files, group_tag="PatientNumber")
    assert files.reads.sum() == 1


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_headers_are_read_with_the_images(ready, cache):
    for tag in ("", "PatientID"):
        files = Counting(FILES)
        ready(files, group_tag=tag, cache=cache)
        assert files.reads[1:].max() == 1 and files.reads[0] <= 2


def test_a_damaged_file_has_no_patient_and_is_dropped(tmp_path):
    for i, file in enumerate(FILES):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file if i else file[:300])
    config = DataConfig(
        path=str(tmp_path / "images"), group_tag="PatientID", allow_unreadable=True, image_size=8
    )
    dataset = prepare(find(config), config, config.preprocessing(1)).dataset
    assert sum(map(len, dataset.splits.values())) == 35


def test_frames_have_the_patient_of_their_file(tmp_path):
    for i in range(20):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom(f"p{i // 2}", i, frames=2))
    config = DataConfig(
        path=str(tmp_path / "images"), group_tag="PatientID", frame=-1, image_size=8
    )
    ready = prepare(find(config), config, config.preprocessing(1))
    groups = groups_by_place(ready)
    assert len(groups) == 40 and len(set(groups.values())) == 10
    names = ready.images.names
    for place, group in groups.items():
        number = int(names[place].split("/")[1][:2])
        alike = [p for p, other in groups.items() if other == group]
        assert {int(names[p].split("/")[1][:2]) // 2 for p in alike} == {number // 2}


def test_headers_that_name_patients_are_noted_without_their_identifiers(ready, caplog):
    for files in ([dicom(None, i) for i in range(30)], [dicom("", i) for i in range(30)]):
        ready(files)
    ready(group_tag="PatientID"), ready(groups=PATIENTS)
    assert "headers name patients" not in caplog.text
    ready()
    (note,) = [r.getMessage() for r in caplog.records if "headers name" in r.getMessage()]
    assert "data.group_tag=PatientID keeps" in note and "in 20 of 20 images" in note
    assert not any(patient in caplog.text for patient in PATIENTS)


def test_inspect_shows_the_patients_of_headers(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, file in enumerate(FILES):
        split = ("train", "val", "test")[i // 12]
        path = tmp_path / "images" / split / "ab"[i % 2] / f"{i}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom(PATIENTS[0], i) if i == 35 else file)
    (tmp_path / "images" / "train" / "a" / "0.dcm").write_bytes(FILES[0][:300])
    (tmp_path / "images" / "val" / "a" / "12.dcm").write_bytes(FILES[0][:300])
    lines = command("inspect", "images", "--group-tag", "PatientID")
    # Files that are damaged count as a patient each.
    assert "patients      5    5     5" in lines
    assert "cannot be read: 2: " in "\n".join(lines)
    (shared,) = [line for line in lines if line.startswith("patients in several splits")]
    assert shared.startswith("patients in several splits: 1: 'h")
    assert "train/a/2.dcm in train and test/b/35.dcm in test" in shared


def test_patients_by_file_names_need_no_note(tmp_path, caplog):
    for i, file in enumerate(FILES):
        path = tmp_path / "images" / "ab"[i % 2] / f"p{PATIENTS[i]}_{i}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
    config = DataConfig(path=str(tmp_path / "images"), folder=FolderConfig("p([0-9]+)_"))
    prepare(find(config), config, config.preprocessing(1))
    assert "headers name patients" not in caplog.text


def test_inspect_notes_them_too(command, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for i, file in enumerate(FILES):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
    lines = command("inspect", "images")
    assert "data.group_tag=PatientID keeps" in caplog.text
    assert not any(patient in text for patient in PATIENTS for text in (caplog.text, *lines))
