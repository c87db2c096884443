/*
 * NumPy's .npy files: read through a mapping, written in order.
 */
#ifndef DAEMON_NPY_H
#define DAEMON_NPY_H

#include <stddef.h>
#include <stdio.h>

#include "model/dtype.h"
#include "model/error.h"

/* An array of one or two dimensions in C order, little-endian. */
struct npy {
	enum dtype dtype;
	size_t rows;
	size_t columns;   /* 0: one dimension */
	const void *data; /* [rows, columns or 1], unaligned */
	void *map;
	size_t map_size;
	void *converted;  /* int64 token ids as uint32 */
};

/*
 * Open a file of float32, float16, uint8, uint16, int32, uint32, or of int64 that fit uint32.  Errors name the file and
 * what was expected.  Close with npy_close.
 */
int npy_open(const char *path, struct npy *ret_npy, struct error *err);
void npy_close(struct npy *npy);

/*
 * Write a float32 array [rows, columns]: npy_create makes FILE.part, npy_append adds rows, npy_commit gives the file
 * its name once all rows are there; npy_abandon removes what there is.
 */
struct npy_writer {
	FILE *file;
	char path[4096], part[4096 + 8];
	size_t columns;
};

int npy_create(struct npy_writer *writer, const char *path, size_t rows, size_t columns, struct error *err);
int npy_append(struct npy_writer *writer, const float *data, size_t rows, struct error *err);
int npy_commit(struct npy_writer *writer, struct error *err);
void npy_abandon(struct npy_writer *writer); /* after npy_commit: does nothing */

#endif
