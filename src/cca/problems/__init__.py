"""Where problems come from, how they are split, and how they become prompts. Nothing here loads torch."""
