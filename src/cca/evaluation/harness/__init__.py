"""Benchmarks of lm-evaluation-harness, run on a model in memory and offline where local files are given."""
