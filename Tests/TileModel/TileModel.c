// What the instructions of AMX do (Intel's SDM, volume 2: LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TDPBF16PS, TILERELEASE), and
// CPUMicrokernels' AMX.c compiled with that. Whatever would raise #GP or #UD on a processor ends the process.

#include "include/TileModel.h"

#if defined(__x86_64__)

#include <math.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local struct {
  int is_configured, rows[8], row_bytes[8];
  uint32_t words[8][16][16];
} model;
static _Thread_local int64_t products;

#define DEMAND(CONDITION) \
  if (!(CONDITION)) abort()

static void model_configure(const void *shapes) {
  const uint8_t *bytes = shapes;
  DEMAND(bytes[0] == 1 && bytes[1] == 0);
  for (int i = 2; i < 16; i++) DEMAND(bytes[i] == 0);
  memset(&model, 0, sizeof model);
  model.is_configured = 1;
  for (int tile = 0; tile < 16; tile++) {
    uint16_t row_bytes;
    memcpy(&row_bytes, bytes + 16 + 2 * tile, 2);
    const int rows = bytes[48 + tile];
    DEMAND(rows <= 16 && row_bytes <= 64 && (rows == 0) == (row_bytes == 0) && (tile < 8 || rows == 0));
    if (tile < 8) {
      model.rows[tile] = rows;
      model.row_bytes[tile] = row_bytes;
    }
  }
}

static void model_release(void) { memset(&model, 0, sizeof model); }

static void demand_tile(int tile) { DEMAND(model.is_configured && model.rows[tile] > 0); }

static void model_zero(int tile) {
  demand_tile(tile);
  memset(model.words[tile], 0, sizeof model.words[tile]);
}

static void model_load(int tile, const void *source, int64_t row) {
  model_zero(tile);
  for (int r = 0; r < model.rows[tile]; r++) {
    memcpy(model.words[tile][r], (const char *)source + r * row, (size_t)model.row_bytes[tile]);
  }
}

static void model_store(int tile, void *destination, int64_t row) {
  demand_tile(tile);
  for (int r = 0; r < model.rows[tile]; r++) {
    memcpy((char *)destination + r * row, model.words[tile][r], (size_t)model.row_bytes[tile]);
  }
}

/// Subnormal numbers are zero, of operands and of results.
static float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

static float element(uint32_t word, int which) {
  const uint32_t bits = which ? word & 0xffff0000u : word << 16;
  float value;
  memcpy(&value, &bits, 4);
  return flushed(value);
}

static void model_dot(int sums, int a, int b) {
  demand_tile(sums);
  demand_tile(a);
  demand_tile(b);
  DEMAND(sums != a && sums != b && a != b);
  DEMAND(model.rows[sums] == model.rows[a] && model.row_bytes[sums] == model.row_bytes[b]);
  DEMAND(model.row_bytes[a] == model.rows[b] * 4);
  products++;
  for (int r = 0; r < model.rows[a]; r++) {
    for (int c = 0; c < model.row_bytes[b] / 4; c++) {
      // Of the first elements of words by themselves, and of the second.
      float of[2] = {0, 0};
      for (int k = 0; k < model.rows[b]; k++) {
        for (int i = 0; i < 2; i++) {
          of[i] = flushed(fmaf(element(model.words[a][r][k], i), element(model.words[b][k][c], i), of[i]));
        }
      }
      float sum;
      memcpy(&sum, &model.words[sums][r][c], 4);
      sum = flushed(flushed(sum) + flushed(of[0] + of[1]));
      memcpy(&model.words[sums][r][c], &sum, 4);
    }
  }
}

#define TILE_CONFIGURE(shapes) model_configure(shapes)
#define TILE_RELEASE() model_release()
#define TILE_ZERO(tile) model_zero(tile)
#define TILE_LOAD(tile, source, row_bytes) model_load(tile, source, row_bytes)
#define TILE_STORE(tile, destination, row_bytes) model_store(tile, destination, row_bytes)
#define TILE_DOT(sums, a, b) model_dot(sums, a, b)
#define WITH_TILES with_tiles

#include "../../Sources/CPUMicrokernels/AMX.c"

const void *fa_tile_model(const void *base) {
  // Who has tiles is Intel's.
  static CPUMicrokernels with_pairs;
  with_pairs = *(const CPUMicrokernels *)base;
  fa_spare_pairs(&with_pairs);
  return with_tiles(&with_pairs);
}

int64_t fa_tile_model_products(void) {
  const int64_t since = products;
  products = 0;
  return since;
}

#else

const void *fa_tile_model(const void *base) { return (void)base, (const void *)0; }
int64_t fa_tile_model_products(void) { return 0; }

#endif
