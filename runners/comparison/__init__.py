"""Specs trained on the same data, with the same budget and seeds, and what can be said of them."""
