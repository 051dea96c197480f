"""TIFF stacks, written by Pillow."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from medmamba_jax.data import LabelledImages
from medmamba_jax.data.images.decoding import open_image, parsed
from medmamba_jax.data.images.image_file import NoSuchFrameError
from medmamba_jax.data.sources.frames import all_frames


def stack(count, *, shape=(6, 7), dtype=np.uint8, **options):
    pixels = np.random.default_rng(0).integers(0, 250, (count, *shape)).astype(dtype)
    pages = [Image.fromarray(page) for page in pixels]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], **options)
    return buffer.getvalue(), pixels


@pytest.mark.parametrize(  # Pillow writes large ones without compression only
    ("compression", "large"),
    [(None, False), (None, True), ("tiff_lzw", False), ("tiff_deflate", False)],
)
def test_each_frame_in_any_order(compression, large):
    content, pixels = stack(9, compression=compression, big_tiff=large)
    assert content.startswith(b"II+\0" if large else b"II*\0")
    assert parsed(content).count_frames() == 9
    file = parsed(content)
    for frame in (4, 0, 8, 3, 4):
        np.testing.assert_array_equal(open_image(file, frame=frame), pixels[frame])
        np.testing.assert_array_equal(open_image(content, frame=frame), pixels[frame])
    for _ in range(2):
        with pytest.raises(NoSuchFrameError, match=r"frame 9 was asked for .*there are 9"):
            open_image(file, frame=9)


def test_directories_that_lead_back_are_counted_once():
    content, pixels = stack(3)
    file = parsed(content)
    with Image.open(io.BytesIO(content)) as opened:
        opened.seek(2)
        at = opened.tag_v2._offset
    (tags,) = struct.unpack_from("<H", content, at)
    link = at + 2 + 12 * tags
    assert content[link : link + 4] == bytes(4)
    round_trip = content[:link] + content[4:8] + content[link + 4 :]
    assert parsed(round_trip).count_frames() == 3
    np.testing.assert_array_equal(open_image(file, frame=2), pixels[2])


def test_the_first_frames_of_a_file_that_is_cut_off_can_be_read():
    content, pixels = stack(3, shape=(40, 40))
    file = parsed(content[:3400])
    np.testing.assert_array_equal(open_image(file), pixels[0])
    for _ in range(2):  # nothing is remembered that is not so
        with pytest.raises(ValueError, match="frame 2 is not in it"):
            open_image(file, frame=2)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_the_work_grows_with_the_number_of_frames_and_not_with_its_square(compression, monkeypatch):
    loads = []
    page = tifffile.TiffPage
    monkeypatch.setattr(tifffile, "TiffPage", lambda *a, **b: loads.append(1) or page(*a, **b))
    taken = []
    for count in (10, 40):
        content, pixels = stack(count, dtype=np.uint16, compression=compression)
        loads.clear()
        frames = all_frames(LabelledImages([content], [0]), (0.0, 255.0))
        found = np.stack([frames.read(i) for i in range(count)])
        np.testing.assert_array_equal(found, pixels)
        taken.append(len(loads))
    assert 0 < taken[1] <= 4 * taken[0]
