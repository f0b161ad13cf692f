"""Where problems come from: generators, and later your own files and hub datasets."""
