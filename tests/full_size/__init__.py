"""SD v1.4 at its full size; see `conftest.py` for where the weights come from."""
