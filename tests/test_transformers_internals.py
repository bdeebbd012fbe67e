"""What the package uses of transformers beyond its documented API, to name what another version lacks."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import transformers
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments

SOURCE = Path(__file__).parents[1] / "src" / "ccsegformer"
SEGFORMER = "transformers.models.segformer.modeling_segformer"

PARAMETERS = {
    "transformers.conversion_mapping.get_checkpoint_conversion_mapping": ("model_type",),
    "transformers.conversion_mapping.get_model_conversion_mapping": ("model", "add_legacy"),
    "transformers.conversion_mapping.register_checkpoint_conversion_mapping": ("mapping", "overwrite"),
    "transformers.core_model_loading.apply_renamings": ("source_key", "weight_renamings"),
    "transformers.initialization.normal_": ("tensor", "std"),
    "transformers.initialization.zeros_": ("tensor",),
    f"{SEGFORMER}.SegformerAttention": ("hidden_size", "num_attention_heads", "sequence_reduction_ratio"),
    f"{SEGFORMER}.SegformerDepthWiseConv": ("dim",),
    f"{SEGFORMER}.SegformerDropPath": ("drop_prob",),
    f"{SEGFORMER}.SegformerMixMLP": ("config", "in_features", "hidden_features"),
    f"{SEGFORMER}.SegformerOverlapPatchEmbeddings": ("patch_size", "stride", "num_channels", "hidden_size"),
    f"{SEGFORMER}.SegformerPreTrainedModel._init_weights": ("module",),
    f"{SEGFORMER}.SegformerSequenceReduction": ("hidden_size", "sequence_reduction_ratio"),
    "transformers.AutoImageProcessor.register": ("config_class", "image_processor_classes"),
    "transformers.Trainer.training_step": ("model", "inputs", "num_items_in_batch"),
    "transformers.Trainer.compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "transformers.Trainer.get_optimizer_cls_and_kwargs": ("args", "model"),
    "transformers.Trainer._clip_grad_norm": ("model",),
    "transformers.Trainer._save_checkpoint": ("model", "trial"),
    "transformers.Trainer._save": ("output_dir", "state_dict"),
    "transformers.TrainingArguments": ("train_sampling_strategy", "use_cache"),
}

BLOCK = "segformer.stages.0.blocks.0"
MODEL_ATTRIBUTES = (
    *(f"{BLOCK}.attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
    *(f"{BLOCK}.attention.sequence_reduction.{name}" for name in ("sequence_reduction", "layer_norm")),
    f"{BLOCK}.mlp.dwconv.dwconv",
    *(f"decode_head.{name}" for name in ("linear_projections.0.proj", "linear_fuse", "batch_norm")),
    *(f"decode_head.{name}" for name in ("activation", "dropout", "classifier")),
)
TRAINER_ATTRIBUTES = ("accelerator", "args._n_gpu", "is_fsdp_enabled", "model_wrapped", "state.log_history")


def find(path: str) -> Any:
    """The object of a dotted name."""
    module, names = path, []
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            names.insert(0, name)
    return attrgetter(".".join(names))(found) if names else found


def imported() -> Iterator[str]:
    """Every name that the package imports from transformers."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "transformers":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_all_that_is_used_is_there(tmp_path: Path) -> None:
    names = set(imported())
    assert "transformers.core_model_loading.apply_renamings" in names
    missing = []
    for path in sorted(names | PARAMETERS.keys()):
        try:
            found = find(path)
        except (AttributeError, ImportError):
            missing.append(path)
            continue
        if path in PARAMETERS:
            known = inspect.signature(found).parameters
            missing += [f"{path}({name}=)" for name in PARAMETERS[path] if name not in known]
    assert not missing, f"transformers {transformers.__version__} lacks {', '.join(missing)}"

    config = SegformerConfig(hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8)
    model = SegformerForSemanticSegmentation(config)
    trainer = Trainer(model, TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"))
    for made, attributes in ((model, MODEL_ATTRIBUTES), (trainer, TRAINER_ATTRIBUTES)):
        for name in attributes:
            try:
                attrgetter(name)(made)
            except AttributeError:
                missing.append(f"{type(made).__name__}().{name}")
    assert not missing, f"transformers {transformers.__version__} lacks {', '.join(missing)}"
