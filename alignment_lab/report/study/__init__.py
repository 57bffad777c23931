"""Runs as numbers: records, configurations, comparability, statistics, differences. Draws nothing."""
