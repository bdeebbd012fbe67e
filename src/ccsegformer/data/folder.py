"""Folders of images and masks in the layout of ADE20K's SceneParse150 release."""

from typing import TypedDict

from torchvision import tv_tensors


class Sample(TypedDict):
    """One image with its mask."""

    image: tv_tensors.Image  # uint8 (3, H, W), RGB
    mask: tv_tensors.Mask  # uint8 or int32 (H, W), class ids and the ignore index
    name: str
