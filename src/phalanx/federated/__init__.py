"""Federated learning: many clients with data of their own, some of which take part in a round."""

__all__: list[str] = []
