"""Verdicts name a winner only if the scores support one."""

import numpy as np
import pytest

from ccsegformer.evaluation.bootstrap import (
    FEWEST_IMAGES,
    bootstrap,
    class_counts,
    interval,
    mean_iou_from_counts,
)
from ccsegformer.lab.verdict import judge, signed


def counts_of(
    score: float, *, images: int = 40, seeds: int = 1, noise: float = 0.03, seed: int = 0
) -> np.ndarray:
    """Return counts (seeds, images, 3, 4) of a model that labels about `score` of each class correctly."""
    generator = np.random.default_rng([seed, round(1000 * score)])
    truth = np.full((seeds, images, 4), 1000)
    right = (truth * np.clip(score + generator.normal(0, noise, truth.shape), 0, 1)).astype(np.int64)
    return np.stack([right, truth, truth], axis=2)


def test_mean_iou_of_counts_is_that_of_the_summed_confusion_matrix():
    generator = np.random.default_rng(0)
    matrices = generator.integers(0, 50, size=(5, 3, 3))
    counts = np.stack([class_counts(matrix) for matrix in matrices]).sum(axis=0)
    total = matrices.sum(axis=0)
    by_hand = [total[c, c] / (total[c].sum() + total[:, c].sum() - total[c, c]) for c in range(3)]
    assert mean_iou_from_counts(counts) == pytest.approx(np.mean(by_hand))


def test_mean_iou_leaves_out_classes_in_neither_truth_nor_prediction():
    counts = class_counts(np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]]))
    assert mean_iou_from_counts(counts) == pytest.approx((6 / 8 + 4 / 6) / 2)
    assert np.isnan(mean_iou_from_counts(np.zeros((3, 4))))


def test_bootstrap_draws_the_same_images_for_every_model_and_every_time():
    counts = counts_of(0.8)
    resampled = bootstrap({"criss_cross": counts, "none": counts})
    np.testing.assert_array_equal(resampled["criss_cross"], resampled["none"])
    np.testing.assert_array_equal(resampled["none"], bootstrap({"none": counts})["none"])


def test_the_interval_has_about_its_nominal_coverage():
    generator = np.random.default_rng(4)
    hits = 0
    for _ in range(100):
        right = generator.binomial(100, generator.beta(8, 2, size=(60, 1)), size=(60, 1))
        truth = np.full_like(right, 100)
        low, high = interval(
            bootstrap({"none": np.stack([right, truth, 2 * truth - truth], axis=1)[None]})["none"]
        )
        share = 0.8  # of correct pixels; IoU = share / (2 - share)
        hits += low <= share / (2 - share) <= high
    assert 88 <= hits <= 100


def test_a_clear_winner_is_named():
    verdict = judge({"efficient": counts_of(0.8), "criss_cross": counts_of(0.9), "none": counts_of(0.5)})
    assert verdict["better"] == "criss_cross"
    assert verdict["told_apart"]
    assert verdict["judges_attention"]
    assert verdict["headline"] == "Criss-cross attention is ahead of efficient attention"
    lead = verdict["differences"][0]
    assert lead["interval"][0] < lead["difference"] < lead["interval"][1]
    assert f"ahead of efficient attention by {lead['difference']:.3f} mIoU" in verdict["attention"]
    assert "40 held-out images, one seed" in verdict["attention"]
    assert verdict["control"].startswith("Attention helps")
    assert "one seed" in verdict["caveat"]


def test_a_tie_has_no_winner():
    scores = {
        "efficient": counts_of(0.8, seed=1),
        "criss_cross": counts_of(0.8, seed=2),
        "none": counts_of(0.5),
    }
    verdict = judge(scores)
    assert not verdict["told_apart"]
    assert verdict["judges_attention"]
    assert verdict["headline"].startswith("No difference between ")
    low, high = verdict["differences"][0]["interval"]
    assert low < 0 < high


def test_attention_does_not_help_if_the_control_is_as_good():
    verdict = judge(
        {"efficient": counts_of(0.7), "criss_cross": counts_of(0.8), "none": counts_of(0.8, seed=3)}
    )
    assert verdict["told_apart"]
    assert not verdict["judges_attention"]
    assert verdict["headline"].startswith("No gain from attention")
    assert "no difference between criss-cross attention and the control" in verdict["control"]


def test_a_control_that_leads_within_the_noise_is_said_to_lead():
    own = counts_of(0.8, images=40, noise=0.3)
    other = own.copy()
    other[:, 0, 0, 0] += 20  # one image labelled better
    verdict = judge({"efficient": own, "none": other})
    pair = verdict["differences"][0]
    assert pair["difference"] < 0 and not pair["told_apart"]
    assert f"(the control leads by {-pair['difference']:.3f} mIoU;" in verdict["control"]


def test_a_better_control_is_reported():
    verdict = judge({"efficient": counts_of(0.7), "none": counts_of(0.9)})
    assert not verdict["judges_attention"]
    low, high = verdict["differences"][0]["interval"]
    lead = verdict["differences"][0]["difference"]
    assert f"is {-lead:.3f} mIoU ahead of efficient attention" in verdict["control"]
    assert f"interval {-high:.3f} to {-low:.3f}" in verdict["control"]


def test_seeds_that_disagree_have_no_winner():
    scores = {"efficient": [0.80, 0.80, 0.80], "criss_cross": [0.95, 0.95, 0.79], "none": [0.5, 0.5, 0.5]}
    counts = {
        name: np.concatenate([counts_of(score, seed=seed) for seed, score in enumerate(of)])
        for name, of in scores.items()
    }
    verdict = judge(counts)
    lead = verdict["differences"][0]
    assert lead["interval"][0] > 0
    assert lead["by_seed"][2] < 0
    assert not verdict["told_apart"]
    assert "3 seeds" in verdict["attention"]


def test_too_few_images_have_no_winner_and_no_interval():
    few = FEWEST_IMAGES - 1
    verdict = judge({"efficient": counts_of(0.5, images=few), "none": counts_of(0.9, images=few)})
    assert verdict["intervals"] == {"efficient": None, "none": None}
    assert not verdict["judges_attention"]
    assert verdict["control"].startswith("There are too few images")
    lead = -verdict["differences"][0]["difference"]
    assert f"without attention, leads efficient attention by {lead:.3f} mIoU" in verdict["control"]
    assert verdict["headline"].startswith("Too few held-out images (9)")


def test_one_attention_is_compared_with_the_control_only():
    verdict = judge({"efficient": counts_of(0.9), "none": counts_of(0.5)})
    assert verdict["attention"] == ""
    assert [lead["second"] for lead in verdict["differences"]] == ["none"]
    assert verdict["headline"] == "Efficient attention is better than no attention"


def test_signs():
    assert signed(-0.1234) == "−0.123"
    assert signed(-0.0001) == signed(0.0001, plus=True) == "0.000"
    assert signed(0.5, plus=True) == "+0.500"


@pytest.mark.parametrize(("label", "named"), [(0, "'ground'"), (2, "'tree'")])
def test_one_true_class_has_no_winner(label: int, named: str) -> None:
    scores = {"efficient": 0.99, "criss_cross": 0.9, "none": 0.5}
    counts = {name: counts_of(score) for name, score in scores.items()}
    for each in counts.values():
        each[:, :, :2, [other for other in range(4) if other != label]] = 0
    verdict = judge(counts, ["ground", "house", "tree", "water"])
    assert verdict["headline"] == f"These data have one class, {named}: no model can be called better"
    assert f"pixel of the held-out images is {named}" in verdict["control"]
    assert not verdict["told_apart"] and not verdict["judges_attention"]
    assert not any(pair["told_apart"] for pair in verdict["differences"])
    assert " is ahead of " not in verdict["attention"]
    assert judge({name: counts_of(score) for name, score in scores.items()})["told_apart"]
