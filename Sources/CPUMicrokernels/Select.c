#define _GNU_SOURCE
#include "Additions.h"

#include <sched.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#include <sys/syscall.h>
#include <unistd.h>

extern const CPUMicrokernels fa_avx512, fa_avx2, fa_neon, fa_portable;

static const CPUMicrokernels *available[7];

#if defined(__x86_64__)
/// Linux lets a process use tiles after it was asked to (arch_prctl, ARCH_REQ_XCOMP_PERM for the state of tiles), unless a thread's stack for
/// signals has no room for them.
static int tiles_are_permitted(void) {
#if defined(__linux__)
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return 0;
#endif
}
#endif

// Runs once, before main: the list is constant afterwards and needs no lock.
__attribute__((constructor)) static void find_available(void) {
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const int avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  // All processors with pairs but Intel's of 2020 ("Cooper Lake") look into tables of 128 bytes, too.
  const int pairs = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
  // Products of pairs in vectors take Intel's processors longer than those of floats (Documentation/Benchmarks.md, "AMX").
  const int pairs_are_slow = __builtin_cpu_is("intel") != 0;
  CPUMicrokernels *with_pairs = pairs ? fa_with_pairs(&fa_avx512) : 0;
  if (pairs && pairs_are_slow) fa_spare_pairs(with_pairs);
  if (pairs && tiles_are_permitted()) available[count++] = fa_with_tiles(with_pairs);
  if (pairs && !pairs_are_slow) available[count++] = with_pairs;
  if (avx512) available[count++] = &fa_avx512;
  if (pairs && pairs_are_slow) available[count++] = with_pairs;
  if (avx2) available[count++] = &fa_avx2;
#elif defined(__aarch64__)
#if defined(__linux__)
  // HWCAP2_BF16.
  if (getauxval(AT_HWCAP2) >> 14 & 1) available[count++] = fa_with_matrices(&fa_neon);
#endif
  available[count++] = &fa_neon;
#endif
  available[count++] = &fa_portable;
}

const CPUMicrokernels *const *fa_cpu_microkernels(void) { return available; }

int fa_prefetches_far(int element_bytes) {
#if defined(__x86_64__)
  // Zen 3 and Zen 4, and Intel's processors with tiles, of which Emerald Rapids was measured.
  return __builtin_cpu_is("amdfam19h") ||
         (element_bytes < 4 && __builtin_cpu_is("intel") && __builtin_cpu_supports("amx-tile"));
#else
  (void)element_bytes;
  return 0;
#endif
}

int fa_processor_count(void) {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? (int)online : 1;
}
