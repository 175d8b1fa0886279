"""``python -m torchscale_fairseq`` prints the path to give to fairseq as ``--user-dir``."""

from torchscale_fairseq.plugin import user_dir

print(user_dir())
