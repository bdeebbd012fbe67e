"""The small model that ships with the package, named "example", and the scene that it can be tried on."""

import io
import sys
from importlib.resources import files
from pathlib import Path

from PIL import Image

from ccsegformer.data.procedural.scenes import scene
from ccsegformer.files import write_atomically

EXAMPLE = "example"
_SEED, _INDEX, _SIDE = 1, 1, 512  # a scene of the validation split, which no training sees


def model_location(name_or_path: str | Path) -> str | Path:
    """Return where a model is: the folder of the one that ships for "example", else what was given.

    The word means the same in every working directory. One that has something of that name is told, on
    stderr, that "./example" names it, as does `Path("example")`.
    """
    if name_or_path != EXAMPLE:
        return name_or_path
    if Path(EXAMPLE).exists():
        print("example: the model that ships; write ./example for the one here", file=sys.stderr)
    return Path(str(files("ccsegformer.labelling") / "example_model"))


def write_example_scene(folder: Path) -> Path:
    """Draw the example scene, 512 x 512, write it to `folder`/example.jpg, and return its path.

    Raises:
        OutputError: The file cannot be written.
    """
    image, _ = scene(_SEED, _INDEX, _SIDE)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95)
    path = folder / f"{EXAMPLE}.jpg"
    write_atomically(path, buffer.getvalue())
    return path
