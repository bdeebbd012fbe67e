"""Publish a model on the Hugging Face hub: its card and the files that loading it needs."""

from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ccsegformer.config.yaml_files import read_yaml
from ccsegformer.errors import OutputError
from ccsegformer.publishing._sections import public_recipe
from ccsegformer.publishing.card import CARD, write_card

PUBLISHED = ("config.json", "model.safetensors", "preprocessor_config.json", "classes.json", "confusion.csv")
"""Files that are published as they are, if the folder has them."""


class PublishedFile(NamedTuple):
    """File to publish.

    Attributes:
        name: Name in the repository.
        content: Its bytes, or the path of the file that holds them.
    """

    name: str
    content: bytes | Path

    @property
    def size(self) -> int:
        """Number of bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def prepare_upload(folder: str | Path, repository: str, license: str | None = None) -> list[PublishedFile]:
    """Write the card to a model's folder, and return the files to publish, the card first.

    What the folder holds of the data stays: names of images, examples, checkpoints and logs. The recipe is
    published with the names of data and weights instead of their folders.

    Args:
        folder: Folder of a run, of a conversion, or of any trained SegFormer.
        repository: Name on the hub: "user/name".
        license: Licence of weights trained from random ones; see `licence_of`.

    Raises:
        OutputError: The name is not one of the hub's, or the card cannot be written.
        CheckpointError, DataError, RecipeError: As `write_card`.
    """
    folder = Path(folder)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise OutputError(f"--to {repository}: {str(error).partition(chr(10))[0]}") from error
    if repository.count("/") != 1:
        raise OutputError(f"--to {repository}: write the user or organisation too: user/name")
    record = write_card(folder, repository, license)
    files = [folder / name for name in (CARD, *PUBLISHED) if (folder / name).is_file()]
    if record.metrics is None:
        files = [path for path in files if path.name != "confusion.csv"]
    published = [PublishedFile(path.name, path) for path in files]
    if record.recipe is not None:
        recipe = public_recipe(read_yaml(folder / "recipe.yaml", "a recipe"))
        content = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        published.append(PublishedFile("recipe.yaml", content.encode()))
    return published


def upload(
    files: list[PublishedFile],
    repository: str,
    *,
    private: bool = False,
) -> str:
    """Upload files in one commit to a repository, which is created if there is none, and return its address.

    The hub's own settings apply: `HF_ENDPOINT`, and the token of `hf auth login` or `HF_TOKEN`.

    Args:
        files: Files to upload; others in the repository stay.
        repository: Name on the hub: "user/name".
        private: Whether the repository must be private.

    Raises:
        OutputError: The hub cannot be reached or refuses, nobody is logged in, or the repository is public
            but must be private.
    """
    api = HfApi(library_name="ccsegformer")
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise OutputError(f"{repository}: exists and is public; nothing was uploaded")
        operations = [CommitOperationAdd(file.name, _path_or_bytes(file)) for file in files]
        api.create_commit(repository, operations, commit_message="Publish the model and its card")
    except LocalTokenNotFoundError as error:
        raise OutputError(
            f"{repository}: nobody is logged in: run `hf auth login`, or set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = " ".join((error.server_message or "").split())
        hint = "; run `hf auth login`, or set HF_TOKEN" if status == 401 else ""
        raise OutputError(f"{repository}: the hub refused ({status}): {said or 'no reason'}{hint}") from error
    except (HTTPError, ValueError, OSError, RuntimeError) as error:  # huggingface_hub raises all of them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OutputError(f"{repository}: could not be uploaded to {api.endpoint}: {reason}") from error
    return str(address)


def _path_or_bytes(file: PublishedFile) -> bytes | str:
    return file.content if isinstance(file.content, bytes) else str(file.content)
