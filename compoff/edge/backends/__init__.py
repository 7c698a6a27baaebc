"""One file a runtime, each with the same small interface: `Backend`."""
