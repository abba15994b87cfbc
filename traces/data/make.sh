#!/bin/sh
# Makes day24.csv.gz in the folder named by the first argument (default: beside this file).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
modelium trace generate --models "$here/day24.models.txt" --shuffle --zipf 1 \
    --rate 0.72 --duration 24h --cv 2 --day-swing 0.6 \
    --bursts on_s=15min,off_s=90min,quiet=0.05,groups=6,together=0.8 \
    --lengths prompt_mean=720,output_mean=205 --time-digits 2 --seed 5 \
    --out "${1:-$here}/day24.csv.gz"
