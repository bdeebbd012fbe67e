"""SegFormer with a choice of attention in each stage, as transformers models."""

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
    """One stage: overlapping patch embeddings, blocks, layer norm.

    Args:
        config: the model's configuration.
        stage: index of the stage, from 0.
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
        """(batch, C_in, H, W) to (batch, C_out, ceil(H / stride), ceil(W / stride))."""
        hidden_states, height, width = self.patch_embeddings(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states, height, width)
        hidden_states = self.layer_norm(hidden_states)
        return hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class CrissCrossSegformerPreTrainedModel(SegformerPreTrainedModel):
    """Weights: how they begin, are loaded and are saved."""

    config: CrissCrossSegformerConfig
    config_class = CrissCrossSegformerConfig
    _no_split_modules = ["CrissCrossSegformerLayer"]  # noqa: RUF012 - transformers' own form
    accepts_loss_kwargs = False  # the loss is a micro-batch's own mean: the Trainer divides by accumulation
    _can_record_outputs: dict[str, Any] = {}  # noqa: RUF012 - forward returns its feature maps itself

    def _init_weights(self, module: nn.Module) -> None:
        """Convolutions begin as in the authors' code, not as transformers' 0.02, which all but silences
        the depthwise ones: normal with the variance 2 / fan-out; the classifier with 0.01."""
        super()._init_weights(module)
        if hasattr(module, "set_initial_weights"):
            module.set_initial_weights()
        elif isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            is_classifier = getattr(self, "decode_head", None) and module is self.decode_head.classifier
            initialization.normal_(module.weight, std=0.01 if is_classifier else math.sqrt(2 / fan_out))

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """As torch's, and takes the names that `save_pretrained` writes, which are the hub's.

        The Trainer resumes by this from what it saved, and passes over every name that it does not know.
        """
        return super().load_state_dict(with_current_names(self, state_dict), *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a SegFormer or ccsegformer checkpoint: a folder or a name on the hub, safetensors only.

        Takes transformers' arguments, and any of the configuration's as an override:
        `from_pretrained(path, attention="efficient", recurrence=1, num_labels=12)`. What a SegFormer
        checkpoint does not say takes this package's defaults, so attention becomes criss-cross. Parameters
        that the overrides make new begin at random; which ones is printed, in one short table. With another
        `num_channels` the first convolution is adapted; `rgb_bands=(r, g, b)` says which bands, from 0, are
        red, green and blue.

        With `output_loading_info=True` returns (model, information), where `information["summary"]` is the
        `LoadSummary`.

        Raises:
            CheckpointError: nothing there, pickled weights, another architecture, or weights that are
                missing, superfluous or of another shape with no override to explain it.
        """
        return load_checkpoint(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)


class CrissCrossSegformerModel(CrissCrossSegformerPreTrainedModel):
    """The encoder: a Mix Transformer with a choice of attention in each stage."""

    def __init__(self, config: CrissCrossSegformerConfig) -> None:
        super().__init__(config)
        self.stages = nn.ModuleList(
            CrissCrossSegformerStage(config, stage) for stage in range(len(config.depths))
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution: FSDP asks for it, and adapters, which make its output require a gradient."""
        return self.stages[0].get_submodule("patch_embeddings.proj")

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **_: Any
    ) -> BaseModelOutput:
        """Encode images.

        Args:
            pixel_values: (batch, num_channels, H, W), normalised, of any size.
            output_hidden_states: whether to return each stage's feature map; the configuration's when None.

        Returns:
            `last_hidden_state`, the last stage's (batch, C, ceil(H / 32), ceil(W / 32)), and
            `hidden_states`, one for each stage, at 1/4, 1/8, 1/16 and 1/32 of the size.
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
    """SegFormer with its all-MLP decode head; with efficient attention, transformers' own to rounding."""

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
        """Label every pixel.

        Args:
            pixel_values: (batch, num_channels, H, W), normalised, of any size.
            labels: (batch, H, W) int64 class ids or the configuration's ignore index; None for no loss.
            output_hidden_states: whether to return the stages' feature maps; the configuration's when None.

        Returns:
            `logits` (batch, num_labels, ceil(H / 4), ceil(W / 4)); `loss`, the mean cross entropy over the
            labelled pixels at the size of `labels` (0 when there are none); `hidden_states` as asked.
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
    """Load a checkpoint to train further, as `from_pretrained`, with the summary of what was loaded.

    Raises:
        CheckpointError: as `from_pretrained`.
    """
    model, information = CrissCrossSegformerForSemanticSegmentation.from_pretrained(
        name_or_path, output_loading_info=True, **overrides
    )
    return model, information["summary"]


def load_trained(name_or_path: str) -> CrissCrossSegformerForSemanticSegmentation:
    """Load a model to use as it was trained: with the attention that it had, nothing new, nothing dropped.

    Raises:
        CheckpointError: as `from_pretrained`, or parts that were never trained, such as an encoder's head.
    """
    attention = saved_attention(saved_config(name_or_path, {}))
    model, summary = load_pretrained(name_or_path, attention=attention)
    if summary.new or summary.dropped:
        unfit = (summary.new or summary.dropped)[0]
        raise CheckpointError(
            f"{name_or_path}: not a trained segmentation model ({unfit} does not fit); train one from it, "
            "as the recipe's model.pretrained"
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
