"""Embedded preference data: plain factual answers against evasive ones (JSONL and CSV, read by path)."""
