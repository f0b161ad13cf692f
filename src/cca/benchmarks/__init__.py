"""Retention on public benchmarks: any task of lm-evaluation-harness, document by document, offline from local files."""
