"""Reading, writing and explaining checkpoints, without fairseq."""
