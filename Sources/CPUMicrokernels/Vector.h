// Vectors of LANES floats, by the compiler's vector extension: every instruction set compiles these same lines.
//
// The including file defines LANES (4, 8 or 16), whether multiply-add is one instruction (HAS_FMA) and whether the
// compiler converts f16 in vectors (HAS_F16), and has the target attribute pushed.

#include "include/CPUMicrokernels.h"

#if LANES == 16
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
// Small loops that the compiler should leave as they are.
#define ROLLED _Pragma("clang loop unroll(disable)")

typedef float Floats __attribute__((ext_vector_type(LANES)));
typedef int32_t Ints __attribute__((ext_vector_type(LANES)));
typedef uint32_t Bits __attribute__((ext_vector_type(LANES)));
typedef uint16_t Halves __attribute__((ext_vector_type(LANES)));

#define MINUS_INFINITY (-__builtin_inff())

/// Rows of 16 bits, whose pairs are words, too, may begin between words.
INLINE Floats load(const void *p) {
  Floats v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

INLINE void store(void *p, Floats v) { __builtin_memcpy(p, &v, sizeof v); }

INLINE Floats splat(float x) { return (Floats)x; }

INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if HAS_FMA
  return __builtin_elementwise_fma(a, b, c);
#else
  return a * b + c;
#endif
}

/// b where the mask is set, zero elsewhere.
INLINE Floats masked(Ints mask, Floats v) { return (Floats)(mask & (Ints)v); }

// The two interleavings from which transposition and many sums at once are built:
// low(a, b) = a0 b0 a1 b1 ..., high(a, b) = the same of the upper halves.
#if LANES == 16
INLINE Floats interleave_low(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
INLINE Floats interleave_high(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif LANES == 8
INLINE Floats interleave_low(Floats a, Floats b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
INLINE Floats interleave_high(Floats a, Floats b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
INLINE Floats interleave_low(Floats a, Floats b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
INLINE Floats interleave_high(Floats a, Floats b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#endif

/// Transposes LANES vectors in place: log2(LANES) rounds, each pairing vector i with vector i + LANES/2.
INLINE void transpose(Floats v[LANES]) {
  Floats w[LANES];
  UNROLL for (int round = 1; round < LANES; round *= 2) {
    UNROLL for (int i = 0; i < LANES / 2; i++) {
      w[2 * i] = interleave_low(v[i], v[i + LANES / 2]);
      w[2 * i + 1] = interleave_high(v[i], v[i + LANES / 2]);
    }
    UNROLL for (int i = 0; i < LANES; i++) v[i] = w[i];
  }
}

#if LANES == 8
/// In each half, a0 + a2, b0 + b2, a1 + a3, b1 + b3.
INLINE Floats add_in_halves(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}

/// Lane i of the result is the sum of the lanes of v[i]. What crosses the halves of AVX2's vectors costs another shuffle, and waits
/// longer; so that comes last and once: K of rows takes 2 to 14% less (Documentation/Benchmarks.md, "Caches").
INLINE Floats sums(Floats v[LANES]) {
  const Floats a = add_in_halves(add_in_halves(v[0], v[2]), add_in_halves(v[1], v[3]));
  const Floats b = add_in_halves(add_in_halves(v[4], v[6]), add_in_halves(v[5], v[7]));
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
#else
/// Lane i of the result is the sum of the lanes of v[i]. Each round adds halves and halves the number of vectors;
/// the choice made last ends in the lowest bit of the lane index, so that lanes come out in order.
INLINE Floats sums(Floats v[LANES]) {
  UNROLL for (int n = LANES / 2; n >= 1; n /= 2) {
    UNROLL for (int i = 0; i < n; i++) v[i] = interleave_low(v[i], v[i + n]) + interleave_high(v[i], v[i + n]);
  }
  return v[0];
}
#endif

/// 2^x for x <= 126, 0 below -126 and for -inf; a NaN stays one.
///
/// x = n + f with |f| <= 1/2; 2^f = 1 + f*P(f), P minimax of degree 5 with relative error 2e-9 (fitted by Lawson's
/// iteration on a Chebyshev grid, then rounded). About 1 ulp, and 2^0 is exactly 1.
INLINE Floats exp2_nonlarge(Floats x) {
#if LANES == 16
  // x without its nearest integer; an infinity has none.
  const Floats f = (Floats)_mm512_reduce_ps((__m512)x, 8);
#else
  // 1.5 * 2^23 + 127: adding it leaves the nearest integer, and what an exponent is biased by, in the low bits.
  const float round = 12583039.0f;
  // An exponent of -127 is that of 0.
  const Floats bounded = x < splat(-126.0f) ? splat(-127.0f) : x;
  const Floats shifted = bounded + round;
  const Floats f = bounded - (shifted - round);
#endif
  Floats p = splat(0.00015353361959569156f);
  p = multiply_add(p, f, splat(0.0013398873852565885f));
  p = multiply_add(p, f, splat(0.00961843691766262f));
  p = multiply_add(p, f, splat(0.055503323674201965f));
  p = multiply_add(p, f, splat(0.24022647738456726f));
  p = multiply_add(p, f, splat(0.6931471824645996f));
  p = multiply_add(p, f, splat(1.0f));
#if LANES == 16
  const __mmask16 is_not_small = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return (Floats)_mm512_maskz_scalef_ps(is_not_small, (__m512)p, (__m512)(x - f));
#else
  return p * (Floats)((Bits)shifted << 23);
#endif
}

/// tanh: an odd polynomial (relative error 5e-9) up to 0.625, where 1 - 2/(e^2x + 1) would cancel; that beyond.
INLINE Floats tanh_accurate(Floats x) {
  Floats magnitude = (Floats)((Bits)x & 0x7fffffffu);
  Floats square = x * x;
  Floats p = splat(-0.005704987328499556f);
  p = multiply_add(p, square, splat(0.0206390880048275f));
  p = multiply_add(p, square, splat(-0.05373971536755562f));
  p = multiply_add(p, square, splat(0.13331441581249237f));
  p = multiply_add(p, square, splat(-0.3333328068256378f));
  Floats small = multiply_add(p * square, x, x);
  Floats doubled = magnitude * 2.8853900817779268f;  // 2 * log2(e)
  Floats bounded = doubled > splat(60.0f) ? splat(60.0f) : doubled;  // a NaN stays one
  Floats large = 1.0f - 2.0f / (exp2_nonlarge(bounded) + 1.0f);
  Floats signed_large = (Floats)((Bits)large | ((Bits)x & 0x80000000u));
  return magnitude < splat(0.625f) ? small : signed_large;
}

/// A capped score, in base-2 units.
INLINE Floats capped_score(Floats score, FAScoreTransform t) {
  return t.cap_log2 * tanh_accurate(score * t.scale_over_cap);
}

/// The weight of a score.
INLINE Floats weight_of(Floats score, Floats maximum, FAScoreTransform t) {
  const Floats difference = score - maximum;
  return exp2_nonlarge(multiply_add(difference, splat(t.scale_log2_rest), difference * t.scale_log2));
}

// Conversions between memory and vectors.

INLINE Floats from_bf16(Halves h) { return (Floats)(__builtin_convertvector(h, Bits) << 16); }

/// Rounds to nearest, ties to even; a NaN stays a NaN.
INLINE Halves to_bf16(Floats v) {
  Bits b = (Bits)v;
  Bits rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  Bits quiet = (b >> 16) | 0x40u;
  Ints is_number = (Ints)((b & 0x7fffffffu) <= 0x7f800000u);
  return __builtin_convertvector(is_number ? rounded : quiet, Halves);
}

#if HAS_F16
typedef _Float16 Float16s __attribute__((ext_vector_type(LANES)));
INLINE Floats from_f16(Halves h) { return __builtin_convertvector((Float16s)h, Floats); }
INLINE Halves to_f16(Floats v) { return (Halves) __builtin_convertvector(v, Float16s); }
#else
/// By integers: the exponent is moved by a multiplication with 2^112, which also makes subnormals right.
INLINE Floats from_f16(Halves h) {
  Bits b = __builtin_convertvector(h, Bits);
  Bits magnitude = (b & 0x7fffu) << 13;
  Floats scaled = (Floats)magnitude * 0x1p112f;
  Bits special = magnitude | 0x7f800000u;  // infinity and NaN keep their fraction
  Ints is_special = (Ints)((b & 0x7c00u) == 0x7c00u);
  Bits result = is_special ? special : (Bits)scaled;
  return (Floats)(result | ((b & 0x8000u) << 16));
}
/// Rounds to nearest, ties to even, by adding a power of two whose last place is the result's last place.
INLINE Halves to_f16(Floats v) {
  Bits b = (Bits)v;
  Bits sign = (b >> 16) & 0x8000u;
  Bits magnitude = b & 0x7fffffffu;
  Bits exponent = magnitude & 0x7f800000u;
  exponent = exponent < 0x38800000u ? (Bits)((Bits){0} + 0x38800000u) : exponent;  // at least 2^-14
  Floats anchor = (Floats)(exponent + (13u << 23));
  Floats rounded = ((Floats)magnitude + anchor) - anchor;
  Bits normal = ((Bits)(rounded * 0x1p-112f)) >> 13;
  Ints overflows = (Ints)((Bits)rounded >= 0x47800000u);  // 65536 and above, infinity, NaN
  Ints is_nan = (Ints)(magnitude > 0x7f800000u);
  Bits infinity = (Bits){0} + 0x7c00u;
  Bits special = is_nan ? infinity + 0x200u : infinity;
  return __builtin_convertvector((overflows | is_nan ? special : normal) | sign, Halves);
}
#endif

typedef int8_t Bytes __attribute__((ext_vector_type(LANES)));
typedef int16_t Words16 __attribute__((ext_vector_type(LANES)));

/// E4M3: the bits of an exponent and a fraction are those of an f16 that is 2^8 times smaller. There is no infinity, and all ones, which
/// would be 480, are a NaN.
INLINE Floats from_e4m3(Bytes b) {
  // Widened with its sign, which then stands at both places beside the exponent's four bits: one of them is the fifth's.
  const Words16 bits = (__builtin_convertvector(b, Words16) << 7) & (int16_t)0xbf80;
  const Floats value = from_f16((Halves)bits) * 256.0f;
  const Floats magnitude = (Floats)((Bits)value & 0x7fffffffu);
  return (Floats)((Ints)value | (Ints)(magnitude > splat(448.0f)));
}

typedef int8_t BytePairs __attribute__((ext_vector_type(2 * LANES)));
typedef int16_t Word16Pairs __attribute__((ext_vector_type(2 * LANES)));

/// Two vectors of E4M3, 2^8 times smaller: three operations for eight numbers less than by `from_e4m3`, since a NaN is made one before
/// they are widened, and those who add many multiply the sum.
#define SMALL_E4M3 256.0f
INLINE void from_small_e4m3(BytePairs b, Floats out[2]) {
  const Word16Pairs words = __builtin_convertvector(b, Word16Pairs) << 7;
  const Word16Pairs is_nan = (words | (int16_t)0xc000) == (int16_t)0xff80;
  const Word16Pairs bits = (words & (int16_t)0xbf80) | is_nan;
  out[0] = from_f16((Halves)bits.lo);
  out[1] = from_f16((Halves)bits.hi);
}

INLINE size_t element_size(FAScalarType type) { return type == FA_F32 ? 4 : type == FA_E4M3 ? 1 : 2; }

/// LANES elements of the given type as floats.
INLINE Floats load_elements(const void *p, FAScalarType type) {
  if (type == FA_F32) return load(p);
  if (type == FA_E4M3) {
    Bytes b;
    __builtin_memcpy(&b, p, sizeof b);
    return from_e4m3(b);
  }
  Halves h;
  __builtin_memcpy(&h, p, sizeof h);
  return type == FA_F16 ? from_f16(h) : from_bf16(h);
}

/// Two vectors of neighbours; of E4M3, small ones.
INLINE void load_two(const void *p, FAScalarType type, Floats out[2]) {
  if (type == FA_E4M3) {
    BytePairs b;
    __builtin_memcpy(&b, p, sizeof b);
    from_small_e4m3(b, out);
  } else {
    out[0] = load_elements(p, type);
    out[1] = load_elements((const char *)p + LANES * element_size(type), type);
  }
}

INLINE void store_elements(void *p, FAScalarType type, Floats v) {
  if (type == FA_F32) {
    store(p, v);
  } else {
    Halves h = type == FA_F16 ? to_f16(v) : to_bf16(v);
    __builtin_memcpy(p, &h, sizeof h);
  }
}

/// The first `count` < LANES elements; the lanes above are zero, and no byte beyond is read.
INLINE Floats load_some(const void *p, FAScalarType type, int count) {
  char buffer[LANES * 4] = {0};
  __builtin_memcpy(buffer, p, (size_t)count * element_size(type));
  return load_elements(buffer, type);
}

INLINE void store_some(void *p, FAScalarType type, Floats v, int count) {
  char buffer[LANES * 4];
  store_elements(buffer, type, v);
  __builtin_memcpy(p, buffer, (size_t)count * element_size(type));
}

// Expands CALL(vectors) for the constants that the inner loops of panels must know.
#define DISPATCH_VECTORS(CALL)           \
  switch (vectors) {                     \
    case 1: CALL(1); break;              \
    case 2: CALL(2); break;              \
    default: CALL(PANEL_VECTORS); break; \
  }

#ifdef PROBE_CHAINS
/// Next to nothing, but it depends on all sums, so that the loop that made them is not removed.
INLINE double probe_residue(const Floats sum[24]) {
  Floats total = (Floats){0};
  UNROLL for (int i = 0; i < (PROBE_CHAINS); i++) total += sum[i];
  float lanes[LANES];
  store(lanes, total);
  return lanes[0] == 12345.678f ? 1 : 0;
}
#endif
