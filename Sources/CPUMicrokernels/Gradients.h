// The gradients family: products of f32 matrices, small enough to stay in the cache, and what turns their results into weights
// and gradients of scores. See CPUMicrokernels.h for the shapes. Rows of matrices are whole vectors long.

/// out = A B (or out += A B) for `strip` rows by `vectors` vectors of columns, in pieces of 32 as the scores of the forward pass
/// are summed: few roundings at the size of the whole, and in f32 with many rows a score that is the forward pass's to the bit.
INLINE void product_block(const float *a, ptrdiff_t a_row, ptrdiff_t a_step, const float *b, ptrdiff_t b_row, int strip,
                          int vectors, int depth, int adds, float *out, ptrdiff_t out_row) {
  for (int start = 0; start < depth; start += 32) {
    const int end = start + 32 < depth ? start + 32 : depth;
    Floats sum[STRIP][PANEL_VECTORS];
    UNROLL for (int i = 0; i < strip; i++) {
      UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = (Floats){0};
    }
    ROLLED for (int k = start; k < end; k++) {
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
        store(p, adds || start > 0 ? load(p) + sum[i][v] : sum[i][v]);
      }
    }
  }
}

INLINE void product_columns(const float *a, ptrdiff_t a_row, ptrdiff_t a_step, const float *b, ptrdiff_t b_row, int rows,
                            int vectors, int depth, int adds, float *out, ptrdiff_t out_row) {
  int i = 0;
  for (; i + STRIP <= rows; i += STRIP) {
    product_block(a + i * a_row, a_row, a_step, b, b_row, STRIP, vectors, depth, adds, out + i * out_row, out_row);
  }
  if (8 % STRIP != 0) {
    for (; i + 4 <= rows; i += 4) {
      product_block(a + i * a_row, a_row, a_step, b, b_row, 4, vectors, depth, adds, out + i * out_row, out_row);
    }
  }
  for (; i < rows; i++) {
    product_block(a + i * a_row, a_row, a_step, b, b_row, 1, vectors, depth, adds, out + i * out_row, out_row);
  }
}

static void product(FAFactor a, const float *b, ptrdiff_t b_row, int rows, int columns, int depth, int adds, float *out,
                    ptrdiff_t out_row) {
#define COLUMNS(VECTORS) \
  product_columns(a.elements, a.row, a.step, b + c, b_row, rows, VECTORS, depth, adds, out + c, out_row)
  int c = 0;
  while (c < columns) {
    const int left = (columns - c) / LANES;
    // Four are two and two: one alone has too few sums to keep the multiply-add units busy.
    const int vectors = left < PANEL_VECTORS ? left : left == PANEL_VECTORS + 1 && PANEL_VECTORS > 2 ? 2 : PANEL_VECTORS;
    switch (vectors) {
      case 1: COLUMNS(1); break;
      case 2: COLUMNS(2); break;
      default: COLUMNS(PANEL_VECTORS); break;
    }
    c += vectors * LANES;
  }
#undef COLUMNS
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

static void score_gradients(float *scores, float *gradients, int rows, int columns, FAGradientTransform transform,
                            const float *log_sum_exps, const float *deltas, FAVisibleKeys visible) {
  Ints places;
  UNROLL for (int l = 0; l < LANES; l++) places[l] = l;
  for (int r = 0; r < rows; r++) {
    const Floats offset = splat(-log_sum_exps[r]), delta = splat(deltas[r]);
    for (int c = 0; c < columns; c += LANES) {
      float *p = scores + (ptrdiff_t)r * columns + c, *q = gradients + (ptrdiff_t)r * columns + c;
      const Floats score = load(p);
      Floats difference, slope = splat(1.0f);
      // The sum is subtracted before anything is rounded: what is left is small where a weight is large.
      if (transform.cap != 0) {
        const Floats t = tanh_accurate(score * transform.scale_over_cap);
        difference = multiply_add(t, splat(transform.cap), offset);
        slope = 1.0f - t * t;
      } else {
        difference =
            multiply_add(score, splat(transform.scale_rest), multiply_add(score, splat(transform.scale), offset));
      }
      const Floats weight = exp2_nonlarge(difference * 1.4426950408889634f);
      const Floats gradient = weight * (load(q) - delta) * slope;
      const Ints column = places + c;
      const Ints is_seen = (Ints)(column >= visible.first[r]) & (Ints)(column < visible.end[r]);
      store(p, masked(is_seen, weight));
      store(q, masked(is_seen, gradient));
    }
  }
}

static void dots(const float *a, const float *b, ptrdiff_t row, int rows, int columns, float *out) {
  for (int r = 0; r < rows; r++) {
    Floats total = (Floats){0};
    for (int start = 0; start < columns; start += 32) {
      const int end = start + 32 < columns ? start + 32 : columns;
      Floats sum = (Floats){0};
      ROLLED for (int c = start; c < end; c++) sum = multiply_add(splat(a[r * row + c]), splat(b[r * row + c]), sum);
      total = start == 0 ? sum : total + sum;
    }
    out[r] = total[0];
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
