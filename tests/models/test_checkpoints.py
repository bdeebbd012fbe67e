"""SegFormer checkpoints load and save in both directions, and every mismatch is reported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SegformerModel,
    pipeline,
)

from ccsegformer.errors import CheckpointError
from ccsegformer.models import (
    CrissCrossSegformerConfig,
    CrissCrossSegformerForSemanticSegmentation,
    CrissCrossSegformerModel,
    load_pretrained,
    load_trained,
)
from ccsegformer.models.checkpoints import CLASSIFIER

TINY = {
    "hidden_sizes": (8, 16, 24, 32),
    "depths": (1, 2, 1, 1),
    "num_attention_heads": (1, 2, 3, 4),
    "decoder_hidden_size": 16,
}
PIXELS = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def fine_tuned(tmp_path: Path) -> Path:
    """Save a model as on the hub, where transformers uses the parameter names of 2021."""
    SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=5)).save_pretrained(
        tmp_path / "fine_tuned"
    )
    return tmp_path / "fine_tuned"


@pytest.fixture
def encoder_only(tmp_path: Path) -> Path:
    """Save a model like nvidia/mit-b*, an image classifier with its own labels."""
    SegformerForImageClassification(SegformerConfig(**TINY, num_labels=10)).save_pretrained(tmp_path / "mit")
    return tmp_path / "mit"


def test_hub_names_load_exactly(fine_tuned: Path) -> None:
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in load_file(
        fine_tuned / "model.safetensors"
    )
    theirs = SegformerForSemanticSegmentation.from_pretrained(fine_tuned).eval()
    ours, summary = load_pretrained(str(fine_tuned), attention="efficient")
    assert (summary.new, summary.dropped) == ((), ())
    assert set(summary.loaded) == set(ours.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(PIXELS).logits, theirs(PIXELS).logits)


def test_newer_names_load_exactly(fine_tuned: Path) -> None:
    theirs = SegformerForSemanticSegmentation.from_pretrained(fine_tuned).eval()
    assert "segformer.stages.0.blocks.0.attention.q_proj.weight" in theirs.state_dict()
    save_file(theirs.state_dict(), fine_tuned / "model.safetensors", metadata={"format": "pt"})
    ours, summary = load_pretrained(str(fine_tuned), attention="efficient")
    assert (summary.new, summary.dropped) == ((), ())
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(PIXELS).logits, theirs(PIXELS).logits)


def test_criss_cross_reuses_the_trained_projections(
    fine_tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, summary = load_pretrained(str(fine_tuned))
    assert model.config.attention == "criss_cross"
    assert summary.new and all(".attention.lepe." in name for name in summary.new)
    assert not any(model.state_dict()[name].any() for name in summary.new)
    assert summary.dropped and all(".sequence_reduction." in name for name in summary.dropped)
    saved = load_file(fine_tuned / "model.safetensors")
    expected = saved["segformer.encoder.block.1.1.attention.self.value.weight"]
    assert torch.equal(model.state_dict()["segformer.stages.1.blocks.1.attention.v_proj.weight"], expected)
    printed = capsys.readouterr().err
    counts = f"{len(summary.loaded)} loaded, {len(summary.new)} new, {len(summary.dropped)} dropped"
    assert counts in printed
    assert len(printed.splitlines()) <= 12


def test_ccnet_projections_are_new(fine_tuned: Path) -> None:
    model, summary = load_pretrained(str(fine_tuned), projection="ccnet", recurrence=2)
    assert model.config.recurrence == 2
    assert {name.rpartition("attention.")[2] for name in summary.new} == {
        "gamma", "key.bias", "key.weight", "query.bias", "query.weight", "value.bias", "value.weight"
    }  # fmt: skip
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("gamma"))


def test_one_stage_changed_is_one_stage_new(fine_tuned: Path) -> None:
    attention = ["efficient", "criss_cross", "efficient", "none"]
    _, summary = load_pretrained(str(fine_tuned), attention=attention)
    assert {name.split(".")[2] for name in summary.new} == {"1"}
    assert {name.split(".")[2] for name in summary.dropped} == {"1", "3"}
    assert summary.new_attention == (1, 3)


def test_encoder_only_checkpoints_give_a_fresh_head(encoder_only: Path) -> None:
    model, summary = load_pretrained(str(encoder_only), attention="efficient", num_labels=7)
    assert model(PIXELS).logits.shape[1] == 7
    assert summary.dropped == ("classifier.bias", "classifier.weight")
    assert summary.new and all(name.startswith("decode_head.") for name in summary.new)


def test_bare_encoders_load_both_ways(tmp_path: Path, fine_tuned: Path) -> None:
    bare = SegformerModel(SegformerConfig(**TINY)).eval()
    bare.save_pretrained(tmp_path / "bare")
    ours = CrissCrossSegformerModel.from_pretrained(tmp_path / "bare", attention="efficient").eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours(PIXELS).last_hidden_state, bare(PIXELS).last_hidden_state)
    _, summary = load_pretrained(str(tmp_path / "bare"), attention="efficient")
    assert summary.new and all(name.startswith("decode_head.") for name in summary.new)
    CrissCrossSegformerModel.from_pretrained(fine_tuned, attention="efficient")


def test_other_classes_give_a_fresh_classifier(fine_tuned: Path) -> None:
    model, summary = load_pretrained(
        str(fine_tuned), attention="efficient", id2label={0: "ground", 1: "building"}
    )
    assert summary.new == ("decode_head.classifier.bias", "decode_head.classifier.weight")
    assert model.config.label2id == {"ground": 0, "building": 1}
    assert model(PIXELS).logits.shape[1] == 2


def test_a_checkpoint_without_class_names_keeps_the_classifier_and_says_so(
    fine_tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, summary = load_pretrained(str(fine_tuned), attention="efficient", id2label=dict(enumerate("abcde")))
    assert summary.new == ()
    assert "classifier kept: the checkpoint does not name its classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "sources", "says"),
    [
        (["Sky", "road ", "tree"], [0, 1, 2], ""),
        (["LABEL_0", "LABEL_1", "LABEL_2"], [0, 1, 2], ""),
        (["road", "tree", "sky"], [1, 2, 0], "classifier: 3 classes kept by name"),
        (["ground", "road", "sky"], [None, 1, 0], "classifier: 2 classes kept by name, 1 made anew: ground"),
        (
            ["cat", "dog", "hen"],
            [None] * 3,
            "classifier made anew: the checkpoint has other classes, such as",
        ),
    ],
)
def test_a_classifier_follows_the_names_of_its_classes(
    wanted: list[str],
    sources: list[int | None],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = SegformerForSemanticSegmentation(
        SegformerConfig(**TINY, id2label={0: "sky", 1: "road", 2: "tree"}, label2id=None)
    )
    torch.nn.init.normal_(saved.decode_head.classifier.bias)
    saved.save_pretrained(tmp_path)
    capsys.readouterr()  # the progress bar of saving
    model, summary = load_pretrained(str(tmp_path), attention="efficient", id2label=dict(enumerate(wanted)))
    before, after = saved.decode_head.classifier, model.decode_head.classifier
    for label, source in enumerate(sources):
        if source is None:
            assert not any(torch.equal(after.weight[label], row) for row in before.weight)
            assert after.weight[label].std() > 0 and after.bias[label] == 0
        else:
            assert torch.equal(after.weight[label], before.weight[source])
            assert torch.equal(after.bias[label], before.bias[source])
    is_new = set(sources) == {None}
    assert summary.new == (CLASSIFIER if is_new else ())
    assert is_new != (set(CLASSIFIER) <= set(summary.loaded))
    printed = capsys.readouterr().err
    assert says in printed if says else printed == ""


def test_an_efficient_model_saves_as_a_plain_segformer(tmp_path: Path) -> None:
    ours = CrissCrossSegformerForSemanticSegmentation(
        CrissCrossSegformerConfig(**TINY, attention="efficient", num_labels=5)
    ).eval()
    ours.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "segformer"
    assert config["architectures"] == ["SegformerForSemanticSegmentation"]
    theirs = SegformerForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours(PIXELS).logits, theirs(PIXELS).logits, atol=1e-5, rtol=1e-5)
    again, summary = load_pretrained(str(tmp_path))
    assert again.config.attention == "efficient"
    assert (summary.new, summary.dropped) == ((), ())


def test_round_trip_with_the_auto_classes(tmp_path: Path) -> None:
    config = CrissCrossSegformerConfig(
        **TINY,
        attention=["efficient", "criss_cross", "criss_cross", "none"],
        projection="ccnet",
        recurrence=2,
    )
    model = CrissCrossSegformerForSemanticSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert type(again) is CrissCrossSegformerForSemanticSegmentation
    assert again.config.stage_attention == config.stage_attention
    assert type(AutoModel.from_pretrained(tmp_path)) is CrissCrossSegformerModel
    with torch.inference_mode():
        assert torch.equal(again(PIXELS).logits, model(PIXELS).logits)


def test_image_segmentation_pipeline(tmp_path: Path) -> None:
    from PIL import Image

    config = CrissCrossSegformerConfig(
        **TINY, id2label={0: "ground", 1: "building"}, label2id={"ground": 0, "building": 1}
    )
    CrissCrossSegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessor(do_resize=False).save_pretrained(tmp_path)
    segments = pipeline("image-segmentation", model=str(tmp_path))(Image.new("RGB", (70, 50)))
    assert {segment["label"] for segment in segments} <= {"ground", "building"}
    assert segments[0]["mask"].size == (70, 50)


def test_load_state_dict_takes_both_names(fine_tuned: Path) -> None:
    # The Trainer resumes with a non-strict load_state_dict of the weights that save_pretrained wrote.
    model, _ = load_pretrained(str(fine_tuned), attention="efficient")
    other = CrissCrossSegformerForSemanticSegmentation(model.config)
    for state in (load_file(fine_tuned / "model.safetensors"), model.state_dict()):
        other.apply(lambda module: [p.data.fill_(7) for p in module.parameters()])
        assert other.load_state_dict(state).missing_keys == []
        assert all(
            torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items()
        )
    encoder = CrissCrossSegformerModel(model.config)
    hub = load_file(fine_tuned / "model.safetensors")
    encoder.load_state_dict({k.removeprefix("segformer."): v for k, v in hub.items() if "decode" not in k})


def test_load_trained_changes_nothing(fine_tuned: Path, encoder_only: Path, tmp_path: Path) -> None:
    theirs = SegformerForSemanticSegmentation.from_pretrained(fine_tuned).eval()
    ours = load_trained(str(fine_tuned))
    assert ours.config.attention == "efficient" and not ours.training
    with torch.inference_mode():
        torch.testing.assert_close(ours(PIXELS).logits, theirs(PIXELS).logits)
    load_pretrained(str(fine_tuned), attention="none")[0].save_pretrained(tmp_path / "control")
    assert load_trained(str(tmp_path / "control")).config.attention == "none"
    with pytest.raises(CheckpointError, match="not a trained segmentation model"):
        load_trained(str(encoder_only))


def edit_weights(folder: Path, edit) -> None:  # type: ignore[no-untyped-def]
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_weights_are_an_error(fine_tuned: Path) -> None:
    edit_weights(fine_tuned, lambda w: w.pop("segformer.encoder.block.0.0.attention.self.sr.weight"))
    with pytest.raises(CheckpointError, match=r"fine_tuned: the weights lack .*sequence_reduction"):
        load_pretrained(str(fine_tuned), attention="efficient")
    edit_weights(fine_tuned, lambda w: w.pop("decode_head.linear_fuse.weight"))
    with pytest.raises(CheckpointError, match=r"the weights lack decode_head.linear_fuse.weight"):
        load_pretrained(str(fine_tuned))


def test_unexpected_weights_are_an_error(fine_tuned: Path) -> None:
    edit_weights(fine_tuned, lambda w: w.update(auxiliary=torch.zeros(1)))
    with pytest.raises(CheckpointError, match="auxiliary, which the model lacks"):
        load_pretrained(str(fine_tuned))


def test_misshapen_weights_are_an_error(fine_tuned: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has shape \(.*\) in the weights and \(.*\) in the model"):
        load_pretrained(str(fine_tuned), decoder_hidden_size=24)


def test_another_architecture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"model_type .* not 'bert'"):
        load_pretrained(str(tmp_path))


def test_pickled_weights_are_an_error(fine_tuned: Path) -> None:
    torch.save(load_file(fine_tuned / "model.safetensors"), fine_tuned / "pytorch_model.bin")
    (fine_tuned / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors \(pickled weights are not read\)"):
        load_pretrained(str(fine_tuned))


def test_damaged_weights_are_an_error(fine_tuned: Path) -> None:
    weights = (fine_tuned / "model.safetensors").read_bytes()
    (fine_tuned / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"damaged model\.safetensors"):
        load_pretrained(str(fine_tuned))


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_no_configuration_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_override_is_one_line(fine_tuned: Path) -> None:
    with pytest.raises(CheckpointError, match=r"fine_tuned: attention must be one of"):
        load_pretrained(str(fine_tuned), attention="cross")


def test_lepe_is_as_saved_unless_overridden(tmp_path: Path) -> None:
    config = CrissCrossSegformerConfig.mit("b0", num_labels=3, lepe=False)
    CrissCrossSegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved.pop("lepe") is False
    (tmp_path / "config.json").write_text(json.dumps(saved))  # as saved before the key existed
    model, summary = load_pretrained(str(tmp_path))
    assert not model.config.lepe
    assert (summary.new, summary.dropped) == ((), ())
    model, summary = load_pretrained(str(tmp_path), lepe=True)
    assert summary.new and all(".attention.lepe." in name for name in summary.new)
    assert summary.new_attention == ()
    model.save_pretrained(tmp_path)
    _, summary = load_pretrained(str(tmp_path), lepe=False)
    assert summary.dropped and all(".attention.lepe." in name for name in summary.dropped)


def first_weight(model: torch.nn.Module) -> torch.Tensor:
    return next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d)).weight.detach()


def test_the_first_layer_is_adapted_to_other_bands(
    fine_tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = first_weight(load_trained(str(fine_tuned)))
    capsys.readouterr()
    statistics = {"band_means": [1.0, 2.0, 3.0, 4.0], "band_stds": [1.0, 1.0, 1.0, 2.5]}
    known, summary = load_pretrained(
        str(fine_tuned), attention="efficient", num_channels=4, rgb_bands=(2, 1, 0), **statistics
    )
    assert torch.equal(first_weight(known)[:, [2, 1, 0]], three) and not first_weight(known)[:, 3].any()
    assert first_weight(known).shape[1] == known.config.num_channels == 4
    assert known.config.band_stds == [1.0, 1.0, 1.0, 2.5]
    how = (
        "first convolution, 3 channels to 4 bands: bands 3, 2, 1 take red, green and blue, "
        "the others start at 0"
    )
    assert summary.adapted == how and how in capsys.readouterr().err
    assert (summary.new, summary.dropped) == ((), ())

    for bands in (1, 2, 7):
        model, summary = load_pretrained(str(fine_tuned), attention="efficient", num_channels=bands)
        assert (
            f"{bands} bands: each band takes the mean over the channels, times 3/{bands}" in summary.adapted
        )
        gray = torch.randn(1, 1, 64, 96, generator=torch.Generator().manual_seed(1))
        seen = load_trained(str(fine_tuned))(gray.expand(-1, 3, -1, -1)).logits
        torch.testing.assert_close(model.eval()(gray.expand(-1, bands, -1, -1)).logits, seen)

    known.save_pretrained(tmp_path / "four")
    again = load_trained(str(tmp_path / "four"))
    assert torch.equal(first_weight(again), first_weight(known))
    assert list(again.config.band_means) == [1.0, 2.0, 3.0, 4.0]
    back, summary = load_pretrained(
        str(tmp_path / "four"), attention="efficient", num_channels=3, band_means=None, band_stds=None
    )
    assert "4 channels to 3 bands: each band takes the mean over the channels, times 4/3" in summary.adapted
    assert back.config.band_means is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"band_means": [1.0, 2.0, 3.0]},
        {"band_means": [1.0, 2.0], "band_stds": [1.0, 2.0]},
        {"band_means": [1.0, 2.0, 3.0], "band_stds": [1.0, 2.0, 0.0]},
        {"band_means": [1.0, 2.0, 3.0], "band_stds": [1.0, 2.0, 1.0], "num_channels": 4},
    ],
)
def test_statistics_must_match_the_bands(wrong: dict, fine_tuned: Path) -> None:
    with pytest.raises(ValueError, match="band_means and band_stds"):
        CrissCrossSegformerConfig(**wrong)
    with pytest.raises(CheckpointError, match=f"^{fine_tuned}: band_means and band_stds"):
        load_pretrained(str(fine_tuned), **wrong)
