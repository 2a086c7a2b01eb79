"""Secure sums by pairwise masks: a server learns the sum of clients' vectors, and no vector."""
