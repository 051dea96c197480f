import csv
import io
import unicodedata
from decimal import Decimal

import numpy as np
import pytest

from medmamba_jax.data.csv_table import read_csv_table, write_csv_table
from medmamba_jax.data.texts import MISSING, for_terminal, one_spelling, printable, read_text
from medmamba_jax.errors import UserError


def test_what_pandas_calls_missing_is_missing():
    pandas = pytest.importorskip("pandas")
    candidates = sorted(MISSING | {"none", "Na", "-", "NAN", "unknown", "0", "nil"})
    text = "\n".join(["cell,other", *(f'"{text}",x' for text in candidates)])
    read = pandas.read_csv(io.StringIO(text), dtype=str)["cell"]
    assert {text for text, missing in zip(candidates, read.isna(), strict=True) if missing} == (
        MISSING
    )
    from pandas._libs.parsers import STR_NA_VALUES

    assert MISSING == STR_NA_VALUES


def test_equal_numbers_and_equal_letters_are_one_text():
    rng = np.random.default_rng(0)
    texts = [f"{i:0{rng.integers(1, 5)}}" + ".0" * rng.integers(2) for i in range(50)] * 2
    texts += ["mélanome", unicodedata.normalize("NFD", "mélanome"), "p1", "p1.0", "1e1", "nan"]

    def meaning(text):
        try:
            value = Decimal(text)
        except ArithmeticError:
            value = None
        return unicodedata.normalize("NFC", text) if value is None or value.is_nan() else value

    spelled = one_spelling(texts)
    for one, text in zip(spelled, texts, strict=True):
        for other, its_text in zip(spelled, texts, strict=True):
            assert (one == other) == (meaning(text) == meaning(its_text))
    assert one_spelling(["3.0", "3", "03"]) == ["3"] * 3 and one_spelling(["03"]) == ["03"]
    assert one_spelling(spelled) == spelled
    long = ["12345678901234567890", "12345678901234567891"]  # equal as float64
    assert one_spelling(long) == long


@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_encodings_are_found(tmp_path, encoding, mark):
    text = "path,größe\r\na.png,Ärzte\n"
    (tmp_path / "t.csv").write_bytes(("\ufeff" * mark + text).encode(encoding))
    assert read_text(tmp_path / "t.csv").lstrip("\ufeff") == text


def test_latin_1_is_read_with_a_warning_and_other_bytes_are_refused(tmp_path, caplog):
    path = tmp_path / "t.csv"
    path.write_bytes("path,label\na,größer, 5 €\n".encode("cp1252"))
    assert read_text(path).endswith("größer, 5 €\n")
    assert "is not UTF-8 text (line 2)" in caplog.text
    np.savez_compressed(tmp_path / "t.npz", x=np.arange(100))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_text(tmp_path / "t.npz")


def test_names_of_files_can_be_printed():
    assert printable(b"caf\xe9.png".decode("utf-8", "surrogateescape")) == "caf\\xe9.png"
    assert printable("cafe\u0301.png") == "caf\u00e9.png"
    assert printable("a.png: cancer 0.99\nb.png") == "a.png: cancer 0.99\\nb.png"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("beep\x07\x9b", "beep\\x07\\x9b"),
        ("gnp.\u202egpj", "gnp.\\u202egpj"),
        ("\u061c\udc80", "\\u061c\\udc80"),
        ("two\nlines\r", "two\nlines\\r"),
        ("größer 日本 \u00a0👩\u200d🔬", "größer 日本 \u00a0👩\u200d🔬"),
    ],
)
def test_no_name_commands_the_terminal(text, shown):
    assert for_terminal(text) == shown


def test_no_name_is_a_formula_and_every_text_comes_back(tmp_path):
    texts = ["=1+1", "+x", "-x", "@x", "'=1", "''=1", "a=1", "'a", "-1.5e3", "\tx", "\nx", "x"]
    path = tmp_path / "t.csv"
    write_csv_table(path, ["=name", "number"], [[text, -1.5] for text in texts])
    cells = list(csv.reader(io.StringIO(path.read_text(), newline="")))
    # What OWASP lists as the beginnings of formulas.
    assert not [cell for row in cells for cell in row if cell[:1] in tuple("=+@\t\r\n")]
    assert [row[0] for row in cells if row[0][:1] == "-"] == ["-1.5e3"]
    table = read_csv_table(path)
    assert table.column("=name") == texts
    assert table.column("number") == ["-1.5"] * len(texts)
