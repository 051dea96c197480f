import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from medmamba_jax.data import DataConfig, build_dataset, npz_file
from medmamba_jax.data.npz_file import stored_array

VALUES = np.arange(60, dtype=np.int16).reshape(12, 5)


def npy(array, write=np.lib.format.write_array_header_1_0, **changes):
    """The bytes of a .npy file whose header says something else than the array is."""
    buffer = io.BytesIO()
    said = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    write(buffer, said | changes)
    return buffer.getvalue() + array.tobytes()


def header(content, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("y.npy", content)
    tracemalloc.start()
    try:
        with zipfile.ZipFile(buffer) as archive:
            return stored_array(archive, "y")
    finally:
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        tracemalloc.stop()


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize(
    "array", [VALUES, VALUES.astype("<f8"), np.array(3), np.zeros((0, 4), "?")]
)
def test_it_is_what_numpy_saves(array, order):
    saved = np.asarray(array, order=order)
    buffer = io.BytesIO()
    np.save(buffer, saved)
    content = buffer.getvalue()
    found = header(content)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.nbytes == array.nbytes == len(content) - found.offset
    assert found.fortran_order == np.isfortran(saved)


def test_the_second_version_of_the_format():
    assert header(npy(VALUES, np.lib.format.write_array_header_2_0)).shape == VALUES.shape


CLAIMS = {
    "values": ({"shape": (10**13,)}, r"y claims to be int16 \(10000000000000,\), .* holds 120"),
    "one too many": ({"shape": (61,)}, r"y claims to be int16 \(61,\), 122 bytes, .* holds 120"),
    "more than an integer of 64 bits": ({"shape": (10**30, 10**30)}, "y claims to be int16"),
    "long texts": ({"descr": "<U250000000", "shape": (12,)}, "y claims to be <U250000000"),
    "texts of no letters": (
        {"descr": "<U0", "shape": (10**12,)},
        r"y is <U0 \(1000000000000,\), values of 0 bytes each: save it with another",
    ),
    "values of no bytes": ({"descr": "|V0", "shape": (3,)}, r"y is \|V0 \(3,\), values of 0 bytes"),
    "less than nothing": ({"shape": (-12, -5)}, r"y claims to be of shape \(-12, -5\)"),
}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_claim_that_is_not_true_takes_no_memory(claim, compression):
    changes, message = CLAIMS[claim]
    with pytest.raises(ValueError, match=message):
        header(npy(VALUES, **changes), compression)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(20, 8, 9), (20, 10**7, 10**8)])
def test_a_directory_that_claims_more_than_there_is(tmp_path, shape, compression):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", npy(np.ones((20, 8, 8), np.uint8), shape=shape))
        archive.writestr("y.npy", npy(np.arange(20) % 2))
        for entry in archive.infolist():
            entry.file_size = 10**17
    with pytest.raises(
        ValueError,
        match=r"set\.npz: x (cannot be loaded|is .* bytes, and .* are allowed).*get the file",
    ) as caught:
        build_dataset(DataConfig(path=str(path)))
    assert "\n" not in str(caught.value)


def test_a_long_header_is_not_read():
    length = 200_000_000
    content = b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little") + bytes(length)
    with pytest.raises(ValueError, match=r"y is no array; save arrays by numpy\.savez"):
        header(content, zipfile.ZIP_DEFLATED)


def test_a_later_version_is_refused():
    with pytest.raises(ValueError, match=r"y is in version \(3, 0\) .*: save it again"):
        header(b"\x93NUMPY\x03\x00" + npy(VALUES)[8:])


def test_what_is_damaged_is_refused_or_another_array():
    rng = np.random.default_rng(0)
    content = npy(VALUES)
    refused = 0
    for at in range(len(content) - VALUES.nbytes):
        damaged = content[:at] + rng.bytes(1) + content[at + 1 :]
        try:
            header(damaged)
        except ValueError as error:
            assert str(error).startswith("y ") and "\n" not in str(error)
            refused += 1
    assert refused > 40


def test_what_is_no_array():
    with pytest.raises(ValueError, match=r"y is no array; save arrays by numpy\.savez"):
        header(b"hello")


@pytest.mark.parametrize("key", ["y", "groups", "class_names"])
def test_arrays_beside_images_are_not_loaded_if_too_large(tmp_path, monkeypatch, key):
    monkeypatch.setattr(npz_file, "_LARGEST", 1000)
    arrays = {
        "x": np.zeros((20, 32, 32), np.uint8),
        "y": np.arange(20, dtype=np.uint8) % 2,
        "groups": np.arange(20),
        "class_names": np.array(["a", "b"]),
    }
    large = {**arrays, key: np.zeros((len(arrays[key]), 1001), np.uint8)}
    np.savez_compressed(tmp_path / "set.npz", **large)
    with pytest.raises(ValueError, match=rf"set\.npz: {key} is uint8 .* and 1,000 are allowed"):
        build_dataset(DataConfig(path=str(tmp_path / "set.npz")))
