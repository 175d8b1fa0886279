#!/usr/bin/env bash
# LongViT on images of 2,048 pixels whose class a square of 8 pixels decides; --help says how.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: scripts/experiments/image_details.sh [--work-dir DIR]

Trains longvit_tiny on a CPU on images that it draws: of 256 pixels, then of 512, 1,024 and 2,048, each time going on
from the model before (--finetune-from-model, which interpolates its positions). The last line of each part is the
validation on images of that size that were not trained on. Run again, it skips the parts that are finished.

  --work-dir DIR    where data/ and runs/ go (default: the repository)
EOF
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/scripts/lib.sh"
work=
case "${1:-}" in
  "") ;;
  -h | --help) usage && exit 0 ;;
  --work-dir) [ -n "${2:-}" ] || fail "--work-dir needs a value"
    work=$(mkdir -p "$2" && cd "$2" && pwd)/ ;;
  *) fail "unknown option '$1'" ;;
esac
cd "$root"

before=()
# pixels, images to train on and to validate on, images per batch, learning rate, updates
while read -r size train valid batch rate updates; do
  data=${work}data/details-$size
  run=${work}runs/details-$size
  step "images of $size pixels"
  [ -d "$data" ] || torchscale-fairseq data draw-details "$data" --img-size "$size" --train "$train" --valid "$valid"
  fairseq-train "$data" --user-dir torchscale_fairseq --task image_classification \
    --criterion image_classification --arch longvit_tiny --img-size "$size" --flip --rotate \
    --batch-size "$batch" --optimizer adam --lr "$rate" --clip-norm 1.0 --max-update "$updates" --cpu \
    --log-format simple --log-interval 50 --no-epoch-checkpoints --save-dir "$run" "${before[@]}" |
    grep -E ' (train|valid) \| '
  before=(--finetune-from-model "$run/checkpoint_last.pt")
done <<'EOF'
256  12000 200 16 3e-4 750
512  2000  200 16 2e-4 125
1024 2000  200 8  1e-4 250
2048 400   100 8  5e-5 50
EOF
