// What a processor has beside an instruction set of the same vectors: each puts its functions into a copy of a table. Called once, before
// `main` (Select.c), so that the tables are constant afterwards.

#ifndef ADDITIONS_H
#define ADDITIONS_H

#include "include/CPUMicrokernels.h"

/// A copy of the table of `base`, whose panels must be those of the functions that go into it.
static inline CPUMicrokernels fa_copied(const CPUMicrokernels *base, int lanes, int panel_vectors, const char *name, const char *option) {
  CPUMicrokernels table = *base;
  if (table.lanes != lanes || table.panel_vectors != panel_vectors) __builtin_trap();
  table.name = name;
  table.option = option;
  return table;
}

/// The table of `base`, AVX-512, with products of bfloat16 pairs.
CPUMicrokernels *fa_with_pairs(const CPUMicrokernels *base);
/// Where such products in vectors are slow: gradients, and decoding of some rows, of a table with them keep floats.
void fa_spare_pairs(CPUMicrokernels *table);
/// The table of `base`, AVX-512 with pairs, whose products of pairs in panels are of tiles.
const CPUMicrokernels *fa_with_tiles(const CPUMicrokernels *base);
/// The table of `base`, NEON, with products of bfloat16 matrices in panels.
const CPUMicrokernels *fa_with_matrices(const CPUMicrokernels *base);

#endif
