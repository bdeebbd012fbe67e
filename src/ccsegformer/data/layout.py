"""Find the images and masks of a split in the layouts that people have."""

from collections import Counter
from pathlib import Path


def what_lies_there(folder: Path) -> str:
    """Return "; it holds 3 .pdf, 1 folder" for a message, or that there is nothing."""
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    kinds = Counter(
        "folder" if path.is_dir() else path.suffix.lower() or "without suffix" for path in entries
    )
    if not kinds:
        return "; it is empty"
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    return f"; it holds {listed}"
