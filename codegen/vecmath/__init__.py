"""Elementary functions as inline vector instructions, within stated error bounds."""
