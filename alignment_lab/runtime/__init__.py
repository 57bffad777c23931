"""What every process needs: run directory, files, errors, redaction, signals, watchdog, progress, provenance.

Refuses to know models, methods, data and configuration, and never imports torch at module level.
"""
