"""The base of every stage's options: frozen, checked, and explained field by field where they stand."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cca.errors import InputError

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Checked(type(BaseModel)):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
    """Who makes options gets an `InputError` that names what is wrong. (Sections of a config are not made so.)"""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise InputError(f"{cls.__name__}: {all_explained(error, cls, by_alias=False)}") from error


class Options(BaseModel, metaclass=_Checked):
    """Frozen options. An unknown name or a value out of range is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, populate_by_name=True)

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """Half a character, as bytes that are no UTF-8 become on a command line, cannot be written to a file."""
        _check_text(value)
        return value

    @classmethod
    def of(cls, options: "Self | Mapping[str, Any] | None", changes: Mapping[str, Any]) -> Self:
        """`options`, by default all defaults, with `changes` by field name.

        Raises:
            InputError: they are options of something else, a name is unknown or a value out of range.
        """
        if options is not None and not isinstance(options, cls | Mapping):
            raise InputError(f"options are of type {type(options).__name__}; give {cls.__name__}(...) or its fields")
        return cls().changed({**dict(options or {}), **changes})

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """These options with `changes` by field name.

        Raises:
            InputError: a name is unknown or a value out of range; the message names it.
        """
        names = {field.alias or name: name for name, field in type(self).model_fields.items()}
        return type(self)(**{**dict(self), **{names.get(key, str(key)): value for key, value in changes.items()}})


def check_seed(seed: object) -> None:
    """See that `seed` is an int: random streams are made of its text, and that of numpy's is another.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"seed={seed!r} is of type {type(seed).__name__}; give an int")


def _check_text(value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"is no text, since {value[error.start]!a} is half a character") from error
    elif isinstance(value, Mapping):
        _check_text([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for part in value:
            _check_text(part)


def all_explained(error: ValidationError, options: Any, by_alias: bool = True) -> str:
    """Pydantic's errors in words. Defaults that depend on a wrong value are not told of."""
    found = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
    return "; ".join(explained(e, options, by_alias) for e in found)


def explained(error: Any, options: Any, by_alias: bool = True) -> str:
    """One of pydantic's errors in words, with the names that are known where one is not.

    by_alias: name fields as config files do.
    """
    # of a union pydantic names each member that a value is not
    *sections, key = [str(part) for part in error["loc"] if re.fullmatch(r"\w+", str(part))] or ["options"]
    where = ".".join([*sections, key])
    if error["type"] != "extra_forbidden":
        said = error["msg"].replace("Input should be a valid tuple", 'should be a list, such as ["..."]')
        return f"{where}: {said} (got {error['input']!r})"
    section: Any = options
    for part in sections:
        section = section.model_fields[part].annotation
    known = [(by_alias and field.alias) or name for name, field in section.model_fields.items()]
    return f"unknown key {where}; known there: {', '.join(known)}"
