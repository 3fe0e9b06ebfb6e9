// The gradients family: products of matrices small enough to stay in the cache, and what turns their results into weights and
// gradients of scores. See CPUMicrokernels.h for the shapes. Rows of matrices are whole vectors of words long. `pairs` is a constant
// everywhere: whether words are bfloat16 pairs, and not floats.

INLINE Floats multiply_add_words(Floats a, Floats b, Floats sum, int pairs) {
  return pairs ? pair_multiply_add((Bits)a, (Bits)b, sum) : multiply_add(a, b, sum);
}

/// out = A B (or out += A B) for `strip` rows by `vectors` vectors of columns, in pieces of 32 as the scores of the forward pass
/// are summed: few roundings at the size of the whole, and in f32 with many rows a score that is the forward pass's to the bit. (Of pairs,
/// 32 are 64 numbers, and the forward pass sums them all in one.)
INLINE void product_block(FAFactor a, const float *b, ptrdiff_t b_row, int strip, int vectors, int depth, int adds,
                          float *out, ptrdiff_t out_row, int pairs) {
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
        const Floats factor = splat(a.elements[i * a.row + k * a.step]);
        UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = multiply_add_words(factor, row[v], sum[i][v], pairs);
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

INLINE void product_columns(FAFactor a, const float *b, ptrdiff_t b_row, int rows, int vectors, int depth, int adds,
                            float *out, ptrdiff_t out_row, int pairs) {
#define ROWS(COUNT)                                                                                        \
  for (; i + COUNT <= rows; i += COUNT) {                                                                  \
    product_block((FAFactor){a.elements + i * a.row, a.row, a.step}, b, b_row, COUNT, vectors, depth, adds, \
                  out + i * out_row, out_row, pairs);                                                      \
  }
  int i = 0;
  ROWS(STRIP)
  if (8 % STRIP != 0) {
    ROWS(4)
  }
  ROWS(1)
#undef ROWS
}

INLINE void product_any(FAFactor a, const float *b, ptrdiff_t b_row, int rows, int columns, int depth, int adds,
                        float *out, ptrdiff_t out_row, int pairs) {
#define COLUMNS(VECTORS) product_columns(a, b + c, b_row, rows, VECTORS, depth, adds, out + c, out_row, pairs)
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

/// The first or second element of words.
INLINE Floats element_of(Floats words, int which, int pairs) {
  return !pairs ? words : which == 0 ? (Floats)((Bits)words << 16) : (Floats)((Bits)words & 0xffff0000u);
}

INLINE void product_carefully_any(FAFactor a, const float *b, ptrdiff_t b_row, int rows, int columns, int depth, float *out,
                                  ptrdiff_t out_row, int pairs) {
  for (int i = 0; i < rows; i++) {
    for (int k = 0; k < depth; k++) {
      const Floats word = splat(a.elements[i * a.row + k * a.step]);
      for (int which = 0; which <= pairs; which++) {
        const Floats factor = element_of(word, which, pairs);
        if (factor[0] == 0) continue;
        for (int c = 0; c < columns; c += LANES) {
          float *p = out + i * out_row + c;
          store(p, multiply_add(factor, element_of(load(b + k * b_row + c), which, pairs), load(p)));
        }
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

/// The weights of a row's scores, a vector of them, and the gradients of these scores but for the scale.
INLINE void score_gradient(Floats score, Floats given, Floats offset, Floats delta, FAGradientTransform transform,
                           Ints is_seen, Floats *weight, Floats *gradient) {
  Floats difference, slope = splat(1.0f);
  // The sum is subtracted before anything is rounded: what is left is small where a weight is large.
  if (transform.cap != 0) {
    const Floats t = tanh_accurate(score * transform.scale_over_cap);
    difference = multiply_add(t, splat(transform.cap), offset);
    slope = 1.0f - t * t;
  } else {
    difference = multiply_add(score, splat(transform.scale_rest), multiply_add(score, splat(transform.scale), offset));
  }
  const Floats w = exp2_nonlarge(difference * 1.4426950408889634f);
  *weight = masked(is_seen, w);
  *gradient = masked(is_seen, w * (given - delta) * slope);
}

/// Rows two by two where words are pairs: two of a row for dQ, and two rows for dK and dV.
INLINE void score_gradients_any(const float *scores, const float *given, int rows, int columns,
                                FAGradientTransform transform, const float *log_sum_exps, const float *deltas,
                                FAVisibleKeys visible, FAScoreGradients out, int pairs) {
  const int atOnce = pairs ? 2 : 1;
  Ints places;
  UNROLL for (int l = 0; l < LANES; l++) places[l] = l;
  for (int r = 0; r < rows; r += atOnce) {
    for (int c = 0; c < columns; c += atOnce * LANES) {
      Floats weight[2][2], gradient[2][2];
      UNROLL for (int i = 0; i < atOnce; i++) {
        // Behind the last row there is nothing to see.
        const int row = r + i < rows ? r + i : r;
        const int first = r + i < rows ? visible.first[row] : 0, end = r + i < rows ? visible.end[row] : 0;
        UNROLL for (int v = 0; v < atOnce; v++) {
          const ptrdiff_t place = (ptrdiff_t)row * columns + c + v * LANES;
          const Ints column = places + (c + v * LANES);
          score_gradient(load(scores + place), load(given + place), splat(-log_sum_exps[row]), splat(deltas[row]), transform,
                         (Ints)(column >= first) & (Ints)(column < end), &weight[i][v], &gradient[i][v]);
        }
      }
      if (pairs) {
        UNROLL for (int v = 0; v < 2; v++) {
          const ptrdiff_t place = (ptrdiff_t)(r / 2) * columns + c + v * LANES;
          store_pair((uint32_t *)out.weights + place, weight[0][v], weight[1][v]);
          store_pair((uint32_t *)out.gradients + place, gradient[0][v], gradient[1][v]);
        }
        UNROLL for (int i = 0; i < 2; i++) {
          store_row_of_pairs((uint32_t *)out.gradient_rows + ((ptrdiff_t)(r + i) * columns + c) / 2, gradient[i][0], gradient[i][1]);
        }
      } else {
        store(out.weights + (ptrdiff_t)r * columns + c, weight[0][0]);
        store(out.gradients + (ptrdiff_t)r * columns + c, gradient[0][0]);
      }
    }
  }
}

INLINE void dots_any(const float *a, const float *b, ptrdiff_t row, int rows, int depth, float *out, int pairs) {
  for (int r = 0; r < rows; r++) {
    Floats total = (Floats){0};
    for (int start = 0; start < depth; start += 32) {
      const int end = start + 32 < depth ? start + 32 : depth;
      Floats sum = (Floats){0};
      ROLLED for (int c = start; c < end; c++) {
        sum = multiply_add_words(splat(a[r * row + c]), splat(b[r * row + c]), sum, pairs);
      }
      total = start == 0 ? sum : total + sum;
    }
    out[r] = total[0];
  }
}

// The functions of `FAGradients`, of floats and of pairs.
#define GRADIENTS(PREFIX, PAIRS)                                                                                          \
  static void PREFIX##product(FAFactor a, const float *b, ptrdiff_t b_row, int rows, int columns, int depth, int adds,    \
                              float *out, ptrdiff_t out_row) {                                                            \
    product_any(a, b, b_row, rows, columns, depth, adds, out, out_row, PAIRS);                                            \
  }                                                                                                                       \
  static void PREFIX##product_carefully(FAFactor a, const float *b, ptrdiff_t b_row, int rows, int columns, int depth,    \
                                        float *out, ptrdiff_t out_row) {                                                  \
    product_carefully_any(a, b, b_row, rows, columns, depth, out, out_row, PAIRS);                                        \
  }                                                                                                                       \
  static void PREFIX##score_gradients(const float *scores, const float *given, int rows, int columns,                     \
                                      FAGradientTransform transform, const float *log_sum_exps, const float *deltas,      \
                                      FAVisibleKeys visible, FAScoreGradients out) {                                      \
    score_gradients_any(scores, given, rows, columns, transform, log_sum_exps, deltas, visible, out, PAIRS);              \
  }                                                                                                                       \
  static void PREFIX##dots(const float *a, const float *b, ptrdiff_t row, int rows, int depth, float *out) {              \
    dots_any(a, b, row, rows, depth, out, PAIRS);                                                                         \
  }

GRADIENTS(, 0)
#if HAS_PAIRS
GRADIENTS(pair_, 1)
#endif

static void store_scaled(const float *source, float factor, int dimension, FAScalarType type, void *row) {
  for (int c = 0; c < dimension; c += LANES) {
    const Floats result = load(source + c) * factor;
    char *to = (char *)row + c * element_size(type);
    if (c + LANES <= dimension) store_elements(to, type, result);
    else store_some(to, type, result, dimension - c);
  }
}
