"""`import examples_on_path` puts examples/, where `support` is, on the module search path of a script beside it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
