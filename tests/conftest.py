"""One thread, so that runs agree and cores are not fought for; Hypothesis draws the same examples always."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("spectral_core", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("spectral_core")
