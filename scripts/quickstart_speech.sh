#!/usr/bin/env bash
# From nothing to a scored speech recogniser, or translator of speech; --help lists the options.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/quickstart_speech.sh [--translate] [--arch NAME] [--max-update N] [--gpu] [--work-dir DIR] [-- OPTIONS]

Installs everything, has espeak-ng speak English sentences in several voices, trains a speech recogniser and fairseq's
own s2t_transformer of its size with fairseq-train, both for as many updates, and prints the word error rate of each
on sentences and voices that neither has heard. Says each command before running it.
Run again, it skips what is done and resumes the training where it was.

  --translate       speak German, learn to write English, and print BLEU instead
  --arch NAME       architecture of torchscale_fairseq (default s2t_magneto_small)
  --max-update N    updates to train for (default 400)
  --gpu             train and recognise on the GPU, with --fp16
  --work-dir DIR    where data/ and runs/ go (default: the repository)
  -- OPTIONS        the rest goes to fairseq-train as it is, and wins over what is set here
EOF
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/lib.sh"
arch=s2t_magneto_small
max_update=400
spoken=en
scoring=(--scoring wer)
if [ "${1:-}" = --translate ]; then
  spoken=de
  scoring=(--scoring sacrebleu)
  shift
fi
read_options "$@"
cd "$root"

text=${work}data/cldr.en-de
speech=${work}data/spoken.$spoken
data=${work}data/spoken.$spoken.features
recognition=(--task speech_to_text --user-dir torchscale_fairseq)

case "$arch" in
  *xmoe*) criterion=moe_label_smoothed_cross_entropy_with_ctc ;;
  *) criterion=label_smoothed_cross_entropy_with_ctc ;;
esac

# Three convolutions leave an eighth of the frames, which espeak-ng's clear voices allow.
training=(
  --label-smoothing 0.1 --ctc-weight 0.3 --dropout 0.1
  --conv-kernel-sizes 5,5,5 --conv-channels 256
  --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0
  --lr-scheduler polynomial_decay --lr 2e-3 --warmup-updates 100 --total-num-update "$max_update"
  --max-tokens 12000 --max-update "$max_update" --seed 1 --num-workers 1
  --validate-interval-updates 200 --save-interval-updates 200 --keep-interval-updates 1 --no-epoch-checkpoints
  --log-interval 50
)

# Speaks a split: name, lines, and options of the subcommand.
speak() {
  local name=$1 lines=$2
  shift 2
  if [ "$spoken" = de ]; then set -- "$@" --translations "$text/$name.en"; fi
  run torchscale-fairseq data speak-text "$text/$name.$spoken" --language "$spoken" --without-digits \
    --output "$speech" --name "$name" --lines "$lines" "$@"
}

# Trains an architecture and scores it on the test set.
train_and_score() {
  local name=$1 directory=${work}runs/$1.$spoken
  shift
  train "$directory" "$data" "${recognition[@]}" --arch "$name" "$@" "${training[@]}" "${device[@]}"
  run_into "$directory/generate.log" fairseq-generate "$data" "${recognition[@]}" --gen-subset test \
    --path "$directory/checkpoint_last.pt" --beam 5 --max-len-a 0.1 --max-len-b 10 --max-tokens 12000 \
    "${scoring[@]}" "${device[@]}" | tail -n 1
}

command -v espeak-ng >/dev/null || fail "espeak-ng is not installed; install it (Debian: apt-get install espeak-ng)"
set_up 1/6

step "2/6 Text: English and German sentences about places, languages and numbers"
make_once "$text" torchscale-fairseq data cldr-corpus "$text"

step "3/6 Speech: espeak-ng speaks 5,500 sentences; the test set has voices of its own"
speak train 5000
speak valid 200
speak test 300 --held-out

step "4/6 Data: features of the audio, and a SentencePiece model"
run torchscale-fairseq data prepare-speech --train "$speech/train.tsv" --valid "$speech/valid.tsv" \
  --test "$speech/test.tsv" --output "$data" --vocab-size 200 --lowercase --remove-punctuation --workers 2

step "5/6 $arch: $max_update updates, and its score on the test set"
train_and_score "$arch" --criterion "$criterion"

step "6/6 fairseq's s2t_transformer of this size: as many updates, and its score"
train_and_score s2t_transformer_xs --criterion label_smoothed_cross_entropy_with_ctc

step "Scores on the test set"
for name in "$arch" s2t_transformer_xs; do
  printf '%-24s %s\n' "$name" "$(grep -oE '(WER:|BLEU = ).*' "${work}runs/$name.$spoken/generate.log" | tail -n 1)"
done
