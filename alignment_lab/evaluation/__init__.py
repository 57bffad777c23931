"""What is measured on held-out rows, with confidence intervals."""
