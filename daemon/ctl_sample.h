/*
 * What a daemon says of itself at one time, for mamba2ctl top: two samples tell what happened between them.
 */
#ifndef DAEMON_CTL_SAMPLE_H
#define DAEMON_CTL_SAMPLE_H

#include <stddef.h>

#include "model/error.h"
#include "protocol/client.h"
#include "protocol/streamid.h"

#define SAMPLE_BUCKETS_MAX 32

struct sample_histogram {
	double le[SAMPLE_BUCKETS_MAX], count[SAMPLE_BUCKETS_MAX]; /* [n - 1], [n] */
	size_t n;
};

struct sample_stream {
	char id[STREAMID_TEXT_MAX];
	double next, done, queued, epoch;
	double rate; /* rows/s since the sample before; NaN: not known */
	char feeder[16], state[16];
};

struct sample {
	/* Counters. */
	double uptime, rows_in, rows_out, windows, batches, batch_rows, busy, credit_stalls, dropped, gaps, refused;
	double wait, compute, send; /* seconds, over all windows */
	struct sample_histogram latency;
	/* As it is now. */
	double device, host, disk, ready, stalled, peers, devices, batch_limit;
	double resident_bytes, cache_bytes, queue_bytes;
	char state[16], what[200];
	struct sample_stream *streams; /* [n_streams], by id */
	size_t n_streams;
	double matching; /* streams; not all of them may be in the answer */
};

/*
 * Ask the daemon; streams whose id begins with prefix [size].  before (NULL: none) is for rates.  1: refused, which has
 * been printed.  Free with sample_free, in any case.
 */
int sample_take(struct client *client, const void *prefix, size_t size, const struct sample *before,
		struct sample *ret_sample, struct error *err);
void sample_free(struct sample *sample);

/* The latency below which a share p of the windows published between two samples lay; NaN: there were none. */
double sample_quantile(const struct sample *now, const struct sample *before, double p);

#endif
