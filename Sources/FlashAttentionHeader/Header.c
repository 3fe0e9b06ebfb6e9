/* A target needs a source; this one also proves that the header is C by itself. */
#include "flash_attention.h"
