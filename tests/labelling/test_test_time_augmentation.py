import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ccsegformer.config.protocol import EvaluationProtocol, ResizeSection, WindowSection
from ccsegformer.data.pixels import normalize
from ccsegformer.labelling import resize
from ccsegformer.labelling.engine import Engine
from ccsegformer.labelling.test_time_augmentation import (
    input_sizes,
    label_views,
    resize_image,
    slide,
    sliding_windows,
)

ADE20K = ResizeSection(short_side=512, long_side=2048)


class Network:
    """Scores three classes by colour and by place in the input, at a quarter of the resolution."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.sizes.append((pixels.shape[2], pixels.shape[3]))
        logits = F.avg_pool2d(pixels, 4, ceil_mode=True) * 3
        return logits + torch.linspace(0, 1, logits.shape[3])


def engine(network: Network) -> Engine:
    return Engine("torch", torch.device("cpu"), "fp32", network, digest=None)


def image_of(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def to(size: tuple[int, int], logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(
    ("height", "width", "resize", "scale", "kept", "shown"),
    [
        (300, 400, ResizeSection(), 1.0, (300, 400), (300, 400)),
        (300, 400, ResizeSection(), 0.5, (150, 200), (150, 200)),
        (512, 683, ADE20K, 1.0, (512, 683), (512, 683)),
        (256, 342, ADE20K, 1.0, (512, 684), (512, 684)),
        (683, 512, ADE20K, 1.0, (683, 512), (683, 512)),
        (100, 800, ADE20K, 1.0, (256, 2048), (256, 2048)),  # the longer side decides
        (512, 683, ADE20K, 1.75, (896, 1195), (896, 1195)),
        (512, 683, ADE20K.model_copy(update={"multiple_of": 32}), 1.0, (512, 683), (512, 704)),
        (300, 400, ResizeSection(multiple_of=32), 1.0, (300, 400), (320, 416)),
        (1, 400, ResizeSection(), 0.1, (1, 40), (1, 40)),
    ],
)
def test_sizes_are_those_of_mmsegmentation(
    height: int, width: int, resize: ResizeSection, scale: float, kept: tuple, shown: tuple
) -> None:
    assert input_sizes(height, width, resize, scale) == (kept, shown)


def test_images_are_resized_without_antialiasing() -> None:
    image = torch.tensor([0, 100, 200, 40], dtype=torch.uint8).expand(3, 2, 4)
    assert resize_image(image, (1, 2)).tolist() == [[[50, 120]]] * 3
    assert resize_image(image, (1, 1)).tolist() == [[[150]]] * 3  # the two pixels in the middle, not all four
    assert resize_image(image, (2, 4)) is image
    assert resize_image(image, (2, 3)).dtype == torch.uint8


@given(st.integers(1, 200), st.integers(32, 80), st.data())
def test_windows_cover_a_side_as_in_mmsegmentation(length: int, size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, size))
    theirs = []
    for index in range(max(length - size + stride - 1, 0) // stride + 1):
        end = min(index * stride + size, length)
        theirs.append((max(end - size, 0), end))
    found = sliding_windows(length, WindowSection(size=size, stride=stride))
    assert found == theirs
    assert {place for start, end in found for place in range(start, end)} == set(range(length))


@pytest.mark.parametrize("size", [(40, 100), (75, 64), (20, 50), (64, 64)])
def test_windows_average_their_logits(size: tuple[int, int]) -> None:
    pixels = normalize(image_of(*size))[None]
    window = WindowSection(size=40, stride=30)
    total, count = torch.zeros(1, 3, *size), torch.zeros(size)
    for top, bottom in sliding_windows(size[0], window):
        for left, right in sliding_windows(size[1], window):
            crop = F.pad(pixels[:, :, top:bottom, left:right], (0, 0, 0, max(0, 32 - (bottom - top))))
            logits = to((crop.shape[2], crop.shape[3]), Network()(crop))
            total[:, :, top:bottom, left:right] += logits[:, :, : bottom - top]
            count[top:bottom, left:right] += 1
    torch.testing.assert_close(slide(engine(Network()), pixels, window), total / count)


def test_a_window_as_large_as_the_image_changes_nothing() -> None:
    image = image_of(48, 70)
    whole = label_views(engine(Network()), image, EvaluationProtocol())
    window = EvaluationProtocol(window=WindowSection(size=512, stride=100))
    assert torch.equal(label_views(engine(Network()), image, window), whole)


def test_one_view_at_another_size() -> None:
    """Logits go to the input's size and from there to the original one."""
    image, network = image_of(50, 80), Network()
    protocol = EvaluationProtocol(resize=ResizeSection(short_side=64, multiple_of=32))
    labels = label_views(engine(network), image, protocol)
    assert network.sizes == [(64, 128)]
    pixels = normalize(resize_image(resize_image(image, (64, 102)), (64, 128)))[None]
    expected = to((50, 80), to((64, 128), Network()(pixels))).argmax(1)[0]
    assert torch.equal(labels.long(), expected)


@pytest.mark.parametrize("size", [(45, 70), (20, 33)])
@pytest.mark.parametrize("window", [None, WindowSection(size=32, stride=20)])
@pytest.mark.parametrize("band", [2**20, 500])
def test_views_average_their_probabilities(
    size: tuple[int, int], window: WindowSection | None, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize, "CHUNK_VALUES", band)
    image, network = image_of(*size), Network()
    labels = label_views(
        engine(network), image, EvaluationProtocol(scales=(0.5, 1.0, 1.75), flip=True, window=window)
    )
    total = torch.zeros(3, *size)
    for scale in (0.5, 1.0, 1.75):
        shown = resize_image(image, tuple(int(side * scale + 0.5) for side in size))
        for flip in (False, True):
            pixels = normalize(shown.flip(-1) if flip else shown)[None]
            if window:
                logits = slide(engine(Network()), pixels, window)
            else:
                height, width = pixels.shape[2:]
                padded = F.pad(pixels, (0, max(0, 32 - width), 0, max(0, 32 - height)))
                logits = to((padded.shape[2], padded.shape[3]), Network()(padded))[:, :, :height, :width]
            probabilities = to(size, logits)[0].softmax(0)
            total += probabilities.flip(-1) if flip else probabilities
    wrong = labels.long() != total.argmax(0)
    # A pixel may differ only where two classes are equal to rounding.
    first, second = total.topk(2, dim=0).values
    assert ((first - second)[wrong] < 1e-4).all()
    assert wrong.float().mean() < 0.01
    assert labels.dtype == torch.uint8 and labels.shape == size
