"""spanqa."""
