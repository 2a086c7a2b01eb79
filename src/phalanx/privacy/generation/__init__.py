"""Differentially private generators of synthetic data."""
