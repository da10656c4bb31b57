"""Weights of published models for specs of the same architecture."""
