"""Validate STAC documents as pystac and stac-validator do, with schemas that are on this machine."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pystac
from pystac.validation import JsonSchemaSTACValidator, RegisteredValidator
from pystac.validation.local_validator import get_local_schema_cache

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of stac-validator, the former name of stac-valid
    from stac_validator.validate import StacValidate

SCHEMAS = Path(__file__).parent / "schemas"


def extension_schemas() -> dict[str, dict[str, Any]]:
    return {
        f"https://stac-extensions.github.io/{path.stem.replace('-', '/')}/schema.json": json.loads(
            path.read_text()
        )
        for path in SCHEMAS.glob("*.json")
    }


@contextmanager
def local_schemas() -> Iterator[None]:
    before = RegisteredValidator.get_validator()
    validator = JsonSchemaSTACValidator()
    validator.schema_cache |= extension_schemas()
    pystac.validation.set_validator(validator)
    try:
        yield
    finally:
        pystac.validation.set_validator(before)


def check_stac(document: dict[str, Any], folder: Path) -> None:
    """Validate an item or collection by pystac and by stac-validator."""
    with local_schemas():
        checked = pystac.validation.validate_dict(document)
    assert len(checked) == 1 + len(document.get("stac_extensions", []))
    places = {}
    for number, (uri, schema) in enumerate({**get_local_schema_cache(), **extension_schemas()}.items()):
        places[uri] = str(folder / f"schema{number}.json")
        Path(places[uri]).write_text(json.dumps(schema))
    file = folder / "checked.json"
    file.write_text(json.dumps(document))
    validator = StacValidate(str(file), schema_map=places)
    assert validator.run(), validator.message
