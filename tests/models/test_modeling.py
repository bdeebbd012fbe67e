"""The model equals transformers' SegFormer with efficient attention, and supports transformers' features."""

import pytest
import torch
from transformers import SegformerForSemanticSegmentation, set_seed
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from ccsegformer.models import (
    CrissCrossSegformerConfig,
    CrissCrossSegformerForSemanticSegmentation,
    CrissCrossSegformerModel,
)
from ccsegformer.models.decode_head import FoldedDecodeHead

TINY = {
    "hidden_sizes": (8, 16, 24, 32),
    "depths": (1, 1, 1, 1),
    "num_attention_heads": (1, 2, 3, 4),
    "decoder_hidden_size": 16,
    "num_labels": 3,
}


def tiny(**overrides) -> CrissCrossSegformerForSemanticSegmentation:  # type: ignore[no-untyped-def]
    set_seed(0)
    return CrissCrossSegformerForSemanticSegmentation(CrissCrossSegformerConfig(**{**TINY, **overrides}))


def pixels(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def shake(model: torch.nn.Module, strength: float = 0.1) -> None:
    """Add noise to every parameter and statistic, so that no 0 or 1 hides an error."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * strength
            tensor.copy_(tensor + (noise.abs() if "running_var" in name else noise))


@pytest.mark.parametrize("size", ["b0", "b1", "b2", "b3", "b4", "b5"])
def test_logits_equal_those_of_transformers(size: str) -> None:
    config = CrissCrossSegformerConfig.mit(size, num_labels=150, attention="efficient")
    ours = CrissCrossSegformerForSemanticSegmentation(config).eval()
    shake(ours, 0.03)
    with torch.device("meta"):
        theirs = SegformerForSemanticSegmentation(config).eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    for height, width in ((64, 64), (64, 96), (57, 83)):
        with torch.inference_mode():
            expected = theirs(pixels(1, height, width)).logits
            torch.testing.assert_close(ours(pixels(1, height, width)).logits, expected, atol=1e-4, rtol=0)
            assert expected.abs().max() > 1
    image = pixels(1, 57, 83).double()
    with torch.inference_mode():  # the difference above is rounding
        expected = theirs.double()(image).logits
        torch.testing.assert_close(ours.double()(image).logits, expected, atol=1e-10, rtol=1e-10)


def test_published_parameter_counts() -> None:
    # Millions of parameters of the encoders, from table 6 of the SegFormer paper.
    published = {"b0": 3.4, "b1": 13.1, "b2": 24.2, "b3": 44.0, "b4": 60.8, "b5": 81.4}
    for size, millions in published.items():
        with torch.device("meta"):
            model = CrissCrossSegformerModel(CrissCrossSegformerConfig.mit(size, attention="efficient"))
        assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.2)


@pytest.mark.parametrize("training", [False, True])
def test_folded_head_is_exact_in_outputs_and_gradients(training: bool) -> None:
    config = CrissCrossSegformerConfig(**TINY, classifier_dropout_prob=0.0)
    theirs, ours = SegformerDecodeHead(config).double(), FoldedDecodeHead(config).double()
    shake(theirs)
    ours.load_state_dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(
            2, channels, -(-17 // 2**stage), -(-22 // 2**stage), generator=generator, dtype=torch.float64
        )
        for stage, channels in enumerate(config.hidden_sizes)
    ]
    results = []
    for head in (theirs, ours):
        leaves = [feature.clone().requires_grad_() for feature in features]
        logits = head.train(training)(leaves)
        logits.square().sum().backward()
        results.append([logits, *(leaf.grad for leaf in leaves), *(p.grad for p in head.parameters())])
        results[-1] += [head.batch_norm.running_mean, head.batch_norm.running_var]
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    "attention", ["efficient", "criss_cross", "none", ["efficient", "none", "criss_cross", "none"]]
)
def test_shapes_and_hidden_states(attention: str | list[str]) -> None:
    model = tiny(attention=attention).eval()
    out = model(pixels(2, 50, 70), labels=torch.zeros(2, 50, 70, dtype=torch.long), output_hidden_states=True)
    assert out.logits.shape == (2, 3, 13, 18)
    assert [tuple(feature.shape[1:]) for feature in out.hidden_states] == [
        (8, 13, 18), (16, 7, 9), (24, 4, 5), (32, 2, 3)
    ]  # fmt: skip
    assert model(pixels(1, 32, 32)).hidden_states is None
    logits, *_ = model(pixels(1, 32, 32), return_dict=False)
    assert logits.shape == (1, 3, 8, 8)
    encoder = model.segformer(pixels(2, 50, 70), output_hidden_states=True)
    assert torch.equal(encoder.last_hidden_state, encoder.hidden_states[-1])


def test_every_parameter_learns() -> None:
    for overrides in (
        {},
        {"attention": "efficient"},
        {"attention": "none"},
        {"projection": "ccnet", "recurrence": 2},
    ):
        model = tiny(**overrides)
        shake(model)
        model(pixels(2, 64, 64), labels=torch.randint(0, 3, (2, 64, 64))).loss.backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        # Key biases have no gradient but rounding, because a softmax ignores a shift of all keys.
        assert not [name for name in idle if "bias" not in name], (overrides, idle)


def test_loss_is_the_mean_over_labelled_pixels() -> None:
    model = tiny().eval()
    labels = torch.randint(0, 3, (2, 40, 40), generator=torch.Generator().manual_seed(0))
    labels[:, :30] = 255
    theirs = SegformerForSemanticSegmentation(tiny(attention="efficient").config)
    ours = CrissCrossSegformerForSemanticSegmentation(theirs.config)
    ours.load_state_dict(theirs.state_dict())
    expected = theirs.eval()(pixels(2, 40, 40), labels=labels).loss
    torch.testing.assert_close(ours.eval()(pixels(2, 40, 40), labels=labels).loss, expected)
    nothing = model(pixels(2, 40, 40), labels=torch.full((2, 40, 40), 255)).loss
    assert nothing.item() == 0
    nothing.backward()


def test_efficient_attention_uses_pytorchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    tiny(attention="efficient").eval()(pixels(1, 64, 64))
    assert len(calls) == 4, "one per block"


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny(drop_path_rate=0.0, classifier_dropout_prob=0.0).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(pixels(1, 64, 64), labels=torch.zeros(1, 64, 64, dtype=torch.long)).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_compiles_without_graph_breaks() -> None:
    model = tiny().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for image in (pixels(2, 64, 64), pixels(2, 75, 130)):  # the second makes the sizes dynamic
        with torch.no_grad():
            torch.testing.assert_close(compiled(image).logits, model(image).logits)


def test_mixed_precision_is_close() -> None:
    model = tiny().eval()
    with torch.inference_mode():
        expected = model(pixels(1, 64, 64)).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(pixels(1, 64, 64)).logits
    assert (logits.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"attention": "criss-cross"}, "attention must be one of efficient, criss_cross, none"),
        ({"attention": ["efficient"] * 3}, "or a list of 4 of these"),
        ({"projection": "single"}, "projection must be one of multi_head, ccnet"),
        ({"recurrence": 0}, "recurrence must be at least 1"),
        ({"num_attention_heads": (1, 2, 7, 8)}, "must be multiples of num_attention_heads"),
        ({"num_labels": 0}, "num_labels must be at least 1"),
        ({"attention_probs_dropout_prob": 0.1}, "has no dropout"),
    ],
)
def test_bad_configurations_are_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrissCrossSegformerConfig(**overrides)
    with pytest.raises(ValueError, match="size must be one of b0"):
        CrissCrossSegformerConfig.mit("b6")
