"""Baselines: retrievers to compare with, behind the same `ranking.Searcher` as the dense ones."""
