// The functions of CPUMicrokernels' AMX.c on a model of tiles, for machines that have none.

#ifndef TILE_MODEL_H
#define TILE_MODEL_H

#include <stdint.h>

/// The table of `base`, a `CPUMicrokernels` with pairs, with the functions of AMX.c, and for the rest as on Intel's processors; null but on x86-64.
const void *_Nullable fa_tile_model(const void *_Nonnull base);

/// Products of tiles since the last call: of the calling thread.
int64_t fa_tile_model_products(void);

#endif
