"""What is measured on held-out rows, and how sure we are of it."""
