"""Settings for all tests."""

import torch

# The models here are tiny: threads would spend their time waiting for one another.
torch.set_num_threads(1)
