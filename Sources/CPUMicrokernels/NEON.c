#if defined(__aarch64__)

#define LANES 4
#define PANEL_VECTORS 3
#define STRIP 8
#define STAGES_FLOATS 0
#define HAS_FMA 1
#define HAS_F16 1
#define ROW_ACCUMULATORS 16
#define ROWS_OF_SINGLE_KEYS 0
#define KEYS_OF_PARTIAL_LINES 1024
#define PROBE_CHAINS 24
#define TABLE fa_neon
#define TABLE_NAME "NEON"

#include "Family.h"

#endif
