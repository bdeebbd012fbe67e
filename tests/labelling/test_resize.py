import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ccsegformer.labelling import resize
from ccsegformer.labelling.resize import Resized, upsampled_argmax
from ccsegformer.raster.read import Box

SIZES = [
    (1, 1, 7, 5),
    (7, 9, 33, 41),
    (13, 1, 1, 100),
    (64, 48, 61, 47),
    (5, 6, 5, 6),
    (33, 20, 133, 77),
    (300, 2, 1199, 7),
]


@pytest.mark.parametrize(("h", "w", "height", "width"), SIZES)
@pytest.mark.parametrize("side", [1, 3, 1000])
def test_boxes_equal_the_whole_resize(h: int, w: int, height: int, width: int, side: int) -> None:
    logits = torch.randn(1, 4, h, w, generator=torch.Generator().manual_seed(h))
    whole = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
    resized = Resized(logits, height, width)
    # Both compute a row's place in float32, up to h * 2^-24 off, and rows differ by up to about 8 here.
    tolerance = 8 * h * 2**-24 + 8 * w * 2**-24 + 2e-6
    for top in range(0, height, max(side, height // 7)):
        for left in range(0, width, max(side, width // 5)):
            box = Box(top, left, min(top + side, height), min(left + side, width))
            expected = whole[0, :, box.top : box.bottom, box.left : box.right].permute(1, 2, 0)
            torch.testing.assert_close(resized.box(box), expected, rtol=0, atol=tolerance)
            if top == left:
                found = resized.below(top).box(box)
                torch.testing.assert_close(found, resized.box(box), rtol=0, atol=0)


def test_labels_of_a_box_are_those_of_the_whole() -> None:
    logits = torch.randn(1, 5, 20, 30, generator=torch.Generator().manual_seed(0))
    whole = upsampled_argmax(logits, 77, 131)
    box = Box(13, 40, 70, 131)
    assert torch.equal(Resized(logits, 77, 131).labels(box), whole[13:70, 40:131])


@pytest.mark.parametrize("num_classes", [3, 300])
def test_labels_are_the_best_classes(num_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1, num_classes, 9, 11, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = F.interpolate(logits.float(), size=(35, 43), mode="bilinear").argmax(dim=1)[0]
    for values in (resize.CHUNK_VALUES, 43 * num_classes * 4, 1):
        monkeypatch.setattr(resize, "CHUNK_VALUES", values)
        labels = upsampled_argmax(logits, 35, 43)
        assert labels.dtype == (torch.uint8 if num_classes == 3 else torch.int32)
        assert torch.equal(labels.long(), whole)


@pytest.mark.parametrize(("height", "width"), [(160, 200), (77, 61), (24, 30), (11, 7)])
@pytest.mark.parametrize("num_classes", [2, 12])
def test_labels_where_most_pixels_have_neighbours_of_their_class(
    num_classes: int, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = torch.randn(1, num_classes, 4, 5, generator=torch.Generator().manual_seed(0))
    logits = F.interpolate(coarse, size=(40, 50), mode="bicubic")
    whole = F.interpolate(logits, size=(height, width), mode="bilinear").argmax(dim=1)[0]
    monkeypatch.setattr(resize, "FEW", 1.0)
    one_by_one = upsampled_argmax(logits, height, width)
    monkeypatch.setattr(resize, "FEW", -1.0)
    in_bands = upsampled_argmax(logits, height, width)
    assert torch.equal(one_by_one.long(), whole) and torch.equal(in_bands.long(), whole)


def test_a_class_that_is_best_between_others_is_found() -> None:
    logits = torch.tensor([[5.0, 0, 3], [0, 5, 3]]).T[None, :, None, :]  # the third is second in both
    assert upsampled_argmax(logits, 1, 20).tolist() == [[0] * 9 + [2, 2] + [1] * 9]


class LargestTensor(TorchDispatchMode):
    """Notes how many values the largest result of any operation has."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.values = max(self.values, result.numel())
        return result


def test_logits_at_full_resolution_are_never_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "CHUNK_VALUES", 50_000)
    logits = torch.zeros(1, 20, 64, 64)
    with LargestTensor() as largest:
        upsampled_argmax(logits, 256, 256)
    assert largest.values <= logits.numel() < 20 * 256 * 256 / 10
