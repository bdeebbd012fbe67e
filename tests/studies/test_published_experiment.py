"""Each defect of the published experiment does what its name says, and nothing else."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from ccsegformer.data.folder import ImageMaskFolder
from ccsegformer.data.labels import Classes
from ccsegformer.models.attention.ccnet import CCNetAttention
from ccsegformer.models.attention.criss_cross import CrissCrossAttention
from studies.augmentation import AreaCrop, Augmentation
from studies.harness import Plan, build, mean_iou, train
from studies.options import Study
from studies.published_experiment import defects
from studies.published_experiment.__main__ import arms, as_reported, main, properly, shared_training
from studies.published_experiment.defects import Experiment, ScrambledLayout, SecondResidual

CLASSES = Classes(("red", "green", "blue"))
NO_NORM = torch.nn.Identity()
CORRECT = Experiment(Plan(Augmentation(32), steps=16))


def sample(height: int = 40, width: int = 60) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Return an image whose first channel repeats its mask, so that a shift between the two shows."""
    mask = torch.arange(height * width, dtype=torch.uint8).view(height, width) % 3
    return tv_tensors.Image(mask.expand(3, -1, -1).clone()), tv_tensors.Mask(mask)


def data_set(root: Path, splits: tuple[str, ...] = ("training", "validation")) -> Path:
    rng = np.random.default_rng(0)
    for split in splits:
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(3):
            mask = np.repeat(rng.integers(0, 3, 2), 24)[None].repeat(40, axis=0).astype(np.uint8)
            image = 80 * mask[..., None] + rng.integers(0, 60, (40, 48, 3))
            Image.fromarray(image.astype(np.uint8)).save(root / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{index}.png")
    (root / "classes.json").write_text(json.dumps({"names": CLASSES.names, "ignore_index": 255}))
    return root


def test_d1_mixes_positions_and_channels() -> None:
    attention = CrissCrossAttention(16, 2, 1)
    tokens = torch.randn(2, 12, 16)
    scrambled, _ = ScrambledLayout(attention)(tokens, 3, 4, norm=NO_NORM)
    as_map = tokens.reshape(2, 16, 3, 4)  # what the notebook treats as a feature map
    expected = attention.attend(as_map.flatten(2).mT, 3, 4).mT.reshape(2, 12, 16)
    torch.testing.assert_close(scrambled, expected)
    assert not torch.allclose(scrambled, attention.attend(tokens, 3, 4), atol=1e-4)


def test_d2_returns_its_input_until_gamma_has_learned() -> None:
    attention, tokens = CrissCrossAttention(16, 2, 1), torch.randn(2, 12, 16)
    wrapped = SecondResidual(attention)
    assert torch.equal(wrapped(tokens, 3, 4, norm=NO_NORM)[0], tokens)
    wrapped.gamma.data.fill_(2)
    torch.testing.assert_close(
        wrapped(tokens, 3, 4, norm=NO_NORM)[0], 2 * attention.attend(tokens, 3, 4) + tokens
    )


def test_d1_to_d3_combine_into_the_notebooks_attention() -> None:
    experiment = defects.defect_d3(defects.defect_d2(defects.defect_d1(CORRECT)))
    model = build(experiment.plan, CLASSES, 0, None)
    outer = model.segformer.stages[0].blocks[0].attention
    assert isinstance(outer, ScrambledLayout)
    assert isinstance(outer.attention, SecondResidual)
    assert isinstance(outer.attention.attention, CCNetAttention)
    assert outer.attention.gamma.item() == 0
    assert outer.attention.gamma.requires_grad
    assert outer.attention.attention.gamma.item() == 1
    assert not outer.attention.attention.gamma.requires_grad


def test_d4_trains_only_attention_and_head() -> None:
    model = build(defects.defect_d4(CORRECT).plan, CLASSES, 0, None)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if "attention." in n or "decode_head." in n}


def test_d5_and_d6_change_the_outputs() -> None:
    assert build(defects.defect_d5(CORRECT).plan, CLASSES, 0, None).config.num_labels == 1000
    shifted = defects.defect_d6(CORRECT, CLASSES).plan
    assert build(shifted, CLASSES, 0, None).config.num_labels == 4
    assert shifted.relabel is not None
    relabelled = shifted.relabel(torch.tensor([[0, 2, 255]], dtype=torch.uint8), CLASSES)
    assert relabelled.tolist() == [[1, 3, 0]]


@pytest.mark.parametrize("masks_stay", [False, True])
def test_d8_leaves_masks_behind(masks_stay: bool) -> None:
    mask = torch.zeros(60, 90, dtype=torch.uint8)
    mask[:30, :45] = 2  # a bright quarter: an inversion changes every pixel, a flip half of them
    scene = tv_tensors.Image((100 * mask).expand(3, -1, -1).clone()), tv_tensors.Mask(mask)
    generator, apart = torch.Generator().manual_seed(1), 0
    for _ in range(40):
        image, moved = Augmentation(48, masks_stay=masks_stay)(*scene, generator, ignore_index=255)
        known = moved != 255
        wrong = ((image[0] > 100) != (moved == 2))[known].float().mean()
        apart += bool(0.2 < wrong < 0.8)
    assert bool(apart) == masks_stay


def test_d7_tosses_one_coin() -> None:
    generator = torch.Generator().manual_seed(0)
    image, mask = sample()
    untouched = 0
    for _ in range(200):
        result, _mask = Augmentation(60, one_coin=True)(image, mask, generator, ignore_index=255)
        untouched += bool((result[0] < 3).sum() == 40 * 60)
    assert 0.65 < untouched / 200 < 0.85  # with six coins it is 0.18


def test_d9_squashes_every_image() -> None:
    generator = torch.Generator().manual_seed(0)
    image, mask = Augmentation(32, area_crops=True)(*sample(40, 90), generator, ignore_index=255)
    assert image.shape == (3, 32, 32)
    assert not (mask == 255).any()
    image, mask = AreaCrop(24)(*sample(), generator, ignore_index=255)
    assert image.shape == (3, 24, 24) and mask.shape == (24, 24)


def test_d10_and_d11_keep_the_number_of_steps_and_images(tmp_path: Path) -> None:
    dataset = ImageMaskFolder(data_set(tmp_path, ("training",)))
    plan = defects.defect_d10(defects.defect_d11(CORRECT)).plan
    assert (plan.batch_size, plan.accumulation, plan.trainers) == (1, 4, 16)
    small = replace(plan, overrides=(("hidden_sizes", [8, 16, 40, 64]), ("depths", [1] * 4)))
    model = build(small, CLASSES, 0, None)
    before = model.decode_head.classifier.weight.clone()
    assert list(train(model, dataset, small, 0)) == list(range(1, 17))
    assert not torch.equal(before, model.decode_head.classifier.weight)


def test_scoring_undoes_the_shifted_labels() -> None:
    # Two images; the truth is class 1 (shifted: 2) everywhere except in ignored pixels (shifted: 0).
    matrices = np.zeros((2, 5, 5), dtype=np.int64)
    matrices[0, 2, 2], matrices[0, 0, 2], matrices[1, 2, 3] = 8, 4, 8
    shifted = defects.defect_d6(CORRECT, CLASSES)
    assert properly(matrices, shifted, 3) == pytest.approx(
        (8 / 16 + 0) / 2
    )  # the ignored pixels do not count
    # As reported: ids 0 to 2; "other" is missed, id 2 is right on 8 of 20, id 3 is never scored.
    assert as_reported(matrices, shifted, 3) == pytest.approx((0 + 8 / 20) / 2)
    per_image = defects.defect_d13(CORRECT)
    assert as_reported(matrices, per_image, 3) == pytest.approx(np.mean([(0 + 8 / 12) / 2, 0]))
    assert np.isnan(mean_iou(np.zeros((5, 5), dtype=np.int64), 3))


def test_experiments_share_equal_trainings(tmp_path: Path) -> None:
    described = arms(CLASSES, Study("data", tmp_path, (0,), 1, 32, 16, 16, only=()))
    assert list(described)[4:] == [*(f"D{number}" for number in range(1, 16)), "all"]
    experiments = {name: experiment for name, (_, experiment) in described.items()}
    colored = ImageMaskFolder(data_set(tmp_path))
    shared = {name for name in experiments if shared_training(name, experiments, colored) == "correct"}
    assert shared == {"correct", "D12", "D13", "D14", "D15"}
    grey = [{"image": torch.zeros(3, 8, 8, dtype=torch.uint8)}]
    assert shared_training("D15", experiments, grey) == "D15"


def test_the_study_runs_resumes_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*changes: str) -> str:
        arguments = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "runs"), "--seeds", "0"]
        arguments += [
            "--shrink",
            "1",
            "--size",
            "32",
            "--steps",
            "1",
            "--pretraining-steps",
            "1",
            "--only",
            "D13",
            "none",
        ]
        monkeypatch.setattr(sys, "argv", ["study", *arguments, *changes])
        main()
        return capsys.readouterr().out

    data_set(tmp_path / "data")
    first = run()
    assert "seed 0 none" in first and "| D13 |" in first
    assert "seed 0" not in run()
    results = json.loads((tmp_path / "runs" / "published_experiment.json").read_text())
    assert set(results["runs"]) == {"correct", "none", "D13"}
    assert "<svg" in (tmp_path / "runs" / "published_experiment.svg").read_text()
    with pytest.raises(SystemExit, match="holds runs with other settings"):
        run("--steps", "2")
    with pytest.raises(SystemExit, match="no row 'D99'; choose from correct; efficient"):
        run("--only", "D99")
    with pytest.raises(SystemExit, match="nowhere: no such folder"):
        run("--data", str(tmp_path / "nowhere"))
