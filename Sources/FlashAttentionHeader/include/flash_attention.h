/*
 * FlashAttention for Swift, for C: exact attention on NVIDIA GPUs and on the CPU.
 *
 *     fa_forward_params p = { .size = sizeof p, .device = FA_CPU, .type = FA_F32, .batch = 1, ... };
 *     if (fa_forward(&p) != FA_OK) fprintf(stderr, "%s\n", fa_last_error());
 *
 * Every operation has one struct of parameters. Set it to zero, then `size`, then what you need: what is zero is the default,
 * and a field that a later version adds will be too. Nothing is kept of a struct after a call, and nothing must be freed.
 *
 * Memory is borrowed. With FA_CPU every pointer is one of the host, and the call returns when the work is done. With FA_GPU every
 * pointer is one of that GPU's memory, the work is put into `stream` and the call returns at once, without allocating or
 * waiting; it can be captured in a CUDA graph, which must not run beside itself. (The first call for a shape compiles its
 * kernel and may allocate 64 KB for counters, also during a capture: fa_..._prepare does so beforehand. Where fa_forward divides the
 * keys over blocks, because rows or heads are few, the first such call of a thread in a stream, and in each capture, allocates a
 * workspace of some megabytes and waits for it; it stays as long as the process runs.)
 * The library works in the GPU's primary context, as the CUDA runtime and PyTorch do, and leaves the caller's current context as
 * it was.
 *
 * All functions may be called from any number of threads.
 */
#ifndef FLASH_ATTENTION_H
#define FLASH_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What came of a call. */
typedef int32_t fa_status;
enum {
  FA_OK = 0,
  FA_INVALID = 1,     /* something in the parameters cannot be; fa_last_error says what, and what is possible */
  FA_UNAVAILABLE = 2, /* the device cannot be used */
  FA_FAILED = 3,      /* the device failed at work */
  FA_NO_MEMORY = 4,   /* memory ran out, the device's or the host's: free some, or ask for less */
  FA_LOST = 5         /* the device's context is lost, or is that of the process this one was forked from: start anew */
};

/* Types of elements. */
enum {
  FA_F32 = 0,  /* on the CPU alone */
  FA_F16 = 1,
  FA_BF16 = 2,
  FA_E4M3 = 3  /* for queries and caches of fa_sequences */
};

/* Devices. */
enum {
  FA_CPU = 0,
  FA_GPU = 1
};

/* Which keys a query sees. The last query stands on the last key. */
enum {
  FA_MASK_NONE = 0,
  FA_MASK_CAUSAL = 1,
  FA_MASK_WINDOW = 2   /* window_left keys before its own and window_right after it; below 0 is unlimited */
};

/* Ranges of keys that queries see, beside what the mask says or within it. Keys are counted from a sequence's first. */
enum {
  FA_RANGES_NONE = 0,
  FA_RANGES_GIVEN = 1,     /* each query its own, one or two, of which it sees the union, as far as the mask lets it */
  FA_RANGES_PREFIX = 2,    /* all see the first keys of their sequence, of each so many, beside what the mask lets them see */
  FA_RANGES_FIRST_KEYS = 3 /* the same with one number for all; none behind the last key that the mask lets a query see */
};

/* In which order the parts of a gradient are added up. */
enum {
  FA_ORDER_FIXED = 0, /* in one and the same: gradients have the same bits in every run on a device */
  FA_ORDER_ANY = 1    /* in any, where that is faster: on a GPU, blocks of keys may add up dq in the workspace as they come */
};

/* How the keys of fa_sequences lie in memory. */
enum {
  FA_CACHE_CONTIGUOUS = 0, /* [cache_batch, cache_tokens, H_kv, D], a sequence each */
  FA_CACHE_PAGED = 1,      /* [cache_batch, cache_tokens, H_kv, D], a page each, and a table of pages */
  FA_CACHE_PACKED = 2      /* [cache_tokens, H_kv, D], a sequence behind the other, and where each begins */
};

/* A tensor [batch, tokens, heads, dimension]: elements lie side by side along the dimension. On a GPU, address and strides are
 * multiples of 16 bytes. */
typedef struct fa_tensor {
  void *data;
  int64_t batch_stride; /* in elements */
  int64_t token_stride;
  int64_t head_stride;
} fa_tensor;

/* Of keys_per_split: more keys than any sequence has, so that each is computed in one part. */
enum { FA_ALL_KEYS = 0x7fffffff };

/* What operations have in common: which keys are seen, and what is done with scores. */
typedef struct fa_scores {
  int32_t mask;
  int32_t scale_is_given; /* otherwise 1/sqrt(dimension) */
  int64_t window_left, window_right;
  int64_t chunk;          /* keys of a chunk, of which a query sees only its own; 0 for none */
  double scale;
  double softcap;         /* scores become softcap * tanh(score / softcap); 0 for none */
  const void *sinks;      /* [query_heads], in the memory of the device: attention sinks, logits that every query sees beside its keys,
                           * unscaled, and that have no value: they are in the denominator alone. Finite or -inf; NULL for none.
                           * Log-sum-exps have them in; those of partial results (leaves_parts) must not, and fa_combine takes them */
  int32_t sink_type;      /* FA_F32, FA_F16 or FA_BF16 */
  int32_t ranges;         /* FA_RANGES_... */
  const int32_t *key_ranges; /* FA_RANGES_GIVEN: [batch, queries, ranges_of_query, 2], half-open, or [1, queries, ...] where they are
                           * shared; of packed queries [total_queries, ranges_of_query, 2]. FA_RANGES_PREFIX: [batch]. In the memory of
                           * the device, given ranges on a GPU at a multiple of 8 bytes. Whatever the numbers are, no key is seen that
                           * is not there */
  int32_t ranges_of_query;   /* FA_RANGES_GIVEN: 1 or 2 */
  int32_t ranges_are_shared; /* FA_RANGES_GIVEN: 1 where all sequences have the same; packed queries have one list */
  int64_t first_keys;        /* FA_RANGES_FIRST_KEYS */
} fa_scores;

/* softmax(mask(scale Q K^T)) V. */
typedef struct fa_forward_params {
  size_t size;       /* sizeof(fa_forward_params) */
  int32_t device;
  int32_t ordinal;   /* which GPU */
  int32_t type;      /* of all tensors */
  int32_t reserved;  /* 0 */
  int64_t batch, queries, keys;
  int64_t query_heads, key_value_heads; /* query head h reads key/value head h / (query_heads / key_value_heads) */
  int64_t dimension;
  int64_t value_dimension;              /* 0 for dimension */
  fa_scores scores;
  fa_tensor q, k, v, o;
  float *log_sum_exp; /* [batch, query_heads, queries], natural logarithm; NULL where it is not needed */
  void *stream;       /* CUstream or cudaStream_t; NULL for the default stream */
} fa_forward_params;

/* Attention of sequences with lengths of their own: over a cache, where keys may be appended first, or over packed keys. With
 * `queries` 0, keys are appended and nothing is computed. All lists are int32, in the memory of the device.
 *
 * On the CPU, numbers in lists that lead out of a tensor are FA_INVALID. On a GPU nobody waits to look at them, and no number makes
 * a call touch memory that it was not given: lengths, starts, counts and paddings are held within their tensors; zeros stand for keys
 * and values on pages, or in sequences of the cache, that do not exist, and nothing is appended there. Other sequences' results are
 * right, unless the numbers make sequences share rows; how their keys are divided, and so their last bits, may change with any
 * length, unless keys_per_split says how.
 *
 * With leaves_parts, the results of the splits stay apart, for fa_combine: there are S = ceil(keys that a sequence can have /
 * keys_per_split) of each row, o is f32 [S * batch, queries, query_heads, value_dimension], a part behind the other, and
 * log_sum_exp, which must be given, [S, batch, query_heads, queries], -inf of parts without a key for a query, whose rows of o may
 * hold anything. */
typedef struct fa_sequences_params {
  size_t size; /* sizeof(fa_sequences_params) */
  int32_t device;
  int32_t ordinal;
  int32_t type;       /* of o and of new keys; what is computed in */
  int32_t query_type; /* type, or FA_E4M3 */
  int32_t cache_type; /* type, or FA_E4M3 */
  int32_t cache;      /* FA_CACHE_... */
  int64_t batch;
  int64_t queries;       /* of each sequence; where they are packed, of the longest */
  int64_t total_queries; /* where query_starts is given */
  int64_t query_heads, key_value_heads;
  int64_t dimension;
  int64_t value_dimension; /* 0 for dimension */
  int64_t cache_batch, cache_tokens;
  int64_t pages_per_sequence; /* paged */
  int64_t longest;            /* packed: the most keys of a sequence */
  int64_t new_keys;           /* of each sequence; where they are packed, of the longest */
  int64_t total_new_keys;     /* where new_key_starts is given */
  int64_t rotary_dimension;   /* elements of new keys and queries that are turned by their positions; 0 for none */
  int64_t rotary_positions;   /* rows of the tables */
  int32_t rotary_interleaved; /* neighbours are pairs; otherwise j and j + rotary_dimension / 2 */
  int32_t leaves_parts;       /* 0, or 1: splits are not put together; queries then are not packed, and keys_per_split is not 0 */
  int64_t keys_per_split;     /* keys computed together, so that a result does not depend on its batch (with packed queries,
                               * but for `queries`, which all calls then have alike); 0 for what is fast,
                               * FA_ALL_KEYS for one part whatever the length */
  fa_scores scores;
  fa_tensor q, k, v, o;
  fa_tensor new_k, new_v;     /* appended; data NULL for nothing */
  float *log_sum_exp;         /* [batch, query_heads, queries]; packed [query_heads, total_queries]; or NULL */
  const int32_t *lengths;     /* [batch]: rows of each cache that hold keys before this call; new keys go behind them, and the list
                               * stays as it is: the caller counts on. May be NULL where keys are packed */
  const int32_t *batch_index; /* [batch]: which sequence of the cache; NULL for its own number */
  const int32_t *left_padding; /* [batch]: the row of each first key; NULL for 0 */
  const int32_t *page_table;   /* [batch, pages_per_sequence] */
  const int32_t *query_starts; /* [batch + 1]: packed queries */
  const int32_t *query_counts; /* [batch]: packed queries that count; NULL for all */
  const int32_t *key_starts;   /* [batch + 1]: packed keys */
  const int32_t *new_key_starts; /* [batch + 1]: packed new keys */
  const int32_t *positions;      /* [batch]: the position of each first new key; NULL for its length */
  const float *query_scales, *key_scales, *value_scales; /* [batch, key_value_heads]: of FA_E4M3; NULL for 1 */
  const void *cosines, *sines; /* [rotary_positions, rotary_dimension / 2], contiguous, of `type` */
  void *workspace;             /* GPU: fa_sequences_workspace bytes that were zero before its first call; one for each stream */
  size_t workspace_size;
  void *stream;
  void *counters;              /* GPU: of fa_counters; the workspace then need not be zero. NULL, and a size of 0, for its first bytes */
  size_t counters_size;
} fa_sequences_params;

/* Gradients of attention, from what its forward pass left: dq, dk and dv of the sum of o * d_o and log_sum_exp * d_log_sum_exp, with
 * the same bits in every run. Of whole tensors, or of sequences packed behind each other, queries as well as keys; caches have none.
 * Every element of the gradients is written: zeros where a query sees no key, where no query sees a key, and in rows of no sequence. Lists
 * are int32 in the memory of the device; what is wrong in them is FA_INVALID on the CPU, and on a GPU makes no call touch memory that it
 * was not given. */
typedef struct fa_backward_params {
  size_t size;      /* sizeof(fa_backward_params) */
  int32_t device;
  int32_t ordinal;
  int32_t type;     /* of all tensors */
  int32_t order;    /* FA_ORDER_FIXED or FA_ORDER_ANY */
  int64_t batch;
  int64_t queries, keys;             /* of each sequence; where they are packed, the most of one */
  int64_t total_queries, total_keys; /* where query_starts and key_starts are given */
  int64_t query_heads, key_value_heads;
  int64_t dimension;                 /* on a GPU up to 256 here, or a multiple of 64 up to 512 */
  int64_t value_dimension;           /* 0 for dimension */
  fa_scores scores;                  /* as of the forward pass */
  fa_tensor q, k, v, o, d_o;         /* packed: [tokens, heads, dimension] */
  fa_tensor dq, dk, dv;              /* data NULL where one is not wanted */
  const float *log_sum_exp;          /* of the forward pass: [batch, query_heads, queries]; packed [query_heads, total_queries] */
  const float *d_log_sum_exp;        /* the same; NULL for zeros */
  float *d_sinks;                    /* [query_heads], of scores.sinks; NULL where it is not wanted */
  const int32_t *query_starts, *key_starts; /* [batch + 1]: both, or neither */
  const int32_t *query_counts, *key_counts; /* [batch]: how many of each packed sequence count; NULL for all */
  void *workspace;                   /* GPU: fa_backward_workspace bytes that may hold anything; one for each stream. NULL, and a size of
                                      * 0, for some of the library's own, of the calling thread and the stream, which stay */
  size_t workspace_size;
  void *stream;
} fa_backward_params;

/* Results over parts of the keys, put together. */
typedef struct fa_combine_params {
  size_t size; /* sizeof(fa_combine_params) */
  int32_t device;
  int32_t ordinal;
  int32_t type; /* of o */
  int32_t reserved;  /* 0 */
  int64_t parts, batch, queries, heads, dimension;
  fa_tensor partials;              /* f32, of the first part */
  int64_t part_stride;             /* in elements */
  const float *log_sum_exps;       /* [parts, batch, heads, queries]; -inf, or +inf, where a part has no key for a query */
  fa_tensor o;
  float *log_sum_exp;              /* [batch, heads, queries]; or NULL */
  const void *sinks;               /* [heads], as of fa_scores; NULL for none */
  int32_t sink_type;
  int32_t reserved_2;              /* 0 */
  void *stream;
} fa_combine_params;

/* "1.0.0". */
const char *fa_version(void);

/* Why the calling thread's last call did not succeed, as a sentence; "" where it did. Always the same address in a thread, until the
 * thread ends, so that it may also stand beside a call in one list of arguments. */
const char *fa_last_error(void);

/* Whether a GPU can be used. */
fa_status fa_gpu_check(int32_t ordinal);

/* Has calls of this process use other vector instructions on the CPU from now on, to measure them: "amx", "avx512bf16", "avx512",
 * "avx2", "neonbf16", "neon" or "portable"; NULL for the best. FA_INVALID where this machine has none of that name. */
fa_status fa_choose_vectors(const char *name);

/* Has calls of the calling thread use at most so many threads of the CPU from now on, its own among them; 0 for one per processor,
 * which is so in every thread that never said otherwise. Results may differ in their last bits between limits. */
fa_status fa_limit_threads(int32_t count);

/* Calls body(data) on up to `threads` threads at once, the calling one among them, and returns when all have returned; `flags` is 0. Such
 * a function is GOMP_parallel, of GNU's OpenMP. */
typedef void (*fa_parallel)(void (*body)(void *data), void *data, unsigned threads, unsigned flags);

/* Has calls of this process compute on the CPU by threads of the caller's from now on, where more than one is worth it; NULL for the library's
 * own. Those sleep where there is nothing to do, and are at work some 35 us after a call begins: a pool whose threads wait awake computes
 * small problems faster. It is asked for as many threads as fa_limit_threads says each time, so that its team stays the same; those with
 * nothing to do return at once. What `parallel` leaves undone, the calling thread does. */
fa_status fa_use_threads(fa_parallel parallel);

fa_status fa_forward(const fa_forward_params *params);
fa_status fa_sequences(const fa_sequences_params *params);
fa_status fa_combine(const fa_combine_params *params);
fa_status fa_backward(const fa_backward_params *params);

/* Does what the first call would otherwise do; tensors and lists need not be there, but say by not being NULL that they will be. */
fa_status fa_forward_prepare(const fa_forward_params *params);
fa_status fa_sequences_prepare(const fa_sequences_params *params);
fa_status fa_backward_prepare(const fa_backward_params *params);

/* The workspace that calls with such parameters need; 0 on the CPU. */
fa_status fa_sequences_workspace(const fa_sequences_params *params, size_t *byte_count);
fa_status fa_backward_workspace(const fa_backward_params *params, size_t *byte_count);

/* Of that workspace, the bytes that must be zero before the first call: counters, which may be those of fa_counters instead. Where
 * `is_shared` (may be NULL) becomes 1, calls of one thread in one stream may share a workspace with others of which this is so, as
 * large as the largest of them needs; otherwise each kind of call needs its own. */
fa_status fa_sequences_counters(const fa_sequences_params *params, size_t *byte_count, int32_t *is_shared);

/* Counters for fa_sequences: `size` bytes of GPU memory, as many as fa_sequences_counters says or more, that are zero, and zero again
 * after every call. While `stream` is capturing a graph they belong to that graph, all
 * of whose calls in this stream share them; otherwise to the calling thread and the stream. They stay as long as the process runs.
 * This may allocate and wait, during a capture too, and puts nothing into the graph. */
fa_status fa_counters(int32_t ordinal, void *stream, size_t size, void **counters);

/* Which path would run and why, in a few lines, as far as they fit. */
fa_status fa_forward_describe(const fa_forward_params *params, char *text, size_t size);
fa_status fa_sequences_describe(const fa_sequences_params *params, char *text, size_t size);
fa_status fa_backward_describe(const fa_backward_params *params, char *text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
