"""Secure aggregation: robust rules by two servers, neither of which sees a message."""
