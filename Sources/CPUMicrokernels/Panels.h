// The panels family: query rows across lanes. See CPUMicrokernels.h for the shapes.
//
// The two matrix products hold STRIP x vectors accumulators in registers: STRIP keys (or columns of V) by all vectors
// of the panel. Per step that is `vectors` loads and STRIP broadcasts for STRIP * vectors multiply-adds: with 8 x 3,
// 11 loads for 24 multiply-adds, so the multiply-add units are the limit and not the load ports.

INLINE void pack_queries_typed(const void *const *rows, int count, FAScalarType type, int dimension, int vectors,
                               float *queries) {
  const int width = vectors * LANES;
  for (int v = 0; v < vectors; v++) {
    for (int d = 0; d < dimension; d += LANES) {
      const int columns = dimension - d < LANES ? dimension - d : LANES;
      Floats block[LANES];
      if (columns == LANES && (v + 1) * LANES <= count) {
        UNROLL for (int i = 0; i < LANES; i++) {
          block[i] = load_elements((const char *)rows[v * LANES + i] + (size_t)d * element_size(type), type);
        }
      } else {
        for (int i = 0; i < LANES; i++) {
          const int row = v * LANES + i;
          block[i] = (Floats){0};
          if (row < count) block[i] = load_some((const char *)rows[row] + (size_t)d * element_size(type), type, columns);
        }
      }
      transpose(block);
      float *to = queries + (size_t)d * width + v * LANES;
      if (columns == LANES) {
        UNROLL for (int i = 0; i < LANES; i++) store(to + i * width, block[i]);
      } else {
        for (int i = 0; i < columns; i++) store(to + i * width, block[i]);
      }
    }
  }
}

static void pack_queries(const void *const *rows, int count, FAScalarType type, int dimension, int vectors,
                         float *queries) {
  switch (type) {
    case FA_F32: pack_queries_typed(rows, count, FA_F32, dimension, vectors, queries); break;
    case FA_F16: pack_queries_typed(rows, count, FA_F16, dimension, vectors, queries); break;
    case FA_BF16: pack_queries_typed(rows, count, FA_BF16, dimension, vectors, queries); break;
    case FA_E4M3: pack_queries_typed(rows, count, FA_E4M3, dimension, vectors, queries); break;
  }
}

INLINE void widen_typed(const void *source, ptrdiff_t stride, FAScalarType type, int count, int dimension,
                        float *destination) {
  for (int row = 0; row < count; row++) {
    const char *from = (const char *)source + row * stride;
    float *to = destination + (size_t)row * dimension;
    int d = 0;
    for (; d + LANES <= dimension; d += LANES) store(to + d, load_elements(from + d * element_size(type), type));
    if (d < dimension) {
      store_some(to + d, FA_F32, load_some(from + d * element_size(type), type, dimension - d), dimension - d);
    }
  }
}

static void widen(const void *source, ptrdiff_t stride, FAScalarType type, int count, int dimension,
                  float *destination) {
  switch (type) {
    case FA_F32: widen_typed(source, stride, FA_F32, count, dimension, destination); break;
    case FA_F16: widen_typed(source, stride, FA_F16, count, dimension, destination); break;
    case FA_BF16: widen_typed(source, stride, FA_BF16, count, dimension, destination); break;
    case FA_E4M3: widen_typed(source, stride, FA_E4M3, count, dimension, destination); break;
  }
}

/// S = K Q^T for `strip` keys at once. D is summed in pieces of 32, which are then added: a long chain of roundings at
/// the size of the whole sum would cost more accuracy than the few more additions cost time.
INLINE void scores_strip(const float *keys, ptrdiff_t stride, int strip, const float *queries, int vectors,
                         int dimension, float *scores) {
  for (int start = 0; start < dimension; start += 32) {
    const int end = start + 32 < dimension ? start + 32 : dimension;
    Floats sum[STRIP][PANEL_VECTORS];
    UNROLL for (int j = 0; j < strip; j++) {
      UNROLL for (int v = 0; v < vectors; v++) sum[j][v] = (Floats){0};
    }
    // A pointer to every third key: x86 addresses are a register and one, two or four times another.
    const float *third[(STRIP + 2) / 3], *column = queries + (ptrdiff_t)start * vectors * LANES;
    const float *last = queries + (ptrdiff_t)end * vectors * LANES;
    UNROLL for (int j = 0; j < strip; j += 3) third[j / 3] = keys + j * stride + start;
    ROLLED for (; column != last; column += vectors * LANES) {
      Floats query[PANEL_VECTORS];
      UNROLL for (int v = 0; v < vectors; v++) query[v] = load(column + v * LANES);
      UNROLL for (int j = 0; j < strip; j++) {
        const Floats key = splat(third[j / 3][j % 3 * stride]);
        UNROLL for (int v = 0; v < vectors; v++) sum[j][v] = multiply_add(key, query[v], sum[j][v]);
      }
      UNROLL for (int j = 0; j < strip; j += 3) third[j / 3]++;
    }
    UNROLL for (int j = 0; j < strip; j++) {
      UNROLL for (int v = 0; v < vectors; v++) {
        float *p = scores + (j * vectors + v) * LANES;
        store(p, start == 0 ? sum[j][v] : load(p) + sum[j][v]);
      }
    }
  }
}

INLINE void scores_wide(const float *keys, ptrdiff_t stride, int count, const float *queries, int vectors,
                        int dimension, float *out) {
  int key = 0;
  for (; key + STRIP <= count; key += STRIP) {
    scores_strip(keys + key * stride, stride, STRIP, queries, vectors, dimension,
                 out + (ptrdiff_t)key * vectors * LANES);
  }
  if (8 % STRIP != 0) {
    for (; key + 4 <= count; key += 4) {
      scores_strip(keys + key * stride, stride, 4, queries, vectors, dimension, out + (ptrdiff_t)key * vectors * LANES);
    }
  }
  for (; key < count; key++) {
    scores_strip(keys + key * stride, stride, 1, queries, vectors, dimension, out + (ptrdiff_t)key * vectors * LANES);
  }
}

static void scores(const float *keys, ptrdiff_t stride, int count, const float *queries, int vectors, int dimension,
                   float *out) {
#define CALL(VECTORS) scores_wide(keys, stride, count, queries, VECTORS, dimension, out)
  DISPATCH_VECTORS(CALL)
#undef CALL
}

/// The first pass over a tile: caps and masks the scores, and finds each row's maximum.
INLINE void softmax_maximum(float *scores, int count, int vectors, FAScoreTransform transform, int capped,
                            FAVisibleKeys visible, int is_masked, Floats *largest) {
  Ints first[PANEL_VECTORS], end[PANEL_VECTORS];
  if (is_masked) {
    UNROLL for (int v = 0; v < vectors; v++) {
      __builtin_memcpy(&first[v], visible.first + v * LANES, sizeof first[v]);
      __builtin_memcpy(&end[v], visible.end + v * LANES, sizeof end[v]);
    }
  }
  ROLLED for (int key = 0; key < count; key++) {
    UNROLL for (int v = 0; v < vectors; v++) {
      float *p = scores + (ptrdiff_t)(key * vectors + v) * LANES;
      Floats score = load(p);
      if (capped) score = capped_score(score, transform);
      if (is_masked) {
        const Ints seen = ((Ints){0} + key >= first[v]) & ((Ints){0} + key < end[v]);
        score = seen ? score : splat(MINUS_INFINITY);
      }
      if (capped || is_masked) store(p, score);
      largest[v] = maximum(score, largest[v]);
    }
  }
}

/// The whole softmax step. `weights`, where not null, receives the pairs of the bfloat16 path.
INLINE void softmax_wide(float *scores, int count, int vectors, FAScoreTransform transform, int capped,
                         FAVisibleKeys visible, int is_masked, FASoftmaxState state, uint32_t *weights) {
  Floats largest[PANEL_VECTORS], offset[PANEL_VECTORS], sum[PANEL_VECTORS];
  UNROLL for (int v = 0; v < vectors; v++) largest[v] = load(state.maximum + v * LANES);
  softmax_maximum(scores, count, vectors, transform, capped, visible, is_masked, largest);

  UNROLL for (int v = 0; v < vectors; v++) {
    const Floats old = load(state.maximum + v * LANES);
    // A row that has seen no key yet keeps -inf; its weights are made 0 by subtracting 0 instead.
    offset[v] = largest[v] == splat(MINUS_INFINITY) ? (Floats){0} : largest[v];
    const Floats rescale =
        masked((Ints)(old != splat(MINUS_INFINITY)), weight_of(old, offset[v], transform));
    store(state.maximum + v * LANES, largest[v]);
    store(state.rescale + v * LANES, rescale);
    // Each tile is summed by itself and then added: fewer roundings at the size of the whole sum.
    sum[v] = (Floats){0};
  }

  Floats previous[PANEL_VECTORS];
  ROLLED for (int key = 0; key < count; key++) {
    UNROLL for (int v = 0; v < vectors; v++) {
      float *p = scores + (ptrdiff_t)(key * vectors + v) * LANES;
      const Floats score = load(p);
      Floats weight = weight_of(score, offset[v], transform);
      // With a scale of 0, -inf * 0 is no number; the masked entries must still weigh nothing.
      if (is_masked) weight = masked((Ints)(score != splat(MINUS_INFINITY)), weight);
      sum[v] += weight;
      if (weights) {
        if (key & 1) {
          store_pair(weights + ((ptrdiff_t)(key >> 1) * vectors + v) * LANES, previous[v], weight);
        }
        previous[v] = weight;
      } else {
        store(p, weight);
      }
    }
  }
  if (weights && (count & 1)) {
    UNROLL for (int v = 0; v < vectors; v++) {
      store_pair(weights + ((ptrdiff_t)(count >> 1) * vectors + v) * LANES, previous[v], (Floats){0});
    }
  }
  UNROLL for (int v = 0; v < vectors; v++) {
    const Floats before = load(state.sum + v * LANES) * load(state.rescale + v * LANES);
    store(state.sum + v * LANES, before + sum[v]);
  }
}

INLINE void softmax_any(float *scores, int count, int vectors, FAScoreTransform transform, FAVisibleKeys visible,
                        FASoftmaxState state, uint32_t *weights) {
  const int capped = transform.cap_log2 != 0, is_masked = visible.first != 0;
  if (!capped && !is_masked) {
    softmax_wide(scores, count, vectors, transform, 0, visible, 0, state, weights);
  } else if (!capped) {
    softmax_wide(scores, count, vectors, transform, 0, visible, 1, state, weights);
  } else if (!is_masked) {
    softmax_wide(scores, count, vectors, transform, 1, visible, 0, state, weights);
  } else {
    softmax_wide(scores, count, vectors, transform, 1, visible, 1, state, weights);
  }
}

static void softmax(float *scores, int count, int vectors, FAScoreTransform transform, FAVisibleKeys visible,
                    FASoftmaxState state) {
#define CALL(VECTORS) softmax_any(scores, count, VECTORS, transform, visible, state, 0)
  DISPATCH_VECTORS(CALL)
#undef CALL
}

/// O = O * rescale + V^T P for `strip` columns of V at once.
INLINE void accumulate_strip(const float *values, ptrdiff_t stride, int count, int strip, const float *weights,
                             int vectors, const Floats *rescale, float *output) {
  Floats sum[STRIP][PANEL_VECTORS];
  UNROLL for (int j = 0; j < strip; j++) {
    UNROLL for (int v = 0; v < vectors; v++) sum[j][v] = (Floats){0};
  }
  ROLLED for (int key = 0; key < count; key++) {
    Floats weight[PANEL_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) weight[v] = load(weights + (ptrdiff_t)(key * vectors + v) * LANES);
    const float *row = values + key * stride;
    UNROLL for (int j = 0; j < strip; j++) {
      const Floats value = splat(row[j]);
      UNROLL for (int v = 0; v < vectors; v++) sum[j][v] = multiply_add(value, weight[v], sum[j][v]);
    }
  }
  // As in the softmax, each tile is summed by itself.
  UNROLL for (int j = 0; j < strip; j++) {
    UNROLL for (int v = 0; v < vectors; v++) {
      float *p = output + (j * vectors + v) * LANES;
      store(p, multiply_add(load(p), rescale[v], sum[j][v]));
    }
  }
}

INLINE void accumulate_wide(const float *values, ptrdiff_t stride, int count, const float *weights, int vectors,
                            int dimension, const float *rescale, float *output) {
  Floats factor[PANEL_VECTORS];
  UNROLL for (int v = 0; v < vectors; v++) factor[v] = load(rescale + v * LANES);
  // Dimensions are multiples of 8: of strips of 6, two of 4 take the place of the last where 2 columns would be left.
  const int rest = dimension % STRIP, whole = dimension - (rest == 2 ? 8 : rest);
  int c = 0;
  for (; c < whole; c += STRIP) {
    accumulate_strip(values + c, stride, count, STRIP, weights, vectors, factor,
                     output + (ptrdiff_t)c * vectors * LANES);
  }
  if (8 % STRIP != 0) {
    for (; c < dimension; c += 4) {
      accumulate_strip(values + c, stride, count, 4, weights, vectors, factor,
                       output + (ptrdiff_t)c * vectors * LANES);
    }
  }
}

static void accumulate(const float *values, ptrdiff_t stride, int count, const float *weights, int vectors,
                       int dimension, const float *rescale, float *output) {
#define CALL(VECTORS) accumulate_wide(values, stride, count, weights, VECTORS, dimension, rescale, output)
  DISPATCH_VECTORS(CALL)
#undef CALL
}

/// Columns of `output`, those behind `columns` zero, divided by the sums of their rows. What is rounded to 16 bits may be off by a last place
/// of f32 before: a product takes a tenth of a division's time.
INLINE void divided_block(const float *output, ptrdiff_t width, int columns, Floats divisor, FAScalarType type, Floats block[LANES]) {
  const Ints has_keys = (Ints)(divisor != (Floats){0});
  const Floats factor = 1.0f / divisor;
#define DIVIDED(I) masked(has_keys, type == FA_F32 ? load(output + (I) * width) / divisor : load(output + (I) * width) * factor)
  if (columns == LANES) {
    UNROLL for (int i = 0; i < LANES; i++) block[i] = DIVIDED(i);
  } else {
    for (int i = 0; i < LANES; i++) block[i] = i < columns ? DIVIDED(i) : (Floats){0};
  }
#undef DIVIDED
}

INLINE void store_output_typed(const float *output, const float *sum, int vectors, int count, int dimension,
                               FAScalarType type, void *const *rows) {
  const int width = vectors * LANES;
  for (int v = 0; v * LANES < count; v++) {
    const Floats divisor = load(sum + v * LANES);
    const int lanes = count - v * LANES < LANES ? count - v * LANES : LANES;
    for (int c = 0; c < dimension; c += LANES) {
      const int columns = dimension - c < LANES ? dimension - c : LANES;
      Floats block[LANES];
      divided_block(output + (size_t)c * width + v * LANES, width, columns, divisor, type, block);
      transpose(block);
      const size_t place = (size_t)c * element_size(type);
      if (columns == LANES && lanes == LANES) {
        UNROLL for (int i = 0; i < LANES; i++) store_elements((char *)rows[v * LANES + i] + place, type, block[i]);
      } else {
        for (int i = 0; i < lanes; i++) store_some((char *)rows[v * LANES + i] + place, type, block[i], columns);
      }
    }
  }
}

static void store_output(const float *output, const float *sum, int vectors, int count, int dimension,
                         FAScalarType type, void *const *rows) {
  switch (type) {
    case FA_F16: store_output_typed(output, sum, vectors, count, dimension, FA_F16, rows); break;
    case FA_BF16: store_output_typed(output, sum, vectors, count, dimension, FA_BF16, rows); break;
    default: store_output_typed(output, sum, vectors, count, dimension, FA_F32, rows); break;
  }
}
