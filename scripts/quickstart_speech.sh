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

  --translate       speak German, learn to write English, and print BLEU instead, also that of a cascade: a recogniser of
                    German, then a translator of text, both of this package and trained on the same sentences
  --arch NAME       architecture of torchscale_fairseq (default s2t_magneto_small, with --translate s2t_swiglu_small)
  --max-update N    updates to train for (default 600)
  --gpu             train and recognise on the GPU, with --fp16
  --work-dir DIR    where data/ and runs/ go (default: the repository)
  -- OPTIONS        the rest goes to fairseq-train as it is, and wins over what is set here
EOF
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/lib.sh"
arch=s2t_magneto_small
max_update=600
spoken=en
steps=6
scoring=(--scoring wer)
if [ "${1:-}" = --translate ]; then
  spoken=de
  arch=s2t_swiglu_small
  steps=7
  scoring=(--scoring sacrebleu)
  shift
fi
read_options "$@"
cd "$root"

text=${work}data/cldr.en-de
speech=${work}data/spoken.$spoken
data=${work}data/spoken.$spoken.features
pairs=${work}data/spoken.$spoken.text
speech_to_text=(--task speech_to_text --user-dir torchscale_fairseq)

case "$arch" in
  *xmoe*) criterion=moe_label_smoothed_cross_entropy_with_ctc ;;
  *) criterion=label_smoothed_cross_entropy_with_ctc ;;
esac

# Three convolutions leave an eighth of the frames, which espeak-ng's clear voices allow.
training=(
  --label-smoothing 0.1 --ctc-weight 0.3 --dropout 0.1 --attention-dropout 0 --activation-dropout 0
  --conv-kernel-sizes 5,5,5 --conv-channels 256
  --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0
  --lr-scheduler polynomial_decay --lr 2e-3 --warmup-updates 100 --total-num-update "$max_update"
  --max-tokens 6000 --max-update "$max_update" --seed 1 --num-workers 1
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

# Makes a data directory; options choose the text to learn.
prepare() {
  local directory=$1
  shift
  run torchscale-fairseq data prepare-speech --train "$speech/train.tsv" --valid "$speech/valid.tsv" \
    --test "$speech/test.tsv" --output "$directory" --vocab-size 200 --lowercase --remove-punctuation \
    --no-specaugment --workers 2 "$@"
}

# Trains on a data directory, and scores on its test set.
train_and_score() {
  local directory=$1 data=$2
  shift 2
  train "$directory" "$data" "${speech_to_text[@]}" "$@" "${training[@]}" "${device[@]}"
  run_into "$directory/generate.log" fairseq-generate "$data" "${speech_to_text[@]}" --gen-subset test \
    --path "$directory/checkpoint_last.pt" --beam 5 --max-len-a 0.1 --max-len-b 10 --max-tokens 12000 \
    "${scoring[@]}" "${device[@]}" | tail -n 1
}

# Prints the texts that fairseq-generate or fairseq-interactive found, in the order of the sources.
hypotheses() {
  grep '^D-' "$1" | sort -t - -k 2n | cut -f 3
}

# Writes the texts of the German and the English data directory as pairs of lines.
write_pairs() {
  local split
  mkdir -p "$pairs"
  for split in train valid test; do
    tail -n +2 "$data.spoken/$split.tsv" | cut -f 4 >"$pairs/$split.de"
    tail -n +2 "$data/$split.tsv" | cut -f 4 >"$pairs/$split.en"
  done
}

# Recognises the German test set, translates what was recognised, and scores it.
cascade() {
  local recogniser=${work}runs/$arch.$spoken-$spoken translator=${work}runs/mt_deepnorm_small.$spoken-en
  prepare "$data.spoken" --text spoken
  scoring=(--scoring wer)
  train_and_score "$recogniser" "$data.spoken" --arch "$arch" --criterion "$criterion"
  write_pairs
  make_once "$pairs.bin" torchscale-fairseq data prepare-translation --source-lang de --target-lang en \
    --train "$pairs/train" --valid "$pairs/valid" --test "$pairs/test" --output "$pairs.bin" --vocab-size 800
  train "$translator" "$pairs.bin" --user-dir torchscale_fairseq --arch mt_deepnorm_small \
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --optimizer adam --adam-betas "(0.9, 0.98)" \
    --clip-norm 1.0 --lr-scheduler polynomial_decay --lr 1e-3 --warmup-updates 200 --total-num-update 800 \
    --max-update 800 --max-tokens 700 --seed 1 --no-epoch-checkpoints --log-interval 50 "${device[@]}"
  hypotheses "$recogniser/generate.log" >"$translator/recognised.de"
  run_into "$translator/interactive.log" fairseq-interactive "$pairs.bin" --user-dir torchscale_fairseq \
    --input "$translator/recognised.de" --source-lang de --target-lang en --path "$translator/checkpoint_best.pt" \
    --beam 5 --buffer-size 300 --max-tokens 4000 --bpe sentencepiece \
    --sentencepiece-model "$pairs.bin/sentencepiece.bpe.model" "${device[@]}" | tail -n 1
  hypotheses "$translator/interactive.log" >"$translator/translated.en"
  run_into "$translator/score.log" sacrebleu "$pairs/test.en" --input "$translator/translated.en" --format text
}

# Prints a line of the last table, from the log that has the score.
score() {
  printf '%-24s %s\n' "$1" "$(grep -oE '(WER:|BLEU\S* = ).*' "$2" | tail -n 1 | sed 's/BLEU\S*/BLEU/')"
}

command -v espeak-ng >/dev/null || fail "espeak-ng is not installed; install it (Debian: apt-get install espeak-ng)"
set_up 1/$steps

step "2/$steps Text: English and German sentences about places, languages and numbers"
make_once "$text" torchscale-fairseq data cldr-corpus "$text"

step "3/$steps Speech: espeak-ng speaks 5,500 sentences; the test set has voices of its own"
speak train 5000
speak valid 200
speak test 300 --held-out

step "4/$steps Data: features of the audio, and a SentencePiece model"
prepare "$data"

step "5/$steps $arch: $max_update updates, and its score on the test set"
train_and_score "${work}runs/$arch.$spoken" "$data" --arch "$arch" --criterion "$criterion"

step "6/$steps fairseq's s2t_transformer of this size: as many updates, and its score"
train_and_score "${work}runs/s2t_transformer_xs.$spoken" "$data" --arch s2t_transformer_xs \
  --criterion label_smoothed_cross_entropy_with_ctc

if [ "$spoken" = de ]; then
  step "7/$steps The cascade: German speech to German text by $arch, and its translation by mt_deepnorm_small"
  cascade
fi

step "Scores on the test set"
for name in "$arch" s2t_transformer_xs; do
  score "$name" "${work}runs/$name.$spoken/generate.log"
done
if [ "$spoken" = de ]; then score cascade "${work}runs/mt_deepnorm_small.$spoken-en/score.log"; fi
