"""A run: its config, its folder, its stages in order, and several runs side by side."""
