"""Small handlers that the unit tests declare things from."""
