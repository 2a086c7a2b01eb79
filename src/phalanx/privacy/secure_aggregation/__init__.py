"""Robust aggregation by two servers neither of which sees a message."""
