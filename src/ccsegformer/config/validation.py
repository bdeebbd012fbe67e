"""Validate recipes and protocols with pydantic, with a one-line message that names every wrong key.

Pydantic lists one error per line, by its own names of types, and suggests no keys; the messages here are
built from its error details.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ccsegformer.config.yaml_files import brief
from ccsegformer.errors import RecipeError

Location = tuple[int | str, ...]
"""Location of an error as pydantic gives it."""


class Section(BaseModel):
    """Immutable section of a file; unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Settings = TypeVar("Settings", bound=Section)


def validate(
    settings: type[Settings],
    content: dict[str, Any],
    path: str | Path,
    locate: Callable[[Location], tuple[list[str], Iterable[str] | None]] | None = None,
) -> Settings:
    """Validate the content of a file and return it as `settings`.

    Args:
        settings: Class of the settings.
        content: Keys and values of the file.
        path: Name of the file in messages.
        locate: Function from the location of an error to the keys that lead there and, if the last of them is
            not a key of `settings` or its sections, the valid names for it. By default, the location.

    Raises:
        RecipeError: one line that names the file and every wrong key, with the nearest valid name.
    """
    try:
        # JSON's strict mode accepts a list for a tuple, but neither "1" nor true for a number.
        return settings.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        find = locate or (lambda location: ([str(key) for key in location], None))
        problems = [_describe(detail, settings, *find(detail["loc"])) for detail in error.errors()]
        raise RecipeError(f"{path}: " + "; ".join(problems)) from None
    except ValueError as error:  # JSON cannot represent it, for instance a list that contains itself
        raise RecipeError(f"{path}: {error}") from None


def _describe(
    detail: ErrorDetails, settings: type[Section], path: list[str], valid_names: Iterable[str] | None
) -> str:
    """Return one pydantic error as "'section.key' ...", with the nearest valid name if one is close."""
    value, context, name = detail["input"], detail.get("ctx", {}), ".".join(path)
    match detail["type"]:
        case "extra_forbidden" if valid_names is not None:
            return f"unknown key '{name}'" + _nearest(path[-1], valid_names, path[:-1])
        case "extra_forbidden":
            return f"unknown key '{name}'" + _nearest_key(path, settings)
        case "missing":
            return f"key '{name}' is missing"
        case "union_tag_not_found":
            return f"key '{name}.name' is missing"
        case "union_tag_invalid":
            return f"'{name}.name' must be one of {_choice(context['expected_tags'], context['tag'])}"
        case "literal_error":
            return f"'{name}' must be {_choice(context['expected'], value)}"
        case "value_error":
            return f"'{name}': {context['error']}" if name else str(context["error"])
    wanted = detail["msg"].removeprefix("Input ")
    return f"'{name}' {wanted[0].lower()}{wanted[1:]}, not {brief(value)}"


def _nearest_key(path: list[str], settings: type[Section]) -> str:
    """Suggest the section that has this key, or else the nearest key of this section."""
    *parents, key = path
    sections = {
        name: [
            key
            for kind in (field.annotation, *get_args(field.annotation))
            for key in getattr(kind, "model_fields", ())
        ]
        for name, field in settings.model_fields.items()
    }
    for section, names in sections.items():
        if key in names:
            return f"; did you mean '{section}.{key}'?"
    return _nearest(key, sections[parents[0]] if parents else sections, parents)


def _nearest(word: object, choices: Iterable[str], parents: Sequence[str] = ()) -> str:
    matches = difflib.get_close_matches(str(word), list(choices), n=1)
    return f"; did you mean '{'.'.join([*parents, *matches])}'?" if matches else ""


def _choice(expected: str, value: object) -> str:
    return f"{expected}, not {brief(value)}" + _nearest(value, re.findall(r"'([^']*)'", expected))
