"""Tests run on one thread, and know nothing of the shell that started them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("EQUITOOLS_STORE", "RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS"):
    os.environ.pop(name, None)
