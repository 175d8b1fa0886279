"""Instruction data: conversations in JSON lines, chat templates, and batches whose loss is on answers alone."""
