"""The embedded preference data set, plain answers against evasive ones: rows, their sources and their builder."""
