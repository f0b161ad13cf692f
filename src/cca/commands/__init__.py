"""One file a command: `add` gives its arguments, `run` does it and returns the exit code. Heavy imports stay inside."""
