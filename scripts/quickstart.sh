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

fail() {
  echo "quickstart.sh: $1; see --help" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
arch=mt_deepnorm_small
max_update=800
gpu=
work=
while [ $# -gt 0 ]; do
  case "$1" in
    --arch | --max-update | --work-dir) [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 needs a value" ;;
  esac
  case "$1" in
    --arch) arch=$2 && shift 2 ;;
    --max-update) max_update=$2 && shift 2 ;;
    --work-dir) work=$(mkdir -p "$2" && cd "$2" && pwd)/ && shift 2 ;;
    --gpu) gpu=yes && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unknown option '$1'; what is meant for fairseq-train goes after --" ;;
  esac
done
case "$max_update" in
  '' | *[!0-9]* | 0*) fail "--max-update takes a whole number above 0, not '$max_update'" ;;
esac

corpus=${work}data/cldr.en-de
data=${work}data/cldr.en-de.bin
run=${work}runs/$arch

# The one place for what training is done with; the architecture's own options are its preset's.
training=(
  --criterion label_smoothed_cross_entropy --label-smoothing 0.1
  --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0
  --lr-scheduler polynomial_decay --lr 1e-3 --warmup-updates 200 --total-num-update "$max_update"
  --max-tokens 700 --max-update "$max_update" --seed 1
  --validate-interval-updates 250 --save-interval-updates 250 --keep-interval-updates 1 --no-epoch-checkpoints
  --log-interval 50
)
generation=(--beam 5 --max-len-a 2 --max-len-b 10 --max-tokens 4000)
if [ -n "$gpu" ]; then device=(--fp16); else device=(--cpu); fi

step() {
  printf '\n== %s\n' "$1"
}

# Prints a command as one would type it, options grouped in lines of at most 100 characters.
show() {
  local line=$1 part="" word
  shift
  for word in "$@" --; do
    case "$word" in
      --*)
        if [ $((${#line} + ${#part})) -ge 98 ]; then
          printf '%s \\\n' "$line"
          line="   "
        fi
        line+=$part
        part=" $word"
        ;;
      *[!A-Za-z0-9_./:=,-]*) part+=" '$word'" ;;
      *) part+=" $word" ;;
    esac
  done
  printf '%s\n' "$line"
}

run() {
  show "$@"
  "$@"
}

cd "$root"
step "1/6 Packages: fairseq, torch and the rest in a virtual environment"
run scripts/setup.sh
venv=${VENV:-$root/.venv}
echo "source ${venv#"$root"/}/bin/activate"
PATH=$venv/bin:$PATH

step "2/6 Corpus: dates, times, money, units, places and numbers in English and German"
if [ -d "$corpus" ]; then
  echo "$corpus is there already"
else
  run python scripts/data/cldr_corpus.py "$corpus"
fi

step "3/6 Data: a SentencePiece model, and the text in fairseq's binary format"
if [ -d "$data" ]; then
  echo "$data is there already"
else
  run scripts/data/prepare_translation.sh --source-lang en --target-lang de \
    --train "$corpus/train" --valid "$corpus/valid" --test "$corpus/test" \
    --output "$data" --vocab-size 2000 --model-type bpe --split-digits
fi

step "4/6 Training: $arch for $max_update updates"
train=(
  fairseq-train "$data" --user-dir torchscale_fairseq --arch "$arch" "${training[@]}" "${device[@]}"
  --save-dir "$run" --tensorboard-logdir "$run/tensorboard" --log-file "$run/train.log" "$@"
)
mkdir -p "$run"
if [ "$(cat "$run/finished" 2>/dev/null)" = "${train[*]}" ]; then
  echo "$run has finished this training; remove that directory to train anew"
else
  run "${train[@]}"
  echo "${train[*]}" >"$run/finished"
fi
echo "to see the curves: tensorboard --logdir $run/tensorboard"

step "5/6 Translation: the test set, by beam search"
run fairseq-generate "$data" --user-dir torchscale_fairseq --path "$run/checkpoint_best.pt" \
  --bpe sentencepiece --sentencepiece-model "$data/sentencepiece.bpe.model" \
  "${generation[@]}" "${device[@]}" --results-path "$run"

step "6/6 Scores"
run python scripts/score_translation.py "$run/generate-test.txt" --reference "$data/raw/test.de" \
  --source "$data/raw/test.en" --kinds "$corpus/test.kind" --samples 5
