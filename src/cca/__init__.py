"""Constructive Circuit Amplification: find the pivotal token, find the circuit, update only its rows.

The method is that of arXiv 2512.16914. Data flows one way, and every stage is a function from records to
records: problems -> traces -> pivots -> circuit -> update -> evaluation.
"""

__version__ = "0.1.0"
