"""What is measured of a model, one that is trained or any that exists, with confidence intervals."""
