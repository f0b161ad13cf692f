"""Whether a text answers its problem: what answer it gives, and whether that is the gold one."""
