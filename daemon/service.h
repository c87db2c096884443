/*
 * The daemon as a service: when it is ready, how it is, and that it lives.
 *
 * The watchdog is patted for progress, not for being awake: a batch that does not finish within the watchdog's time
 * ends the pats.  A daemon with nothing to do is patted.
 */
#ifndef DAEMON_SERVICE_H
#define DAEMON_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "model/error.h"

struct server;
struct service_loader;

struct service {
	struct service_loader *loader; /* NULL: not loading */
	bool managed;        /* somebody listens */
	bool stuck;          /* the worker is, and it was said */
	int64_t watchdog_ms; /* 0: no watchdog */
	int64_t pat_ms, status_ms; /* when the next one is due */
	int64_t since_ms;    /* the figures of the last status: of then, */
	uint64_t rows_in, rows_out, batches;
	double batch_rows;
	char status[256];    /* as it was sent last */
};

/* The daemon begins to load, in this thread: as long as it makes progress, more time is asked for. */
int service_load(struct service *service, struct error *err);

/* Everything is warm and bound; or a reload is over. */
void service_ready(struct server *server);
void service_reloading(struct server *server); /* service_ready follows */

/* The daemon stops, and may take until server->deadline_ms for it. */
void service_stopping(struct server *server);

/* Pat the watchdog and say how things are, if it is time.  Returns when to call again: monotonic milliseconds. */
int64_t service_turn(struct server *server);

void service_free(struct service *service);

#endif
