"""Exceptions that users can catch. Each message is one line that states the problem and where it is."""

from collections.abc import Iterator
from contextlib import contextmanager

EXTRA_OF = {
    "accelerate": "train",
    "datasets": "train",
    "fastapi": "app",
    "jinja2": "lab",
    "matplotlib": "lab",
    "obstore": "archive",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "psutil": "lab",
    "pyarrow": "geo",
    "pyogrio": "geo",
    "pyproj": "geo",
    "pystac": "archive",
    "ray": "ray",
    "shapely": "geo",
    "stac_geoparquet": "archive",
    "stac_model": "export",
    "tensorboard": "train",
    "uvicorn": "app",
}
"""The extra in pyproject.toml that installs each optional package."""


class CCSegformerError(Exception):
    """Base of all errors that ccsegformer raises for wrong input."""


class DataError(CCSegformerError):
    """A data set, image, mask or raster cannot be used; the message names the file."""


class RecipeError(CCSegformerError):
    """A recipe or protocol is not valid; the message names the file and the key."""


class CheckpointError(CCSegformerError):
    """Weights cannot be loaded; the message names the checkpoint and the keys."""


class OutputError(CCSegformerError):
    """An output file or folder cannot be written; the message names it."""


class TrainingError(CCSegformerError):
    """Training cannot continue, for instance because the loss is not finite."""


class ExportError(CCSegformerError):
    """A model cannot be exported, or its export gives other results; the message says why."""


class EngineError(CCSegformerError):
    """An engine cannot run a model, or its logits are not finite; the message says why."""


class OutOfMemoryError(EngineError):
    """An image or window does not fit in the device's memory; the message names it."""


class MissingExtraError(CCSegformerError, ImportError):
    """An optional package that is not installed; the message names the extra that installs it."""


@contextmanager
def optional_imports(purpose: str) -> Iterator[None]:
    """Turn the failed import of an optional package into a `MissingExtraError`.

    Args:
        purpose: What needs the package, singular, such as a file name; the message begins with it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        raise MissingExtraError(
            f"{purpose} needs {package}, which is not installed: "
            f"pip install 'ccsegformer[{EXTRA_OF[package]}]'"
        ) from error
