/*
 * What a device could do at best, measured in the same run as the forward pass: by these limits it is judged.
 */
#ifndef TESTS_BENCH_LIMITS_H
#define TESTS_BENCH_LIMITS_H

#include <stddef.h>

#include "model/device.h"

struct bench_limits {
	double matmul_gflops;  /* operations per second from registers alone, in the number format of the products */
	double bytes_per_s;    /* reading memory */
	double matmul_only_ms; /* the model's matrix products for `rows` rows alone, through the device's own library */
};

/*
 * Measuring takes turns with the forward pass: a meter is made once, runs a few times, and keeps the best of each.
 * threads is how many the device uses (CPU).
 */
struct bench_meter;

struct bench_meter_type {
	const char *backend; /* "cpu", "cuda" */
	int (*new)(const struct device *device, size_t rows, size_t threads, struct bench_meter **ret_meter,
		   struct error *err);
	int (*run)(struct bench_meter *meter, struct bench_limits *limits, struct error *err);
	void (*free)(struct bench_meter *meter); /* NULL is fine */
};

extern const struct bench_meter_type bench_meter_cpu; /* tests/bench_limits_cpu.c */

#endif
