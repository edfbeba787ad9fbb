"""One file for each protocol: its bodies as pydantic models, and its routes over `spanqa.serve.service`."""
