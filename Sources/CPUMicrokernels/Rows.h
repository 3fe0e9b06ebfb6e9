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

INLINE void prefetch(const char *p, int is_far) {
  if (is_far) __builtin_prefetch(p, 0, 1);
  else __builtin_prefetch(p, 0, 3);
}

/// LANES scores: `rows` rows by LANES / rows keys.
INLINE Floats row_scores_group(const char *keys, ptrdiff_t stride, FAScalarType type, const float *queries, int rows,
                               int dimension, int padded, const char *next, ptrdiff_t next_stride, int is_far) {
  const int group = LANES / rows;
  Floats partial[LANES];
  UNROLL for (int i = 0; i < LANES; i++) partial[i] = (Floats){0};
  int d = 0;
  // A key after the other, in two sums, where so few rows leave the registers for it: memory then sees one stream, as
  // its prefetchers like it, and not a line of each key of the group in turns.
  if (rows <= ROWS_OF_SINGLE_KEYS) {
    const int whole = dimension / (2 * LANES) * (2 * LANES);
    UNROLL for (int k = 0; k < group; k++) {
      Floats second[FA_MAX_ROWS];
      UNROLL for (int r = 0; r < rows; r++) second[r] = (Floats){0};
      ROLLED for (int c = 0; c < whole; c += 2 * LANES) {
        const char *p = keys + k * stride + c * element_size(type);
        Floats two[2];
        load_two(p, type, two);
        prefetch(next + k * next_stride + c * element_size(type), is_far);
        UNROLL for (int r = 0; r < rows; r++) {
          const float *query = queries + r * padded + c;
          partial[k * rows + r] = multiply_add(two[0], load(query), partial[k * rows + r]);
          second[r] = multiply_add(two[1], load(query + LANES), second[r]);
        }
      }
      UNROLL for (int r = 0; r < rows; r++) partial[k * rows + r] += second[r];
    }
    d = whole;
  } else if (type == FA_E4M3) {
    ROLLED for (; d + 2 * LANES <= dimension; d += 2 * LANES) {
      UNROLL for (int k = 0; k < group; k++) {
        Floats two[2];
        load_two(keys + k * stride + d, type, two);
        prefetch(next + k * next_stride + d, is_far);
        UNROLL for (int r = 0; r < rows; r++) {
          const float *query = queries + r * padded + d;
          partial[k * rows + r] = multiply_add(two[0], load(query), partial[k * rows + r]);
          partial[k * rows + r] = multiply_add(two[1], load(query + LANES), partial[k * rows + r]);
        }
      }
    }
  }
  if (type == FA_E4M3) {
    UNROLL for (int i = 0; i < LANES; i++) partial[i] *= SMALL_E4M3;
  }
  ROLLED for (; d + LANES <= dimension; d += LANES) {
    UNROLL for (int k = 0; k < group; k++) {
      const Floats key = load_elements(keys + k * stride + d * element_size(type), type);
      prefetch(next + k * next_stride + d * element_size(type), is_far);
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

/// Keys whose scores are made at once: as many as give LANES scores, or one of the last ones, which stands in all their places.
typedef struct {
  int count;
  /// Where they are; stride 0 repeats one key.
  const char *keys;
  ptrdiff_t stride;
  /// What is asked for meanwhile: the same places of what is read next, or, where there is nothing more, what is at work: that costs next
  /// to nothing.
  const char *next;
  ptrdiff_t next_stride;
} KeyGroup;

INLINE KeyGroup key_group(const char *keys, ptrdiff_t stride, int key, int count, int rows, FAPrefetch next) {
  const int group = LANES / rows, is_whole = key + group <= count, has_next = is_whole && key + group <= next.count;
  const char *here = keys + key * stride;
  const ptrdiff_t own = is_whole ? stride : 0;
  return (KeyGroup){is_whole ? group : 1, here, own, has_next ? (const char *)next.rows + key * next.stride : here,
                    has_next ? next.stride : own};
}

/// The first scores of a group: all, or those of a single key.
INLINE void store_scores(float *scores, Floats all, int count) {
  if (count == LANES) {
    store(scores, all);
  } else {
    float some[LANES];
    store(some, all);
    for (int i = 0; i < count; i++) scores[i] = some[i];
  }
}

INLINE void row_scores_wide(const char *keys, ptrdiff_t stride, FAScalarType type, int count, const float *queries,
                            int rows, int dimension, int padded, float *scores, FAPrefetch next) {
  for (int key = 0; key < count;) {
    const KeyGroup group = key_group(keys, stride, key, count, rows, next);
    const Floats all = row_scores_group(group.keys, group.stride, type, queries, rows, dimension, padded, group.next,
                                        group.next_stride, next.is_far);
    store_scores(scores + (ptrdiff_t)key * rows, all, group.count * rows);
    key += group.count;
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
    case FA_E4M3: DISPATCH_ROWS(FA_E4M3, ROWS, CALL) break;          \
  }

// 8 rows do not fit 4 lanes: there, two halves of 4 rows would be needed, so the widest group is LANES rows.
#define ROWS_AT_ONCE(ROWS) ((ROWS) < LANES ? (ROWS) : LANES)

static void row_scores(const void *keys, ptrdiff_t stride, FAScalarType type, int count, const float *queries, int rows,
                       int dimension, int padded, float *scores, FAPrefetch next) {
#if LANES < FA_MAX_ROWS
  if (rows > LANES) {
    // [key][8] from two runs of [key][4].
    (void)next;
    for (int key = 0; key < count; key++) {
      const char *here = (const char *)keys + key * stride;
      for (int half = 0; half < rows; half += LANES) {
#define GROUP(T) row_scores_group(here, 0, T, queries + half * padded, LANES, dimension, padded, here, 0, 0)
        store(scores + key * rows + half, type == FA_F32    ? GROUP(FA_F32)
                                          : type == FA_F16  ? GROUP(FA_F16)
                                          : type == FA_BF16 ? GROUP(FA_BF16)
                                                            : GROUP(FA_E4M3));
#undef GROUP
      }
    }
    return;
  }
#endif
#define CALL(T, R) row_scores_wide(keys, stride, T, count, queries, ROWS_AT_ONCE(R), dimension, padded, scores, next)
  DISPATCH_TYPE_AND_ROWS(type, rows, CALL)
#undef CALL
}

// The scores of a tile are one run of numbers, row l % rows at place l. PERIOD vectors bring every lane back to the row
// that it had: one, or two where the rows outnumber the lanes.
#define PERIOD(ROWS) ((ROWS) > LANES ? (ROWS) / LANES : 1)

/// result[r] = the largest (or the sum) of the places of row r, starting from start[r].
INLINE void reduce_places(const Floats *v, int rows, int is_sum, const float *start, float *result) {
  float places[FA_MAX_ROWS * LANES];
  UNROLL for (int i = 0; i < PERIOD(rows); i++) store(places + i * LANES, v[i]);
  UNROLL for (int r = 0; r < rows; r++) {
    float x = start[r];
    UNROLL for (int l = r; l < PERIOD(rows) * LANES; l += rows) {
      x = is_sum ? x + places[l] : (places[l] > x ? places[l] : x);
    }
    result[r] = x;
  }
}

/// Every place of row r becomes values[r].
INLINE void spread_places(const float *values, int rows, Floats *v) {
  float places[FA_MAX_ROWS * LANES];
  UNROLL for (int l = 0; l < PERIOD(rows) * LANES; l++) places[l] = values[l % rows];
  UNROLL for (int i = 0; i < PERIOD(rows); i++) v[i] = load(places + i * LANES);
}

INLINE void row_softmax_wide(float *scores, int count, int rows, FAScoreTransform transform, FAVisibleKeys visible,
                             FASoftmaxState state) {
  const int total = count * rows, step = PERIOD(rows) * LANES;
  // Whole periods: the tail is -inf, which weighs nothing.
  for (int i = total; i < total + step; i++) scores[i] = MINUS_INFINITY;
  if (transform.cap_log2 != 0) {
    for (int i = 0; i < total; i += LANES) {
      const Floats score = load(scores + i);
      // tanh would make a finite score of the tail.
      store(scores + i, score == splat(MINUS_INFINITY) ? score : capped_score(score, transform));
    }
  }
  if (visible.first) {
    for (int r = 0; r < rows; r++) {
      for (int key = 0; key < count; key++) {
        if (key < visible.first[r] || key >= visible.end[r]) scores[key * rows + r] = MINUS_INFINITY;
      }
    }
  }

  Floats largest[2], old[2], offset[2], rescale[2], sum[2];
  UNROLL for (int v = 0; v < PERIOD(rows); v++) largest[v] = splat(MINUS_INFINITY);
  for (int i = 0; i < total; i += step) {
    UNROLL for (int v = 0; v < PERIOD(rows); v++) largest[v] = maximum(load(scores + i + v * LANES), largest[v]);
  }
  spread_places(state.maximum, rows, old);
  reduce_places(largest, rows, 0, state.maximum, state.maximum);
  spread_places(state.maximum, rows, largest);
  float factors[FA_MAX_ROWS * LANES];
  UNROLL for (int v = 0; v < PERIOD(rows); v++) {
    // A row that has seen no key yet keeps -inf; its weights are made 0 by subtracting 0 instead.
    offset[v] = largest[v] == splat(MINUS_INFINITY) ? (Floats){0} : largest[v];
    rescale[v] = masked((Ints)(old[v] != splat(MINUS_INFINITY)), weight_of(old[v], offset[v], transform));
    store(factors + v * LANES, rescale[v]);
    sum[v] = (Floats){0};
  }
  for (int i = 0; i < total; i += step) {
    UNROLL for (int v = 0; v < PERIOD(rows); v++) {
      const Floats score = load(scores + i + v * LANES);
      // With a scale of 0, -inf * 0 is no number; the masked entries must still weigh nothing.
      const Floats weight = masked((Ints)(score != splat(MINUS_INFINITY)), weight_of(score, offset[v], transform));
      store(scores + i + v * LANES, weight);
      sum[v] += weight;
    }
  }
  // The tile by itself first: fewer roundings at the size of the whole sum.
  const float zeros[FA_MAX_ROWS] = {0};
  float tile[FA_MAX_ROWS];
  reduce_places(sum, rows, 1, zeros, tile);
  for (int r = 0; r < rows; r++) {
    state.rescale[r] = factors[r];
    state.sum[r] = state.sum[r] * factors[r] + tile[r];
  }
}

static void row_softmax(float *scores, int count, int rows, FAScoreTransform transform, FAVisibleKeys visible,
                        FASoftmaxState state) {
  switch (rows) {
    case 1: row_softmax_wide(scores, count, 1, transform, visible, state); break;
    case 2: row_softmax_wide(scores, count, 2, transform, visible, state); break;
    case 4: row_softmax_wide(scores, count, 4, transform, visible, state); break;
    default: row_softmax_wide(scores, count, 8, transform, visible, state); break;
  }
}

/// `chunk` vectors of columns for all rows, of the keys from `first` to `end`. What the keys of the tile before them left is
/// in `tile`, and what these leave goes there, until the last: it is added to the output.
INLINE void row_accumulate_chunk(const char *values, ptrdiff_t stride, FAScalarType type, int first, int end, int count,
                                 const float *weights, int rows, int chunk, int columns, int padded,
                                 const float *rescale, float *tile, float *output, FAPrefetch next) {
  Floats sum[FA_MAX_ROWS][8];
  // Of the others nothing is gained so, and loads are no longer parts of multiply-adds.
  const int is_by_two = type == FA_E4M3 && chunk % 2 == 0 && !columns;
  const float shrunk = is_by_two ? SMALL_E4M3 : 1;
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int v = 0; v < chunk; v++) {
      sum[r][v] = first == 0 ? (Floats){0} : load(tile + r * padded + v * LANES) * (1 / shrunk);
    }
  }
  ROLLED for (int key = first; key < end; key++) {
    const char *ahead = key < next.count ? (const char *)next.rows + key * next.stride : values + key * stride;
    Floats value[8];
    UNROLL for (int v = 0; v < chunk; v++) {
      const char *p = values + key * stride + v * LANES * element_size(type);
      prefetch(ahead + v * LANES * element_size(type), next.is_far);
      if (!is_by_two) value[v] = columns ? load_some(p, type, columns) : load_elements(p, type);
      else if (v % 2 == 0) load_two(p, type, value + v);
    }
    UNROLL for (int r = 0; r < rows; r++) {
      const Floats weight = splat(weights[key * rows + r]);
      UNROLL for (int v = 0; v < chunk; v++) sum[r][v] = multiply_add(value[v], weight, sum[r][v]);
    }
  }
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int v = 0; v < chunk; v++) {
      float *p = output + r * padded + v * LANES;
      const Floats all = sum[r][v] * shrunk;
      if (end < count) store(tile + r * padded + v * LANES, all);
      else store(p, multiply_add(load(p), splat(rescale[r]), all));
    }
  }
}

INLINE void row_accumulate_wide(const char *values, ptrdiff_t stride, FAScalarType type, int count,
                                const float *weights, int rows, int dimension, int padded, const float *rescale,
                                float *output, FAPrefetch next) {
  const int chunk = ROW_ACCUMULATORS / rows < 8 ? ROW_ACCUMULATORS / rows : 8;
  // Where a chunk of a row is less than a line, few keys at a time: what is left of their lines stays in the first level
  // of the cache.
  const int step = chunk * LANES * element_size(type) < 64 ? KEYS_OF_PARTIAL_LINES : count;
  float tile[FA_MAX_ROWS * FA_MAX_DIMENSION];
  // Without next rows there is nothing to add to.
  const char *ahead = next.count > 0 ? (const char *)next.rows : values;
  for (int first = 0; first < count; first += step) {
    const int end = first + step < count ? first + step : count;
    int c = 0;
#define CHUNK(VECTORS, COLUMNS)                                                                                          \
  next.rows = ahead + c * element_size(type);                                                                            \
  row_accumulate_chunk(values + c * element_size(type), stride, type, first, end, count, weights, rows, VECTORS, COLUMNS, \
                       padded, rescale, tile + c, output + c, next)
    for (; c + chunk * LANES <= dimension; c += chunk * LANES) { CHUNK(chunk, 0); }
    for (; c + LANES <= dimension; c += LANES) { CHUNK(1, 0); }
    if (c < dimension) { CHUNK(1, dimension - c); }
#undef CHUNK
  }
}

static void row_accumulate(const void *values, ptrdiff_t stride, FAScalarType type, int count, const float *weights,
                           int rows, int dimension, int padded, const float *rescale, float *output, FAPrefetch next) {
#define CALL(T, R) row_accumulate_wide(values, stride, T, count, weights, R, dimension, padded, rescale, output, next)
  DISPATCH_TYPE_AND_ROWS(type, rows, CALL)
#undef CALL
}

static void store_row(const float *output, float sum, int dimension, FAScalarType type, void *row) {
  const Ints has_keys = (Ints)(splat(sum) != (Floats){0});
  for (int c = 0; c < dimension; c += LANES) {
    const Floats result = masked(has_keys, load(output + c) / splat(sum));
    char *to = (char *)row + c * element_size(type);
    if (c + LANES <= dimension) store_elements(to, type, result);
    else store_some(to, type, result, dimension - c);
  }
}
