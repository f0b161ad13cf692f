"""report.html: a run in one page that opens offline."""
