"""Image sets to samples.

- `dataset`: what training and evaluation require of a data set, and the checks of a sample.
- `folder`, `parquet`, `objects`: data sets in ADE20K's layout, in parquet files, and given as objects.
- `layout`: the images and masks of a folder; `pairs`: whether an image and its mask agree.
- `scene_parse_150`: ADE20K's 150 classes; `procedural`: generated aerial scenes.
- `labels`: class names, colours and the ignore index; `images`: image and mask files.
- `transforms`: joint augmentation; `pixels`: normalisation; `stream`: the samples of a training run.
- `download`: files over HTTP.
"""
