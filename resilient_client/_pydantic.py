"""pydantic models as types to decode into, without importing pydantic for anybody else.

A type made of pydantic models cannot exist unless pydantic has been imported: `sys.modules` tells.
"""

from __future__ import annotations

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
