"""How runs are started: the checks before a sweep."""
