"""Prediction of files: what a user gets from `medmamba predict`."""

import csv
import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy.special import softmax

import medmamba_jax as mm
from medmamba_jax import cli
from medmamba_jax import predictor as predictor_module
from medmamba_jax.data.inputs import image_paths
from medmamba_jax.prediction import Predictions, as_csv, as_json_lines, as_rows, predict_files


@pytest.fixture
def run(trained, one_device):
    return mm.load_run(trained[0])


@pytest.fixture
def folder(tmp_path, images):
    """The test images as files, two of them a level deeper."""
    split = images.splits["test"]
    (tmp_path / "scans" / "later").mkdir(parents=True)
    for row in range(len(split)):
        place = "later" if row > 6 else "."
        Image.fromarray(split.read(row)).save(tmp_path / "scans" / place / f"{row}.png")
    return tmp_path / "scans"


def test_files_give_the_numbers_of_evaluation_to_the_last_bit(run, folder, images):
    paths = [*sorted(folder.glob("*.png")), *sorted(folder.glob("later/*.png"))]
    found = predict_files(run.predictor, paths)
    logits = run.predictor.logits(images.splits["test"])
    np.testing.assert_array_equal(found.probabilities, softmax(logits.astype(np.float64), axis=1))
    assert found.names == tuple(map(str, paths)) and found.unreadable == {}


def test_unreadable_files_are_named_and_the_others_classified(run, folder):
    good = folder / "0.png"
    (folder / "text.png").write_text("no image")
    paths = [folder / "text.png", good, folder / "gone.png"]
    found = predict_files(run.predictor, paths)
    assert found.names == (str(good),) and found.probabilities.shape == (1, 2)
    assert list(found.unreadable) == [str(paths[0]), str(paths[2])]
    assert found.unreadable[str(paths[2])] == "No such file or directory"
    nothing = predict_files(run.predictor, [folder / "text.png"])
    assert nothing.names == () and nothing.probabilities.shape == (0, 2)


def test_the_mirror_image_counts_half(run, folder):
    pixels = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))
    Image.fromarray(pixels).save(folder / "ramp.png")
    Image.fromarray(pixels[:, ::-1]).save(folder / "mirrored.png")
    paths = [folder / "ramp.png", folder / "mirrored.png"]
    alone = predict_files(run.predictor, paths).probabilities
    both = predict_files(run.predictor, paths, mirror=True).probabilities
    np.testing.assert_allclose(both, np.tile(alone.mean(0), (2, 1)), rtol=1e-6)
    assert not np.allclose(*alone, rtol=1e-6)


def test_each_frame_is_an_image_where_the_run_says_so(run, tmp_path):
    import dataclasses

    import tifffile

    pages = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    (tmp_path / "bad.tif").write_bytes(b"II*\0")
    every = dataclasses.replace(run.predictor.preprocessing, frame=-1)
    predictor = dataclasses.replace(run.predictor, preprocessing=every)
    found = predict_files(predictor, [tmp_path / "stack.tif", tmp_path / "bad.tif"])
    assert [name.rpartition("stack.tif")[2] for name in found.names] == [
        f", frame {k}" for k in range(3)
    ]
    expected = run.predictor.predict(list(pages))
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-6)
    assert list(found.unreadable) == [str(tmp_path / "bad.tif")]


def predictions(table, task="multiclass", names=("a", "b")):
    table = np.array(table, float)
    return Predictions(task, names, tuple(f"{i}.png" for i in range(len(table))), table, {})


def test_the_likeliest_class_a_threshold_and_abstaining():
    found = predictions([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    assert found.decided() == ["a", "b", "a"]
    assert found.decided(threshold=0.3) == ["a", "b", "b"]
    assert found.decided(abstain_below=0.7) == ["a", "undecided", "a"]
    assert found.decided(threshold=0.3, abstain_below=0.5) == ["a", "b", "undecided"]
    with pytest.raises(mm.UserError, match=r"threshold must lie between 0 and 1; got 2"):
        found.decided(threshold=2)
    three = predictions([[0.2, 0.3, 0.5]], names=("a", "b", "c"))
    with pytest.raises(mm.UserError, match="this model has 3 classes: use abstain_below"):
        three.decided(threshold=0.5)


def test_labels_of_a_multilabel_model():
    found = predictions([[0.9, 0.8], [0.5, 0.2], [0.1, 0.6]], task="multilabel")
    assert found.decided() == ["a|b", "", "b"]
    assert found.decided(threshold=0.5) == ["a|b", "a", "b"]
    assert found.decided(abstain_below=0.7) == ["a|b", "undecided", "undecided"]


def test_tables_for_spreadsheets_and_programs():
    found = predictions([[0.25, 0.75]], names=("=1+1", "<b>"))
    found = Predictions(found.task, found.class_names, ("-x.png",), found.probabilities, {})
    header, rows = as_rows(found, top=1)
    text = as_csv(header, rows)
    assert text.encode().startswith(b"\xef\xbb\xbf")
    read = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))
    assert read == [
        ["path", "predicted", "top_1", "p_top_1", "p_=1+1", "p_<b>"],
        ["'-x.png", "<b>", "<b>", "0.75", "0.25", "0.75"],
    ]
    (line,) = as_json_lines(header, rows).splitlines()
    assert json.loads(line)["p_=1+1"] == 0.25 and json.loads(line)["path"] == "-x.png"
    with pytest.raises(mm.UserError, match="top must lie between 0 and 2"):
        as_rows(found, top=3)


def test_files_folders_patterns_and_tables_are_inputs(folder, tmp_path, caplog):
    (folder / "notes.txt").write_text("")
    (folder / ".hidden.png").write_text("")
    (tmp_path / "table.csv").write_text("path;who\nscans/3.png;me\nscans/0.png;you\n")
    names = [path.name for path in image_paths([folder])]
    assert names == [*(f"{i}.png" for i in range(7)), "7.png", "8.png"]
    assert "left out 1 files that are no images: 1 .txt (notes.txt)" in caplog.text
    assert [path.name for path in image_paths([tmp_path / "table.csv"])] == ["3.png", "0.png"]
    assert len(image_paths([str(folder / "**" / "*.png"), folder])) == 9  # each once
    assert image_paths([folder / "notes.txt"]) == [folder / "notes.txt"]  # named, so wanted
    with pytest.raises(FileNotFoundError, match=r"no .*\*\.jpg"):
        image_paths([str(folder / "*.jpg")])
    (tmp_path / "@eaDir").mkdir()
    shutil.copy(folder / "0.png", tmp_path / "@eaDir" / "SYNOPHOTO_THUMB.png")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "scans").symlink_to(folder)
    (folder / "back").symlink_to(tmp_path / "linked")
    (folder / "lost.png").symlink_to(tmp_path / "nowhere.png")
    assert len(image_paths([tmp_path / "linked"])) == 10  # the broken link is to be named
    for text, problem in (("file\n0.png\n", "no column 'path'"), ("path,a\n,1\n", "is empty")):
        (tmp_path / "table.csv").write_text(text)
        with pytest.raises(mm.UserError, match=problem):
            image_paths([tmp_path / "table.csv"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(mm.UserError, match="holds no image file; check the path"):
        image_paths([tmp_path / "empty"])


def test_the_command_prints_writes_and_tells_what_failed(run, folder, capsys, tmp_path):
    (folder / "text.png").write_text("no image")
    assert cli.main(["predict", str(run.workdir), str(folder)]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 9 and f"{folder}/0.png: " in printed.out
    assert printed.err.startswith(f"not classified: {folder}/text.png: ")
    output = tmp_path / "new" / "table.csv"
    arguments = ["predict", str(run.workdir), str(folder / "0.png"), f"--output={output}"]
    assert cli.main([*arguments, "--top=2"]) == 0
    with output.open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    expected = run.predictor.predict(folder / "0.png")
    assert row["predicted"] == max(expected, key=expected.get) == row["top_1"]
    assert float(row["p_dark"]) == pytest.approx(expected["dark"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--output=x.xlsx"], "must end in .csv or .jsonl"),
        (["--mirror"], "data.augmentation='none', which shows no mirror images"),
        (["--threshold=3"], "threshold must lie between 0 and 1"),
        (["--top=3"], "top must lie between 0 and 2"),
        ([f"--output={__file__}/x.csv"], "check the path"),
    ],
)
def test_a_mistake_of_the_command_is_found_before_an_image_is_read(
    run, folder, capsys, options, problem, monkeypatch
):
    monkeypatch.setattr("medmamba_jax.cli.predict.predict_files", None)
    assert cli.main(["predict", str(run.workdir), str(folder), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and problem in error and error.count("\n") == 1


def test_pillow_images_are_their_files(run, folder):
    path = folder / "0.png"
    expected = run.predictor.predict(path)
    assert run.predictor.predict(Image.open(path)) == expected
    rgb = Image.open(path).convert("RGB")
    assert run.predictor.predict(rgb.convert("CMYK").convert("RGB")) == pytest.approx(expected)
    turned = rgb.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # a viewer turns it back
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    assert run.predictor.predict(Image.open(file)) == expected


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", "<i4"])
def test_deep_pillow_images_are_their_files(run, tmp_path, dtype):
    import tifffile

    values = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(dtype)
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, values, byteorder=">" if dtype[0] == ">" else "<")
    with Image.open(path) as image:
        assert run.predictor.predict(image) == run.predictor.predict(path)
        with pytest.raises(mm.UserError, match="image 0 holds float32 values"):
            run.predictor.predict(image.convert("F"))


def test_deep_arrays_pass_the_window_and_floats_are_refused(run, tmp_path):
    deep = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)
    np.save(tmp_path / "deep.npy", deep)
    assert run.predictor.predict(deep) == run.predictor.predict(tmp_path / "deep.npy")
    with pytest.raises(mm.UserError, match=r"image 0 holds float64 values, whose range"):
        run.predictor.predict(deep / 4096)


def test_a_dicom_file_is_named_by_its_path(run, tmp_path):
    path = tmp_path / "scan"
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset.Rows = dataset.Columns = 32
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    (name,) = predict_files(run.predictor, image_paths([tmp_path])).names
    assert name == str(path)
    assert run.predictor.predict(path) == run.predictor.predict(pixels)


def test_a_batch_that_the_device_cannot_hold_is_halved(run, images, monkeypatch, caplog):
    split = images.splits["test"]
    expected = run.predictor.logits(split)
    compiled, sizes = predictor_module._compiled, []

    def small_device(*arguments):
        compute = compiled(*arguments)

        def on_device(params, statistics, batch):
            sizes.append(len(batch))
            if len(batch) > 4:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            return compute(params, statistics, batch)

        return on_device

    monkeypatch.setattr(predictor_module, "_compiled", small_device)
    np.testing.assert_allclose(run.predictor.logits(split), expected, rtol=1e-5, atol=1e-6)
    assert sizes == [8, 4, 4, 4] and "a batch of 8 images: the batches have 4" in caplog.text


@pytest.mark.parametrize(("problem", "hosts"), [("INTERNAL", 1), ("RESOURCE_EXHAUSTED", 2)])
def test_another_fault_or_another_host_is_no_reason_to_try_again(
    run, images, monkeypatch, problem, hosts
):
    calls = []

    def broken(*arguments):
        def on_device(*arguments):
            calls.append(None)
            raise jax.errors.JaxRuntimeError(f"{problem}: broken")

        return on_device

    monkeypatch.setattr(predictor_module, "_compiled", broken)
    monkeypatch.setattr(predictor_module.DataParallel, "hosts", hosts)
    with pytest.raises(jax.errors.JaxRuntimeError, match=problem):
        run.predictor.logits(images.splits["test"])
    assert len(calls) == 1


def test_calibrated_probabilities_and_sets(run, images, folder, capsys):
    calibration = run.calibration
    split = images.splits["test"]
    logits = run.predictor.logits(split).astype(np.float64)
    np.testing.assert_allclose(
        run.predictor.predict(split, calibrated=True),
        softmax(logits / calibration.temperature, axis=1),
    )
    output = folder / "out.csv"
    arguments = [str(folder / "0.png"), "--set=0.9", "--calibrated", f"--output={output}"]
    assert cli.main(["predict", str(run.workdir), *arguments]) == 0
    with output.open(newline="", encoding="utf-8-sig") as file:
        row = next(csv.DictReader(file))
    p = softmax(logits[0])
    inside = [n for n, x in zip(("dark", "bright"), p, strict=True)
              if 1 - x <= calibration.sets["0.9"].of_all]  # fmt: skip
    assert row["prediction_set"] == "|".join(inside)
    cooled = softmax(logits[0] / calibration.temperature)
    assert float(row["p_bright"]) == pytest.approx(cooled[1], rel=1e-5)
    assert cli.main(["predict", str(run.workdir), str(folder / "0.png"), "--set=0.8"]) == 2
    assert "no prediction sets of level 0.8: the model has those of 0.9, 0.95" in (
        capsys.readouterr().err
    )


def test_what_needs_a_calibration_says_how_to_get_one(run, images):
    bare = dataclasses.replace(run.predictor, calibration=None)
    with pytest.raises(mm.UserError, match="medmamba evaluate RUN` fits it"):
        bare.predict(images.splits["test"], calibrated=True)
    with pytest.raises(mm.UserError, match="medmamba evaluate RUN` fits it"):
        predict_files(bare, [], level=0.9)
