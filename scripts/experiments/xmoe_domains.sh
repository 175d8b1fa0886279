#!/usr/bin/env bash
# X-MoE beside a dense model of the same width on translation of six kinds of text; --help lists the options.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/experiments/xmoe_domains.sh --output DIR [--max-update N] [--gpu] [--work-dir DIR] [-- OPTIONS]

Trains four narrow models with the same batches on the corpus of scripts/quickstart.sh, whose sentences are of six
kinds (dates, times, money, units, places, numbers): a dense one, X-MoE with 8 experts in each layer, and the same without
SparseClip or without the balance loss. Draws their validation loss and the load of their experts, and prints the last
values. Run again, it skips what is finished.

  --output DIR      where the figure goes (xmoe_domains.png)
  --max-update N    updates to train each for (default 1500)
  --gpu             train on the GPU, with --fp16
  --work-dir DIR    where data/ and runs/ go (default: the repository)
  -- OPTIONS        the rest goes to fairseq-train as it is
EOF
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/scripts/lib.sh"
arch=
max_update=1500
output=
if [ "${1:-}" = --output ]; then
  [ $# -ge 2 ] || fail "--output needs a value"
  output=$(mkdir -p "$2" && cd "$2" && pwd)
  shift 2
fi
read_options "$@"
[ -n "$output" ] || fail "--output DIR comes first"
cd "$root"

corpus=${work}data/cldr.en-de
data=${work}data/cldr.en-de.bin
runs=${work}runs/xmoe_domains

training=(
  --label-smoothing 0.1 --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0
  --lr-scheduler polynomial_decay --lr 2e-3 --warmup-updates 200 --total-num-update "$max_update"
  --max-tokens 700 --max-update "$max_update" --seed 1 --validate-interval-updates 100 --no-epoch-checkpoints
  --log-interval 25
)
# Narrow enough for six kinds of text to compete for the feed-forward networks.
narrow=()
for side in encoder decoder; do
  narrow+=("--$side-embed-dim" 96 "--$side-ffn-embed-dim" 96)
done
dense=(--arch mt_deepnorm_small --criterion label_smoothed_cross_entropy "${narrow[@]}")
xmoe=(--arch mt_xmoe_small --criterion moe_label_smoothed_cross_entropy "${narrow[@]}" --moe-freq 1)

set_up 1/3

step "2/3 Data: as in scripts/quickstart.sh"
make_once "$corpus" torchscale-fairseq data cldr-corpus "$corpus"
make_once "$data" torchscale-fairseq data prepare-translation --source-lang en --target-lang de \
  --train "$corpus/train" --valid "$corpus/valid" --test "$corpus/test" \
  --output "$data" --vocab-size 2000 --model-type bpe --split-digits

step "3/3 Training"
train "$runs/dense" "$data" --user-dir torchscale_fairseq "${dense[@]}" "${training[@]}" "${device[@]}"
train "$runs/xmoe" "$data" --user-dir torchscale_fairseq "${xmoe[@]}" "${training[@]}" "${device[@]}"
train "$runs/no_sparse_clip" "$data" --user-dir torchscale_fairseq "${xmoe[@]}" --moe-clip plain \
  "${training[@]}" "${device[@]}"
train "$runs/no_balance_loss" "$data" --user-dir torchscale_fairseq "${xmoe[@]}" --moe-gate-loss-wt 0 \
  "${training[@]}" "${device[@]}"

run torchscale-fairseq plot-expert-load "$runs/dense" "$runs/xmoe" "$runs/no_sparse_clip" "$runs/no_balance_loss" \
  --output "$output/xmoe_domains.png"
