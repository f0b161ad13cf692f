"""Models in GGUF files: what such a file says, its weights and its tokenizer, as transformers has them.

transformers reads GGUF as well, but silently leaves out what it has no place for (scaled rotations, biases, soft caps,
how text is split before merging) and differs from release to release. Here every word of a file has a place, or the
file is refused by that word.
"""
