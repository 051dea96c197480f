"""The libraries that decide which pixels a file decodes to."""

from importlib import metadata

# pydicom uses those that follow it, where they are installed, for compressed pixels.
_LIBRARIES = (
    *("pillow", "imagecodecs", "pydicom"),
    *("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle"),
    *("pyjpegls", "python-gdcm"),
)


def decoder_versions() -> dict[str, str]:
    """Returns the versions of those that are installed, by the name that pip knows them by."""
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions
