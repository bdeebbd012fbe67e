"""The studies' training loop and scoring pass, on generated images."""

from dataclasses import replace

import pytest
import torch
from torchvision import tv_tensors

from ccsegformer.data.labels import Classes
from ccsegformer.evaluation.evaluate import evaluate
from studies.augmentation import Augmentation
from studies.harness import Admitted, Plan, build, mean_iou, score, train
from studies.tables import can_judge

CLASSES = Classes(("red", "green", "blue"))
TINY = (("hidden_sizes", [8, 16, 40, 64]), ("depths", [1] * 4))
PLAN = Plan(Augmentation(32), steps=4, overrides=TINY)


class Scenes:
    """Four images of 64 x 96 in which a pixel's class is its brightest channel."""

    classes = CLASSES
    names = ("a", "b", "c", "d")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, object]:
        if index >= len(self):
            raise IndexError
        generator = torch.Generator().manual_seed(index)
        coarse = torch.randint(0, 256, (3, 4, 6), generator=generator, dtype=torch.uint8)
        image = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)
        mask = image.argmax(0).to(torch.uint8)
        return {"image": tv_tensors.Image(image), "mask": tv_tensors.Mask(mask), "name": self.names[index]}


def test_scores_match_the_package() -> None:
    model = build(PLAN, CLASSES, 0, None)
    matrix = score(model, Scenes(), PLAN).sum(axis=0)
    assert mean_iou(matrix, 3) == pytest.approx(evaluate(model, Scenes()).metrics.mean_iou)


def test_shrunk_images_are_scored_at_their_original_resolution() -> None:
    plan = replace(PLAN, shrink=2)
    sample = Admitted(Scenes(), plan)[0]
    assert sample["image"].shape == (3, 32, 48) and sample["mask"].shape == (32, 48)
    agrees = sample["mask"] == sample["image"].argmax(0)
    assert agrees.float().mean() > 0.8  # except where antialiasing mixes two blocks
    matrices = score(build(plan, CLASSES, 0, None), Scenes(), plan)
    assert matrices.sum(axis=(1, 2)).tolist() == [64 * 96] * 4


def test_a_window_as_large_as_the_image_gives_the_same_scores() -> None:
    model = build(PLAN, CLASSES, 0, None)
    whole, large, small = (score(model, Scenes(), PLAN, window=window) for window in (None, 96, 32))
    assert (whole == large).all()
    assert not (whole == small).all()


def test_training_mode_changes_scores_reproducibly() -> None:
    model = build(PLAN, CLASSES, 0, None)
    first, second = (score(model, Scenes(), PLAN, in_training_mode=True) for _ in range(2))
    assert (first == second).all()
    assert not (first == score(build(PLAN, CLASSES, 0, None), Scenes(), PLAN)).all()


def test_training_depends_only_on_the_seed() -> None:
    def trained(seed: int) -> torch.Tensor:
        model = build(PLAN, CLASSES, seed, None)
        assert list(train(model, Scenes(), PLAN, seed)) == [1, 2, 3, 4]
        return model.decode_head.linear_fuse.weight.detach()

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_a_higher_learning_rate_factor_moves_weights_further() -> None:
    def moved(factor: float) -> float:
        plan = replace(PLAN, steps=1, factor=lambda name: factor if "decode_head" in name else 1.0)
        model = build(plan, CLASSES, 0, None)
        before = model.decode_head.linear_fuse.weight.detach().clone()
        list(train(model, Scenes(), plan, 0))
        return float((model.decode_head.linear_fuse.weight.detach() - before).abs().mean())

    assert moved(3.0) == pytest.approx(3 * moved(1.0), rel=1e-3)


def test_one_seed_cannot_separate_a_small_lead_from_noise() -> None:
    def verdict(*attending: float) -> str:
        rows = {"cross": {"whole": attending}, "none": {"whole": [0.3] * len(attending)}}
        return can_judge(rows, "whole", ["cross"], "none")

    assert verdict(0.32).startswith("One seed cannot say")
    assert verdict(0.32, 0.33).startswith("This set can judge")
    assert verdict(0.4).startswith("This set can judge")
    assert verdict(0.301).startswith("This set cannot judge")
    assert verdict(0.4, 0.29).startswith("This set cannot judge")
