"""Orders: which samples make which partition of which round."""

from phalanx.ordering.client_data import ClientData

__all__ = ["ClientData"]
