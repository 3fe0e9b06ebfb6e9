#!/usr/bin/env bash
# A whole round on a machine with an NVIDIA GPU, in one command: is it right, is it free of races, how fast is it.
#
#     Benchmarks/gpu_round.sh TOOL OUT [quick]
#
# TOOL is the `flash-attention` executable, OUT a folder for the JSON files. `quick` leaves the sanitizer out. Where Python has
# the package, what a call costs the host is measured too.
set -uo pipefail
tool=$(realpath "$1"); out=$2; mkdir -p "$out"
failed=0
step() { printf '\n== %s\n' "$1"; shift; "$@" || { failed=1; echo "FAILED ($?)"; }; }

step "machine" "$tool" info
step "2000 random problems against the 64-bit reference" "$tool" verify --device gpu --cases 2000
step "1000 random problems over all rungs of the ladder" "$tool" verify --device gpu --variants --cases 1000 --kernels 216
step "1000 random problems over caches" "$tool" verify --device gpu --cache --cases 1000 --kernels 96
step "1000 random problems for gradients" "$tool" verify --device gpu --backward --cases 1000 --kernels 128
step "1000 rounds of eight threads at once, with streams of their own and one KVCache" \
  "$tool" verify --device gpu --concurrent --cases 1000
step "the emulator against the GPU" "$tool" verify --device gpu --emulate --cases 128
if [ "${3:-}" != quick ] && command -v compute-sanitizer > /dev/null; then
  for check in memcheck racecheck initcheck synccheck; do
    step "compute-sanitizer $check" compute-sanitizer --tool $check --error-exitcode 9 \
      "$tool" verify --device gpu --cases 64 --kernels 64
    # racecheck is a hundred times slower than the others.
    cases=48; if [ $check = racecheck ]; then cases=10; fi
    step "compute-sanitizer $check, caches" compute-sanitizer --tool $check --error-exitcode 9 \
      "$tool" verify --device gpu --cache --cases $cases --kernels $cases
    step "compute-sanitizer $check, gradients" compute-sanitizer --tool $check --error-exitcode 9 \
      "$tool" verify --device gpu --backward --cases $((cases / 2)) --kernels $((cases / 2))
    step "compute-sanitizer $check, every rung" compute-sanitizer --tool $check --error-exitcode 9 \
      "$tool" verify --device gpu --variants --cases 54 --kernels 54
  done
fi
library=$(python3 -c 'import swift_flash_attention as f, os; print(os.path.join(os.path.dirname(f.__file__), "libflash_attention.so"))' 2> /dev/null)
if [ -n "$library" ] && command -v cc > /dev/null; then
  made=$(mktemp -d); ln -s "$library" "$made/libflash_attention.so.1"
  root=$(dirname "$0")/..
  cc -std=c99 "$root/Examples/c/decode.c" "-I$root/Sources/FlashAttentionHeader/include" "$library" "-Wl,-rpath,$made" -lm -ldl -o "$made/decode"
  step "decoding from C, by a captured graph" "$made/decode" gpu
  rm -r "$made"
fi
step "20 repeats of every rung, 48 heads" "$tool" bench variants --query-heads 48 --queries 8192 --dim 64 --repeats 20 --iterations 5
step "20 repeats of every rung with f16 sums" "$tool" bench variants --query-heads 8 --queries 8192 --dim 64 --repeats 20 --iterations 5 --tiling sums=f16
for dim in 64 128; do
  step "the ladder, D $dim" "$tool" bench variants --query-heads 8 --queries 8192 --dim $dim --json "$out/variants_$dim.json"
done
step "20 repeats, 48 heads, causal" "$tool" bench --device gpu --dtype f16 --query-heads 48 --queries 8192 --dim 128 --causal --repeats 20 --iterations 5
step "20 repeats, D 512" "$tool" bench --device gpu --dtype bf16 --query-heads 48 --queries 4096 --dim 512 --repeats 20 --iterations 5
step "cold start: no kernel in the driver's cache" env CUDA_CACHE_DISABLE=1 "$tool" bench --device gpu --dtype bf16 --json "$out/cold.json"
step "warm start" "$tool" bench --device gpu --dtype bf16 --json "$out/warm.json"
step "the emulator's time" "$tool" bench emulator
if python3 -c 'import torch, swift_flash_attention' 2> /dev/null; then
  step "what a call costs the host" python3 "$(dirname "$0")/call_overhead.py"
fi
step "gradients" "$tool" bench backward --device gpu --dtype bf16 --json "$out/backward.json"
step "20 repeats of gradients" "$tool" bench backward --device gpu --dtype bf16 --queries 2048 --dim 128 --causal --repeats 20
step "decoding" "$tool" bench decode --json "$out/decode.json"
for context in 4096 8192; do
  step "decoding, a cache of e4m3" "$tool" bench decode --batch 128 --context $context --cache-dtype e4m3
  step "decoding, pages of 16" "$tool" bench decode --batch 128 --context $context --page-size 16
  step "decoding, a new key each" "$tool" bench decode --batch 128 --context $context --new-keys 1
done
exit $failed
