/*
 * Control requests that are answered when something is on disk: reset, snapshot.
 */
#ifndef DAEMON_DURABLE_H
#define DAEMON_DURABLE_H

#include "daemon/requests.h"

/*
 * Commands as those of requests.h:
 *
 *	reset {stream}            begin a new epoch with a zero cache; answer {epoch} when that is on disk, if states
 *	                          are kept.  A stream whose states are damaged is forgotten: its epochs begin at 0
 *	                          again
 *	snapshot {stream?}        save what has changed, of one stream or all, and answer when it is on disk: all rows
 *	                          that were accepted before
 */
int durable_reset(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err);
int durable_snapshot(struct server *server, const struct asked *asked, struct control_writer *answer,
		     struct error *err);

/* Go on with one that waits: it may be gone afterwards. */
void durable_go_on(struct server *server, struct request *request);

/* A task could not be done with the states of the stream with this key: requests that wait for that are refused. */
void durable_failed(struct server *server, enum store_task task, const char key[HASH_TEXT], const struct error *error);

#endif
