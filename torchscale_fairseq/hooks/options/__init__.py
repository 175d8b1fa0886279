"""Options of fairseq's commands: their spelling, help, checks and Hydra nodes."""
