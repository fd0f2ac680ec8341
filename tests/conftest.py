"""One thread everywhere: gradients, and so reports, are bit-identical only with equal threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes in the signatures of private kernels are checked here alone; public functions raise their own errors first.
install_import_hook(["shaketable.core.norms"], "beartype.beartype")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread():
    """Jobs set the number of threads; each test starts with one."""
    torch.set_num_threads(1)
