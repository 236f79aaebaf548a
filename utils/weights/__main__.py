"""`python -m utils.weights list|fetch|verify`."""

from sed_sr.options.cli import run
from sed_sr.utils.weights.pretrained import main

run(main)
