"""The annotated format in which GSM-Symbolic was published: read, filled in with values, and checked.

`annotated` reads a template and gives its instances; `draws` draws variables that meet its conditions, `slots` fills
its texts, `expressions` computes what stands in them, and `tables` holds the lists and functions that they name. How to
write a template says ``docs/templates.md``.
"""
