"""The annotated format in which GSM-Symbolic was published: read, filled in with values, and checked.

`annotated` gives a template's instances and checks it; `reading` reads its file, `spelling` what people write in it,
`draws` draws variables that meet its conditions, which `equations` solves, `slots` fills its texts, `expressions`
computes what stands in them, and `tables` holds the lists and functions that they name. How to write a template says
``docs/templates.md``.
"""
