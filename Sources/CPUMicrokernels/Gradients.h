// The gradients family: products of f32 matrices, small enough to stay in the cache, and what turns their results into weights
// and gradients of scores. See CPUMicrokernels.h for the shapes. Rows of matrices are whole vectors long.

/// out = A B (or out += A B) for `strip` rows by `vectors` vectors of columns.
INLINE void product_block(const float *a, ptrdiff_t a_row, ptrdiff_t a_step, const float *b, ptrdiff_t b_row, int strip,
                          int vectors, int depth, int adds, float *out, ptrdiff_t out_row) {
  Floats sum[STRIP][PANEL_VECTORS];
  UNROLL for (int i = 0; i < strip; i++) {
    UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = (Floats){0};
  }
  ROLLED for (int k = 0; k < depth; k++) {
    Floats row[PANEL_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) row[v] = load(b + k * b_row + v * LANES);
    UNROLL for (int i = 0; i < strip; i++) {
      const Floats factor = splat(a[i * a_row + k * a_step]);
      UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = multiply_add(factor, row[v], sum[i][v]);
    }
  }
  UNROLL for (int i = 0; i < strip; i++) {
    UNROLL for (int v = 0; v < vectors; v++) {
      float *p = out + i * out_row + v * LANES;
      store(p, adds ? load(p) + sum[i][v] : sum[i][v]);
    }
  }
}

INLINE void product_columns(const float *a, ptrdiff_t a_row, ptrdiff_t a_step, const float *b, ptrdiff_t b_row, int rows,
                            int vectors, int depth, int adds, float *out, ptrdiff_t out_row) {
  int i = 0;
  for (; i + STRIP <= rows; i += STRIP) {
    product_block(a + i * a_row, a_row, a_step, b, b_row, STRIP, vectors, depth, adds, out + i * out_row, out_row);
  }
  for (; i < rows; i++) {
    product_block(a + i * a_row, a_row, a_step, b, b_row, 1, vectors, depth, adds, out + i * out_row, out_row);
  }
}

static void product(FAFactor a, const float *b, ptrdiff_t b_row, int rows, int columns, int depth, int adds, float *out,
                    ptrdiff_t out_row) {
  int c = 0;
  for (; c + PANEL_VECTORS * LANES <= columns; c += PANEL_VECTORS * LANES) {
    product_columns(a.elements, a.row, a.step, b + c, b_row, rows, PANEL_VECTORS, depth, adds, out + c, out_row);
  }
#if PANEL_VECTORS > 2
  for (; c + 2 * LANES <= columns; c += 2 * LANES) {
    product_columns(a.elements, a.row, a.step, b + c, b_row, rows, 2, depth, adds, out + c, out_row);
  }
#endif
  for (; c < columns; c += LANES) {
    product_columns(a.elements, a.row, a.step, b + c, b_row, rows, 1, depth, adds, out + c, out_row);
  }
}

static void product_carefully(FAFactor a, const float *b, ptrdiff_t b_row, int rows, int columns, int depth, float *out,
                              ptrdiff_t out_row) {
  for (int i = 0; i < rows; i++) {
    for (int k = 0; k < depth; k++) {
      const float factor = a.elements[i * a.row + k * a.step];
      if (factor == 0) continue;
      for (int c = 0; c < columns; c += LANES) {
        float *p = out + i * out_row + c;
        store(p, multiply_add(splat(factor), load(b + k * b_row + c), load(p)));
      }
    }
  }
}

static void transposed(const float *source, ptrdiff_t source_row, int rows, int columns, float *out, ptrdiff_t out_row) {
  for (int r = 0; r < rows; r += LANES) {
    for (int c = 0; c < columns; c += LANES) {
      Floats block[LANES];
      UNROLL for (int i = 0; i < LANES; i++) block[i] = load(source + (r + i) * source_row + c);
      transpose(block);
      UNROLL for (int i = 0; i < LANES; i++) store(out + (c + i) * out_row + r, block[i]);
    }
  }
}

static void score_gradients(float *scores, float *gradients, int rows, int columns, FAScoreTransform transform,
                            const float *offsets, const float *deltas, FAVisibleKeys visible) {
  Ints places;
  UNROLL for (int l = 0; l < LANES; l++) places[l] = l;
  for (int r = 0; r < rows; r++) {
    const Floats offset = splat(offsets[r]), delta = splat(deltas[r]);
    for (int c = 0; c < columns; c += LANES) {
      float *p = scores + (ptrdiff_t)r * columns + c, *q = gradients + (ptrdiff_t)r * columns + c;
      Floats score = load(p), slope = splat(1.0f);
      if (transform.cap_log2 != 0) {
        const Floats t = tanh_accurate(score * transform.scale_over_cap);
        score = transform.cap_log2 * t;
        slope = 1.0f - t * t;
      } else {
        score = multiply_add(score, splat(transform.scale_log2_rest), score * transform.scale_log2);
      }
      Floats weight = exp2_nonlarge(score + offset);
      Floats gradient = weight * (load(q) - delta) * slope;
      const Ints column = places + c;
      const Ints is_seen = (Ints)(column >= visible.first[r]) & (Ints)(column < visible.end[r]);
      store(p, masked(is_seen, weight));
      store(q, masked(is_seen, gradient));
    }
  }
}

static void dots(const float *a, const float *b, ptrdiff_t row, int rows, int columns, float *out) {
  for (int r = 0; r < rows; r++) {
    Floats sum = (Floats){0};
    for (int c = 0; c < columns; c += LANES) sum = multiply_add(load(a + r * row + c), load(b + r * row + c), sum);
    float lanes[LANES];
    store(lanes, sum);
    // Halves first: fewer roundings at the size of the whole.
    for (int n = LANES / 2; n >= 1; n /= 2) {
      for (int l = 0; l < n; l++) lanes[l] += lanes[l + n];
    }
    out[r] = lanes[0];
  }
}

static void store_scaled(const float *source, float factor, int dimension, FAScalarType type, void *row) {
  for (int c = 0; c < dimension; c += LANES) {
    const Floats result = load(source + c) * factor;
    char *to = (char *)row + c * element_size(type);
    if (c + LANES <= dimension) store_elements(to, type, result);
    else store_some(to, type, result, dimension - c);
  }
}
