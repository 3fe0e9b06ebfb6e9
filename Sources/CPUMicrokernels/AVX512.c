#if defined(__x86_64__)

#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)

#define LANES 16
#define PANEL_VECTORS 3
#define STRIP 8
#define STAGES_FLOATS 0
#define HAS_FMA 1
#define HAS_F16 1
#define ROW_ACCUMULATORS 16
#define ROWS_OF_SINGLE_KEYS 0
#define KEYS_OF_PARTIAL_LINES 1024
#define PROBE_CHAINS 24
#define TABLE fa_avx512
#define TABLE_NAME "AVX-512"

#include "Family.h"

#pragma clang attribute pop

#endif
