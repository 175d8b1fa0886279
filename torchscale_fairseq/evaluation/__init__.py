"""Evaluation of language models: the evaluation harness, and retrieval from long texts."""
