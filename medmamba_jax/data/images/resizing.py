"""The resampling filters by name."""

from PIL import Image

# Every filter but "nearest" is antialiased. A new filter of Pillow's is one row here.
RESIZE_FILTERS: dict[str, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
