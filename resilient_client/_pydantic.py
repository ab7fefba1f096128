"""pydantic models as types to decode into, without importing pydantic for anybody else.

A type made of pydantic models cannot exist unless pydantic has been imported: `sys.modules` tells.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_MAX_DEPTH = 16
# PydanticUserError is a RuntimeError, an unknown forward reference a NameError
UNUSABLE = (TypeError, ValueError, RuntimeError, NameError)


def loaded() -> bool:
    """Whether anything can be a pydantic model."""
    return "pydantic" in sys.modules


def is_model(hint: Any) -> bool:
    """Whether a type (or the metadata of an `Annotated`) is pydantic's business."""
    if not loaded():
        return False
    if hasattr(hint, "__pydantic_validator__"):
        return True
    classes = hint.__mro__ if isinstance(hint, type) else type(hint).__mro__
    return any(base.__module__.partition(".")[0] == "pydantic" for base in classes)


def mentions_model(hint: Any, depth: int = 0) -> bool:
    """Whether a model stands anywhere in a hint such as `dict[str, list[Model] | None]`."""
    if not loaded() or depth > _MAX_DEPTH:
        return False
    if is_model(hint):
        return True
    alias = getattr(hint, "__value__", None)  # `type Models = list[Model]`
    parts = get_args(hint) if alias is None else (alias,)
    return any(mentions_model(part, depth + 1) for part in parts)


def adapter(hint: Any) -> TypeAdapter[Any]:
    """What validates into a hint; raises one of `UNUSABLE` when nothing can."""
    try:
        from pydantic import TypeAdapter
    except ImportError:
        raise TypeError("models of pydantic are understood from its version 2 on") from None

    made: TypeAdapter[Any] = TypeAdapter(hint)
    if not getattr(made, "pydantic_complete", True):  # it names something that is not there yet
        made.rebuild(raise_errors=True)
    return made


def reads(hint: Any) -> bool:
    """Whether a hint that mentions models is read by pydantic, all of it."""
    if not mentions_model(hint):
        return False
    try:
        adapter(hint)
    except UNUSABLE:
        return False
    return True


def has_notes(hint: Any) -> bool:
    """Whether an `Annotated` in a hint says what only pydantic understands, as `Field(gt=3)`."""
    parts = get_args(getattr(hint, "__value__", hint))
    return any(has_notes(part) if get_args(part) else _is_note(part) for part in parts)


def _is_note(part: Any) -> bool:
    return not isinstance(part, type) and is_model(part)


def validate(adapter: TypeAdapter[Any], value: Any, *, strict: bool = True) -> Any:
    """The value of plain objects, which came as JSON or might have.

    A strict model takes a text for a date, and for whatever else JSON has no words for, from JSON
    alone.
    """
    if not strict:
        return adapter.validate_python(value, strict=False)
    try:
        return adapter.validate_python(value)
    except ValueError as error:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError):  # as bytes, which gRPC has
            raise error from None
        try:
            return adapter.validate_json(text)
        except ValueError as other:
            raise (error if is_syntax(other) else other) from None


def is_syntax(error: ValueError) -> bool:
    """Whether the text was refused as JSON, before any validation."""
    errors = getattr(error, "errors", None)
    return errors is not None and errors(include_url=False)[0]["type"] == "json_invalid"


def describe(error: ValueError) -> str:
    """What does not fit and where, as `$.items[0].price`, without the values themselves."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    found = errors(include_url=False, include_context=False, include_input=False)
    texts = [f"{item['msg']} - at `{_path(item['loc'])}`" for item in found[:3]]
    if len(found) > len(texts):
        texts.append(f"and {len(found) - len(texts)} more")
    return "; ".join(texts)


def _path(location: tuple[int | str, ...]) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
