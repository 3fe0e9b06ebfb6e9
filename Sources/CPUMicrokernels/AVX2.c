#if defined(__x86_64__)

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)

#define LANES 8
#define PANEL_VECTORS 2
#define STRIP 6
#define STAGES_FLOATS 1
#define HAS_FMA 1
#define HAS_F16 1
#define ROW_ACCUMULATORS 8
#define ROWS_OF_SINGLE_KEYS 2
#define KEYS_OF_PARTIAL_LINES 16
#define PROBE_CHAINS 12
#define TABLE fa_avx2
#define TABLE_NAME "AVX2"

#include "Family.h"

#pragma clang attribute pop

#endif
