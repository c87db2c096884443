/*
 * Control requests that are answered later: export, import, fork; and in durable.h reset and snapshot.
 */
#ifndef DAEMON_REQUESTS_H
#define DAEMON_REQUESTS_H

#include "daemon/states.h"
#include "protocol/control.h"

#define REQUEST_WAITS 1 /* the answer will come when the work is done */

/* A stream id of 1 to MESSAGE_STREAM_MAX bytes; NULL and 0: none. */
struct stream_id {
	const char *bytes;
	size_t size;
};

/* A request, and the streams that it names. */
struct asked {
	struct control control;
	struct stream_id stream, to;
};

/*
 * Commands as in daemon/commands.c: they return REQUEST_WAITS, or a refusal.
 *
 *	export {stream}           answer {epoch, position, pending, state}, state being the bytes of a state file; with
 *	                          damaged, why it is not the newest, if that is so
 *	fork {stream, to}         make the stream `to` of a copy of `stream`; answer {epoch, next}
 *	import {stream?, state}   make a stream of the bytes of a state file, under another id if one is given;
 *	                          answer {epoch, next}
 *
 * A stream that exists already goes on from the state in its next epoch.
 */
int requests_export(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err);
int requests_fork(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err);
int requests_import(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err);

/* Go on with the requests that wait. */
void requests_go_on(struct server *server);

/* When the daemon ends and no worker is left: refuse those that still wait. */
void requests_free(struct server *server);

/* A slot at work for a request: its copy out of a cache is over, its file is read, its copy into a cache is over. */
void requests_copied(struct server *server, struct slot *slot);
void requests_read(struct server *server, struct slot *slot);
void requests_given(struct server *server, struct slot *slot);

#endif
