"""Data, training and measurement of compiled networks."""
