"""transformers models of SegFormer with a choice of attention in each stage."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessor,
    initialization,
)
from transformers.modeling_outputs import BaseModelOutput, SemanticSegmenterOutput
from transformers.models.segformer.modeling_segformer import (
    SegformerOverlapPatchEmbeddings,
    SegformerPreTrainedModel,
)
from transformers.utils.generic import can_return_tuple

from ccsegformer.errors import CheckpointError
from ccsegformer.models._classifier import CLASSIFIER_STD
from ccsegformer.models.checkpoints import (
    LoadSummary,
    load_checkpoint,
    saved_attention,
    saved_config,
    with_current_names,
)
from ccsegformer.models.configuration_ccsegformer import CrissCrossSegformerConfig
from ccsegformer.models.decode_head import FoldedDecodeHead
from ccsegformer.models.layer import CrissCrossSegformerLayer
from ccsegformer.models.loss import resized_cross_entropy


class CrissCrossSegformerStage(nn.Module):
    """One stage: overlapping patch embeddings, blocks and a layer norm.

    Args:
        config: Configuration of the model.
        stage: Index of the stage, from 0.
    """

    def __init__(self, config: CrissCrossSegformerConfig, stage: int) -> None:
        super().__init__()
        self.patch_embeddings = SegformerOverlapPatchEmbeddings(
            patch_size=config.patch_sizes[stage],
            stride=config.strides[stage],
            num_channels=config.hidden_sizes[stage - 1] if stage else config.num_channels,
            hidden_size=config.hidden_sizes[stage],
        )
        first, last = sum(config.depths[:stage]), max(sum(config.depths) - 1, 1)
        self.blocks = nn.ModuleList(
            CrissCrossSegformerLayer(config, stage, drop_path=config.drop_path_rate * (first + index) / last)
            for index in range(config.depths[stage])
        )
        self.layer_norm = nn.LayerNorm(config.hidden_sizes[stage])

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (batch, C_in, H, W) to (batch, C_out, ceil(H / stride), ceil(W / stride))."""
        hidden_states, height, width = self.patch_embeddings(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states, height, width)
        hidden_states = self.layer_norm(hidden_states)
        return hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class CrissCrossSegformerPreTrainedModel(SegformerPreTrainedModel):
    """Base class of the models, which initialises, loads and saves their weights."""

    config: CrissCrossSegformerConfig
    config_class = CrissCrossSegformerConfig
    _no_split_modules = ["CrissCrossSegformerLayer"]  # noqa: RUF012 - as in transformers
    accepts_loss_kwargs = False  # makes the Trainer divide each micro-batch's mean loss by accumulation
    _can_record_outputs: dict[str, Any] = {}  # noqa: RUF012 - forward returns the feature maps

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise convolutions as SegFormer's authors do: normal with variance 2 / fan-out.

        The classifier has the standard deviation 0.01. transformers uses 0.02 everywhere, and depthwise
        convolutions then output almost nothing.
        """
        super()._init_weights(module)
        set_initial_weights = getattr(module, "set_initial_weights", None)
        if set_initial_weights is not None:
            set_initial_weights()
        elif isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            is_classifier = getattr(self, "decode_head", None) and module is self.decode_head.classifier
            initialization.normal_(
                module.weight, std=CLASSIFIER_STD if is_classifier else math.sqrt(2 / fan_out)
            )

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Load a state dict with the model's names or with those that `save_pretrained` writes, the hub's.

        The Trainer resumes from its own checkpoints with this method, and ignores names that do not match.
        """
        return super().load_state_dict(with_current_names(self, state_dict), *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a SegFormer or ccsegformer checkpoint from a folder or the hub, safetensors only.

        Takes transformers' arguments, and any value of the configuration as an override:
        `from_pretrained(path, attention="efficient", recurrence=1, num_labels=12)`. Values that a SegFormer
        checkpoint lacks get this package's defaults, so its attention becomes criss-cross. Parameters that
        overrides add are initialised at random; a short table of them is printed. If `num_channels` differs,
        the first convolution is adapted; `rgb_bands=(r, g, b)` gives the indices of the red, green and blue
        bands, from 0.

        Returns:
            The model, or (model, information) with `output_loading_info=True`, where `information["summary"]`
            is the `LoadSummary`.

        Raises:
            CheckpointError: There is no checkpoint, its weights are pickled, its architecture is another, or
                weights are missing, unexpected or misshapen and no override explains it.
        """
        return load_checkpoint(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)


class CrissCrossSegformerModel(CrissCrossSegformerPreTrainedModel):
    """Encoder: a Mix Transformer with a choice of attention in each stage."""

    def __init__(self, config: CrissCrossSegformerConfig) -> None:
        super().__init__(config)
        self.stages = nn.ModuleList(
            CrissCrossSegformerStage(config, stage) for stage in range(len(config.depths))
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the first convolution. FSDP needs it, and adapters make its output require gradients."""
        return self.stages[0].get_submodule("patch_embeddings.proj")

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **_: Any
    ) -> BaseModelOutput:
        """Encode images.

        Args:
            pixel_values: Normalised images (batch, num_channels, H, W) of any size.
            output_hidden_states: Whether to return the feature map of each stage. Default: as configured.

        Returns:
            `last_hidden_state`, the last stage's feature map (batch, C, ceil(H / 32), ceil(W / 32)), and
            `hidden_states`, the feature maps of all stages, at 1/4, 1/8, 1/16 and 1/32 of the size.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        features = [pixel_values]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return BaseModelOutput(
            last_hidden_state=features[-1],
            hidden_states=tuple(features[1:]) if output_hidden_states else None,
        )


class CrissCrossSegformerForSemanticSegmentation(CrissCrossSegformerPreTrainedModel):
    """SegFormer with its all-MLP decode head. With efficient attention it equals transformers' own."""

    def __init__(self, config: CrissCrossSegformerConfig) -> None:
        super().__init__(config)
        self.segformer = CrissCrossSegformerModel(config)
        self.decode_head = FoldedDecodeHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> SemanticSegmenterOutput:
        """Compute the logits of images, and the loss if there are labels.

        Args:
            pixel_values: Normalised images (batch, num_channels, H, W) of any size.
            labels: Tensor (batch, H, W) of int64 class ids or the configuration's ignore index. With
                `num_labels=1` the ids are 0 (background) and 1, and the loss is the binary cross entropy.
            output_hidden_states: Whether to return the feature map of each stage. Default: as configured.

        Returns:
            `logits` (batch, num_labels, ceil(H / 4), ceil(W / 4)); with labels, `loss`, the mean cross
            entropy over the labelled pixels at the size of `labels` (0 if there are none); on request,
            `hidden_states`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        features = self.segformer(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        logits = self.decode_head(features)
        loss = None
        if labels is not None:
            loss = resized_cross_entropy(logits, labels, self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=features if output_hidden_states else None,
        )


def load_pretrained(
    name_or_path: str, **overrides: Any
) -> tuple[CrissCrossSegformerForSemanticSegmentation, LoadSummary]:
    """Load a checkpoint for training, as `from_pretrained` does, and return what was loaded.

    Raises:
        CheckpointError: As in `from_pretrained`.
    """
    model, information = CrissCrossSegformerForSemanticSegmentation.from_pretrained(
        name_or_path, output_loading_info=True, **overrides
    )
    return model, information["summary"]


def load_trained(name_or_path: str) -> CrissCrossSegformerForSemanticSegmentation:
    """Load a trained model, with its own attention, for inference.

    Raises:
        CheckpointError: As in `from_pretrained`, or the checkpoint is not a whole trained model, for example
            an encoder without a decode head.
    """
    attention = saved_attention(saved_config(name_or_path, {}))
    model, summary = load_pretrained(name_or_path, attention=attention)
    if summary.new or summary.dropped:
        unfit = (summary.new or summary.dropped)[0]
        raise CheckpointError(
            f"{name_or_path}: not a trained segmentation model ({unfit} does not match); to train one "
            "from it, name it in the recipe's model.pretrained"
        )
    return model.eval()


AutoConfig.register(CrissCrossSegformerConfig.model_type, CrissCrossSegformerConfig)
AutoModel.register(CrissCrossSegformerConfig, CrissCrossSegformerModel)
AutoModelForSemanticSegmentation.register(
    CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
)
AutoImageProcessor.register(
    CrissCrossSegformerConfig, image_processor_classes={"torchvision": SegformerImageProcessor}
)
