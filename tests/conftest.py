"""Its place makes `tests/` importable for the tests of all rooms (support.py)."""
