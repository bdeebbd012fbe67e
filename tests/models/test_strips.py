"""Working in strips changes nothing but time and memory."""

import pytest
import torch
from torch import nn
from transformers import SegformerForSemanticSegmentation, set_seed

from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models import attention as attention_module
from ccsegformer.models import decode_head as decode_head_module
from ccsegformer.models import layer as layer_module
from ccsegformer.models import strips as strips_module
from ccsegformer.models.attention import CrissCrossAttention
from ccsegformer.models.strips import cut, works_in_strips

SIZES = [(1, 64, 96), (2, 57, 83), (3, 33, 200), (1, 200, 33)]


def build(attention: str) -> CrissCrossSegformerForSemanticSegmentation:
    """A small model in float64, so that what differs by more than 1e-10 is not rounding."""
    set_seed(0)
    config = CrissCrossSegformerConfig(
        attention=attention,
        hidden_sizes=(8, 16, 24, 32),
        depths=(1, 2, 1, 1),
        num_attention_heads=(1, 2, 3, 4),
        decoder_hidden_size=16,
        num_labels=5,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
    )
    model = CrissCrossSegformerForSemanticSegmentation(config).double()
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.1
            tensor.copy_(tensor + (noise.abs() if "running_var" in name else noise))
    return model


def pixels(batch: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Strips of a row or two, also in training; the list counts those that were made."""
    made: list[int] = []

    def counted(batch: int, height: int, *args: int, **kwargs: int) -> list[strips_module.Strip]:
        found = cut(batch, height, *args, **kwargs)
        made.append(len(found))
        return found

    monkeypatch.setattr(strips_module, "STRIP_ELEMENTS", 512)
    monkeypatch.setattr(strips_module, "TRAINING_ELEMENTS", 512)
    monkeypatch.setattr(decode_head_module, "STRIP_ELEMENTS", 512)
    monkeypatch.setattr(decode_head_module, "FEWEST_ROWS", 1)
    monkeypatch.setattr(layer_module, "cut", counted)
    monkeypatch.setattr(attention_module, "cut", counted)
    monkeypatch.setattr(attention_module, "LARGE_MAP", 512)
    return made


@pytest.mark.parametrize("shape", SIZES)
def test_logits_of_strips_are_transformers_own(shape: tuple[int, int, int], narrow: list[int]) -> None:
    ours = build("efficient").eval()
    theirs = SegformerForSemanticSegmentation(ours.config).double().eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        logits, expected = ours(pixels(*shape)).logits, theirs(pixels(*shape)).logits
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=1e-10)
    assert logits.is_contiguous()
    assert sum(narrow) > 20


@pytest.mark.parametrize("attention", ["efficient", "criss_cross", "none"])
def test_gradients_of_strips_are_those_of_the_whole(
    attention: str, narrow: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(attention).train()
    for name, parameter in model.named_parameters():  # what is frozen stays without a gradient
        parameter.requires_grad_("stages.1.blocks.0.mlp" not in name)
    images = pixels(2, 57, 83).requires_grad_()

    def gradients() -> dict[str, torch.Tensor | None]:
        model.zero_grad()
        images.grad = None
        (model(images).logits ** 2).sum().backward()
        return {"images": images.grad, **{name: each.grad for name, each in model.named_parameters()}}

    in_strips = gradients()
    assert max(narrow) > 4
    monkeypatch.setattr(layer_module, "works_in_strips", lambda *_: False)
    for name, expected in gradients().items():
        torch.testing.assert_close(in_strips[name], expected, atol=1e-9, rtol=1e-9, msg=name)


def test_logits_in_evaluation_are_those_of_the_whole_head(narrow: list[int]) -> None:
    """With gradients the head is whole, without them in strips."""
    model = build("criss_cross").eval()
    for shape in SIZES:
        with torch.no_grad():
            in_strips = model(pixels(*shape)).logits
        torch.testing.assert_close(in_strips, model(pixels(*shape)).logits, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("lepe", [False, True])
@pytest.mark.parametrize("shape", [(1, 40, 24), (2, 17, 50), (3, 1, 60), (1, 60, 1)])
def test_criss_cross_attention_in_strips_is_the_whole_one(
    shape: tuple[int, int, int], lepe: bool, heads: int, narrow: list[int]
) -> None:
    set_seed(0)
    (batch, height, width), channels = shape, 16
    attention = CrissCrossAttention(channels, heads, 1, lepe=lepe)
    norm = nn.LayerNorm(channels)
    nn.init.normal_(norm.weight)
    tokens = torch.randn(batch, height * width, channels) * 3
    with torch.no_grad():
        whole = attention.attend(norm(tokens), height, width)
        assert not narrow
        in_strips = attention(tokens, height, width, norm=norm)[0]
    assert sum(narrow) > 2
    torch.testing.assert_close(in_strips, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "recurrence"),
    [
        (torch.zeros(1, 20 * 24, 16), 1),  # a short cross: 44 positions
        (torch.zeros(1, 20 * 40, 8), 1),  # a long one, of a small map
        (torch.zeros(1, 20 * 40, 16), 2),
        (torch.zeros(1, 20 * 40, 16, dtype=torch.float64), 1),  # not what the kernel takes
    ],
)
def test_criss_cross_attention_that_stays_whole(
    tokens: torch.Tensor, recurrence: int, narrow: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = tokens.shape[2]
    attention = CrissCrossAttention(channels, 1, recurrence).to(tokens.dtype)
    norm = nn.LayerNorm(channels).to(tokens.dtype)
    monkeypatch.setattr(attention_module, "LARGE_MAP", 20 * 40 * 8)
    with torch.no_grad():
        attention(tokens, 20, tokens.shape[1] // 20, norm=norm)
    attention(tokens, 20, tokens.shape[1] // 20, norm=norm)[0].sum().backward()
    assert not narrow
    assert attention.q_proj.weight.grad is not None


class Doubled(nn.Linear):
    """What an adapter does: another module in a layer's place."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_replaced_and_hooked_layers_are_called(narrow: list[int]) -> None:
    model = build("efficient").eval()
    block, image = model.segformer.stages[0].blocks[0], pixels(1, 64, 64)
    with torch.no_grad():
        before = model(image).logits
        plain = block.mlp.fc2
        block.mlp.fc2 = Doubled(plain.in_features, plain.out_features).double()
        block.mlp.fc2.load_state_dict(plain.state_dict())
        assert not torch.allclose(model(image).logits, before)
        block.mlp.fc2 = plain
        seen: list[torch.Size] = []
        handle = block.attention.q_proj.register_forward_hook(lambda *args: seen.append(args[2].shape))
        torch.testing.assert_close(model(image).logits, before)
        assert seen == [(1, 256, 8)]
        handle.remove()
        plain_forward = block.mlp.fc2.forward
        block.mlp.fc2.forward = lambda tokens: 2 * plain_forward(tokens)  # as accelerate's hooks do
        assert not torch.allclose(model(image).logits, before)


def test_strips_cover_every_row_once_with_what_they_need() -> None:
    for batch, height, elements, halo, stride in (
        (1, 17, 2**16, 1, 1),
        (5, 9, 2**14, 0, 4),
        (2, 3, 2**30, 1, 1),
    ):
        covered = torch.zeros(batch, height, dtype=torch.int)
        for strip in cut(batch, height, elements, halo=halo, stride=stride):
            covered[strip.images, strip.rows] += 1
            first, last = strip.rows.start * stride, strip.rows.stop * stride
            assert strip.needed == slice(max(first - halo, 0), min(last + halo, height * stride))
            assert strip.needed.start + strip.above == first
        assert covered.eq(1).all()


def test_small_or_foreign_work_is_left_whole() -> None:
    linear, enough = nn.Linear(4, 4), 2**30
    with torch.no_grad():
        assert works_in_strips(torch.zeros(1), enough, linear)
        assert not works_in_strips(torch.zeros(1), 100, linear)
        assert not works_in_strips(torch.zeros(1, dtype=torch.bfloat16), enough, linear)
        assert not works_in_strips(torch.zeros(1, device="meta"), enough, linear)
        with torch.autocast("cpu", torch.bfloat16):
            assert not works_in_strips(torch.zeros(1), enough, linear)
    assert not works_in_strips(torch.zeros(1), strips_module.TRAINING_ELEMENTS - 1, linear)
