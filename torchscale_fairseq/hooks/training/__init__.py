"""The Trainer, its update without waits for the device, and mixed precision in few launches."""
