"""Text generation behind one small protocol; `transformers` is the default and so far the only engine."""
