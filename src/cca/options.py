"""The base of every stage's options: frozen, checked, and explained field by field where they stand."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cca.errors import InputError

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Options(BaseModel):
    """Frozen options. An unknown name or a value out of range is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, populate_by_name=True)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """These options with `changes` by field name.

        Raises:
            InputError: a name is unknown or a value out of range; the message names it.
        """
        if not changes:
            return self
        try:
            return type(self).model_validate({**dict(self), **changes})
        except ValidationError as error:
            what = f"{type(self).__name__}: "
            raise InputError(what + "; ".join(explained(e, type(self)) for e in error.errors())) from error


def explained(error: Any, options: type[BaseModel]) -> str:
    """One of pydantic's errors in words, with the names that are known where one is not."""
    *sections, key = [str(part) for part in error["loc"]] or ["options"]
    where = ".".join([*sections, key])
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg']} (got {error['input']!r})"
    section: Any = options
    for part in sections:
        section = section.model_fields[part].annotation
    known = [field.alias or name for name, field in section.model_fields.items()]
    return f"unknown key {where}; known there: {', '.join(known)}"
