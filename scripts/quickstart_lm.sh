#!/usr/bin/env bash
# From nothing to a language model that continues a text, or fills its gaps; --help lists the options.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/quickstart_lm.sh [--arch NAME] [--max-update N] [--gpu] [--work-dir DIR] [-- OPTIONS]

Installs everything, writes a corpus from the help texts, docstrings and comments of the Python that runs it,
trains a language model with fairseq-train, measures its perplexity on the test set, and lets it continue
sentences, a RetNet through each form of retention. An architecture named bert_... or mlm_... is trained as a masked
language model, on shards of text by --task pretraining, and fills the masked words of sentences instead. Says each
command before running it.
Run again, it skips what is done and resumes the training where it was.

  --arch NAME       architecture of torchscale_fairseq (default gpt_deepnorm_small)
  --max-update N    updates to train for (default 1200)
  --gpu             train and evaluate on the GPU, with --fp16
  --work-dir DIR    where data/ and runs/ go (default: the repository)
  -- OPTIONS        the rest goes to fairseq-train as it is, and wins over what is set here
EOF
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/lib.sh"
arch=gpt_deepnorm_small
max_update=1200
read_options "$@"
read_recipe
cd "$root"

corpus=${work}data/python
data=${work}data/python.bin
run=${work}runs/$arch
model=(--user-dir torchscale_fairseq --path "$run/checkpoint_best.pt")

# A masked model learns from the masked tokens alone: it gets more of them, in many short samples, and relative
# positions, by which it finds a word's neighbours within a few hundred updates.
case "$arch" in
  bert_* | mlm_*)
    data=${work}data/python.shards
    task=(--task pretraining --criterion masked_lm --sample-break-mode none --tokens-per-sample 64)
    task+=(--mask-prob 0.3 --xpos-rel-pos --dropout 0 --attention-dropout 0)
    ;;
  *) task=(--task language_modeling --criterion cross_entropy --tokens-per-sample 256) ;;
esac

# The one place for the options of training, next to recipes.tsv; the architecture's own options are its preset's.
training=(
  "${task[@]}" --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0
  --lr-scheduler polynomial_decay --lr "$lr" --warmup-updates "$warmup" --total-num-update "$max_update"
  --max-tokens "$max_tokens" --max-tokens-valid $((4 * max_tokens)) --batch-size-valid 8
  --max-update "$max_update" --seed 1
  --validate-interval-updates 400 --save-interval-updates 400 --keep-interval-updates 1 --no-epoch-checkpoints
  --log-interval 50
)
evaluation=(--task language_modeling --tokens-per-sample 256 --context-window 128 --batch-size 8)
generation=(
  --task language_modeling --beam 1 --sampling --sampling-topp 0.9 --temperature 0.8 --max-len-b 100 --seed 1
)

set_up 1/6

step "2/6 Corpus: what Python's standard library says about itself"
make_once "$corpus" torchscale-fairseq data python-corpus "$corpus"

splits=(--train "$corpus/train.txt" --valid "$corpus/valid.txt" --test "$corpus/test.txt")
if [ "${task[1]}" = pretraining ]; then
  step "3/6 Data: a SentencePiece model, and the text in shards"
  run torchscale-fairseq data train-tokenizer "$corpus/train.txt" --output "$data" --vocab-size 4000
  run torchscale-fairseq data shard-corpus "$data" "${splits[@]}"
else
  step "3/6 Data: a SentencePiece model, and the text in fairseq's binary format"
  make_once "$data" torchscale-fairseq data prepare-language "${splits[@]}" --output "$data" --vocab-size 4000
fi

step "4/6 Training: $arch for $max_update updates"
train "$run" "$data" --user-dir torchscale_fairseq --arch "$arch" "${training[@]}" "${device[@]}"

if [ "${task[1]}" = pretraining ]; then
  step "5/6 Perplexity of the masked tokens of the test set, and that of guessing by frequency"
  run fairseq-validate "$data" "${model[@]}" --task pretraining --valid-subset test --batch-size 8 "${device[@]}"
  run torchscale-fairseq unigram-perplexity "$data" --subset test

  step "6/6 Masked words"
  printf '%s\n' "Return a <mask> of all the keys in the dictionary." "Raise <mask> if the file does not exist." \
    "The <mask> argument is a string or None." >"$run/masked.txt"
  run torchscale-fairseq fill-masks --checkpoint "$run/checkpoint_best.pt" --data "$data" --input "$run/masked.txt"
  exit
fi

step "5/6 Perplexity of the test set"
run_into "$run/eval-lm.log" fairseq-eval-lm "$data" "${model[@]}" "${evaluation[@]}" "${device[@]}"
run torchscale-fairseq perplexity "$run/eval-lm.log" --data "$data"

step "6/6 Text: what the model writes after the beginning of a sentence"
printf '%s\n' "Return a list of" "If the file does not exist," "This module" >"$run/prompts.txt"
run_into "$run/continuations.log" fairseq-interactive "$data" "${model[@]}" --input "$run/prompts.txt" \
  --bpe sentencepiece --sentencepiece-model "$data/sentencepiece.bpe.model" "${generation[@]}" "${device[@]}"
while IFS=$'\t' read -r prompt text; do
  printf '\nprompt     %s\ncontinued  %s\n' "$prompt" "$text"
done < <(sed -n 's/^D-[0-9]*\t[^\t]*\t//p' "$run/continuations.log" | paste "$run/prompts.txt" -)

case "$arch" in
  retnet_*)
    step "The same model through each form of retention"
    run python scripts/retention_forms.py --checkpoint "$run/checkpoint_best.pt" --data "$data" --input "$run/prompts.txt"
    ;;
esac
