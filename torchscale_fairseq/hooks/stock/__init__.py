"""Repairs of stock fairseq, listed in docs/stock_repairs.md."""
