// The rows family on bfloat16 pairs: queries of bfloat16, K and V of bfloat16 or e4m3. The pairs lie along the summed axis: d for the
// scores, keys for the output, whose weights are rounded to bfloat16. What is left of a byte of e4m3 is a look into a table.

/// The bfloat16 of an e4m3 without its sign: an exponent that is biased by 127 instead of 7, and 3 of 7 bits of a fraction. Below 2^-6
/// there is no leading one, and all ones are no number.
#define E4M3(M)                                                                             \
  ((M) == 127 ? 0x7fc0 : (M) >= 8 ? ((((M) >> 3) + 120) << 7 | ((M)&7) << 4)                \
                     : (M) >= 4   ? (120 << 7 | ((M)&3) << 5)                               \
                     : (M) >= 2   ? (119 << 7 | ((M)&1) << 6)                               \
                                  : (M) * (118 << 7))
#define LOW(M) E4M3(M) & 0xff
#define HIGH(M) E4M3(M) >> 8
#define EIGHT(BYTE, M) \
  BYTE(M), BYTE(M + 1), BYTE(M + 2), BYTE(M + 3), BYTE(M + 4), BYTE(M + 5), BYTE(M + 6), BYTE(M + 7)
#define TABLE_OF(BYTE)                                                                                                  \
  {EIGHT(BYTE, 0),  EIGHT(BYTE, 8),  EIGHT(BYTE, 16), EIGHT(BYTE, 24), EIGHT(BYTE, 32), EIGHT(BYTE, 40), EIGHT(BYTE, 48), \
   EIGHT(BYTE, 56), EIGHT(BYTE, 64), EIGHT(BYTE, 72), EIGHT(BYTE, 80), EIGHT(BYTE, 88), EIGHT(BYTE, 96), EIGHT(BYTE, 104), \
   EIGHT(BYTE, 112), EIGHT(BYTE, 120)}
static const uint8_t e4m3_low[128] = TABLE_OF(LOW), e4m3_high[128] = TABLE_OF(HIGH);
#undef LOW
#undef HIGH
#undef EIGHT
#undef TABLE_OF

/// 64 e4m3 as pairs of neighbours: the first 32 and the others.
INLINE void pairs_of_e4m3(__m512i bytes, Bits out[2]) {
  // Unpacking takes the lower eight of each sixteen: those of the first 32 are brought there.
  bytes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), bytes);
  const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_low), bytes, _mm512_loadu_si512(e4m3_low + 64));
  __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_high), bytes, _mm512_loadu_si512(e4m3_high + 64));
  // high | (bytes & sign)
  high = _mm512_ternarylogic_epi32(high, bytes, _mm512_set1_epi8((char)0x80), 0xf8);
  out[0] = (Bits)_mm512_unpacklo_epi8(low, high);
  out[1] = (Bits)_mm512_unpackhi_epi8(low, high);
}

/// Columns that a load brings, and two vectors of pairs for each 32.
#define PAIR_STEP(TYPE) ((TYPE) == FA_E4M3 ? 64 : 32)

/// A step of a row as pairs of neighbours; columns behind the first `left` are zeros, and are not read.
INLINE void load_pairs(const char *p, FAScalarType type, int left, Bits out[2]) {
  if (type == FA_E4M3) {
    const __mmask64 mask = left >= 64 ? ~(__mmask64)0 : left > 0 ? ((__mmask64)1 << left) - 1 : 0;
    pairs_of_e4m3(_mm512_maskz_loadu_epi8(mask, p), out);
  } else {
    const __mmask32 mask = left >= 32 ? ~(__mmask32)0 : left > 0 ? ((__mmask32)1 << left) - 1 : 0;
    out[0] = (Bits)_mm512_maskz_loadu_epi16(mask, p);
  }
}

/// Rounds rows to bfloat16, 32 numbers at a time; `pairs` may be where they come from.
static void pair_pack_rows(const float *rows, int count, uint32_t *pairs) {
  for (int i = 0; i < count; i += 2 * LANES) {
    const Floats low = load(rows + i), high = load(rows + i + LANES);
    store_row_of_pairs(pairs + i / 2, low, high);
  }
}

/// A step of a group of keys: `left` of its columns are there.
INLINE void pair_row_scores_step(const char *keys, ptrdiff_t stride, FAScalarType type, int left, const uint32_t *queries,
                                 int rows, int padded, const char *next, ptrdiff_t next_stride, int is_far,
                                 Floats partial[LANES]) {
  const int parts = PAIR_STEP(type) / 32, group = LANES / rows;
  Bits query[FA_MAX_ROWS][2];
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int i = 0; i < parts; i++) {
      // Queries end with the last 32 columns.
      query[r][i] = i * 32 < left ? (Bits)load(queries + r * padded / 2 + i * LANES) : (Bits){0};
    }
  }
  UNROLL for (int k = 0; k < group; k++) {
    Bits key[2];
    load_pairs(keys + k * stride, type, left, key);
    prefetch(next + k * next_stride, is_far);
    UNROLL for (int r = 0; r < rows; r++) {
      UNROLL for (int i = 0; i < parts; i++) {
        partial[k * rows + r] = pair_multiply_add(key[i], query[r][i], partial[k * rows + r]);
      }
    }
  }
}

/// LANES scores: `rows` rows by LANES / rows keys.
INLINE Floats pair_row_scores_group(const char *keys, ptrdiff_t stride, FAScalarType type, const uint32_t *queries,
                                    int rows, int dimension, int padded, const char *next, ptrdiff_t next_stride,
                                    int is_far) {
  const int step = PAIR_STEP(type);
  Floats partial[LANES];
  UNROLL for (int i = 0; i < LANES; i++) partial[i] = (Floats){0};
#define STEP(LEFT)                                                                                                   \
  pair_row_scores_step(keys + d * element_size(type), stride, type, LEFT, queries + d / 2, rows, padded,             \
                       next + d * element_size(type), next_stride, is_far, partial)
  int d = 0;
  ROLLED for (; d + step <= dimension; d += step) STEP(step);
  if (d < dimension) STEP(dimension - d);
#undef STEP
  return sums(partial);
}

INLINE void pair_row_scores_wide(const char *keys, ptrdiff_t stride, FAScalarType type, int count, const uint32_t *queries,
                                 int rows, int dimension, int padded, float *scores, FAPrefetch next) {
  for (int key = 0; key < count;) {
    const KeyGroup group = key_group(keys, stride, key, count, rows, next);
    const Floats all = pair_row_scores_group(group.keys, group.stride, type, queries, rows, dimension, padded, group.next,
                                             group.next_stride, next.is_far);
    store_scores(scores + (ptrdiff_t)key * rows, all, group.count * rows);
    key += group.count;
  }
}

// Expands CALL(type, rows) for the constants that the inner loops must know.
#define DISPATCH_PAIRS(TYPE, ROWS, CALL)                 \
  if ((TYPE) == FA_E4M3) {                               \
    DISPATCH_ROWS(FA_E4M3, ROWS, CALL)                   \
  } else {                                               \
    DISPATCH_ROWS(FA_BF16, ROWS, CALL)                   \
  }

static void pair_row_scores(const void *keys, ptrdiff_t stride, FAScalarType type, int count, const uint32_t *queries,
                            int rows, int dimension, int padded, float *scores, FAPrefetch next) {
#define CALL(T, R) pair_row_scores_wide(keys, stride, T, count, queries, R, dimension, padded, scores, next)
  DISPATCH_PAIRS(type, rows, CALL)
#undef CALL
}

/// Weights [key][row] as pairs of keys, [count / 2][row]; the second of an odd last key's is 0. 32 weights more can be read.
INLINE void pack_weights(const float *weights, int count, int rows, uint32_t *pairs) {
  int first[LANES];
  UNROLL for (int l = 0; l < LANES; l++) first[l] = 2 * (l / rows) * rows + l % rows;
  const __m512i even = _mm512_loadu_si512(first), odd = _mm512_add_epi32(even, _mm512_set1_epi32(rows));
  const int total = (count + 1) / 2 * rows;
  for (int i = 0; i < total; i += LANES) {
    const __m512 a = (__m512)load(weights + 2 * i), b = (__m512)load(weights + 2 * i + LANES);
    store_pair(pairs + i, (Floats)_mm512_permutex2var_ps(a, even, b), (Floats)_mm512_permutex2var_ps(a, odd, b));
  }
  if (count % 2 != 0) {
    for (int r = 0; r < rows; r++) pairs[count / 2 * rows + r] &= 0xffffu;
  }
}

/// `vectors` vectors of columns of two keys, as pairs of these; `odd` has its first `odd_left` columns.
INLINE void load_pairs_of_keys(const char *even, const char *odd, FAScalarType type, int vectors, int left, int odd_left,
                               Bits out[8]) {
  Words first, second;
  UNROLL for (int l = 0; l < LANES; l++) {
    first[2 * l] = (uint16_t)l, first[2 * l + 1] = (uint16_t)(l + 32);
    second[2 * l] = (uint16_t)(l + 16), second[2 * l + 1] = (uint16_t)(l + 48);
  }
  UNROLL for (int c = 0; c < vectors * LANES; c += PAIR_STEP(type)) {
    Bits a[2], b[2];
    load_pairs(even + c * element_size(type), type, left - c, a);
    load_pairs(odd + c * element_size(type), type, odd_left - c, b);
    UNROLL for (int i = 0; i < PAIR_STEP(type) / 32; i++) {
      const int v = c / LANES + 2 * i;
      if (v >= vectors) break;
      out[v] = (Bits)_mm512_permutex2var_epi16((__m512i)a[i], (__m512i)first, (__m512i)b[i]);
      out[v + 1] = (Bits)_mm512_permutex2var_epi16((__m512i)a[i], (__m512i)second, (__m512i)b[i]);
    }
  }
}

/// `vectors` vectors of columns for all rows, of which `left` columns are there.
INLINE void pair_row_accumulate_chunk(const char *values, ptrdiff_t stride, FAScalarType type, int count,
                                      const uint32_t *pairs, int rows, int vectors, int left, int padded,
                                      const float *rescale, float *output, FAPrefetch next) {
  Floats sum[FA_MAX_ROWS][8];
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = (Floats){0};
  }
  ROLLED for (int key = 0; key < count; key += 2) {
    const char *even = values + key * stride;
    const int has_odd = key + 1 < count, has_next = key + 2 <= next.count;
    const char *ahead = has_next ? (const char *)next.rows + key * next.stride : even;
    const ptrdiff_t step = has_next ? next.stride : 0;
    UNROLL for (int byte = 0; byte < vectors * LANES * (int)element_size(type); byte += 64) {
      prefetch(ahead + byte, next.is_far);
      prefetch(ahead + step + byte, next.is_far);
    }
    Bits value[8];
    load_pairs_of_keys(even, has_odd ? even + stride : even, type, vectors, left, has_odd ? left : 0, value);
    UNROLL for (int r = 0; r < rows; r++) {
      const Bits weight = (Bits){0} + pairs[key / 2 * rows + r];
      UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = pair_multiply_add(value[v], weight, sum[r][v]);
    }
  }
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int v = 0; v < vectors; v++) {
      float *p = output + r * padded + v * LANES;
      store(p, multiply_add(load(p), splat(rescale[r]), sum[r][v]));
    }
  }
}

INLINE void pair_row_accumulate_wide(const char *values, ptrdiff_t stride, FAScalarType type, int count,
                                     const float *weights, int rows, int dimension, int padded, const float *rescale,
                                     float *output, FAPrefetch next) {
  const int chunk = ROW_ACCUMULATORS / rows < 8 ? ROW_ACCUMULATORS / rows : 8;
  uint32_t pairs[FA_PAIR_ROW_KEYS / 2 * FA_MAX_ROWS + LANES];
  pack_weights(weights, count, rows, pairs);
  // Without next rows there is nothing to add to.
  const char *ahead = next.count > 0 ? (const char *)next.rows : values;
  int c = 0;
#define CHUNK(VECTORS, LEFT)                                                                                             \
  next.rows = ahead + c * element_size(type);                                                                            \
  pair_row_accumulate_chunk(values + c * element_size(type), stride, type, count, pairs, rows, VECTORS, LEFT, padded, rescale, \
                            output + c, next)
  for (; c + chunk * LANES <= dimension; c += chunk * LANES) { CHUNK(chunk, chunk * LANES); }
  for (; c < dimension; c += 32) { CHUNK(2, dimension - c); }
#undef CHUNK
}

static void pair_row_accumulate(const void *values, ptrdiff_t stride, FAScalarType type, int count, const float *weights,
                                int rows, int dimension, int padded, const float *rescale, float *output,
                                FAPrefetch next) {
#define CALL(T, R) pair_row_accumulate_wide(values, stride, T, count, weights, R, dimension, padded, rescale, output, next)
  DISPATCH_PAIRS(type, rows, CALL)
#undef CALL
}
