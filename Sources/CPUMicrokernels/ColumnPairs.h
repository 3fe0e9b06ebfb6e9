// V for products that take both factors in rows along the side that is summed over: by tiles, and by matrices.

/// Pairs of keys, those of a whole vector: what is behind the last weighs 0.
INLINE int padded_pairs(int pairs) { return (pairs + LANES - 1) / LANES * LANES; }

/// LANES pairs of keys by the columns from `c` on, of which `columns` are there, column by column.
INLINE void pack_block_of_columns(const char *rows, ptrdiff_t stride, int count, int first, int columns, uint32_t *destination,
                                  int words) {
  Floats block[LANES];
  UNROLL for (int i = 0; i < LANES; i++) {
    const int key = 2 * (first + i);
    Halves even = (Halves){0}, odd = (Halves){0};
    if (key < count) __builtin_memcpy(&even, rows + key * stride, (size_t)columns * 2);
    if (key + 1 < count) __builtin_memcpy(&odd, rows + (key + 1) * stride, (size_t)columns * 2);
    block[i] = (Floats)(__builtin_convertvector(even, Bits) | __builtin_convertvector(odd, Bits) << 16);
  }
  transpose(block);
  UNROLL for (int i = 0; i < LANES; i++) store((float *)destination + (size_t)i * words + first, block[i]);
}

/// Columns as rows of pairs, `[column][pairs]`, both whole vectors: those behind the last column and the last key are 0.
static void pack_columns(const void *source, ptrdiff_t stride, int count, int dimension, uint32_t *destination) {
  const int words = padded_pairs((count + 1) / 2);
  for (int c = 0; c < dimension; c += LANES) {
    const char *rows = (const char *)source + c * 2;
    uint32_t *to = destination + (size_t)c * words;
    for (int first = 0; first < words; first += LANES) {
      const int are_all_there = 2 * (first + LANES) <= count;
      // Dimensions are multiples of 8.
      if (LANES > 8 && dimension - c < LANES) pack_block_of_columns(rows, stride, count, first, 8, to, words);
      else if (are_all_there) pack_block_of_columns(rows, stride, 2 * (first + LANES), first, LANES, to, words);
      else pack_block_of_columns(rows, stride, count, first, LANES, to, words);
    }
  }
}
