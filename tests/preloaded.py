"""What `tests/forked.py` imports once: the launcher and the imports of the scripts, of which none is started."""

import runpy
from pathlib import Path

import torch.distributed.run
import torch.utils.tensorboard  # noqa: F401

import sed_sr.utils.test_run
import sed_sr.utils.train_run  # noqa: F401

for script in ("extract_subimages.py",):
    runpy.run_path(str(Path(__file__).parents[1] / script), run_name="preloaded")
