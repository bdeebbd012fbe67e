"""Read YAML files strictly, and apply `section.key=value` overrides to their content."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from ccsegformer.errors import RecipeError


def read_yaml(path: str | Path, wanted: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty mapping.

    Args:
        path: Path of the file.
        wanted: Description of the expected keys, for the error message.

    Raises:
        RecipeError: the file cannot be read or is not such a file; the message names file and line.
    """
    try:
        content = parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 text") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: must hold {wanted}, not {brief(content)}")
    return content


def parse(text: str) -> Any:
    """Parse YAML to plain Python values.

    Raises:
        RecipeError: the text is not YAML or has a duplicate key; the message names the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}" if mark else "not valid YAML"
        raise RecipeError(f"{where}: {problem or str(error).splitlines()[0]}") from error


def apply_override(override: str, content: dict[str, Any]) -> None:
    """Apply one override `"section.key=value"` to `content`, in place.

    A number as key is an index of a list. Missing sections are created.

    Raises:
        RecipeError: the override does not have that form, or leads through a value that has no keys.
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
    """Return a value as JSON, on one line of at most 60 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the floats of YAML 1.2, so that 6e-5 is a number, and without duplicate keys."""

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
    """Return the key as an index of `at`, a mapping or a list."""
    if isinstance(at, dict):
        return key
    if not isinstance(at, list):
        raise RecipeError(f"{brief(at)} has no key '{key}'")
    if not key.isdecimal() or int(key) >= len(at):
        raise RecipeError(f"'{key}' should be a number from 0 to {len(at) - 1}")
    return int(key)
