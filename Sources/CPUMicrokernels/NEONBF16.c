// The panels family on Arm's products of bfloat16 matrices, which most server processors since 2021 have (FEAT_BF16; BFMMLA in the Arm
// Architecture Reference Manual, C7.2): one instruction multiplies 2 rows of 4 numbers by 2 others and adds to 2 by 2 sums. Both factors lie
// in rows of fours along what is summed over: K as it is, V with its columns as rows (ColumnPairs.h), queries and weights as
// `[fours][two rows][4]`. Everything else is what NEON does with floats.

#if defined(__aarch64__)

#include <arm_neon.h>

#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)

#define LANES 4
#define PANEL_VECTORS 3
#define STRIP 8
#define HAS_FMA 1
#define HAS_F16 1
#define PROBE_CHAINS 24

#include "Additions.h"
#include "Vector.h"

/// Stores lane-wise pairs (even in the low half), rounded to bfloat16.
INLINE void store_pair(uint32_t *p, Floats even, Floats odd) {
  const uint16x8_t both = (uint16x8_t)vcvtq_high_bf16_f32(vcvtq_low_bf16_f32((float32x4_t)even), (float32x4_t)odd);
  const uint16x4x2_t halves = {{vget_low_u16(both), vget_high_u16(both)}};
  vst2_u16((uint16_t *)p, halves);
}

#include "Panels.h"
#include "ColumnPairs.h"

/// Two rows of fours.
typedef bfloat16x8_t Twos;

INLINE Twos load_twos(const char *even, const char *odd) {
  return (Twos)vcombine_u16(vld1_u16((const uint16_t *)even), vld1_u16((const uint16_t *)odd));
}

/// The sums over `depth` pairs, an even number, of `rows` rows of `a`, 1, 2 or 8 and `a_row` bytes apart, and of `b`, `[depth/2][two rows][4]`.
INLINE void products_of_rows(const char *a, ptrdiff_t a_row, int rows, const uint32_t *b, int vectors, int depth,
                             Floats out[STRIP][PANEL_VECTORS]) {
  const int twos = (rows + 1) / 2;
  float32x4_t sum[STRIP / 2][2 * PANEL_VECTORS];
  UNROLL for (int i = 0; i < twos; i++) {
    UNROLL for (int j = 0; j < 2 * vectors; j++) sum[i][j] = vdupq_n_f32(0);
  }
  const char *row[STRIP];
  UNROLL for (int i = 0; i < 2 * twos; i++) row[i] = a + (i < rows ? i : 0) * a_row;
  const uint32_t *end = b + depth * vectors * LANES;
  ROLLED for (; b != end; b += 2 * vectors * LANES) {
    Twos left[STRIP / 2];
    UNROLL for (int i = 0; i < twos; i++) left[i] = load_twos(row[2 * i], row[2 * i + 1]);
    UNROLL for (int i = 0; i < 2 * twos; i++) row[i] += 8;
    UNROLL for (int j = 0; j < 2 * vectors; j++) {
      const Twos right = (Twos)vld1q_u32(b + j * LANES);
      UNROLL for (int i = 0; i < twos; i++) sum[i][j] = vbfmmlaq_f32(sum[i][j], left[i], right);
    }
  }
  UNROLL for (int i = 0; i < twos; i++) {
    UNROLL for (int v = 0; v < vectors; v++) {
      const float64x2_t low = (float64x2_t)sum[i][2 * v], high = (float64x2_t)sum[i][2 * v + 1];
      out[2 * i][v] = (Floats)vzip1q_f64(low, high);
      out[2 * i + 1][v] = (Floats)vzip2q_f64(low, high);
    }
  }
}

/// Of each two rows of pairs, both pairs of a row of the panel side by side.
INLINE void pairs_to_fours(uint32_t *pairs, int count, int vectors) {
  for (int four = 0; four < count / 2; four++) {
    uint32_t *even = pairs + (size_t)four * 2 * vectors * LANES, *odd = even + vectors * LANES;
    uint32x4x2_t words[PANEL_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) words[v] = vzipq_u32(vld1q_u32(even + v * LANES), vld1q_u32(odd + v * LANES));
    UNROLL for (int v = 0; v < vectors; v++) {
      vst1q_u32(even + 2 * v * LANES, words[v].val[0]);
      vst1q_u32(even + (2 * v + 1) * LANES, words[v].val[1]);
    }
  }
}

static void matrix_pack_queries(const void *const *rows, int count, int dimension, int vectors, uint32_t *queries) {
  // A pair is 32 bits, so this is the transposition of f32 rows of half the length, whatever the bits mean.
  pack_queries_typed(rows, count, FA_F32, dimension / 2, vectors, (float *)queries);
#define CALL(VECTORS) pairs_to_fours(queries, dimension / 2, VECTORS)
  DISPATCH_VECTORS(CALL)
#undef CALL
}

INLINE void matrix_scores_wide(const char *keys, ptrdiff_t stride, int count, const uint32_t *queries, int vectors,
                               int dimension, float *out) {
  int key = 0;
#define KEYS(COUNT)                                                                                     \
  for (; key + COUNT <= count; key += COUNT) {                                                          \
    Floats sum[STRIP][PANEL_VECTORS];                                                                   \
    products_of_rows(keys + key * stride, stride, COUNT, queries, vectors, dimension / 2, sum);         \
    UNROLL for (int j = 0; j < COUNT; j++) {                                                            \
      UNROLL for (int v = 0; v < vectors; v++) store(out + ((ptrdiff_t)(key + j) * vectors + v) * LANES, sum[j][v]); \
    }                                                                                                   \
  }
  KEYS(STRIP)
  KEYS(2)
  KEYS(1)
#undef KEYS
}

static void matrix_scores(const void *keys, ptrdiff_t stride, int count, const uint32_t *queries, int vectors,
                          int dimension, float *out) {
#define CALL(VECTORS) matrix_scores_wide(keys, stride, count, queries, VECTORS, dimension, out)
  DISPATCH_VECTORS(CALL)
#undef CALL
}

static void matrix_softmax(float *scores, int count, int vectors, FAScoreTransform transform, FAVisibleKeys visible,
                           FASoftmaxState state, uint32_t *weights) {
  const int used = (count + 1) / 2, all = padded_pairs(used);
#define CALL(VECTORS)                                                                                    \
  softmax_any(scores, count, VECTORS, transform, visible, state, weights);                               \
  __builtin_memset(weights + (size_t)used * VECTORS * LANES, 0, (size_t)(all - used) * VECTORS * LANES * 4); \
  pairs_to_fours(weights, all, VECTORS)
  DISPATCH_VECTORS(CALL)
#undef CALL
}

INLINE void matrix_accumulate_wide(const uint32_t *values, int words, int count, const uint32_t *weights, int vectors,
                                   int dimension, const float *rescale, float *output) {
  Floats factor[PANEL_VECTORS];
  UNROLL for (int v = 0; v < vectors; v++) factor[v] = load(rescale + v * LANES);
  for (int c = 0; c < dimension; c += STRIP) {
    // As by the other families, each tile of keys is summed by itself.
    Floats sum[STRIP][PANEL_VECTORS];
    products_of_rows((const char *)(values + (size_t)c * words), words * 4, STRIP, weights, vectors, padded_pairs(count), sum);
    UNROLL for (int j = 0; j < STRIP; j++) {
      UNROLL for (int v = 0; v < vectors; v++) {
        float *p = output + ((ptrdiff_t)(c + j) * vectors + v) * LANES;
        store(p, multiply_add(load(p), factor[v], sum[j][v]));
      }
    }
  }
}

static void matrix_accumulate(const uint32_t *values, int tile, int first, int count, const uint32_t *weights, int vectors,
                              int dimension, const float *rescale, float *output) {
#define CALL(VECTORS) \
  matrix_accumulate_wide(values + first, padded_pairs(tile), count, weights, VECTORS, dimension, rescale, output)
  DISPATCH_VECTORS(CALL)
#undef CALL
}

static double probe_matrices(int64_t steps) {
  float32x4_t sum[PROBE_CHAINS];
  UNROLL for (int i = 0; i < PROBE_CHAINS; i++) sum[i] = vdupq_n_f32((float)i);
  const Twos factor = (Twos)vdupq_n_u16(0x3f7f), term = (Twos)vdupq_n_u16(0x3c00);
  ROLLED for (int64_t step = 0; step < steps; step++) {
    UNROLL for (int i = 0; i < PROBE_CHAINS; i++) sum[i] = vbfmmlaq_f32(sum[i], factor, term);
  }
  return 2.0 * 16 * PROBE_CHAINS * (double)steps + probe_residue((const Floats *)sum);
}

const CPUMicrokernels *fa_with_matrices(const CPUMicrokernels *base) {
  static CPUMicrokernels table;
  table = fa_copied(base, LANES, PANEL_VECTORS, "NEON with bfloat16 matrices", "neonbf16");
  table.has_pairs = 1;
  table.pair_keys = 2 * LANES;
  table.pair_gradients = base->gradients;
  table.pair_pack_queries = matrix_pack_queries;
  table.pair_panel_values = pack_columns;
  table.pair_scores = matrix_scores;
  table.pair_softmax = matrix_softmax;
  table.pair_accumulate = matrix_accumulate;
  table.probe_pairs = probe_matrices;
  return &table;
}

#pragma clang attribute pop

#endif
