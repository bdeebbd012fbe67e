"""YAML files as plain values: no key twice, `6e-5` is a number, and `section.key=value` overrides one."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from ccsegformer.errors import RecipeError


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
