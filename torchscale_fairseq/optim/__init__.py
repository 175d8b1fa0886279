"""Optimizers and schedules behind fairseq's interface."""
