// The panels family on bfloat16 pairs: a step does twice the work of a multiply-add. The pairs lie along the summed
// axis: d for the scores, keys for the output. K needs no packing, because two neighbours of a row are 32 bits already.

static void pair_pack_queries(const void *const *rows, int count, int dimension, int vectors, uint32_t *queries) {
  // A pair is 32 bits, so this is the transposition of f32 rows of half the length, whatever the bits mean.
  pack_queries_typed(rows, count, FA_F32, dimension / 2, vectors, (float *)queries);
}

static void pair_pack_values(const void *source, ptrdiff_t stride, int count, int dimension, uint32_t *destination) {
  for (int key = 0; key < count; key += 2) {
    const char *even = (const char *)source + key * stride;
    const int is_last = key + 1 == count;
    const char *odd = is_last ? even : even + stride;
    uint32_t *to = destination + (size_t)(key / 2) * dimension;
    for (int c = 0; c < dimension; c += 8) {
      __m128i low = _mm_loadu_si128((const __m128i *)(even + c * 2));
      __m128i high = is_last ? _mm_setzero_si128() : _mm_loadu_si128((const __m128i *)(odd + c * 2));
      _mm_storeu_si128((__m128i *)(to + c), _mm_unpacklo_epi16(low, high));
      _mm_storeu_si128((__m128i *)(to + c + 4), _mm_unpackhi_epi16(low, high));
    }
  }
}

INLINE uint32_t load_pair(const void *p) {
  uint32_t pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return pair;
}

INLINE void pair_scores_strip(const char *keys, ptrdiff_t stride, int strip, const uint32_t *queries, int vectors,
                              int dimension, float *scores) {
  Floats sum[STRIP][PANEL_VECTORS];
  UNROLL for (int j = 0; j < strip; j++) {
    UNROLL for (int v = 0; v < vectors; v++) sum[j][v] = (Floats){0};
  }
  ROLLED for (int pair = 0; pair < dimension / 2; pair++) {
    Bits query[PANEL_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) {
      __builtin_memcpy(&query[v], queries + (ptrdiff_t)(pair * vectors + v) * LANES, sizeof query[v]);
    }
    UNROLL for (int j = 0; j < strip; j++) {
      const Bits key = (Bits){0} + load_pair(keys + j * stride + pair * 4);
      UNROLL for (int v = 0; v < vectors; v++) sum[j][v] = pair_multiply_add(key, query[v], sum[j][v]);
    }
  }
  UNROLL for (int j = 0; j < strip; j++) {
    UNROLL for (int v = 0; v < vectors; v++) store(scores + (j * vectors + v) * LANES, sum[j][v]);
  }
}

INLINE void pair_scores_wide(const char *keys, ptrdiff_t stride, int count, const uint32_t *queries, int vectors,
                             int dimension, float *out) {
  int key = 0;
  for (; key + STRIP <= count; key += STRIP) {
    pair_scores_strip(keys + key * stride, stride, STRIP, queries, vectors, dimension,
                      out + (ptrdiff_t)key * vectors * LANES);
  }
  for (; key < count; key++) {
    pair_scores_strip(keys + key * stride, stride, 1, queries, vectors, dimension,
                      out + (ptrdiff_t)key * vectors * LANES);
  }
}

static void pair_scores(const void *keys, ptrdiff_t stride, int count, const uint32_t *queries, int vectors,
                        int dimension, float *out) {
#define CALL(VECTORS) pair_scores_wide(keys, stride, count, queries, VECTORS, dimension, out)
  DISPATCH_VECTORS(CALL)
#undef CALL
}

INLINE void pair_accumulate_wide(const uint32_t *values, int count, const uint32_t *weights, int vectors, int dimension,
                                 const float *rescale, float *output) {
  Floats factor[PANEL_VECTORS];
  UNROLL for (int v = 0; v < vectors; v++) factor[v] = load(rescale + v * LANES);
  for (int c = 0; c < dimension; c += STRIP) {
    float *out = output + (ptrdiff_t)c * vectors * LANES;
    Floats sum[STRIP][PANEL_VECTORS];
    UNROLL for (int j = 0; j < STRIP; j++) {
      UNROLL for (int v = 0; v < vectors; v++) sum[j][v] = (Floats){0};
    }
    ROLLED for (int pair = 0; pair < count; pair++) {
      Bits weight[PANEL_VECTORS];
      UNROLL for (int v = 0; v < vectors; v++) {
        __builtin_memcpy(&weight[v], weights + (ptrdiff_t)(pair * vectors + v) * LANES, sizeof weight[v]);
      }
      UNROLL for (int j = 0; j < STRIP; j++) {
        const Bits value = (Bits){0} + values[(ptrdiff_t)pair * dimension + c + j];
        UNROLL for (int v = 0; v < vectors; v++) sum[j][v] = pair_multiply_add(value, weight[v], sum[j][v]);
      }
    }
    UNROLL for (int j = 0; j < STRIP; j++) {
      UNROLL for (int v = 0; v < vectors; v++) {
        float *p = out + (j * vectors + v) * LANES;
        store(p, multiply_add(load(p), factor[v], sum[j][v]));
      }
    }
  }
}

static void pair_accumulate(const uint32_t *values, int tile, int first, int count, const uint32_t *weights, int vectors,
                            int dimension, const float *rescale, float *output) {
  (void)tile;
  values += (size_t)first * dimension;
#define CALL(VECTORS) pair_accumulate_wide(values, count, weights, VECTORS, dimension, rescale, output)
  DISPATCH_VECTORS(CALL)
#undef CALL
}

static void pair_softmax(float *scores, int count, int vectors, FAScoreTransform transform, FAVisibleKeys visible,
                         FASoftmaxState state, uint32_t *weights) {
#define CALL(VECTORS) softmax_any(scores, count, VECTORS, transform, visible, state, weights)
  DISPATCH_VECTORS(CALL)
#undef CALL
}

static double probe_pairs(int64_t steps) {
  Floats sum[24];
  UNROLL for (int i = 0; i < 24; i++) sum[i] = splat((float)i);
  const Bits factor = (Bits)(0x3f7f3f7fu), term = (Bits)(0x3c003c00u);
  ROLLED for (int64_t step = 0; step < steps; step++) {
    UNROLL for (int i = 0; i < (PROBE_CHAINS); i++) sum[i] = pair_multiply_add(factor, term, sum[i]);
  }
  return 4.0 * LANES * PROBE_CHAINS * (double)steps + probe_residue(sum);
}
