"""Changes of stock fairseq: its repairs, and the places where this package extends it."""
