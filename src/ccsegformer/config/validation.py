"""Validate recipes and protocols: one line names every wrong key, with the nearest right name."""

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

Location = tuple[int | str, ...]  # of an error, as pydantic gives it


class Section(BaseModel):
    """Keys that belong together; none but these, and none changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Settings = TypeVar("Settings", bound=Section)


def validate(
    settings: type[Settings],
    content: dict[str, Any],
    path: str | Path,
    locate: Callable[[Location], tuple[list[str], Iterable[str] | None]] | None = None,
) -> Settings:
    """Make `settings` of what was read from the file `path`.

    Args:
        settings: the class of the settings.
        content: keys and values.
        path: what the message calls the file.
        locate: gives the keys that lead to an error, and the right names for the last of them where they are
            not those of `settings` and its sections; by default the location as it stands.

    Raises:
        RecipeError: one line that names the file and every key that is wrong, with the nearest right name.
    """
    try:
        # Through JSON: its strict mode takes a list for a tuple, but no word for a number and no yes for a 1.
        return settings.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        find = locate or (lambda location: ([str(key) for key in location], None))
        problems = [_describe(detail, settings, *find(detail["loc"])) for detail in error.errors()]
        raise RecipeError(f"{path}: " + "; ".join(problems)) from None
    except ValueError as error:  # what JSON cannot hold, such as a list inside itself
        raise RecipeError(f"{path}: {error}") from None


def _describe(
    detail: ErrorDetails, settings: type[Section], path: list[str], right_names: Iterable[str] | None
) -> str:
    """One pydantic error as "'section.key' ...", with the nearest right name where one is near."""
    value, context, name = detail["input"], detail.get("ctx", {}), ".".join(path)
    match detail["type"]:
        case "extra_forbidden" if right_names is not None:
            return f"unknown key '{name}'" + _nearest(path[-1], right_names, path[:-1])
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
    """The same key in another section, where it belongs, or else a right name for this one."""
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
