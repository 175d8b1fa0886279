"""The architectures themselves: torch only, nothing of fairseq."""
