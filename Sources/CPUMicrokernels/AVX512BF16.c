// Products of bfloat16 pairs, which AVX-512 has in some processors: of panels, rows and gradients. Everything else is what AVX-512 does.

#if defined(__x86_64__)

#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512bf16,avx512vbmi"))), apply_to = function)

#define LANES 16
#define PANEL_VECTORS 3
#define STRIP 8
#define HAS_FMA 1
#define HAS_F16 1
#define HAS_PAIRS 1
#define ROW_ACCUMULATORS 16
#define ROWS_OF_SINGLE_KEYS 0
#define KEYS_OF_PARTIAL_LINES 1024
#define PROBE_CHAINS 24

#include "Additions.h"
#include "Vector.h"
#include "Pairs.h"
#include "Panels.h"
#include "PairPanels.h"
#include "Rows.h"
#include "PairRows.h"
#include "Gradients.h"

CPUMicrokernels *fa_with_pairs(const CPUMicrokernels *base) {
  static CPUMicrokernels table;
  table = fa_copied(base, LANES, PANEL_VECTORS, "AVX-512 with bfloat16 pairs", "avx512bf16");
  table.has_pairs = 1;
  table.pair_keys = 2;
  table.pair_rows = FA_MAX_ROWS;
  table.pair_pack_queries = pair_pack_queries;
  table.pair_pack_values = pair_pack_values;
  table.pair_panel_values = pair_pack_values;
  table.pair_scores = pair_scores;
  table.pair_softmax = pair_softmax;
  table.pair_accumulate = pair_accumulate;
  table.probe_pairs = probe_pairs;
  table.pair_pack_rows = pair_pack_rows;
  table.pair_row_scores = pair_row_scores;
  table.pair_row_accumulate = pair_row_accumulate;
  table.pair_gradients = (FAGradients){2, pair_product, pair_product_carefully, pair_score_gradients, pair_dots};
  return &table;
}

void fa_spare_pairs(CPUMicrokernels *table) {
  table->pair_gradients = table->gradients;
  // Of one row pairs are as fast there, or faster: Intel's Emerald Rapids (2026-12-01, Documentation/Benchmarks.md, "Caches").
  table->pair_rows = 1;
}

#pragma clang attribute pop

#endif
