"""`spanqa evaluate`."""


def evaluate() -> None:
    """Score."""
