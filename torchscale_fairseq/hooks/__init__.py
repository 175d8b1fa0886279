"""What reaches into stock fairseq: its repairs and the seams this package hangs on."""
