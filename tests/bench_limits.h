/*
 * What a device could do at best, by which its forward pass is judged.  Measuring takes turns with the forward pass: a
 * meter is made once for a device and runs a few times.
 */
#ifndef TESTS_BENCH_LIMITS_H
#define TESTS_BENCH_LIMITS_H

#include <stddef.h>

#include "model/device.h"

struct bench_limits {
	double matmul_gflops;  /* cpu: operations per second from registers alone; cuda: of the products alone */
	double bytes_per_s;    /* cpu: reading memory; cuda: copying it, read and written */
	double matmul_only_ms; /* the model's matrix products for one forward pass, through the device's own library */
	double model_widths_ms; /* cuda: the same of in_proj's own width, to 8 and not to 64; else 0 */
	double mixer_ms;       /* cuda: what one layer does between its products, alone; else 0 */
	size_t weight_bytes;   /* of the packed weights */
	size_t threads;        /* that the device computes on; 0 where that means nothing */
};

struct bench_meter;

struct bench_meter_type {
	const char *backend; /* "cpu", "cuda" */

	/* A meter for forward passes of so many rows, of which the device has run one. */
	int (*open)(struct device *device, size_t rows, struct bench_meter **ret_meter, struct error *err);
	int (*run)(struct bench_meter *meter, struct bench_limits *ret_limits, struct error *err);
	void (*close)(struct bench_meter *meter);
};

extern const struct bench_meter_type bench_meter_cpu;  /* tests/bench_limits_cpu.c */
extern const struct bench_meter_type bench_meter_cuda; /* tests/bench_limits_cuda.c, or tests/bench_limits_stub.c */

/* Seconds of a clock that never jumps. */
double bench_now(void);

#endif
