/*
 * What a device could do at best, by which its forward pass is judged.  Measuring takes turns with the forward pass: a
 * meter is made once for a device and runs a few times.
 */
#ifndef TESTS_BENCH_LIMITS_H
#define TESTS_BENCH_LIMITS_H

#include <stddef.h>

#include "model/device.h"

struct bench_limits {
	double matmul_gflops;  /* operations per second from registers alone, in the number format of the products */
	double bytes_per_s;    /* reading memory */
	double matmul_only_ms; /* the model's matrix products for one forward pass, through the device's own library */
	size_t weight_bytes;   /* of the packed weights */
	size_t threads;        /* that the device computes on; 0 where that means nothing */
};

struct bench_meter;

struct bench_meter_type {
	const char *backend; /* "cpu", "cuda" */

	/* A meter for forward passes of so many rows. */
	int (*open)(struct device *device, size_t rows, struct bench_meter **ret_meter, struct error *err);
	int (*run)(struct bench_meter *meter, struct bench_limits *ret_limits, struct error *err);
	void (*close)(struct bench_meter *meter);
};

extern const struct bench_meter_type bench_meter_cpu; /* tests/bench_limits_cpu.c */

/* Seconds of a clock that never jumps. */
double bench_now(void);

#endif
