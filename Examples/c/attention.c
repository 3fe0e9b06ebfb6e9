/*
 * Attention from C, on the CPU or on the first GPU.
 *
 *     Scripts/build-library build
 *     cc Examples/c/attention.c -Ibuild -Lbuild -lflash_attention -Wl,-rpath,"$PWD/build" -lm -o attention && ./attention
 *     ./attention gpu      (with the CUDA toolkit: compile with -DWITH_CUDA -lcudart)
 *
 * Computes causal attention of 4 query heads over 2 key/value heads, and compares one element with the definition.
 */
#include <flash_attention.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef WITH_CUDA
#include <cuda_runtime_api.h>
#endif

enum { N = 33, HEADS = 4, SHARED = 2, D = 64 };

/* bf16 is the upper half of an f32. */
static unsigned short rounded(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static float widened(unsigned short x) {
  unsigned bits = (unsigned)x << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

static unsigned short q[N][HEADS][D], k[N][SHARED][D], v[N][SHARED][D], o[N][HEADS][D];

static void *place(void *host, size_t size, int on_gpu) {
#ifdef WITH_CUDA
  if (on_gpu) {
    void *memory = NULL;
    if (cudaMalloc(&memory, size) || cudaMemcpy(memory, host, size, cudaMemcpyHostToDevice)) exit(1);
    return memory;
  }
#endif
  (void)size, (void)on_gpu;
  return host;
}

static fa_tensor tensor(void *data, int heads) {
  fa_tensor t = {data, (int64_t)N * heads * D, heads * D, D};
  return t;
}

int main(int argc, char **argv) {
  int on_gpu = argc > 1 && strcmp(argv[1], "gpu") == 0;
  unsigned short *all[] = {&q[0][0][0], &k[0][0][0], &v[0][0][0]};
  size_t counts[] = {sizeof q / 2, sizeof k / 2, sizeof v / 2};
  for (int t = 0; t < 3; t++)
    for (size_t i = 0; i < counts[t]; i++) all[t][i] = rounded((float)((i * 2654435761u + (size_t)t * 97) % 1009) / 504 - 1);

  fa_forward_params p;
  memset(&p, 0, sizeof p);
  p.size = sizeof p;
  p.device = on_gpu ? FA_GPU : FA_CPU;
  p.type = FA_BF16;
  p.batch = 1;
  p.queries = p.keys = N;
  p.query_heads = HEADS;
  p.key_value_heads = SHARED;
  p.dimension = D;
  p.scores.mask = FA_MASK_CAUSAL;
  p.q = tensor(place(q, sizeof q, on_gpu), HEADS);
  p.k = tensor(place(k, sizeof k, on_gpu), SHARED);
  p.v = tensor(place(v, sizeof v, on_gpu), SHARED);
  p.o = tensor(place(o, sizeof o, on_gpu), HEADS);
  if (fa_forward(&p) != FA_OK) {
    fprintf(stderr, "%s\n", fa_last_error());
    return 1;
  }
#ifdef WITH_CUDA
  if (on_gpu && cudaMemcpy(o, p.o.data, sizeof o, cudaMemcpyDeviceToHost)) return 1;
#endif

  /* Element 5 of query 20, head 3, by the definition. */
  double sum = 0, expected = 0;
  for (int j = 0; j <= 20; j++) {
    double score = 0;
    for (int d = 0; d < D; d++) score += (double)widened(q[20][3][d]) * widened(k[j][3 / (HEADS / SHARED)][d]);
    double weight = exp(score / sqrt(D));
    sum += weight;
    expected += weight * widened(v[j][3 / (HEADS / SHARED)][5]);
  }
  expected /= sum;
  char plan[400];
  fa_forward_describe(&p, plan, sizeof plan);
  printf("%s\n%.4f, by the definition %.4f\n", plan, widened(o[20][3][5]), expected);
  return fabs(widened(o[20][3][5]) - expected) < 0.01 ? 0 : 1;
}
