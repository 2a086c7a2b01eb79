"""Engines: where workers run, and how messages get to the server."""
