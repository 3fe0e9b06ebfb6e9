#define LANES 4
#define PANEL_VECTORS 2
#define STRIP 4
#define STAGES_FLOATS 0
#define HAS_FMA 0
#define HAS_F16 0
#define ROW_ACCUMULATORS 8
#define ROWS_OF_SINGLE_KEYS 0
#define KEYS_OF_PARTIAL_LINES 1024
#define PROBE_CHAINS 12
#define TABLE fa_portable
#define TABLE_NAME "portable"

#include "Family.h"

