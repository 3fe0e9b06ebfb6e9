/*
 * Decoding from C: a token at a time over a cache, for two sequences of different lengths. On a GPU the call is captured once
 * and replayed, with whatever lengths and tokens the memory then holds; the driver is all that is needed there.
 *
 *     Scripts/build-library build
 *     cc Examples/c/decode.c -Ibuild -Lbuild -lflash_attention -Wl,-rpath,"$PWD/build" -lm -ldl -o decode && ./decode
 *     ./decode gpu
 *
 * At the end, outputs are compared with the definition.
 */
#include <dlfcn.h>
#include <flash_attention.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 2, CAPACITY = 512, STEPS = 40, HEADS = 8, SHARED = 2, D = 64 };

typedef unsigned short bf16; /* the upper half of an f32 */

static bf16 rounded(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static double widened(bf16 x) {
  unsigned bits = (unsigned)x << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

static void check(int failed, const char *what) {
  if (!failed) return;
  fprintf(stderr, "%s\n", what);
  exit(1);
}

/* What is used of the CUDA driver, found at run time. */
static struct {
  int on;
  void *stream, *graph;
  int (*allocate)(unsigned long long *, size_t);
  int (*upload)(unsigned long long, const void *, size_t, void *);
  int (*download)(void *, unsigned long long, size_t);
  int (*begin)(void *, int);
  int (*end)(void *, void **);
  int (*instantiate)(void **, void *, unsigned long long);
  int (*launch)(void *, void *);
  int (*wait)(void *);
} gpu;

static void find(void *library, const char *name, void *function) {
  void *found = dlsym(library, name);
  check(!found, name);
  memcpy(function, &found, sizeof found);
}

static void open_gpu(void) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW), *context;
  int (*init)(unsigned), (*device)(int *, int), (*retain)(void **, int), (*enter)(void *), (*create)(void **, unsigned), number;
  check(!driver, "There is no NVIDIA driver here; run without gpu.");
  find(driver, "cuInit", &init);
  find(driver, "cuDeviceGet", &device);
  find(driver, "cuDevicePrimaryCtxRetain", &retain);
  find(driver, "cuCtxSetCurrent", &enter);
  find(driver, "cuStreamCreate", &create);
  find(driver, "cuMemAlloc_v2", &gpu.allocate);
  find(driver, "cuMemcpyHtoDAsync_v2", &gpu.upload);
  find(driver, "cuMemcpyDtoH_v2", &gpu.download);
  find(driver, "cuStreamBeginCapture_v2", &gpu.begin);
  find(driver, "cuStreamEndCapture", &gpu.end);
  find(driver, "cuGraphInstantiateWithFlags", &gpu.instantiate);
  find(driver, "cuGraphLaunch", &gpu.launch);
  find(driver, "cuStreamSynchronize", &gpu.wait);
  check(init(0) || device(&number, 0) || retain(&context, number) || enter(context), "The GPU cannot be used.");
  check(create(&gpu.stream, 1), "There is no stream.");
  gpu.on = 1;
}

/* Memory where attention is computed, and copies into it. */
static void *allocate(size_t size) {
  unsigned long long address;
  if (!gpu.on) return calloc(1, size);
  check(gpu.allocate(&address, size), "There is not so much memory.");
  return (void *)(size_t)address;
}
static void copy(void *to, const void *from, size_t size) {
  if (gpu.on)
    check(gpu.upload((size_t)to, from, size, gpu.stream), "A copy failed.");
  else
    memcpy(to, from, size);
}

static bf16 k[BATCH][CAPACITY][SHARED][D], v[BATCH][CAPACITY][SHARED][D], q[BATCH][HEADS][D], o[BATCH][HEADS][D];
static bf16 new_k[BATCH][SHARED][D], new_v[BATCH][SHARED][D];

/* [batch, tokens, heads, D], contiguous. */
static fa_tensor tensor(void *data, int tokens, int heads) {
  fa_tensor t = {data, (int64_t)tokens * heads * D, heads * D, D};
  return t;
}

static void draw(bf16 *values, size_t count, unsigned seed) {
  for (size_t i = 0; i < count; i++) values[i] = rounded((float)((i * 2654435761u + seed * 97u) % 1009) / 504 - 1);
}

/* The largest difference of a sequence's output from the definition. */
static double difference(int b, int length) {
  double largest = 0, scores[CAPACITY];
  for (int h = 0; h < HEADS; h++) {
    int shared = h / (HEADS / SHARED);
    double sum = 0;
    for (int j = 0; j < length; j++) {
      double score = 0;
      for (int d = 0; d < D; d++) score += widened(q[b][h][d]) * widened(k[b][j][shared][d]);
      sum += scores[j] = exp(score / sqrt(D));
    }
    for (int d = 0; d < D; d++) {
      double expected = 0;
      for (int j = 0; j < length; j++) expected += scores[j] / sum * widened(v[b][j][shared][d]);
      /* A NaN stays one, which fmax would drop. */
      double error = fabs(expected - widened(o[b][h][d]));
      if (!(error <= largest)) largest = error;
      if (error != error) return error;
    }
  }
  return largest;
}

int main(int argc, char **argv) {
  int32_t lengths[BATCH] = {300, 5};
  if (argc > 1 && strcmp(argv[1], "gpu") == 0) open_gpu();
  for (int b = 0; b < BATCH; b++) {
    draw(&k[b][0][0][0], (size_t)lengths[b] * SHARED * D, 1 + (unsigned)b);
    draw(&v[b][0][0][0], (size_t)lengths[b] * SHARED * D, 11 + (unsigned)b);
  }

  fa_sequences_params p;
  memset(&p, 0, sizeof p);
  p.size = sizeof p;
  p.device = gpu.on ? FA_GPU : FA_CPU;
  p.type = p.query_type = p.cache_type = FA_BF16;
  p.cache = FA_CACHE_CONTIGUOUS;
  p.batch = p.cache_batch = BATCH;
  p.queries = p.new_keys = 1;
  p.query_heads = HEADS;
  p.key_value_heads = SHARED;
  p.dimension = D;
  p.cache_tokens = CAPACITY;
  p.scores.mask = FA_MASK_CAUSAL;
  p.q = tensor(allocate(sizeof q), 1, HEADS);
  p.o = tensor(allocate(sizeof o), 1, HEADS);
  p.k = tensor(allocate(sizeof k), CAPACITY, SHARED);
  p.v = tensor(allocate(sizeof v), CAPACITY, SHARED);
  p.new_k = tensor(allocate(sizeof new_k), 1, SHARED);
  p.new_v = tensor(allocate(sizeof new_v), 1, SHARED);
  p.lengths = allocate(sizeof lengths);
  p.stream = gpu.stream;
  copy(p.k.data, k, sizeof k);
  copy(p.v.data, v, sizeof v);

  /* A workspace that is zero before the first call; kernels compiled now, and not in the loop. */
  check(fa_sequences_workspace(&p, &p.workspace_size) != FA_OK, fa_last_error());
  if (p.workspace_size > 0) {
    void *zeros = calloc(1, p.workspace_size);
    p.workspace = allocate(p.workspace_size);
    copy(p.workspace, zeros, p.workspace_size);
    check(gpu.on && gpu.wait(gpu.stream), "The GPU failed.");
    free(zeros);
  }
  check(fa_sequences_prepare(&p) != FA_OK, fa_last_error());

  if (gpu.on) {
    void *captured;
    check(gpu.begin(gpu.stream, 1), "The capture does not begin.");
    check(fa_sequences(&p) != FA_OK, fa_last_error());
    check(gpu.end(gpu.stream, &captured) || gpu.instantiate(&gpu.graph, captured, 0), "The capture does not end.");
  }

  for (unsigned step = 0; step < STEPS; step++) {
    /* What a model would make of the last tokens. */
    draw(&q[0][0][0], sizeof q / 2, 100 + step);
    draw(&new_k[0][0][0], sizeof new_k / 2, 200 + step);
    draw(&new_v[0][0][0], sizeof new_v / 2, 300 + step);
    copy(p.q.data, q, sizeof q);
    copy(p.new_k.data, new_k, sizeof new_k);
    copy(p.new_v.data, new_v, sizeof new_v);
    copy((void *)p.lengths, lengths, sizeof lengths);
    if (gpu.on)
      check(gpu.launch(gpu.graph, gpu.stream) || gpu.wait(gpu.stream), "The GPU failed.");
    else
      check(fa_sequences(&p) != FA_OK, fa_last_error());
    for (int b = 0; b < BATCH; b++) {
      memcpy(k[b][lengths[b]], new_k[b], sizeof new_k[b]);
      memcpy(v[b][lengths[b]], new_v[b], sizeof new_v[b]);
      lengths[b]++;
    }
  }
  if (gpu.on)
    check(gpu.download(o, (size_t)p.o.data, sizeof o), "A copy failed.");
  else
    memcpy(o, p.o.data, sizeof o);

  char plan[1000];
  check(fa_sequences_describe(&p, plan, sizeof plan) != FA_OK, fa_last_error());
  printf("%s\n", plan);
  int status = 0;
  for (int b = 0; b < BATCH; b++) {
    double error = difference(b, lengths[b]);
    printf("sequence %d: %d keys, %.4f off the definition at most\n", b, lengths[b], error);
    if (!(error < 0.01)) status = 1;
  }
  return status;
}
