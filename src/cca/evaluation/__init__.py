"""What came of an update: base against updated model, with intervals, and what a run shows of known failure modes.

`results` and `options` hold the types, which load neither torch nor scipy; `evaluate` is the front door.
"""
