/* The limits of a cuda device in a build without CUDA, which never opens one. */
#include "tests/bench_limits.h"

const struct bench_meter_type bench_meter_cuda = { .backend = "cuda" };
