"""Settings for tiny models."""

import torch

torch.set_num_threads(1)  # threads would spend their time waiting for one another
