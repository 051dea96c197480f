"""Explains image files, some of which may be unreadable, and writes maps and pictures."""

import dataclasses
import io
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from medmamba_jax.data.csv_table import read_csv_table, write_csv_table
from medmamba_jax.data.images.drawing import as_picture
from medmamba_jax.data.texts import printable
from medmamba_jax.errors import UserError
from medmamba_jax.explanation.maps import Explanation, check_request, explain
from medmamba_jax.explanation.methods import METHODS
from medmamba_jax.explanation.pictures import (
    GROUND,
    as_png,
    captioned_sheet,
    legend,
    overlay,
    with_legend,
)
from medmamba_jax.files import make_output_folder, write_atomically
from medmamba_jax.prediction import Predictions, decoded_batches
from medmamba_jax.predictor import Predictor

TABLE = "maps.csv"
_MEAN = ("mean.npy", "mean.png")
_HEADER = ("path", "predicted", "p_predicted", "class", "p_class", "map", "picture")
_SHEET = re.compile(r"sheet(_[0-9]+)?\.png")
_ON_A_SHEET = 60
_COLUMNS = 4
_STEM = 60  # characters of a file's name that are kept
_THUMBNAIL = (320, 320)


@dataclasses.dataclass(frozen=True)
class Written:
    """What `explain_files` has done.

    Attributes:
        count: images that were explained.
        unreadable: path -> why the file was not.
    """

    count: int
    unreadable: dict[str, str]


def explain_files(
    predictor: Predictor,
    paths: Sequence[pathlib.Path],
    folder: pathlib.Path,
    *,
    method: str = "grad_cam",
    class_name: str | None = None,
    stage: int = -1,
    overwrite: bool = False,
    progress: Callable[[], object] = lambda: None,
) -> Written:
    """Explains image files. A file that cannot be read does not stop the others.

    It writes into the folder: for each image the map, `NUMBER_NAME.npy`, and a picture of it over
    the image, `NUMBER_NAME.png`; `maps.csv`, a row for each image; and `sheet.png`, or several of
    these, with all images beside their maps. For the receptive field it also writes the mean of all
    maps, `mean.npy` and `mean.png`.

    Args:
        predictor: the trained model.
        paths: the files.
        folder: is made, or is empty.
        method: see `explain`.
        class_name: see `explain`.
        stage: see `explain`.
        overwrite: whether to replace the maps of an earlier call in this folder.
        progress: is called after each image.

    Raises:
        FileExistsError: the folder is not empty; see `overwrite`.
        NonFiniteLossError: an output of the model is NaN or infinite.
        OSError: the folder cannot be written to.
        UserError: `explain` refuses a request.
    """
    check_request(predictor, method, class_name, stage)
    make_output_folder(folder, TABLE, _written, overwrite=overwrite)
    unreadable: dict[str, str] = {}
    writer = _Writer(predictor, folder, method, stage)
    for names, pixels in decoded_batches(paths, predictor, unreadable, progress):
        found = explain(predictor, pixels, method=method, class_name=class_name, stage=stage)
        found = dataclasses.replace(found, names=tuple(names))
        for row, one in enumerate(pixels):
            writer.write(found, row, one)
            progress()
    writer.finish()
    return Written(len(writer.rows), unreadable)


class _Writer:
    """Writes maps and pictures one after another, and keeps the small ones for the sheets."""

    def __init__(self, predictor: Predictor, folder: pathlib.Path, method: str, stage: int):
        self._predictor = predictor
        self._folder = folder
        self._method = method
        stages = len(predictor.model.depths)
        last = " (the last)" if stage % stages == stages - 1 else ""
        at = f", stage {stage % stages}{last}" if METHODS[method].by_stage else ""
        self._title = f"{METHODS[method].title}{at}"
        self._cells: list[tuple[list[Image.Image], list[str]]] = []
        self._sheets = 0
        self._total: np.ndarray | None = None
        self.rows: list[list[object]] = []

    def write(self, found: Explanation, row: int, pixels: np.ndarray) -> None:
        name, heat, p = found.names[row], found.maps[row], found.probabilities[row]
        explained = found.explained[row] if METHODS[self._method].of_class else ""
        p_class = float(p[found.classes[row]])
        task, names = self._predictor.task, found.class_names
        (answer,) = Predictions(task, names, (name,), p[None], {}).decided()
        self._total = heat.astype(np.float64) + (0 if self._total is None else self._total)
        stem = f"{len(self.rows) + 1:04d}_{_safe(name)}"
        _write_array(self._folder / f"{stem}.npy", heat)
        own = self._predictor.preprocessing.unresize(heat, pixels.shape[:2])
        drawn = overlay(pixels, own, self._method)
        of = f" of {printable(explained)} ({p_class:.3f})" if explained else ""
        picture = with_legend(drawn, own, self._method, f"{self._title}{of}")
        write_atomically(self._folder / f"{stem}.png", as_png(picture))
        self.rows.append(
            [
                printable(name),
                answer,
                f"{p.max():.6g}",
                explained,
                f"{p_class:.6g}" if explained else "",
                f"{stem}.npy",
                f"{stem}.png",
            ]
        )
        plain = _as_thumbnail(pixels)
        drawn.thumbnail(_THUMBNAIL)
        said = f"{printable(answer) or 'no class'} {p.max():.3f}" if task == "multiclass" else ""
        lines = [printable(pathlib.Path(name).name), f"predicted: {said or printable(answer)}"]
        if explained:
            lines.append(f"map of: {printable(explained)} {p_class:.3f}")
        self._cells.append(([plain, drawn], lines))
        if len(self._cells) == _ON_A_SHEET:
            self._finish_sheet()

    def finish(self) -> None:
        """Writes what is of all images: the table, the last sheet, the mean."""
        if self._cells:
            self._finish_sheet()
        if self._total is not None and not METHODS[self._method].of_class:
            mean = (self._total / len(self.rows)).astype(np.float32)
            _write_array(self._folder / _MEAN[0], mean)
            plain = np.full((*mean.shape, 1), GROUND, np.uint8)
            drawn = overlay(plain, mean, self._method)
            title = f"{self._title}, mean of {len(self.rows)} images"
            picture = with_legend(drawn, mean, self._method, title)
            write_atomically(self._folder / _MEAN[1], as_png(picture))
        write_csv_table(self._folder / TABLE, _HEADER, self.rows)

    def _finish_sheet(self) -> None:
        self._sheets += 1
        name = "sheet.png" if self._sheets == 1 else f"sheet_{self._sheets}.png"
        foot = legend(2 * 164 - 4, self._method, self._title)
        sheet = captioned_sheet(self._cells, _COLUMNS, foot)
        write_atomically(self._folder / name, as_png(sheet))
        self._cells.clear()


def _written(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files beside the table that an earlier call has written into a folder."""
    names = list(_MEAN)
    try:
        table = read_csv_table(folder / TABLE)
        names += table.column("map") + table.column("picture")
    except (OSError, UserError):  # it is missing, has no row, or is not this module's
        pass
    # A table that somebody changed must not name files of another folder.
    found = [folder / name for name in names if name and pathlib.Path(name).name == name]
    sheets = [path for path in folder.glob("sheet*.png") if _SHEET.fullmatch(path.name)]
    return [path for path in (*found, *sheets) if path.is_file()]


def _as_thumbnail(pixels: np.ndarray) -> Image.Image:
    picture = as_picture(pixels)
    picture.thumbnail(_THUMBNAIL)
    return picture


def _safe(name: str) -> str:
    """Returns the name of a file without its folder and ending, of characters for any system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", pathlib.Path(name).stem)[:_STEM].strip(".") or "image"


def _write_array(path: pathlib.Path, values: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, values, allow_pickle=False)
    write_atomically(path, content.getvalue())
