"""The embedded preference data set, plain answers against evasive ones, with its sources and its builder."""
