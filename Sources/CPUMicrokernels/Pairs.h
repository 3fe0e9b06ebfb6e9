// Products of bfloat16 pairs: one instruction multiplies two neighbours and adds both products to an f32 sum.

#if HAS_PAIRS

#include <immintrin.h>

typedef uint16_t Words __attribute__((ext_vector_type(LANES * 2)));

INLINE Floats pair_multiply_add(Bits a, Bits b, Floats c) {
  return (Floats)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}

/// Stores lane-wise pairs (even in the low half), rounded to bfloat16.
INLINE void store_pair(uint32_t *p, Floats even, Floats odd) {
  // The instruction leaves even's lanes in the low 256 bits and odd's in the high ones; the permutation interleaves.
  const Words both = (Words)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  const Words pairs = __builtin_shufflevector(both, both, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24,
                                              9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  __builtin_memcpy(p, &pairs, sizeof pairs);
}

/// Stores a vector and the next one of a row as bfloat16, so that neighbours are pairs.
INLINE void store_row_of_pairs(uint32_t *p, Floats low, Floats high) {
  const Words row = (Words)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  __builtin_memcpy(p, &row, sizeof row);
}

#else

// Never called: the bfloat16 path is taken only where HAS_PAIRS.
INLINE Floats pair_multiply_add(Bits a, Bits b, Floats c) { return (void)a, (void)b, c; }
INLINE void store_row_of_pairs(uint32_t *p, Floats low, Floats high) { (void)p, (void)low, (void)high; }
INLINE void store_pair(uint32_t *p, Floats even, Floats odd) { (void)p, (void)even, (void)odd; }

#endif
