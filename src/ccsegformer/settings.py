"""Settings in YAML files, recipes and protocols, validated; every complaint is one line.

Plain values only, no key twice, unknown keys refused with the nearest right name.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ccsegformer.errors import RecipeError

Location = tuple[int | str, ...]  # of an error, as pydantic gives it


class Section(BaseModel):
    """Keys that belong together; none but these, and none changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Settings = TypeVar("Settings", bound=Section)


def read_yaml(path: str | Path, wanted: str) -> dict[str, Any]:
    """Read a YAML file of keys and values, which a message calls `wanted`; an empty file has none.

    Raises:
        RecipeError: one line that names the file, and the line where the file is not YAML.
    """
    try:
        content = parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not text in UTF-8") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: must hold {wanted}, not {brief(content)}")
    return content


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


def parse(text: str) -> Any:
    """Read YAML into plain Python values.

    Raises:
        RecipeError: the text is not YAML, or gives a key twice; the message names the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}" if mark else "not valid YAML"
        raise RecipeError(f"{where}: {problem or str(error).splitlines()[0]}") from error


def apply_override(override: str, content: dict[str, Any]) -> None:
    """Set one `"section.key=value"` in `content`; a number steps into a list, and missing sections are made.

    Raises:
        RecipeError: not of that form, or a path through something that has no keys.
    """
    name, equals, text = override.partition("=")
    *keys, last = name.strip().split(".")
    if not equals or not all([*keys, last]):
        raise RecipeError(f"override '{override}': write it as section.key=value, such as training.epochs=2")
    at: Any = content
    try:
        value = parse(text)
        for key in keys:
            if isinstance(at, dict) and at.get(key) is None:
                at[key] = {}
            at = at[_step(at, key)]
        at[_step(at, last)] = value
    except RecipeError as error:
        raise RecipeError(f"override '{override}': {error}") from error


def brief(value: object) -> str:
    """A value as a message shows it: on one line and not too long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the floats of 1.2 (6e-5 is a number), and no key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _step(at: Any, key: str) -> str | int:
    """The key as `at`, a mapping or a list, takes it."""
    if isinstance(at, dict):
        return key
    if not isinstance(at, list):
        raise RecipeError(f"{brief(at)} has no key '{key}'")
    if not key.isdecimal() or int(key) >= len(at):
        raise RecipeError(f"'{key}' should be a number from 0 to {len(at) - 1}")
    return int(key)


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
