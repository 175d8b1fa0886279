"""Encoders of text that fairseq chooses by ``--bpe``."""
