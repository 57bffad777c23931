"""Rows in any of the layouts that people use, converted to TRL's dataset types.

What converted rows look like stands in `rows`. The conversion is chosen by the columns of all rows
(`choose_converter`); each row is then read by its own columns, so an odd first row decides nothing for the
others. What a row has that no conversion uses is told by `unused_parts`.

`messages` reads one message, `columns` those of a column, with `strings` for text that is more than one
speaker's words and `tools` for calls. `preference` and `answered` make the rows; `compared` makes pairs of
rows with votes or scores.
"""

from .choice import (
    REQUIRED_COLUMNS,
    Converter,
    choose_converter,
    filled_columns,
    not_a_row,
    wrapping_column,
)
from .unused import unused_parts

__all__ = [
    "REQUIRED_COLUMNS",
    "Converter",
    "choose_converter",
    "filled_columns",
    "not_a_row",
    "unused_parts",
    "wrapping_column",
]
