"""From a source to its rows as they stand in its files, each with file and line.

Every value is what the file says, whatever stands in other rows; a row that cannot be read is a row with a
defect. Knows no column of theirs, and imports neither datasets nor pandas for local files.
"""

from .opening import open_rows, source_files, spans, unread_splits
from .places import Key, Part, Span

__all__ = ["Key", "Part", "Span", "open_rows", "source_files", "spans", "unread_splits"]
