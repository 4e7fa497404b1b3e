"""Runs the tests and the example programs of Keras 2.3.1 against this backend: `python -m tests.clients.keras2`."""
