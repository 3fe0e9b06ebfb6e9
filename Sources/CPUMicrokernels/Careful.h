// V that holds an infinity or a NaN, under a mask: 0 x NaN is no 0, so a weight of 0 must keep V from being looked at at
// all. Rare, hence simple: found by a scan of the masked tiles, computed one element at a time.

/// A row at a time, without a way out within it, so that the compiler can take whole vectors.
INLINE int has_nonfinite_typed(const char *values, ptrdiff_t stride, FAScalarType type, int count, int dimension) {
  for (int key = 0; key < count; key++) {
    const char *row = values + key * stride;
    uint32_t any = 0;
    for (int c = 0; c < dimension; c++) {
      if (type == FA_F32) {
        uint32_t bits;
        __builtin_memcpy(&bits, row + c * 4, 4);
        any |= (bits & 0x7f800000u) == 0x7f800000u;
      } else if (type == FA_E4M3) {
        any |= (row[c] & 0x7f) == 0x7f;
      } else {
        uint16_t half;
        __builtin_memcpy(&half, row + c * 2, 2);
        const uint16_t exponent = type == FA_F16 ? 0x7c00u : 0x7f80u;
        any |= (half & exponent) == exponent;
      }
    }
    if (any) return 1;
  }
  return 0;
}

static int has_nonfinite(const void *values, ptrdiff_t stride, FAScalarType type, int count, int dimension) {
  switch (type) {
    case FA_F32: return has_nonfinite_typed(values, stride, FA_F32, count, dimension);
    case FA_F16: return has_nonfinite_typed(values, stride, FA_F16, count, dimension);
    case FA_BF16: return has_nonfinite_typed(values, stride, FA_BF16, count, dimension);
    default: return has_nonfinite_typed(values, stride, FA_E4M3, count, dimension);
  }
}

static void accumulate_carefully(const void *values, ptrdiff_t stride, FAScalarType type, int count,
                                 const float *weights, int rows, int dimension, const float *rescale, float *output,
                                 ptrdiff_t row_step, ptrdiff_t column_step) {
  for (int r = 0; r < rows; r++) {
    for (int c = 0; c < dimension; c++) {
      float sum = 0;
      for (int key = 0; key < count; key++) {
        const float weight = weights[key * rows + r];
        if (weight == 0) continue;
        float value[LANES];
        store(value, load_some((const char *)values + key * stride + c * element_size(type), type, 1));
        sum += weight * value[0];
      }
      float *p = output + r * row_step + c * column_step;
      *p = *p * rescale[r] + sum;
    }
  }
}
