"""The libraries that decide which pixels a file decodes to."""

from importlib import metadata

# pydicom uses the packages after it to decompress pixels, if they are installed.
_LIBRARIES = (
    *("pillow", "imagecodecs", "pydicom"),
    *("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle"),
    *("pyjpegls", "python-gdcm"),
)


def decoder_versions() -> dict[str, str]:
    """Returns package name -> version for the installed libraries."""
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions
