"""The exceptions that users can catch. Every message is one line that says what was wrong, and where."""


class CCSegformerError(Exception):
    """Base of every error that ccsegformer raises for a wrong input."""


class DataError(CCSegformerError):
    """A data set, image or mask that cannot be used; the message names the file."""


class RecipeError(CCSegformerError):
    """A recipe or protocol that cannot be used; the message names the file and the key."""


class CheckpointError(CCSegformerError):
    """Weights that cannot be loaded; the message names the checkpoint and the keys."""


class OutputError(CCSegformerError):
    """An output folder or file that cannot be written; the message names it."""


class TrainingError(CCSegformerError):
    """Training that cannot go on, such as a loss that is no longer finite."""


class ExportError(CCSegformerError):
    """A model that cannot be exported, or whose export disagrees with it; the message says why."""


class EngineError(CCSegformerError):
    """An engine that cannot run a model, or logits that are not finite; the message says why."""


class OutOfMemoryError(EngineError):
    """An image or a window that does not fit into a device's memory; the message names it."""
