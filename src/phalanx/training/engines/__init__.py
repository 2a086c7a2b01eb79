"""Engines: where workers run, and how their messages reach the server."""
