"""Research tools: compare attentions, measure costs, run benchmarks. Prediction needs none of them.

- `comparison`: train and score a recipe with each attention.
- `verdict`: test whether the scores differ, and put the answer into words.
- `results`: collect a comparison's figures and example images.
- `cost`: parameters, operations, memory and speed of one inference.
- `memory`: peak memory of a function call.
- `benchmark`: time and memory against transformers and the textbook formula.
"""
