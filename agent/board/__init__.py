"""The board's hardware: the only package that opens files below the sysfs root."""
