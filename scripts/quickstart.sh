#!/usr/bin/env bash
# From nothing to a scored translation model; --help lists the options.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/quickstart.sh [--arch NAME] [--max-update N] [--gpu] [--work-dir DIR] [-- OPTIONS]

Installs everything, writes an English-German corpus, trains a translation model with fairseq-train,
translates the test set with fairseq-generate and scores it. Says each command before running it.
Run again, it skips what is done and resumes the training where it was.

  --arch NAME       architecture of torchscale_fairseq (default mt_deepnorm_small)
  --max-update N    updates to train for (default 800)
  --gpu             train and translate on the GPU, with --fp16
  --work-dir DIR    where data/ and runs/ go (default: the repository)
  -- OPTIONS        the rest goes to fairseq-train as it is, and wins over what is set here
EOF
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/lib.sh"
arch=mt_deepnorm_small
max_update=800
read_options "$@"
read_recipe
cd "$root"

corpus=${work}data/cldr.en-de
data=${work}data/cldr.en-de.bin
run=${work}runs/$arch

case "$arch" in
  # The mean over layers, the default, would leave each the less balance the more layers have experts.
  *moe*) criterion=(moe_label_smoothed_cross_entropy --moe-gate-loss-combine-method sum --moe-gate-loss-wt 0.05) ;;
  *) criterion=(label_smoothed_cross_entropy) ;;
esac

# The one place for the options of training, next to recipes.tsv; the architecture's own options are its preset's.
training=(
  --criterion "${criterion[@]}" --label-smoothing 0.1
  --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0
  --lr-scheduler polynomial_decay --lr "$lr" --warmup-updates "$warmup" --total-num-update "$max_update"
  --max-tokens "$max_tokens" --max-update "$max_update" --seed 1
  --validate-interval-updates 250 --save-interval-updates 250 --keep-interval-updates 1 --no-epoch-checkpoints
  --log-interval 50
)
generation=(--beam 5 --max-len-a 2 --max-len-b 10 --max-tokens 4000)

set_up 1/6

step "2/6 Corpus: dates, times, money, units, places and numbers in English and German"
make_once "$corpus" torchscale-fairseq data cldr-corpus "$corpus"

step "3/6 Data: a SentencePiece model, and the text in fairseq's binary format"
make_once "$data" torchscale-fairseq data prepare-translation --source-lang en --target-lang de \
  --train "$corpus/train" --valid "$corpus/valid" --test "$corpus/test" \
  --output "$data" --vocab-size 2000 --model-type bpe --split-digits

step "4/6 Training: $arch for $max_update updates"
train "$run" "$data" --user-dir torchscale_fairseq --arch "$arch" "${training[@]}" "${device[@]}"

step "5/6 Translation: the test set, by beam search"
run fairseq-generate "$data" --user-dir torchscale_fairseq --path "$run/checkpoint_best.pt" \
  --bpe sentencepiece --sentencepiece-model "$data/sentencepiece.bpe.model" \
  "${generation[@]}" "${device[@]}" --results-path "$run"

step "6/6 Scores"
run torchscale-fairseq score-translation "$run/generate-test.txt" --reference "$data/raw/test.de" \
  --source "$data/raw/test.en" --kinds "$corpus/test.kind" --samples 5
