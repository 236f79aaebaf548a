"""The package under which another project imports this one: `from sed_sr.models.rrdb import RRDBNet`.

Its parts are the folders of the repository, `options`, `data`, `models` and `utils`. Imported by those names they would
collide with the folders of other projects.
"""

from pathlib import Path

# In a checkout they lie beside this folder; an installed package has them in it.
__path__.append(str(Path(__file__).parents[1]))
