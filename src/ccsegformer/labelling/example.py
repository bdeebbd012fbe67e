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

    A model folder of that name in the working directory comes first, as before a name on the hub; stderr says
    so.
    """
    if str(name_or_path) != EXAMPLE:
        return name_or_path
    if (Path(EXAMPLE) / "config.json").is_file():
        print("example: taking the folder ./example, not the model that ships", file=sys.stderr)
        return name_or_path
    return Path(str(files("ccsegformer.labelling") / "example_model"))


def write_example_scene(folder: Path) -> Path:
    """Draw the example scene, 512 x 512, write it to `folder`/scene.jpg, and return its path.

    Raises:
        OutputError: The file cannot be written.
    """
    image, _ = scene(_SEED, _INDEX, _SIDE)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95)
    write_atomically(folder / "scene.jpg", buffer.getvalue())
    return folder / "scene.jpg"
