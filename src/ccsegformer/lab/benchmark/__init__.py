"""Benchmark time and memory against transformers and the textbook formula.

- `plan`: what the commands `benchmark model` and `benchmark attention` measure.
- `run`: measure a plan, print it and write it to files.
- `tables`: one row of figures per contender, with ratios to the fastest rival.
- `contest`: run contenders in turn, each in its own process; measure the machine's limits.
- `worker`: the process of one contender, which prepares work by `attention`, `model` or `limits`.
- `runtimes`: run a model in this package's engine, OpenVINO or ONNX Runtime.
- `output`: Markdown, JSON and plots.
"""
