"""on_local_hub.py SCRIPT [ARGUMENT ...]: runs a script with the hub of HF_ENDPOINT.

huggingface_hub reads its variables when it is imported, which forked processes have done before (tests/forked.py).
"""

import importlib
import runpy
import sys

from huggingface_hub import constants

importlib.reload(constants)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
