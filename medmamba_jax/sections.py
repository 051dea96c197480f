"""A section of a run's configuration: a frozen dataclass that checks its values.

`model`, `data`, `train` and `results` are sections, and `data` holds further sections. `from_dict`
builds a section from a dictionary, such as JSON holds, and `to_dict` returns such a dictionary.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, ClassVar, Self

from medmamba_jax.errors import UserError


class Section:
    """Base class of the sections; a subclass is a frozen dataclass.

    Attributes:
        title: the place of the section in the configuration, such as "data.csv".
    """

    title: ClassVar[str]

    def _require_types(self) -> None:
        """Raises UserError unless each text, bool and inner section is one."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.type in (str, bool):
                allowed = "a string" if field.type is str else "True or False"
            elif isinstance(field.type, type) and issubclass(field.type, Section):
                allowed = f"a {field.type.__name__}"
            else:
                continue
            self._require(field.name, isinstance(getattr(self, field.name), field.type), allowed)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, ignored: list[str] | None = None) -> Self:
        """Builds a section from a dictionary. Fields that are missing keep their defaults.

        Args:
            values: field -> value. A section inside this one is a dictionary. Lists become tuples.
            ignored: collects the names of unknown keys. Without it an unknown key is an error.

        Raises:
            UserError: a key is unknown, a field without a default is missing, or a value is not
                allowed.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{cls.title} must be a section with keys; got {values!r}")
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        known: dict[str, Any] = {}
        for key, value in values.items():
            if key not in fields:
                if ignored is None:
                    raise UserError(f"{cls.title} has no key {key!r}; it has {sorted(fields)}")
                ignored.append(f"{cls.title}.{key}")
            elif isinstance(kind := fields[key].type, type) and issubclass(kind, Section):
                known[key] = kind.from_dict(value, ignored=ignored)
            else:
                known[key] = tuple(value) if isinstance(value, list) else value
        required = {name for name in fields if not hasattr(cls, name)}  # no default
        if missing := required - set(known):
            raise UserError(
                f"{cls.title} must have the keys {sorted(required)}; it lacks {sorted(missing)}"
            )
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Returns nested dictionaries that JSON can hold."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def changed(self) -> dict[str, Any]:
        """Returns the fields that differ from their defaults, field -> value."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        # Every field has a default, which a dataclass keeps as an attribute of the class.
        return {name: value for name, value in values.items() if value != getattr(type(self), name)}

    def _require(self, field: str, valid: bool, allowed: str) -> None:
        """Raises UserError, which names the field and what is allowed, unless `valid`."""
        if not valid:
            raise UserError(f"{self.title}.{field} must be {allowed}; got {getattr(self, field)!r}")

    def _require_one_of(self, field: str, table: Iterable[str]) -> None:
        """Raises UserError unless the field's value is a name in the table."""
        names = tuple(table)
        self._require(field, getattr(self, field) in names, f"one of {names}")


def is_integer(value: Any, least: int | None = None) -> bool:
    """Whether a value is an integer (not a bool), `least` or more."""
    is_one = isinstance(value, Integral) and not isinstance(value, bool)
    return is_one and (least is None or value >= least)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number (not a bool)."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
