"""A sweep and its cells: composing, checking, launching, following; refuses to know how a cell trains."""
