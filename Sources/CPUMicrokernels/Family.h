// One instruction set: includes the families and fills the table. The including file defines
//
//   LANES, HAS_FMA, HAS_F16                                     what the instruction set offers
//   PANEL_VECTORS, STRIP, ROW_ACCUMULATORS, PROBE_CHAINS       what its registers hold at once
//   STAGES_FLOATS                                              whether panels copy tiles of f32 (AVX2, Zen 4, 2026-11-30: 0 to 9%
//                                                                  faster; AVX-512 -2 to 0%)
//   ROWS_OF_SINGLE_KEYS                                         up to how many rows read K a key after the other; 0: none
//   KEYS_OF_PARTIAL_LINES                                       of how many keys V is read at a time where passes over it
//                                                                  take parts of lines; more than a tile has: of all
//   TABLE, TABLE_NAME                                             the table's symbol and its name for people
//
// and has the target attribute pushed.

#include "Vector.h"

// What has products of pairs puts them into a copy of the table (AVX512BF16.c).
#define HAS_PAIRS 0

#include "Pairs.h"
#include "Panels.h"
#include "Rows.h"
#include "Careful.h"
#include "Gradients.h"

static double probe_arithmetic(int64_t steps) {
  Floats sum[24];
  UNROLL for (int i = 0; i < 24; i++) sum[i] = splat((float)i);
  const Floats factor = splat(0.999f), term = splat(0.001f);
  ROLLED for (int64_t step = 0; step < steps; step++) {
    UNROLL for (int i = 0; i < (PROBE_CHAINS); i++) sum[i] = multiply_add(sum[i], factor, term);
  }
  return 2.0 * LANES * PROBE_CHAINS * (double)steps + probe_residue(sum);
}

static float probe_read(const float *source, size_t count) {
  Floats sum[8];
  UNROLL for (int i = 0; i < 8; i++) sum[i] = (Floats){0};
  size_t i = 0;
  ROLLED for (; i + 8 * LANES <= count; i += 8 * LANES) {
    UNROLL for (int j = 0; j < 8; j++) sum[j] += load(source + i + j * LANES);
  }
  Floats total = (Floats){0};
  UNROLL for (int j = 0; j < 8; j++) total += sum[j];
  float lanes[LANES], result = 0;
  store(lanes, total);
  for (int l = 0; l < LANES; l++) result += lanes[l];
  for (; i < count; i++) result += source[i];
  return result;
}

// What stands behind "fa_" in the table's symbol.
#define QUOTED(NAME) #NAME
#define OPTION(NAME) &QUOTED(NAME)[3]

const CPUMicrokernels TABLE = {
    .name = TABLE_NAME,
    .option = OPTION(TABLE),
    .lanes = LANES,
    .panel_vectors = PANEL_VECTORS,
    .stages_floats = STAGES_FLOATS,
    .pack_queries = pack_queries,
    .widen = widen,
    .scores = scores,
    .softmax = softmax,
    .accumulate = accumulate,
    .store_output = store_output,
    .has_nonfinite = has_nonfinite,
    .accumulate_carefully = accumulate_carefully,
    .load_row = load_row,
    .row_scores = row_scores,
    .row_softmax = row_softmax,
    .row_accumulate = row_accumulate,
    .store_row = store_row,
    .gradients = {1, product, product_carefully, score_gradients, dots},
    .transposed = transposed,
    .store_scaled = store_scaled,
    .probe_arithmetic = probe_arithmetic,
    .probe_read = probe_read,
};
