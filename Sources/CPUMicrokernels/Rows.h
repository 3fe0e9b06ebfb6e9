// The rows family: the head dimension across lanes, for at most 8 query rows. See CPUMicrokernels.h for the shapes.
//
// Every element of K and V is used once per row, so memory is the limit and the work per byte must stay small: LANES
// partial sums (rows x keys of them) are reduced together by `sums` into one vector of scores in [key][row] order.

static void load_row(const void *row, FAScalarType type, int dimension, int padded, float *destination) {
  int d = 0;
  for (; d + LANES <= dimension; d += LANES) {
    store(destination + d, load_elements((const char *)row + d * element_size(type), type));
  }
  for (; d < padded; d += LANES) {
    const int rest = dimension - d > 0 ? dimension - d : 0;
    store(destination + d, load_some((const char *)row + d * element_size(type), type, rest));
  }
}

INLINE void prefetch_row(FAPrefetch next, int row) {
  if (row >= next.count) return;
  const char *p = (const char *)next.rows + row * next.stride;
  ROLLED for (int i = 0; i < next.byte_count; i += 64) __builtin_prefetch(p + i, 0, 3);
}

/// LANES scores: `rows` rows by LANES / rows keys.
INLINE Floats row_scores_group(const char *keys, ptrdiff_t stride, FAScalarType type, const float *queries, int rows,
                               int dimension, int padded) {
  const int group = LANES / rows;
  Floats partial[LANES];
  UNROLL for (int i = 0; i < LANES; i++) partial[i] = (Floats){0};
  int d = 0;
#if HAS_PAIRS
  if (type == FA_BF16) {
    // The queries were widened from bfloat16, so taking their upper halves back is exact.
    ROLLED for (; d + 2 * LANES <= dimension; d += 2 * LANES) {
      Bits query[FA_MAX_ROWS];
      UNROLL for (int r = 0; r < rows; r++) {
        query[r] = (Bits)_mm512_cvtne2ps_pbh((__m512)load(queries + r * padded + d + LANES),
                                             (__m512)load(queries + r * padded + d));
      }
      UNROLL for (int k = 0; k < group; k++) {
        Bits key;
        __builtin_memcpy(&key, keys + k * stride + d * 2, sizeof key);
        UNROLL for (int r = 0; r < rows; r++) {
          partial[k * rows + r] = pair_multiply_add(key, query[r], partial[k * rows + r]);
        }
      }
    }
  }
#endif
  ROLLED for (; d + LANES <= dimension; d += LANES) {
    UNROLL for (int k = 0; k < group; k++) {
      const Floats key = load_elements(keys + k * stride + d * element_size(type), type);
      UNROLL for (int r = 0; r < rows; r++) {
        partial[k * rows + r] = multiply_add(key, load(queries + r * padded + d), partial[k * rows + r]);
      }
    }
  }
  if (d < dimension) {
    UNROLL for (int k = 0; k < group; k++) {
      const Floats key = load_some(keys + k * stride + d * element_size(type), type, dimension - d);
      UNROLL for (int r = 0; r < rows; r++) {
        partial[k * rows + r] = multiply_add(key, load(queries + r * padded + d), partial[k * rows + r]);
      }
    }
  }
  return sums(partial);
}

INLINE void row_scores_wide(const char *keys, ptrdiff_t stride, FAScalarType type, int count, const float *queries,
                            int rows, int dimension, int padded, float *scores, FAPrefetch next) {
  const int group = LANES / rows;
  int key = 0;
  for (; key + group <= count; key += group) {
    for (int k = 0; k < group; k++) prefetch_row(next, key + k);
    store(scores + (ptrdiff_t)key * rows,
          row_scores_group(keys + key * stride, stride, type, queries, rows, dimension, padded));
  }
  if (key < count) {
    // The last keys one at a time: stride 0 repeats one key in all places of a group.
    for (; key < count; key++) {
      float all[LANES];
      store(all, row_scores_group(keys + key * stride, 0, type, queries, rows, dimension, padded));
      for (int r = 0; r < rows; r++) scores[key * rows + r] = all[r];
    }
  }
}

// Expands CALL(type, rows) for the constants that the inner loops must know.
#define DISPATCH_ROWS(TYPE, ROWS, CALL) \
  switch (ROWS) {                       \
    case 1: CALL(TYPE, 1); break;       \
    case 2: CALL(TYPE, 2); break;       \
    case 4: CALL(TYPE, 4); break;       \
    default: CALL(TYPE, 8); break;      \
  }
#define DISPATCH_TYPE_AND_ROWS(TYPE, ROWS, CALL)                     \
  switch (TYPE) {                                                    \
    case FA_F32: DISPATCH_ROWS(FA_F32, ROWS, CALL) break;            \
    case FA_F16: DISPATCH_ROWS(FA_F16, ROWS, CALL) break;            \
    case FA_BF16: DISPATCH_ROWS(FA_BF16, ROWS, CALL) break;          \
  }

// 8 rows do not fit 4 lanes: there, two halves of 4 rows would be needed, so the widest group is LANES rows.
#define ROWS_AT_ONCE(ROWS) ((ROWS) < LANES ? (ROWS) : LANES)

static void row_scores(const void *keys, ptrdiff_t stride, FAScalarType type, int count, const float *queries, int rows,
                       int dimension, int padded, float *scores, FAPrefetch next) {
#if LANES < FA_MAX_ROWS
  if (rows > LANES) {
    // [key][8] from two runs of [key][4].
    for (int key = 0; key < count; key++) {
      prefetch_row(next, key);
      for (int half = 0; half < rows; half += LANES) {
        Floats s = type == FA_F32   ? row_scores_group((const char *)keys + key * stride, stride, FA_F32,
                                                       queries + half * padded, LANES, dimension, padded)
                   : type == FA_F16 ? row_scores_group((const char *)keys + key * stride, stride, FA_F16,
                                                       queries + half * padded, LANES, dimension, padded)
                                    : row_scores_group((const char *)keys + key * stride, stride, FA_BF16,
                                                       queries + half * padded, LANES, dimension, padded);
        store(scores + key * rows + half, s);
      }
    }
    return;
  }
#endif
#define CALL(T, R) row_scores_wide(keys, stride, T, count, queries, ROWS_AT_ONCE(R), dimension, padded, scores, next)
  DISPATCH_TYPE_AND_ROWS(type, rows, CALL)
#undef CALL
}

static void row_softmax(float *scores, int count, int rows, FAScoreTransform transform, FAVisibleKeys visible,
                        FASoftmaxState state) {
  const int total = count * rows, capped = transform.cap_log2 != 0;
  // Whole vectors: the tail is -inf, which weighs nothing.
  for (int i = total; i < total + LANES; i++) scores[i] = MINUS_INFINITY;
  for (int i = 0; i < total; i += LANES) {
    Floats score = load(scores + i);
    Floats scaled = transformed(score, transform, capped);
    store(scores + i, score == splat(MINUS_INFINITY) ? score : scaled);
  }
  if (visible.first) {
    for (int r = 0; r < rows; r++) {
      for (int key = 0; key < count; key++) {
        if (key < visible.first[r] || key >= visible.end[r]) scores[key * rows + r] = MINUS_INFINITY;
      }
    }
  }
  // Lane l of a vector belongs to row (l + i) % rows; with rows a power of two and LANES a multiple of it, that is
  // l % rows. Eight rows over four lanes alternate between two vectors, hence two accumulators.
  Floats largest[2] = {splat(MINUS_INFINITY), splat(MINUS_INFINITY)};
  for (int i = 0; i < total; i += LANES) {
    const int which = rows > LANES ? (i / LANES) & 1 : 0;
    largest[which] = maximum(load(scores + i), largest[which]);
  }
  float lanes[2 * LANES], offsets[2 * LANES];
  store(lanes, largest[0]);
  store(lanes + LANES, rows > LANES ? largest[1] : largest[0]);
  for (int r = 0; r < rows; r++) {
    float top = state.maximum[r];
    for (int l = r; l < 2 * LANES; l += rows) top = lanes[l] > top ? lanes[l] : top;
    const float offset = top == MINUS_INFINITY ? 0 : top;
    for (int l = r; l < 2 * LANES; l += rows) offsets[l] = offset;
    float factor[LANES];
    store(factor, exp2_nonlarge(splat(state.maximum[r] - offset)));
    state.rescale[r] = factor[0];
    state.maximum[r] = top;
  }
  Floats sum[2] = {(Floats){0}, (Floats){0}};
  const Floats offset[2] = {load(offsets), load(offsets + LANES)};
  for (int i = 0; i < total; i += LANES) {
    const int which = rows > LANES ? (i / LANES) & 1 : 0;
    const Floats weight = exp2_nonlarge(load(scores + i) - offset[which]);
    store(scores + i, weight);
    sum[which] += weight;
  }
  store(lanes, sum[0]);
  store(lanes + LANES, sum[1]);
  for (int r = 0; r < rows; r++) {
    float total_of_row = state.sum[r] * state.rescale[r];
    for (int l = r; l < 2 * LANES; l += rows) total_of_row += lanes[l];
    state.sum[r] = total_of_row;
  }
}

/// `chunk` vectors of columns for all rows.
INLINE void row_accumulate_chunk(const char *values, ptrdiff_t stride, FAScalarType type, int count,
                                 const float *weights, int rows, int chunk, int columns, int padded,
                                 const float *rescale, float *output, FAPrefetch next) {
  Floats sum[FA_MAX_ROWS][8];
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int v = 0; v < chunk; v++) sum[r][v] = load(output + r * padded + v * LANES) * rescale[r];
  }
  ROLLED for (int key = 0; key < count; key++) {
    prefetch_row(next, key);
    Floats value[8];
    UNROLL for (int v = 0; v < chunk; v++) {
      const char *p = values + key * stride + v * LANES * element_size(type);
      value[v] = columns ? load_some(p, type, columns) : load_elements(p, type);
    }
    UNROLL for (int r = 0; r < rows; r++) {
      const Floats weight = splat(weights[key * rows + r]);
      UNROLL for (int v = 0; v < chunk; v++) sum[r][v] = multiply_add(value[v], weight, sum[r][v]);
    }
  }
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int v = 0; v < chunk; v++) store(output + r * padded + v * LANES, sum[r][v]);
  }
}

INLINE void row_accumulate_wide(const char *values, ptrdiff_t stride, FAScalarType type, int count,
                                const float *weights, int rows, int dimension, int padded, const float *rescale,
                                float *output, FAPrefetch next) {
  const int chunk = ROW_ACCUMULATORS / rows < 8 ? ROW_ACCUMULATORS / rows : 8;
  int c = 0;
  for (; c + chunk * LANES <= dimension; c += chunk * LANES) {
    row_accumulate_chunk(values + c * element_size(type), stride, type, count, weights, rows, chunk, 0, padded, rescale,
                         output + c, next);
    next.count = 0;
  }
  for (; c + LANES <= dimension; c += LANES) {
    row_accumulate_chunk(values + c * element_size(type), stride, type, count, weights, rows, 1, 0, padded, rescale,
                         output + c, next);
    next.count = 0;
  }
  if (c < dimension) {
    row_accumulate_chunk(values + c * element_size(type), stride, type, count, weights, rows, 1, dimension - c, padded,
                         rescale, output + c, next);
  }
}

static void row_accumulate(const void *values, ptrdiff_t stride, FAScalarType type, int count, const float *weights,
                           int rows, int dimension, int padded, const float *rescale, float *output, FAPrefetch next) {
#define CALL(T, R) row_accumulate_wide(values, stride, T, count, weights, R, dimension, padded, rescale, output, next)
  DISPATCH_TYPE_AND_ROWS(type, rows, CALL)
#undef CALL
}

static void store_row(const float *output, float sum, int dimension, FAScalarType type, void *row) {
  const Ints has_keys = (Ints)(splat(sum) > (Floats){0});
  for (int c = 0; c < dimension; c += LANES) {
    const Floats result = masked(has_keys, load(output + c) / splat(sum));
    char *to = (char *)row + c * element_size(type);
    if (c + LANES <= dimension) store_elements(to, type, result);
    else store_some(to, type, result, dimension - c);
  }
}
