"""The fleet in a browser: `temperd console`."""
