// The vector code under CPUAttention: one source compiled once per instruction set, chosen at run time.
//
// Three families share the softmax mathematics of Vector.h:
//
// - *panels*, for many query rows. Up to `panel_vectors * lanes` query rows lie across vector lanes, the head
//   dimension and the keys run down memory: queries [D][rows], scores [keys][rows], output [Dv][rows]. K and V of f32
//   are read where they are, one broadcast element at a time, and the row statistics of the softmax are plain vectors.
// - *rows*, for at most `FA_MAX_ROWS` query rows over many keys (decoding). The head dimension lies across lanes, so
//   that no lane is wasted: queries [rows][D], scores [keys][rows], output [rows][Dv].
//   Both of these also on bfloat16 pairs.
//
// - *gradients*: matrix products of tiles for the backward pass, of f32 or of bfloat16 pairs, and what lies between them.
//
// All scratch memory belongs to the caller. Every head dimension is a multiple of 8. Nothing here allocates, locks,
// or reads a byte outside the rows it was given.

#ifndef CPU_MICROKERNELS_H
#define CPU_MICROKERNELS_H

#include <stddef.h>
#include <stdint.h>

/// Largest number of query rows of the rows family.
#define FA_MAX_ROWS 8
/// The most keys of a tile of the rows family on pairs.
#define FA_PAIR_ROW_KEYS 128
/// The largest head dimension.
#define FA_MAX_DIMENSION 1024

/// The element type of a tensor in memory; outputs have none of e4m3.
typedef enum { FA_F32 = 0, FA_F16 = 1, FA_BF16 = 2, FA_E4M3 = 3 } FAScalarType;

/// What happens to a score q.k before the softmax.
///
/// Without a cap the softmax works on the raw scores: weights are 2^((score - maximum) * scale_log2), so that the
/// largest weight is exactly 1 and only differences are rounded. With a cap, the scores are first replaced by
/// `cap_log2 * tanh(score * scale_over_cap)` and scale_log2 is 1. A negative scale would make the smallest raw score the
/// largest: the caller negates the queries instead.
typedef struct {
  /// From the units of the maximum to base 2; not negative. In two parts, the second what the first is short of: one
  /// rounded factor would move all weights the same way, by a few ulps where scores are large.
  float scale_log2;
  float scale_log2_rest;
  /// Zero where there is no cap.
  float cap_log2;
  float scale_over_cap;
} FAScoreTransform;

/// The keys that each row of a tile may see, counted from the tile's first key: `first[row] <= key < end[row]`.
/// Null pointers: every row sees every key.
typedef struct {
  const int32_t *first;
  const int32_t *end;
} FAVisibleKeys;

/// The running state of an online softmax, one entry per row.
typedef struct {
  /// The largest score so far, in the units of the transform; -inf before the first.
  float *maximum;
  /// The sum of the weights.
  float *sum;
  /// Output of each step: what the accumulated output must be multiplied by, the weight of the old maximum.
  float *rescale;
} FASoftmaxState;

/// Rows that will be read soon: while a piece of key i is at work, the same piece of row i of these is asked for. Memory
/// then always has requests to serve, evenly, which a processor's own prefetchers do not manage across the change from K
/// to V and back.
typedef struct {
  const void *rows;
  /// Bytes from row to row.
  ptrdiff_t stride;
  /// Rows there are; 0: nothing.
  int count;
  /// Into the second level of the cache, and not the first.
  int is_far;
} FAPrefetch;

/// What makes a product of Q and K a score in the backward pass, in natural units and with its sign: `scale * x`, or with a cap
/// `cap * tanh(x * scale_over_cap)`.
typedef struct {
  /// In two parts, the second what the first is short of.
  float scale;
  float scale_rest;
  /// Zero where there is no cap.
  float cap;
  float scale_over_cap;
} FAGradientTransform;

/// The first factor of a product: word (i, k) is at `i * row + k * step`, so that either of its sides can be summed over.
typedef struct {
  const float *elements;
  ptrdiff_t row;
  ptrdiff_t step;
} FAFactor;

/// Where weights and gradients of scores go, as factors of products.
typedef struct {
  /// P for dV and dS for dK: `[rows / elements][columns]`, words of one column.
  float *weights;
  float *gradients;
  /// dS for dQ: `[rows][columns / elements]`, words of one row. Of f32 these are `gradients`, and this is not looked at.
  float *gradient_rows;
} FAScoreGradients;

/// Products of matrices of 32-bit words, and what lies between them. A word is an f32, or two bfloat16 that are neighbours along
/// the side that is summed over. Results are f32, in rows of whole vectors: `columns` is a multiple of `lanes`.
typedef struct {
  /// Elements of a word: 1 or 2.
  int elements;
  /// out[i][c] = sum over k of a[i][k] * b[k][c], or that much more where `adds`; `depth` words, and rows of b and out are `b_row`
  /// and `out_row` words apart.
  void (*product)(FAFactor a, const float *b, ptrdiff_t b_row, int rows, int columns, int depth, int adds, float *out,
                  ptrdiff_t out_row);
  /// As `product` where `adds`; b is not looked at where a is 0.
  void (*product_carefully)(FAFactor a, const float *b, ptrdiff_t b_row, int rows, int columns, int depth, float *out,
                            ptrdiff_t out_row);
  /// Products of Q and K become weights, and gradients of weights those of scores but for the scale, both `[rows][columns]`:
  /// weight = e^(score - its row's log-sum-exp), gradient = weight * (gradient - delta), times the slope of the cap; 0 where a
  /// row does not see the key, and in a row behind an odd last one. `columns` is a multiple of `elements * lanes`; of f32, `out` may be where they come from.
  void (*score_gradients)(const float *scores, const float *gradients, int rows, int columns, FAGradientTransform transform,
                          const float *log_sum_exps, const float *deltas, FAVisibleKeys visible, FAScoreGradients out);
  /// out[r] = sum over words of a[r] * b[r], in the order of `product`: where a row of O is one of V, because its query sees one
  /// key, the gradient of its score then is zero to the bit.
  void (*dots)(const float *a, const float *b, ptrdiff_t row, int rows, int depth, float *out);
} FAGradients;

/// The functions of one instruction set.
typedef struct {
  /// For people: "AVX-512", ...
  const char *name;
  /// To ask for it: "avx512", ...
  const char *option;
  /// Floats in a vector.
  int lanes;
  /// Vectors across a full panel; a panel of fewer rows may use fewer.
  int panel_vectors;
  /// True where panels do better with tiles of f32 that lie densely, too, and not where they are.
  int stages_floats;
  /// True where the `pair_*` of panels exist: products of bfloat16 pairs by one instruction.
  int has_pairs;
  /// True where these multiply whole tiles, which like more keys at a time, and more rows.
  int has_tiles;
  /// Keys that `pair_accumulate` takes at least: 2, or more where a product sums more pairs.
  int pair_keys;
  /// Up to how many rows decoding multiplies pairs faster than floats; 0: none, and `pair_pack_rows` and `pair_row_*` are null.
  int pair_rows;

  // Panels. `vectors` is 1...panel_vectors and the panel has `vectors * lanes` rows.

  /// Transposes `count` query rows of `dimension` elements into [dimension][rows] of f32; missing rows become zero.
  void (*pack_queries)(const void *const *rows, int count, FAScalarType type, int dimension, int vectors, float *queries);
  /// Converts `count` rows, `stride` bytes apart, to consecutive rows of f32.
  void (*widen)(const void *source, ptrdiff_t stride, FAScalarType type, int count, int dimension, float *destination);
  /// scores[key][row] = sum over d of keys[key][d] * queries[d][row]; `stride` in elements.
  void (*scores)(const float *keys, ptrdiff_t stride, int count, const float *queries, int vectors, int dimension,
                 float *scores);
  /// Turns scores into weights, in place, and advances the state.
  void (*softmax)(float *scores, int count, int vectors, FAScoreTransform transform, FAVisibleKeys visible,
                  FASoftmaxState state);
  /// output[c][row] = output[c][row] * rescale[row] + sum over keys of values[key][c] * weights[key][row].
  void (*accumulate)(const float *values, ptrdiff_t stride, int count, const float *weights, int vectors,
                     int dimension, const float *rescale, float *output);
  /// Writes output[c][row] / sum[row] (0 where the sum is 0) to `count` rows of the given type.
  void (*store_output)(const float *output, const float *sum, int vectors, int count, int dimension,
                       FAScalarType type, void *const *rows);

  // Panels of bfloat16 pairs: two elements of d (or two keys) side by side in 32 bits. Null without `has_pairs`.

  /// As `pack_queries`, into [dimension/2][rows] of pairs, in an order that is `pair_scores`' own.
  void (*pair_pack_queries)(const void *const *rows, int count, int dimension, int vectors, uint32_t *queries);
  /// Interleaves `count` rows two by two into [(count+1)/2][dimension] of pairs; an odd last row is paired with zero. For gradients of pairs,
  /// and null where these are of floats alone.
  void (*pair_pack_values)(const void *source, ptrdiff_t stride, int count, int dimension, uint32_t *destination);
  /// The same as `pair_accumulate` takes it: the same, or where `pair_keys` are more than 2 [dimension][pairs], both rounded up to `lanes`
  /// with zeros.
  void (*pair_panel_values)(const void *source, ptrdiff_t stride, int count, int dimension, uint32_t *destination);
  /// As `scores`; keys are read where they are, `stride` in bytes.
  void (*pair_scores)(const void *keys, ptrdiff_t stride, int count, const uint32_t *queries, int vectors,
                      int dimension, float *scores);
  /// As `softmax`; the weights are also rounded to bfloat16 and written as [(count+1)/2][rows] of pairs, rounded up to `pair_keys` with
  /// zeros, in an order that is `pair_accumulate`'s own.
  void (*pair_softmax)(float *scores, int count, int vectors, FAScoreTransform transform, FAVisibleKeys visible,
                       FASoftmaxState state, uint32_t *weights);
  /// As `accumulate`, over `count` pairs of keys from the `first` on, a multiple of `pair_keys / 2`, of the `tile` that were packed.
  void (*pair_accumulate)(const uint32_t *values, int tile, int first, int count, const uint32_t *weights, int vectors,
                          int dimension, const float *rescale, float *output);

  // Both families, where V may hold an infinity or a NaN that some rows must not see.

  /// Whether one of `count` rows, `stride` bytes apart, holds an infinity or a NaN.
  int (*has_nonfinite)(const void *values, ptrdiff_t stride, FAScalarType type, int count, int dimension);
  /// As `accumulate`, for `[key][rows]` weights; V is not looked at where the weight is 0. Element (row, c) of the output
  /// is at `row * row_step + c * column_step`.
  void (*accumulate_carefully)(const void *values, ptrdiff_t stride, FAScalarType type, int count, const float *weights,
                               int rows, int dimension, const float *rescale, float *output, ptrdiff_t row_step,
                               ptrdiff_t column_step);

  // Rows. `rows` is 1, 2, 4 or 8; the row buffers are `padded` floats apart, D or Dv rounded up to 32.

  /// Converts one query row, zero-filled up to `padded`.
  void (*load_row)(const void *row, FAScalarType type, int dimension, int padded, float *destination);
  /// scores[key][row] = keys[key] . queries[row]; `stride` in bytes.
  void (*row_scores)(const void *keys, ptrdiff_t stride, FAScalarType type, int count, const float *queries, int rows,
                     int dimension, int padded, float *scores, FAPrefetch next);
  /// As `softmax`, for [count][rows]; the buffer has room for 32 scores more.
  void (*row_softmax)(float *scores, int count, int rows, FAScoreTransform transform, FAVisibleKeys visible,
                      FASoftmaxState state);
  /// output[row][c] = output[row][c] * rescale[row] + sum over keys of weights[key][row] * values[key][c].
  void (*row_accumulate)(const void *values, ptrdiff_t stride, FAScalarType type, int count, const float *weights,
                         int rows, int dimension, int padded, const float *rescale, float *output, FAPrefetch next);
  /// Writes one row divided by `sum` (0 where the sum is 0).
  void (*store_row)(const float *output, float sum, int dimension, FAScalarType type, void *row);

  // Rows of bfloat16 pairs, over K and V of bfloat16 or e4m3.

  /// Rounds `count` floats, a multiple of 32, to pairs of neighbours; the pairs may be where the floats are.
  void (*pair_pack_rows)(const float *rows, int count, uint32_t *pairs);
  /// As `row_scores`, with rows of `padded / 2` pairs.
  void (*pair_row_scores)(const void *keys, ptrdiff_t stride, FAScalarType type, int count, const uint32_t *queries,
                          int rows, int dimension, int padded, float *scores, FAPrefetch next);
  /// As `row_accumulate`, of at most `FA_PAIR_ROW_KEYS` keys, with weights rounded to bfloat16; 32 floats behind them can be read.
  void (*pair_row_accumulate)(const void *values, ptrdiff_t stride, FAScalarType type, int count, const float *weights,
                              int rows, int dimension, int padded, const float *rescale, float *output, FAPrefetch next);

  // Gradients.

  /// Of f32 words, and of bfloat16 pairs; `elements` is 0 without `has_pairs`.
  FAGradients gradients;
  FAGradients pair_gradients;
  /// out[c][r] = source[r][c], of words; `rows` and `columns` are multiples of `lanes`.
  void (*transposed)(const float *source, ptrdiff_t source_row, int rows, int columns, float *out, ptrdiff_t out_row);
  /// Writes one row, multiplied by a factor.
  void (*store_scaled)(const float *source, float factor, int dimension, FAScalarType type, void *row);

  // Probes: what this instruction set can do at most.

  /// Runs `steps` steps of independent multiply-adds on registers; returns the operations done (2 per multiply-add).
  double (*probe_arithmetic)(int64_t steps);
  /// The same with products of pairs (4 operations per lane). Null without `has_pairs`.
  double (*probe_pairs)(int64_t steps);
  /// Sums `count` floats; reads memory as fast as one thread can.
  float (*probe_read)(const float *source, size_t count);
} CPUMicrokernels;

/// The instruction sets this build knows, best first, that this machine can run. Ends with a null pointer.
const CPUMicrokernels *const *fa_cpu_microkernels(void);

/// Whether memory gives more, of elements of so many bytes, where it is asked for what a whole tile later is at work, into the second level of the cache: a core has few
/// requests under way for its first level. On AMD's Zen 4 that is 1.05 to 1.75 times as fast (2026-11-30), on Zen 3 it made no difference
/// (2026-11-29, with the other order), and it is done there, too; on Zen 5 the first level was better (2026-11-21). On Intel's Emerald Rapids
/// e4m3 is 1.2 to 1.4 times as fast so, bf16 up to 1.1, f32 no faster (2026-12-01); of others nothing is known (Documentation/Benchmarks.md, "Caches" and
/// "Decode").
int fa_prefetches_far(int element_bytes);

/// Processors that this process may run on, at least 1.
int fa_processor_count(void);

#endif
