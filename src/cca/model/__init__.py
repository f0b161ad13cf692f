"""A transformers model opened up: its components and the rows that they own, gates, deltas, reading and generation.

`open` opens and refuses; `components` finds heads and neurons, `verify` proves them by a small pass; `gates` scales
them, `delta` changes their rows; `read` and `generate` run the network with caches that are written in place.
"""
