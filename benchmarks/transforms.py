"""Measure the images per second of the joint transforms on one core: `python -m benchmarks.transforms`.

Runs the SegFormer recipe's transforms on an image of ADE20K's usual size, in turn with torchvision's
transforms of the same kinds in the same order. Reading files and normalising are not included.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torchvision.transforms import v2
from torchvision.tv_tensors import Image, Mask

from ccsegformer.data.transforms import apply_transforms
from ccsegformer.training.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "segformer.yaml"
HEIGHT, WIDTH, CLASSES, IGNORED = 512, 683, 150, 255
IMAGES, ROUNDS = 12, 5


def photograph() -> tuple[Image, Mask]:
    """Return an image of smooth colours, uint8 (3, H, W), and a mask of square patches."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 16, 21, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)[0]
    labels = (
        torch.randint(CLASSES, (16, 22), generator=generator)
        .repeat_interleave(32, 0)
        .repeat_interleave(32, 1)
    )
    return Image((image * 255).to(torch.uint8)), Mask(labels[:HEIGHT, :WIDTH].to(torch.uint8))


def main() -> None:
    """Print the rates of both."""
    torch.set_num_threads(1)
    image, mask = photograph()
    chain = load_recipe(RECIPE, []).transforms
    theirs = v2.Compose(
        [
            v2.RandomResize(HEIGHT // 2, HEIGHT * 2),
            v2.RandomCrop(512, pad_if_needed=True, fill={Image: 0, Mask: IGNORED}),
            v2.RandomHorizontalFlip(),
            v2.RandomPhotometricDistort(p=1.0),
        ]
    )

    def ours(index: int) -> None:
        generator = torch.Generator().manual_seed(index)
        apply_transforms(chain, image, mask, generator, ignore_index=IGNORED)

    contenders: dict[str, Callable[[int], object]] = {
        "torchvision": lambda index: torch.manual_seed(index) and theirs(image, mask),
        "ours": ours,
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(ROUNDS + 1):
        for name, transform in contenders.items():
            start = time.perf_counter()
            for index in range(IMAGES):
                transform(index)
            rates[name] += [IMAGES / (time.perf_counter() - start)] if turn else []
    print(f"{RECIPE.stem}, {WIDTH} x {HEIGHT}, one thread; medians of {ROUNDS} rounds of {IMAGES} images")
    for name, of in rates.items():
        print(f"{name:12} {median(of):6.1f} images/s")


if __name__ == "__main__":
    main()
