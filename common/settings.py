"""What all sections of the configuration have in common: keys as a user types them, and one sentence per mistake."""

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function

from common.plugins import REFERENCE, is_reference

FIELDS_ONLY = object()  # a validation's context: leave out `other_mistakes`


def _typed(name: str) -> str:
    return name.replace("_", "-")


class Settings(BaseModel):
    """A section of the configuration: its fields are text, whole numbers, numbers, switches, or tuples of these.

    The docstring below a field explains it, with its unit; `python -m server config` prints it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True,
        alias_generator=_typed, validate_by_name=True, validate_by_alias=True, protected_namespaces=(),
    )  # fmt: skip
    SECTION: ClassVar[str]  # its name: the field `server_lr` of section "splitee" is the key `splitee.server-lr`

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        if info.context is not FIELDS_ONLY and (found := self.other_mistakes()):
            raise ValueError("; ".join(found))
        return self

    def other_mistakes(self) -> list[str]:
        """Return a sentence for each mistake that no field shows by itself; it names keys as a user types them."""
        return []

    def run_mistakes(self, units: int) -> list[str]:
        """Return a sentence for each mistake of a run whose method reads this section; other uses may allow it.

        `units` are those of the run's network; 0 if that is a function's, whose units are known once it is called.
        """
        return []

    def changed(self, **changes: object) -> Self:
        """Return a checked copy with these fields changed."""
        return type(self)(**{**dict(self), **changes})


S = TypeVar("S", bound=Settings)


def key(section: str, name: str) -> str:
    """Return the key of a field as a user types it: `clients.per-round`."""
    return f"{section}.{_typed(name)}"


def keys(kind: type[Settings]) -> dict[str, FieldInfo]:
    """Return the fields of a section by their keys."""
    return {key(kind.SECTION, name): field for name, field in kind.model_fields.items()}


# --- Types of fields, beside `str`, `int`, `float`, `bool` and `Literal`


def _items(value: object) -> object:
    """Return the items of a comma-separated text, or of a number that stands for a list of one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    items = tuple(item.strip() for item in str(value).split(",")) if str(value).strip() else ()
    if "" in items:
        raise PydanticCustomError("items", "has an empty item: remove the comma, or write what is missing")
    return items


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for value in values:
        if values.count(value) > 1:
            raise PydanticCustomError("items", "has {value} twice: remove one", {"value": str(value)})
    return values


_Int = Annotated[int, Field(strict=False)]  # items are texts at first
_Float = Annotated[float, Field(strict=False)]
Ints = Annotated[tuple[_Int, ...], BeforeValidator(_items)]
Floats = Annotated[tuple[_Float, ...], BeforeValidator(_items)]
DistinctInts = Annotated[tuple[_Int, ...], BeforeValidator(_items), AfterValidator(_distinct)]
DistinctWords = Annotated[tuple[str, ...], BeforeValidator(_items), AfterValidator(_distinct)]


@dataclass(frozen=True)
class Name:
    """Marks a text that is one of some known names, or names a function of another package."""

    known: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema that checks the name."""
        return no_info_after_validator_function(self._checked, handler(source))

    def __str__(self) -> str:
        return f"one of {', '.join(self.known)}, or {REFERENCE}"

    def _checked(self, name: str) -> str:
        if name not in self.known and not is_reference(name):
            raise PydanticCustomError("items", "must be {known}", {"known": f"{self}{like(name, self.known)}"})
        return name


# --- Mistakes

PLURALS = {int: "whole numbers", float: "numbers", str: "words"}
SINGULARS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


class Reading(NamedTuple, Generic[S]):
    """A section as read: a wrong value has left its default in place."""

    section: S
    wrong: dict[str, str]  # key -> the sentence about its value
    others: list[str]  # sentences about mistakes that no field shows by itself

    @property
    def problems(self) -> list[str]:
        """All sentences."""
        return [*self.wrong.values(), *self.others]


def read_section(kind: type[S], /, **values: object) -> Reading[S]:
    """Return the section with these values, by field or by the key's last part, and a sentence for every mistake."""
    wrong: dict[str, str] = {}
    try:
        section = kind.model_validate(values, context=FIELDS_ONLY)
    except ValidationError as error:
        fields = keys(kind)
        given = {key(kind.SECTION, name): value for name, value in values.items()}
        for found in error.errors(include_url=False):
            k = key(kind.SECTION, str(found["loc"][0]))
            wrong.setdefault(k, f"{k} is {shown(given[k])}, {_remedy(fields[k], found)}")
        rest = {name: value for name, value in values.items() if key(kind.SECTION, name) not in wrong}
        section = kind.model_validate(rest, context=FIELDS_ONLY)
    return Reading(section, wrong, without(section.other_mistakes(), wrong))


def without(sentences: Iterable[str], wrong: Collection[str]) -> list[str]:
    """Return the sentences that name none of these keys: about each of them there is a sentence already."""
    named = re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, wrong))})(?![\w-])")
    return [sentence for sentence in sentences if not (wrong and named.search(sentence))]


def must_be(field: FieldInfo) -> str:
    """Return what a field's value must be: "a number, at least 0"."""
    kind: Any = field.annotation
    if named := [str(mark) for mark in field.metadata if isinstance(mark, Name)]:
        return named[0]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return f"{PLURALS[get_args(item)[0] if get_origin(item) is Annotated else item]} with commas between them"
    return ", ".join(filter(None, (SINGULARS[kind], bounds(field))))


def bounds(field: FieldInfo) -> str:
    """Return the bounds of a field: "at least 0 and below 1"; empty if it has none."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [(word, getattr(m, name)) for m in field.metadata for name, word in words.items() if hasattr(m, name)]
    return " and ".join(f"{word} {bound}" for word, bound in found)


def _remedy(field: FieldInfo, found: ErrorDetails) -> str:
    if found["type"] == "items":
        return found["msg"]
    if found["type"] == "literal_error":
        return f"must be {must_be(field)}{like(str(found['input']), get_args(field.annotation))}"
    if "than" in found["type"]:
        return f"must be {bounds(field)}"
    remedy = f"must be {must_be(field)}"
    return remedy.replace("number", "finite number", 1) if found["type"] == "finite_number" else remedy


def like(word: str, known: Iterable[str]) -> str:
    """Return a remark on the known word that is most like this one, whatever its case; empty if none is."""
    spelled = {_typed(name).lower(): name for name in known}
    near = difflib.get_close_matches(_typed(word).lower(), spelled, n=1)
    return f"; do you mean {spelled[near[0]]}?" if near else ""


def shown(value: object) -> str:
    """Return a value as it stands in a sentence: text in quotes, a tuple as a user types it."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else repr(value)
