"""From pixels to labels, for any segmenter.

- `engine`: run a network in PyTorch or OpenVINO; `model_files`: ONNX, OpenVINO and pt2 files.
- `loading`: open trained models by name or path, with their classes.
- `preprocess`: the bands and normalisation that a network expects.
- `resize`: labels at full resolution from smaller logits.
- `windows`: overlapping windows over images and scenes.
- `test_time_augmentation`: views of an image as evaluation protocols define them.
- `labeller`: label one image; `scene`: map a scene; `inputs`: label files and folders of either.
- `budget`: the fastest window that fits into memory.
"""
