"""Runs a study: trains SAEs on a model and on randomised copies of it, measures them, writes one DuckDB file."""
