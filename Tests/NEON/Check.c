// NEON's functions against the portable ones, on random tensors at lengths that leave something over: for a machine, or an emulator, that
// runs Arm's instructions. Prints what differs; ends with 1 where something did.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "CPUMicrokernels.h"

enum { MOST_ROWS = 16, MOST_KEYS = 77, MOST_DIMENSION = 136 };

static int failures, comparisons;

static void *room(size_t bytes) {
  void *p = aligned_alloc(64, (bytes + 4096 + 63) / 64 * 64);
  memset(p, 0, bytes + 4096);
  return p;
}

/// About a normal number: a sum of four.
static float random_number(void) {
  float sum = 0;
  for (int i = 0; i < 4; i++) sum += (float)rand() / (float)RAND_MAX - 0.5f;
  return sum * 1.7f;
}

/// `count` random numbers of a type.
static void *random_elements(FAScalarType type, size_t count) {
  char *p = room(count * 4);
  for (size_t i = 0; i < count; i++) {
    const float x = random_number();
    if (type == FA_F32) memcpy(p + 4 * i, &x, 4);
    else if (type == FA_E4M3) p[i] = (char)(rand() % 0x70 | (rand() & 0x80));
    else if (type == FA_F16) { const _Float16 h = (_Float16)x; memcpy(p + 2 * i, &h, 2); }
    else { uint32_t bits; memcpy(&bits, &x, 4); const uint16_t h = (uint16_t)(bits >> 16); memcpy(p + 2 * i, &h, 2); }
  }
  return p;
}

/// The largest difference, of the largest number or of 1/4, is at most `tolerance`; infinities are equal.
static void compare(const char *what, int a, int b, const float *left, const float *right, size_t count, double tolerance) {
  double largest = 0, difference = 0;
  int is_wrong = 0;
  for (size_t i = 0; i < count; i++) {
    if (!isfinite(right[i]) || isnan(left[i])) {
      is_wrong |= isnan(right[i]) ? !isnan(left[i]) : left[i] != right[i];
      continue;
    }
    largest = fmax(largest, fabs(right[i]));
    difference = fmax(difference, fabs((double)left[i] - right[i]));
  }
  comparisons++;
  if (!is_wrong && difference <= tolerance * fmax(largest, 0.25)) return;
  if (failures++ < 20) printf("%s (%d, %d): %g of %g\n", what, a, b, difference, largest);
}

/// One panel over two tiles, of which the second is taken from its 8th key on: `[row][column]` of the output divided by the sums.
static void panel(const CPUMicrokernels *f, int pairs, FAScalarType type, int rows, int keys, int dimension, int is_masked, float cap,
                  const void *q, const void *k, const void *v, float *result, float *statistics) {
  const int size = type == FA_F32 ? 4 : 2, lanes = f->lanes, vectors = (rows + lanes - 1) / lanes, width = vectors * lanes;
  const void *pointers[MOST_ROWS];
  for (int i = 0; i < rows; i++) pointers[i] = (const char *)q + (size_t)i * dimension * size;
  float *queries = room(sizeof(float) * dimension * width), *scores = room(sizeof(float) * MOST_KEYS * width);
  float *output = room(sizeof(float) * dimension * width), *values = room(sizeof(float) * (MOST_KEYS + 32) * (dimension + 16));
  float *state = room(sizeof(float) * 3 * width), *staged = room(sizeof(float) * MOST_KEYS * dimension);
  uint32_t *weights = room(sizeof(float) * (MOST_KEYS + 32) * width);
  int32_t first[MOST_ROWS], end[MOST_ROWS];
  const FASoftmaxState softmax = {state, state + width, state + 2 * width};
  for (int i = 0; i < width; i++) state[i] = -INFINITY;
  const float scale = 1.4426950408889634f / sqrtf((float)dimension);
  FAScoreTransform transform = {scale, 0, 0, 0};
  if (cap != 0) transform = (FAScoreTransform){1, 0, cap * 1.4426950408889634f, 1 / sqrtf((float)dimension) / cap};
  if (pairs) f->pair_pack_queries(pointers, rows, dimension, vectors, (uint32_t *)queries);
  else f->pack_queries(pointers, rows, type, dimension, vectors, queries);
  for (int tile = 0; tile < 2; tile++) {
    const int skipped = tile == 0 ? 0 : 8, all = tile == 0 ? keys / 2 : keys - keys / 2, count = all - skipped;
    if (count <= 0) continue;
    const char *rowsOfK = (const char *)k + (size_t)(tile * (keys / 2) + skipped) * dimension * size;
    const char *rowsOfV = (const char *)v + (size_t)tile * (keys / 2) * dimension * size;
    for (int i = 0; i < width; i++) first[i] = i % 3, end[i] = i < rows ? (i * 5) % (count + 1) : 0;
    const FAVisibleKeys visible = is_masked ? (FAVisibleKeys){first, end} : (FAVisibleKeys){0, 0};
    if (pairs) {
      f->pair_panel_values(rowsOfV, dimension * 2, all, dimension, (uint32_t *)values);
      f->pair_scores(rowsOfK, dimension * 2, count, (uint32_t *)queries, vectors, dimension, scores);
      f->pair_softmax(scores, count, vectors, transform, visible, softmax, weights);
      f->pair_accumulate((uint32_t *)values, (all + 1) / 2, skipped / 2, (count + 1) / 2, weights, vectors, dimension,
                         softmax.rescale, output);
    } else {
      f->widen(rowsOfK, dimension * size, type, count, dimension, staged);
      f->scores(staged, dimension, count, queries, vectors, dimension, scores);
      f->softmax(scores, count, vectors, transform, visible, softmax);
      f->widen(rowsOfV + (size_t)skipped * dimension * size, dimension * size, type, count, dimension, values);
      f->accumulate(values, dimension, count, scores, vectors, dimension, softmax.rescale, output);
    }
  }
  void *destinations[MOST_ROWS];
  for (int i = 0; i < rows; i++) {
    destinations[i] = result + (size_t)i * dimension;
    statistics[i] = softmax.maximum[i];
    statistics[rows + i] = softmax.sum[i];
  }
  f->store_output(output, softmax.sum, vectors, rows, dimension, FA_F32, destinations);
  free(queries), free(scores), free(output), free(values), free(state), free(staged), free(weights);
}

static void panels(const CPUMicrokernels *f, const CPUMicrokernels *portable) {
  static const int lengths[] = {2, 17, 31, 64, 77}, dimensions[] = {8, 40, 64, 136};
  static float made[MOST_ROWS * MOST_DIMENSION], expected[MOST_ROWS * MOST_DIMENSION], own[2 * MOST_ROWS], other[2 * MOST_ROWS];
  static const int counts[] = {1, 2, 3, 4, 5, 8, 11, 12};
  for (size_t n = 0; n < sizeof counts / sizeof *counts; n++) {
    const int rows = counts[n];
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
      for (size_t d = 0; d < sizeof dimensions / sizeof *dimensions; d++) {
        for (int how = 0; how < 3; how++) {
          const int keys = lengths[l], dimension = dimensions[d];
          for (int pairs = 0; pairs <= f->has_pairs; pairs++) {
            for (FAScalarType type = pairs ? FA_BF16 : FA_F32; type <= FA_BF16; type++) {
              void *q = random_elements(type, (size_t)rows * dimension), *k = random_elements(type, (size_t)keys * dimension);
              void *v = random_elements(type, (size_t)keys * dimension);
              panel(f, pairs, type, rows, keys, dimension, how > 0, how > 1 ? 3 : 0, q, k, v, made, own);
              // Its panels are as wide as they are.
              for (int first = 0; first < rows; first += 8) {
                const int some = rows - first < 8 ? rows - first : 8;
                if (how > 0 && first > 0) break;
                panel(portable, 0, type, some, keys, dimension, how > 0, how > 1 ? 3 : 0,
                      (char *)q + (size_t)first * dimension * (type == FA_F32 ? 4 : 2), k, v, expected, other);
                compare(pairs ? "panels of pairs" : "panels", rows, dimension, made + first * dimension, expected, (size_t)some * dimension,
                        pairs ? 8e-3 : 2e-6);
                compare("maximum", rows, keys, own + first, other, (size_t)some, 1e-5);
                compare("sum", rows, keys, own + rows + first, other + some, (size_t)some, pairs ? 1e-4 : 4e-6);
              }
              free(q), free(k), free(v);
            }
          }
        }
      }
    }
  }
}

static void rows(const CPUMicrokernels *f, const CPUMicrokernels *portable) {
  static float made[FA_MAX_ROWS * 160], expected[FA_MAX_ROWS * 160], queries[FA_MAX_ROWS * 160], scores[2][(MOST_KEYS + 32) * FA_MAX_ROWS];
  for (int count = 1; count <= 8; count *= 2) {
    for (int dimension = 8; dimension <= MOST_DIMENSION; dimension += 16) {
      for (FAScalarType type = FA_F32; type <= FA_E4M3; type++) {
        const int padded = (dimension + 31) / 32 * 32, size = type == FA_F32 ? 4 : type == FA_E4M3 ? 1 : 2;
        const FAPrefetch nothing = {0, 0, 0, 0};
        void *k = random_elements(type, (size_t)MOST_KEYS * dimension), *v = random_elements(type, (size_t)MOST_KEYS * dimension);
        void *q = random_elements(FA_F32, (size_t)count * dimension);
        const CPUMicrokernels *tables[] = {f, portable};
        for (int t = 0; t < 2; t++) {
          float state[3 * FA_MAX_ROWS], *output = t == 0 ? made : expected;
          for (int i = 0; i < count; i++) state[i] = -INFINITY, state[count + i] = 0;
          memset(output, 0, sizeof made);
          for (int i = 0; i < count; i++) tables[t]->load_row((float *)q + i * dimension, FA_F32, dimension, padded, queries + i * padded);
          tables[t]->row_scores(k, dimension * size, type, MOST_KEYS, queries, count, dimension, padded, scores[t], nothing);
          tables[t]->row_softmax(scores[t], MOST_KEYS, count, (FAScoreTransform){0.1f, 0, 0, 0}, (FAVisibleKeys){0, 0},
                                 (FASoftmaxState){state, state + count, state + 2 * count});
          tables[t]->row_accumulate(v, dimension * size, type, MOST_KEYS, scores[t], count, dimension, padded, state + 2 * count, output,
                                    nothing);
        }
        // A weight is e to the power of a difference of scores, which of bytes are large.
        compare("rows", count, dimension, made, expected, (size_t)count * padded, type == FA_E4M3 ? 1e-3 : 1e-5);
        free(k), free(v), free(q);
      }
    }
  }
}

static void gradients(const CPUMicrokernels *f, const CPUMicrokernels *portable) {
  enum { SIDE = 48 };
  float *a = random_elements(FA_F32, SIDE * SIDE), *b = random_elements(FA_F32, SIDE * SIDE), *out[2] = {room(4 * SIDE * SIDE), room(4 * SIDE * SIDE)};
  for (int rows = 1; rows <= SIDE; rows += 5) {
    for (int columns = 16; columns <= SIDE; columns += 16) {
      for (int adds = 0; adds < 2; adds++) {
        const FAFactor factor = adds ? (FAFactor){a, 1, SIDE} : (FAFactor){a, SIDE, 1};
        f->gradients.product(factor, b, SIDE, rows, columns, SIDE, adds, out[0], SIDE);
        portable->gradients.product(factor, b, SIDE, rows, columns, SIDE, adds, out[1], SIDE);
        compare("products", rows, columns, out[0], out[1], SIDE * SIDE, 2e-6);
      }
    }
  }
  free(a), free(b), free(out[0]), free(out[1]);
}

/// Every number of 16 bits and of 8, widened.
static void conversions(const CPUMicrokernels *f, const CPUMicrokernels *portable) {
  static uint16_t words[65536];
  static uint8_t bytes[256];
  static float made[65536], expected[65536];
  for (int i = 0; i < 65536; i++) words[i] = (uint16_t)i;
  for (int i = 0; i < 256; i++) bytes[i] = (uint8_t)i;
  for (FAScalarType type = FA_F16; type <= FA_E4M3; type++) {
    const int count = type == FA_E4M3 ? 256 : 65536;
    const void *from = type == FA_E4M3 ? (const void *)bytes : words;
    f->widen(from, 0, type, 1, count, made);
    portable->widen(from, 0, type, 1, count, expected);
    for (int i = 0; i < count; i++) {
      comparisons++;
      if ((isnan(expected[i]) ? !isnan(made[i]) : made[i] != expected[i]) && failures++ < 20) {
        printf("type %d, %x: %g, not %g\n", (int)type, i, made[i], expected[i]);
      }
    }
  }
}

/// Outputs of all types, divided by sums of which one is 0, transposed and rounded.
static void outputs(const CPUMicrokernels *f, const CPUMicrokernels *portable) {
  for (int dimension = 8; dimension <= MOST_DIMENSION; dimension += 8) {
    float *output = random_elements(FA_F32, (size_t)dimension * 4), sums[] = {3, 0, 1.7f, 40};
    for (FAScalarType type = FA_F32; type <= FA_BF16; type++) {
      static char made[2][4 * MOST_DIMENSION * 4];
      static float wide[2][4 * MOST_DIMENSION];
      for (int t = 0; t < 2; t++) {
        void *rows[4];
        for (int i = 0; i < 4; i++) rows[i] = made[t] + (size_t)i * dimension * 4;
        (t == 0 ? f : portable)->store_output(output, sums, 1, 4, dimension, type, rows);
        for (int i = 0; i < 4; i++) portable->widen(rows[i], 0, type, 1, dimension, wide[t] + i * dimension);
      }
      compare("outputs", dimension, (int)type, wide[0], wide[1], (size_t)4 * dimension, type == FA_F32 ? 1e-7 : type == FA_F16 ? 1e-3 : 8e-3);
    }
    free(output);
  }
}

/// Random numbers of all sizes, rounded.
static void roundings(const CPUMicrokernels *f, const CPUMicrokernels *portable) {
  enum { COUNT = 32768 };
  static float numbers[COUNT];
  static uint16_t made[COUNT], expected[COUNT];
  for (int i = 0; i < COUNT; i++) {
    const uint32_t bits = (uint32_t)rand() << 9 ^ (uint32_t)rand();
    memcpy(&numbers[i], &bits, 4);
    if (i % 2 == 0) numbers[i] = ldexpf(random_number(), rand() % 40 - 28);
  }
  for (FAScalarType type = FA_F16; type <= FA_BF16; type++) {
    f->store_scaled(numbers, 1, COUNT, type, made);
    portable->store_scaled(numbers, 1, COUNT, type, expected);
    for (int i = 0; i < COUNT; i++) {
      comparisons++;
      if (made[i] != expected[i] && !isnan(numbers[i]) && failures++ < 20) {
        printf("%a as type %d: %x, not %x\n", numbers[i], (int)type, made[i], expected[i]);
      }
    }
  }
}

/// The arguments are the options of the tables that there must be beside the portable one.
int main(int argc, char **argv) {
  const CPUMicrokernels *const *all = fa_cpu_microkernels(), *portable = 0;
  int count = 0;
  for (; all[count]; count++) portable = all[count];
  if (count != argc) {
    printf("there are %d tables beside the portable one, not %d\n", count - 1, argc - 1);
    return 1;
  }
  for (int table = 1; table < argc; all++, table++) {
    if (strcmp((*all)->option, argv[table]) != 0) {
      printf("there is %s, not %s\n", (*all)->option, argv[table]);
      return 1;
    }
    const int before = comparisons;
    conversions(*all, portable);
    roundings(*all, portable);
    outputs(*all, portable);
    panels(*all, portable);
    rows(*all, portable);
    gradients(*all, portable);
    printf("%s: %d comparisons with the portable functions\n", (*all)->name, comparisons - before);
  }
  if (failures) printf("%d differ\n", failures);
  return failures != 0;
}
