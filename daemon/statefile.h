/*
 * The state of a stream as a safetensors file: PROTOCOL.md, "State files".  Readable by any tool, verified before use.
 */
#ifndef DAEMON_STATEFILE_H
#define DAEMON_STATEFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/error.h"
#include "model/hash.h"
#include "model/shape.h"
#include "protocol/message.h"

struct state {
	size_t stream_size;
	unsigned char stream[MESSAGE_STREAM_MAX];
	uint64_t epoch;
	uint64_t position; /* of the first row that the cache has not seen */
	uint64_t emitted;  /* hidden states before it count as emitted */
	uint64_t source_epoch, source_origin; /* the producer's own numbering after a gap reset */
	bool reply;        /* hidden states go to the peer that feeds the stream, */
	uint64_t got;      /* which has all of them before this position */
	uint64_t window;
	char model[HASH_TEXT];
	char device[96];   /* that made it */
	uint64_t pending_rows;
	float *cache;      /* [shape_cache_floats], canonical layout */
	float *pending;    /* [pending_rows, hidden_size] of up to window - 1: the rows of the unfinished window, */
	uint64_t *positions; /* [pending_rows] and theirs, the first of them position */
};

/* A state whose buffers fit any stream of this shape and window.  Free with state_free. */
int state_new(const struct shape *shape, size_t window, struct state **ret_state, struct error *err);
void state_free(struct state *state); /* NULL is fine */

/* The position behind the last row that the state knows of. */
uint64_t state_next(const struct state *state);

/*
 * Write a state to folder/name so that it is there whole or not at all, also after a power cut: temporary file,
 * fdatasync, rename, fsync of the folder.  On failure nothing of that name has changed.  Errors: ERR_SYSTEM.
 */
int statefile_write(int folder, const char *name, const struct shape *shape, const struct state *state,
		    struct error *err);

/* The same bytes in memory: free *ret_bytes with free. */
int statefile_encode(const struct shape *shape, const struct state *state, void **ret_bytes, size_t *ret_size,
		     struct error *err);

/*
 * Read and verify a state for a model of this shape, fingerprint and window into state (its buffers are the caller's).
 * ERR_FORMAT: damaged or missing; ERR_UNSUPPORTED: sound, but of another model, window or layout, and the text says
 * which; ERR_SYSTEM, ERR_MEMORY: it may be read another time.  name stands in errors.  sealed: it must have a checksum,
 * as files have; what somebody made by hand may lack it, and must be finite.
 */
int statefile_read(int folder, const char *name, const struct shape *shape, const char *fingerprint, size_t window,
		   struct state *state, struct error *err);
int statefile_decode(const void *bytes, size_t size, const char *name, bool sealed, const struct shape *shape,
		     const char *fingerprint, size_t window, struct state *state, struct error *err);

#endif
