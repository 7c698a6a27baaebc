"""Benchmarks: each file measures one thing and writes ``results/NAME.json``; run as ``python -m benchmarks.NAME``."""
