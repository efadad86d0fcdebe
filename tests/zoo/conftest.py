"""The losses here are broken on purpose, and so are some of their examples; `tests/testing/test_zoo.py` tries them."""

collect_ignore_glob = ["*.py"]
