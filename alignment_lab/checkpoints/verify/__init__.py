"""Proof that a saved model is whole: what the trained model said before it was saved, a fresh process says after loading what was.

A weight that was never gathered is empty, a head that was not saved is new and random, a scale that was forgotten changes every number:
each is found here, before anybody builds on it. Knows nothing of runs, methods or data.
"""

from .files import check_files, shapes
from .fresh import verify
from .loading import Loading, load
from .probe import distance, probe

__all__ = ["Loading", "check_files", "distance", "load", "probe", "shapes", "verify"]
