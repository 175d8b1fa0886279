# Functions that the quick starts source: their options, and steps that print their commands.

shared=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
  echo "${0##*/}: $1; see --help" >&2
  exit 2
}

# Sets arch, max_update, gpu, work and rest (for fairseq-train) from the command line.
read_options() {
  gpu=
  work=
  while [ $# -gt 0 ]; do
    case "$1" in
      --arch | --max-update | --work-dir) [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 needs a value" ;;
    esac
    case "$1" in
      --arch) arch=$2 && shift 2 ;;
      --max-update) max_update=$2 && shift 2 ;;
      --work-dir) work=$(mkdir -p "$2" && cd "$2" && pwd)/ || exit && shift 2 ;;
      --gpu) gpu=yes && shift ;;
      -h | --help) usage && exit 0 ;;
      --) shift && break ;;
      *) fail "unknown option '$1'; options of fairseq-train go after --" ;;
    esac
  done
  case "$max_update" in
    '' | *[!0-9]* | 0*) fail "--max-update takes a whole number above 0, not '$max_update'" ;;
  esac
  if [ -n "$gpu" ]; then device=(--fp16); else device=(--cpu); fi
  rest=("$@")
}

# Sets max_tokens, lr and warmup for the architecture, from the first line of recipes.tsv whose pattern fits.
read_recipe() {
  local pattern
  while IFS=$'\t' read -r pattern max_tokens lr warmup; do
    case "$arch" in $pattern) break ;; esac
  done < <(tail -n +2 "$root/scripts/recipes.tsv")
}

step() {
  printf '\n== %s\n' "$1"
}

# Prints a command as one would type it.
show() {
  python3 "$shared/show_command.py" "$@"
}

run() {
  show "$@"
  "$@"
}

# The same, and keeps what the command prints in a file.
run_into() {
  local file=$1
  shift
  show "$@" '|&' tee "$file"
  "$@" |& tee "$file"
}

# A step of its own: after it, the programs of the virtual environment are found by name.
set_up() {
  step "$1 Packages: fairseq, torch and the rest in a virtual environment"
  run scripts/setup.sh
  local venv=${VENV:-$PWD/.venv}
  echo "source ${venv#"$PWD"/}/bin/activate"
  PATH=$venv/bin:$PATH
}

# Runs a command that makes a directory, unless the directory is there.
make_once() {
  local directory=$1
  shift
  if [ -d "$directory" ]; then
    echo "$directory is there already"
  else
    run "$@"
  fi
}

# Runs fairseq-train with a run's directory, unless this very training is finished.
train() {
  local directory=$1
  shift
  set -- fairseq-train "$@" \
    --save-dir "$directory" --tensorboard-logdir "$directory/tensorboard" --log-file "$directory/train.log" "${rest[@]}"
  mkdir -p "$directory"
  if [ "$(cat "$directory/finished" 2>/dev/null)" = "$*" ]; then
    echo "$directory has finished this training; remove that directory to train anew"
  else
    run "$@"
    echo "$*" >"$directory/finished"
  fi
  echo "to see the curves: tensorboard --logdir $directory/tensorboard"
}
