// The panels family on Intel's AMX: a tile is 16 rows of 64 bytes, and one instruction adds the products of 16 by 32 and 32 by 16
// bfloat16 to 16 by 16 sums of f32 (Intel's SDM, volume 1, chapter 18; TDPBF16PS in volume 2). What it reads lies as pairs do: queries and
// weights are second factors as they are, rows of K first ones, and V is packed with its columns as rows (ColumnPairs.h).
//
// Everything else, and less than 16 keys, is what AVX-512 does with pairs. Tiles are configured for each product and released behind
// it, so that no thread keeps 8 KB of them. Including files may define what the instructions do: that is how tests run this file where there
// is no AMX.

#if defined(__x86_64__)

#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512bf16,avx512vbmi,amx-tile,amx-bf16"))), apply_to = function)

#define LANES 16
#define PANEL_VECTORS 3
#define HAS_FMA 1
#define HAS_F16 1

#include "Additions.h"
#include "Vector.h"
#include "ColumnPairs.h"

#ifndef TILE_DOT
#include <immintrin.h>
#define TILE_CONFIGURE(shapes) _tile_loadconfig(shapes)
#define TILE_RELEASE() _tile_release()
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, source, row_bytes) _tile_loadd(tile, source, row_bytes)
#define TILE_STORE(tile, destination, row_bytes) _tile_stored(tile, destination, row_bytes)
#define TILE_DOT(sums, a, b) _tile_dpbf16ps(sums, a, b)
#define WITH_TILES fa_with_tiles
#endif

/// Rows of a tile, and words of a row.
#define SIDE 16

/// What a tile has of rows and bytes, as LDTILECFG reads it.
typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} TileShapes;

// Sums of three vectors of rows are tiles 0, 1 and 2, factors 3 and 4, and what is left of the depth, less than a tile, 5 and 6.
static void configure(int rest) {
  TileShapes shapes = {.palette = 1};
  for (int tile = 0; tile < 5; tile++) {
    shapes.rows[tile] = SIDE;
    shapes.row_bytes[tile] = SIDE * 4;
  }
  if (rest != 0) {
    shapes.rows[5] = SIDE;
    shapes.row_bytes[5] = (uint16_t)(rest * 4);
    shapes.rows[6] = (uint8_t)rest;
    shapes.row_bytes[6] = SIDE * 4;
  }
  TILE_CONFIGURE(&shapes);
}

/// The sums over `depth` pairs of 16 rows of `a`, `a_row` bytes apart, and of `b`, `[depth][rows]`: `[16][rows]`.
INLINE void tile_products(const char *a, ptrdiff_t a_row, const uint32_t *b, int vectors, int depth, float *sums) {
  const ptrdiff_t row_bytes = vectors * SIDE * 4;
  TILE_ZERO(0);
  if (vectors > 1) TILE_ZERO(1);
  if (vectors > 2) TILE_ZERO(2);
// The number of a tile is part of the instruction.
#define ADD_PRODUCTS(A, B)                                          \
  TILE_LOAD(A, a + pair * 4, a_row);                                \
  TILE_LOAD(B, b + (ptrdiff_t)pair * vectors * SIDE, row_bytes);    \
  TILE_DOT(0, A, B);                                                \
  if (vectors > 1) {                                                \
    TILE_LOAD(B, b + ((ptrdiff_t)pair * vectors + 1) * SIDE, row_bytes); \
    TILE_DOT(1, A, B);                                              \
  }                                                                 \
  if (vectors > 2) {                                                \
    TILE_LOAD(B, b + ((ptrdiff_t)pair * vectors + 2) * SIDE, row_bytes); \
    TILE_DOT(2, A, B);                                              \
  }
  int pair = 0;
  ROLLED for (; pair + SIDE <= depth; pair += SIDE) {
    ADD_PRODUCTS(3, 4)
  }
  if (pair < depth) {
    ADD_PRODUCTS(5, 6)
  }
#undef ADD_PRODUCTS
  TILE_STORE(0, sums, row_bytes);
  if (vectors > 1) TILE_STORE(1, sums + SIDE, row_bytes);
  if (vectors > 2) TILE_STORE(2, sums + 2 * SIDE, row_bytes);
}

/// The table whose functions do what tiles do not.
static const CPUMicrokernels *pairs;

INLINE void tile_scores_wide(const char *keys, ptrdiff_t stride, int count, const uint32_t *queries, int vectors,
                             int dimension, float *out) {
  configure(dimension / 2 % SIDE);
  for (int start = 0; start < count; start += SIDE) {
    // The last tile of keys may have some of those before, again.
    const int key = start + SIDE <= count ? start : count - SIDE;
    tile_products(keys + key * stride, stride, queries, vectors, dimension / 2, out + (ptrdiff_t)key * vectors * SIDE);
  }
  TILE_RELEASE();
}

static void tile_scores(const void *keys, ptrdiff_t stride, int count, const uint32_t *queries, int vectors,
                        int dimension, float *out) {
  if (count < SIDE) {
    pairs->pair_scores(keys, stride, count, queries, vectors, dimension, out);
    return;
  }
#define CALL(VECTORS) tile_scores_wide(keys, stride, count, queries, VECTORS, dimension, out)
  DISPATCH_VECTORS(CALL)
#undef CALL
}

static void tile_softmax(float *scores, int count, int vectors, FAScoreTransform transform, FAVisibleKeys visible,
                         FASoftmaxState state, uint32_t *weights) {
  pairs->pair_softmax(scores, count, vectors, transform, visible, state, weights);
  const int used = (count + 1) / 2;
  __builtin_memset(weights + (size_t)used * vectors * SIDE, 0, (size_t)(padded_pairs(used) - used) * vectors * SIDE * 4);
}

INLINE void tile_accumulate_wide(const uint32_t *values, int words, int count, const uint32_t *weights, int vectors,
                                 int dimension, const float *rescale, float *output) {
  Floats factor[PANEL_VECTORS];
  UNROLL for (int v = 0; v < vectors; v++) factor[v] = load(rescale + v * LANES);
  configure(0);
  for (int c = 0; c < dimension; c += SIDE) {
    // As by the other families, each tile of keys is summed by itself.
    float sums[SIDE * PANEL_VECTORS * LANES];
    tile_products((const char *)(values + (size_t)c * words), words * 4, weights, vectors, padded_pairs(count), sums);
    const int columns = dimension - c < SIDE ? dimension - c : SIDE;
    for (int i = 0; i < columns; i++) {
      UNROLL for (int v = 0; v < vectors; v++) {
        float *p = output + ((ptrdiff_t)(c + i) * vectors + v) * LANES;
        store(p, multiply_add(load(p), factor[v], load(sums + (i * vectors + v) * LANES)));
      }
    }
  }
  TILE_RELEASE();
}

static void tile_accumulate(const uint32_t *values, int tile, int first, int count, const uint32_t *weights, int vectors,
                            int dimension, const float *rescale, float *output) {
  const int words = padded_pairs(tile);
  values += first;
#define CALL(VECTORS) tile_accumulate_wide(values, words, count, weights, VECTORS, dimension, rescale, output)
  DISPATCH_VECTORS(CALL)
#undef CALL
}

static double probe_tiles(int64_t steps) {
  static const uint32_t zero[SIDE];
  // More sums than products use: a tile is ready for the next one after the time of three to four.
  configure(SIDE);
  TILE_ZERO(0);
  TILE_ZERO(1);
  TILE_ZERO(2);
  TILE_ZERO(5);
  TILE_ZERO(6);
  TILE_LOAD(3, zero, 0);
  TILE_LOAD(4, zero, 0);
  // A product of tiles is many of vectors.
  const int64_t rounds = steps / SIDE + 1;
  ROLLED for (int64_t round = 0; round < rounds; round++) {
    TILE_DOT(0, 3, 4);
    TILE_DOT(1, 3, 4);
    TILE_DOT(2, 3, 4);
    TILE_DOT(5, 3, 4);
    TILE_DOT(6, 3, 4);
  }
  TILE_RELEASE();
  return 5.0 * 2 * SIDE * SIDE * 2 * SIDE * (double)rounds;
}

const CPUMicrokernels *WITH_TILES(const CPUMicrokernels *base) {
  static CPUMicrokernels table;
  pairs = base;
  table = fa_copied(base, LANES, PANEL_VECTORS, "AMX with AVX-512", "amx");
  table.has_tiles = 1;
  table.pair_keys = 2 * SIDE;
  table.pair_panel_values = pack_columns;
  table.pair_scores = tile_scores;
  table.pair_softmax = tile_softmax;
  table.pair_accumulate = tile_accumulate;
  table.probe_pairs = probe_tiles;
  return &table;
}

#pragma clang attribute pop

#endif
