import pytest

from medmamba_jax.data.reading.cache_places import CACHES, Need

GIB = 2**30


@pytest.mark.parametrize(
    ("cache", "size", "augmented", "workers", "expected"),
    [
        ("none", 1, False, 0, "none"),
        ("none", 1, True, 2, "none"),
        ("memory", 99 * GIB, True, 0, "memory"),
        ("memory", 1, False, 2, "disk"),
        ("disk", 1, True, 0, "disk"),
        ("disk", 99 * GIB, False, 2, "disk"),
        ("auto", GIB, False, 0, "memory"),
        ("auto", GIB, True, 0, "memory"),
        ("auto", 3 * GIB, False, 0, "disk"),
        ("auto", 3 * GIB, True, 0, "none"),
        ("auto", 9 * GIB, False, 0, "none"),
        ("auto", GIB, False, 2, "disk"),
        ("auto", GIB, True, 2, "none"),
        ("auto", 9 * GIB, False, 2, "none"),
        ("device", 99 * GIB, False, 2, "device"),
    ],
)
def test_the_table(cache, size, augmented, workers, expected):
    free = {"device": 0, "memory": 2 * GIB, "disk": 8 * GIB}
    assert CACHES[cache](Need(size, augmented, workers, free)) == expected


@pytest.mark.parametrize(
    ("cache", "size", "workers", "expected"),
    [
        ("auto", 4 * GIB, 0, "device"),
        ("auto", 4 * GIB, 2, "device"),
        ("auto", 4 * GIB + 1, 0, "disk"),
        ("auto", 0, 0, "memory"),
        ("none", GIB, 0, "none"),
        ("memory", GIB, 0, "memory"),
        ("disk", GIB, 0, "disk"),
        ("device", 99 * GIB, 0, "device"),
    ],
)
def test_the_table_for_images_that_may_go_to_the_device(cache, size, workers, expected):
    free = {"device": 4 * GIB, "memory": 2 * GIB, "disk": 8 * GIB}
    assert CACHES[cache](Need(size, False, workers, free)) == expected
