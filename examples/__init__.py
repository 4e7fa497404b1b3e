"""Programs that show graphkb at work, each runnable by itself and importable by the tests."""
