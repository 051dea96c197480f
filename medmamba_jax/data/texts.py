"""Texts from files and folders: their encoding, their spelling, and texts that mean "not known"."""

import codecs
import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

from absl import logging

from medmamba_jax.errors import UserError

# What `pandas.read_csv` takes for a missing value.
MISSING = frozenset(
    {
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"),
        *("1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    }
)

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_FOREIGN_BYTE = re.compile("[\udc80-\udcff]")  # as Python holds bytes of names that are not UTF-8
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_WESTERN = ("cp1252", "latin-1")  # Windows writes the first; the second can read any bytes


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8 or UTF-16, with or without a byte order mark, in Unicode NFC.

    Other bytes are read as Latin-1, in the form that Windows writes (Windows-1252), with a warning.

    Raises:
        UserError: the file is not text.
    """
    content = path.read_bytes()
    if content.startswith(_UTF_16):
        encodings: tuple[str, ...] = ("utf-16",)
    elif b"\0" in content:  # in UTF-16, every second byte of Latin letters is 0
        encodings = ("utf-16-be",) if content[:1] == b"\0" else ("utf-16-le",)
    else:
        encodings = ("utf-8-sig", *_WESTERN)
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            if encoding == "utf-8-sig":
                line = content[: error.start].count(b"\n") + 1
            continue
        if "\0" in text or (encoding in ("utf-16-be", "utf-16-le") and not _is_readable(text)):
            break
        if encoding in _WESTERN:
            logging.warning(
                "%s is not UTF-8 text (line %d); it is read as Latin-1 (Windows-1252). If letters"
                " are wrong, save it in UTF-8",
                path,
                line,
            )
        return composed(text)
    raise UserError(f"{path} is not UTF-8 text: save it as CSV in UTF-8")


def composed(text: str) -> str:
    """Returns the text in Unicode NFC: a letter and its accent become one character.

    macOS and some archives store file names with letters and accents apart (NFD).
    """
    return unicodedata.normalize("NFC", text)


def printable(path: str) -> str:
    """Returns the path of a file as text for messages and tables: in NFC, and all Unicode.

    A byte that is not UTF-8, for which Python has no character, becomes `\\xNN`, and so does what
    `for_terminal` escapes, and the end of a line.
    """
    text = _FOREIGN_BYTE.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", path)
    return one_line(composed(text))


def one_line(text: str) -> str:
    """Returns the text of `for_terminal` in one line: a line end becomes `\\n`."""
    return text if text.isprintable() else for_terminal(text).replace("\n", "\\n")


def shown_name(name: str) -> str:
    """Returns the name of a class, a patient or an image as one line that is safe to show.

    It is the name itself, unless it holds characters that `printable` escapes.
    """
    return name if name.isprintable() else printable(name)


def is_decimal(text: str) -> bool:
    """Whether a text is a decimal number, such as -1.5e3."""
    return _NUMBER.fullmatch(text) is not None


def for_terminal(text: str) -> str:
    """Returns a text in which no character can move the cursor, change colours or reorder letters.

    Names of files and classes may hold such characters. They become escapes such as `\\x1b`. Line
    ends stay.
    """
    return "".join(
        c.encode("unicode_escape").decode() if _is_control(c) and c != "\n" else c for c in text
    )


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS


def one_spelling(texts: Iterable[str]) -> list[str]:
    """Gives all texts that mean the same class or patient one spelling.

    Two texts mean the same if they are equal in Unicode NFC, or if they are the same number, such
    as 3, 3.0 and 03. Different patients that become one this way stay in one split, which does no
    harm. One patient that counts as two could be in two splits.

    Returns:
        The spelling of each text (n), in NFC. For a number it is the shortest one, if possible of
        digits alone.
    """
    spelled = [composed(text) for text in texts]
    meaning = {text: Decimal(text) if is_decimal(text) else text for text in set(spelled)}
    shortest: dict[Decimal | str, str] = {}
    for text in sorted(meaning, key=lambda text: (not text.isdigit(), len(text), text)):
        shortest.setdefault(meaning[text], text)
    return [shortest[meaning[text]] for text in spelled]


def _is_readable(text: str) -> bool:
    """Whether bytes that were taken for UTF-16 without a mark seem to be text."""
    return all(character.isprintable() or character.isspace() for character in text)
