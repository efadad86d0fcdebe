"""The snippets here are for static checkers, not for pytest."""

collect_ignore_glob = ["*.py"]
