"""Instruction data: conversations in JSON lines and columns, chat templates, and batches with the loss on answers."""
