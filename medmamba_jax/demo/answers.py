"""What the page says of an image: an image file becomes a piece of HTML."""

import base64
import dataclasses

import jinja2
import numpy as np
from PIL import Image

from medmamba_jax.assessment.prediction_sets import members
from medmamba_jax.data.images.drawing import as_picture
from medmamba_jax.explanation.maps import explain
from medmamba_jax.explanation.methods import METHODS
from medmamba_jax.explanation.pictures import as_png, overlay
from medmamba_jax.predictor import Predictor

_METHOD = "grad_cam"
_LONGEST = 768  # pixels, of a picture on the page


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture in a page.

    Attributes:
        address: a `data:` address with the whole PNG file.
        width: in pixels.
        height: in pixels.
    """

    address: str
    width: int
    height: int

    @classmethod
    def of(cls, picture: Image.Image) -> "Picture":
        """Makes it of a Pillow image, which is made smaller where it is large."""
        picture = picture.copy()
        picture.thumbnail((_LONGEST, _LONGEST))
        content = base64.b64encode(as_png(picture)).decode()
        return cls(f"data:image/png;base64,{content}", *picture.size)


class Answers:
    """Makes the page of a model, and its answers.

    Args:
        predictor: the trained model.
        title: the name of the model.
        synthetic: whether it was trained on images that a program drew; the page says so.
    """

    def __init__(self, predictor: Predictor, title: str, *, synthetic: bool = False):
        self._predictor = predictor
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("medmamba_jax.demo", "."),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._facts = {
            "title": title,
            "synthetic": synthetic,
            "multilabel": predictor.task == "multilabel",
        }

    def page(self, nonce: str, limit: int, *, local: bool) -> str:
        """Returns the whole page.

        Args:
            nonce: allows the page's own style and script, and no others.
            limit: bytes of the largest image.
            local: whether only this computer can open the page.
        """
        template = self._environment.get_template("page.html")
        return template.render(
            self._facts,
            class_names=self._predictor.class_names,
            nonce=nonce,
            limit=limit,
            local=local,
        )

    def warm(self) -> None:
        """Compiles what an answer needs, with a black image."""
        shape = (*self._predictor.preprocessing.image_size, self._predictor.preprocessing.channels)
        explain(self._predictor, np.zeros(shape, np.uint8), method=_METHOD)

    def answer(self, content: bytes) -> str:
        """Returns what the model says of an image file, as a piece of HTML.

        Raises:
            DataUnavailableError: the package that reads such files is not installed.
            NonFiniteLossError: an output of the model is NaN or infinite.
            UserError: the file cannot be read.
        """
        predictor = self._predictor
        pixels = predictor.preprocessing.decode(content)
        found = explain(predictor, pixels, method=_METHOD)
        (table,) = found.probabilities
        order = np.argsort(-table, kind="stable")
        heat = predictor.preprocessing.unresize(found.maps[0], pixels.shape[:2])
        drawn = overlay(pixels, heat, _METHOD)
        plain = as_picture(pixels).resize(drawn.size, Image.Resampling.BICUBIC)
        return self._environment.get_template("answer.html").render(
            self._facts,
            rows=[(found.class_names[k], float(table[k])) for k in order],
            sets=self._sets(table),
            images=predictor.calibration.images if predictor.calibration else 0,
            plain=Picture.of(plain),
            drawn=Picture.of(drawn),
            method=METHODS[_METHOD].title,
            explained=found.explained[0],
            size=pixels.shape[1::-1],
        )

    def _sets(self, table: np.ndarray) -> list[tuple[str, list[str]]]:
        """Returns the prediction set of each level, such as "90 %"."""
        if self._predictor.calibration is None:
            return []
        rows = []
        for level, thresholds in self._predictor.calibration.sets.items():
            inside = members(table[None], thresholds)[0]
            names = [
                name for name, yes in zip(self._predictor.class_names, inside, strict=True) if yes
            ]
            rows.append((f"{float(level):.0%}".replace("%", " %"), names))
        return rows
