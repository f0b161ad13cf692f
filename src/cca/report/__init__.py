"""`report.html`: what a run found, as one file that opens offline."""
