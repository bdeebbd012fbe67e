"""What the tabs share: the models, the folder that may be read, the queue, and a temporary folder."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccsegformer.app.images import Images
from ccsegformer.app.jobs import JobQueue
from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.labelling.engine import Engine
from ccsegformer.labelling.loading import load_engine

RUNS = Path("runs")


@dataclass(frozen=True)
class OpenedModel:
    """A model of the command line.

    Attributes:
        key: number, in addresses.
        name: last part of the source, or all of it where two models would have the same name.
        source: name or path, as given; `load_model(source)` loads the module itself.
        engine, classes: as `load_engine` returns them.
    """

    key: int
    name: str
    source: str
    engine: Engine
    classes: Classes

    def as_json(self) -> dict[str, Any]:
        """Return what the page shows of the model."""
        config = self.engine.config
        colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in self.classes.palette]
        return {
            "key": self.key,
            "name": self.name,
            "source": self.source,
            "engine": self.engine.describe(),
            "note": self.engine.note,
            "channels": self.engine.preprocessing.channels,
            "attention": list(config.stage_attention) if config else None,
            "classes": [
                {"name": name, "color": color} for name, color in zip(self.classes.names, colors, strict=True)
            ],
        }


class Workspace:
    """Models, queue and folders of one running application.

    Attributes:
        models: in the order of the command line.
        root: folder whose files may be opened by path; None if there is none.
        runs: folder of the runs to list, which need not exist.
        folder: temporary folder, removed at the end.
        images: the last few that the person chose.
        queue: runs whatever uses a model.
        peaks: largest peak of memory measured so far, by model and size of its input. An engine keeps memory
            for a size that it knows, so that later measurements miss some.
    """

    def __init__(
        self, models: Sequence[OpenedModel], folder: Path, root: Path | None = None, runs: Path = RUNS
    ) -> None:
        self.models, self.folder, self.root, self.runs = tuple(models), folder, root, runs
        self.images = Images(folder / "images", root)
        self.peaks: dict[tuple[Any, ...], int] = {}
        self.queue = JobQueue(folder / "jobs", lambda path: shutil.rmtree(path, ignore_errors=True))

    def model(self, key: int) -> OpenedModel:
        """Return the model of this number.

        Raises:
            DataError: there is none.
        """
        if not 0 <= key < len(self.models):
            raise DataError(f"model {key}: there are {len(self.models)} models")
        return self.models[key]


@contextmanager
def opened_workspace(
    models: Sequence[str | Path], root: Path | None = None, runs: Path = RUNS
) -> Iterator[Workspace]:
    """Open the models, and remove the temporary folder in the end.

    Raises:
        CheckpointError, DataError, EngineError: as `load_engine`; `root` is no folder.
    """
    if root is not None and not root.is_dir():
        raise DataError(f"{root}: no such folder")
    sources = list(dict.fromkeys(map(str, models)))
    short = [Path(source).name for source in sources]
    opened = [
        OpenedModel(key, name if name and short.count(name) == 1 else source, source, *load_engine(source))
        for key, (name, source) in enumerate(zip(short, sources, strict=True))
    ]
    with tempfile.TemporaryDirectory(prefix="ccsegformer-", ignore_cleanup_errors=True) as folder:
        workspace = Workspace(opened, Path(folder), root.resolve() if root else None, runs)
        try:
            yield workspace
        finally:
            workspace.queue.close()
