/*
 * What the loop owns, and the steps of the straight line in the order in which a window takes them:
 *
 *	ingest.c   receive, decode and check, find the stream, place the rows
 *	blocks.c   what their rows and hidden states lie in
 *	batch.c    full windows join a batch; a worker runs it; its streams move on
 *	publish.c  hidden states, events, acks and refusals go out
 *	stream.c   the lives of streams: begin, flush, end, make way for the next
 *	lanes.c    the devices, each with its worker and its streams
 *	states.h   streams to disk and back
 *	commands.c the control socket
 *	service.h  what systemd is told
 *	reload.h   the configuration again, while running
 *	security.h who is let in, and what each may do
 *	limits.h   how much each may have
 *	pages.h    metrics, health and a page for people over HTTP
 *	loop.c     waits for sockets, worker, signals and timers, and calls the above
 *
 * All of it runs on one thread; nothing here is locked.
 */
#ifndef DAEMON_SERVER_H
#define DAEMON_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/config.h"
#include "daemon/http.h"
#include "daemon/limits.h"
#include "daemon/list.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/pool.h"
#include "daemon/security.h"
#include "daemon/service.h"
#include "daemon/states.h"
#include "daemon/stream.h"
#include "daemon/table.h"
#include "daemon/worker.h"
#include "model/device.h"
#include "protocol/endpoint.h"
#include "protocol/message.h"
#include "protocol/refusal.h"

#define TURN_NS 200000u /* what is costly, or many, holds up those whose windows are ready no longer */

/* What a stream puts into a batch. */
struct entry {
	struct stream *stream;
	struct hidden *hidden; /* one a window, linked */
	size_t rows;
};

/* A batch with all that it needs; a lane has as many as its device takes, and reuses them. */
struct server_job {
	struct job job;
	struct lane *lane;
	struct segment *segments; /* [max_segments] */
	struct window *windows;   /* [max_windows] */
	struct entry *entries;    /* [max_segments] */
	size_t n_entries;
	bool busy;
};

/* A device, its worker, and the streams whose caches it holds: its batches are formed of these. */
struct lane {
	struct device *device;
	struct worker *worker;
	struct server_job jobs[2];
	size_t jobs_busy;
	unsigned failures; /* batches failed in a row; */
	int64_t rests_ms;  /* until then none is tried again */
	struct list ready; /* streams that have something for a batch */
	size_t streams;    /* lives that have their cache here */
};

/* Counters since the start. */
struct stats {
	uint64_t messages_in, rows_in, rows_out, windows_in, windows, windows_out, batches, failed_batches;
	uint64_t duplicate_rows, gaps, drops, stalls, credit_stalls;
	uint64_t refused[REFUSAL_COUNT];
};

enum server_phase { SERVER_SERVING, SERVER_DRAINING, SERVER_STOPPING };

struct server {
	struct config *config; /* only reload.c changes it */
	const struct config_source *source;
	struct model *model;
	struct lane *lanes;   /* [n_lanes] in the order of the configuration */
	size_t n_lanes;
	int worker_fd;        /* can be read when a worker has finished something */
	struct endpoint_context *context;
	struct endpoint *ingest, *subscribe, *publish, *control; /* ingest, subscribe: NULL without an address */
	struct security security;
	struct endpoint_message message; /* the one being handled */
	size_t itemsize; /* bytes of one number of a hidden state */

	struct table streams; /* latest life by id */
	struct table peers;   /* of the ingest socket that feed streams, by identity */
	struct peer publishers; /* all that is subscribed to */
	struct accounts accounts; /* of keys */
	struct list dirty;    /* owe their feeder an ack, */
	struct list owed;     /* and these do as well, but it had no room */
	struct list untold;   /* refusals for which their peers had no room: of publish.c */
	size_t n_untold;
	struct list stalled;  /* wait for room in their feeder's queue */
	struct list unflushed; /* have unfinished rows, oldest first, if streams.flush_after is set */
	struct list idle;     /* all live ones, longest since they were active, or found unable to leave, first */
	struct list unsaved;  /* changed since they were saved, longest first */
	struct list loading;  /* wait for a slot */
	struct list on_hold;  /* are kept out of batches until their states are taken */
	struct pool *blocks, *hiddens;
	float *scratch;       /* [hidden_size] */

	/* States: daemon/states.h. */
	struct store *store;  /* NULL: they are not kept */
	struct table saved;   /* by key */
	uint64_t last_number; /* of the newest generation of all streams */
	struct slot slots[STATE_SLOTS];
	int64_t slot_ms;      /* when one was last free */
	struct table waiters; /* by id: */
	struct list waiting;  /* streams for which there is no room yet, first come first served */
	size_t held_bytes;
	struct request *requests; /* that wait: daemon/requests.h */
	size_t n_requests;
	int64_t save_all_ms;   /* what had changed by then is saved without waiting for the interval */
	struct list unmarked;  /* saved streams, closed or forgotten, whose files are to be marked or removed, */
	struct list failed_marks; /* and those where that has failed: to be tried again; both oldest first */
	struct saved *marking; /* what the store is at, NULL: nothing, */
	struct store_job mark; /* with this */
	int64_t marking_ms;    /* since then */
	struct list silent;    /* streams that wait for a mark or a removal before they say more */
	uint64_t marks_begun;  /* in all, since the start */
	int64_t retry_marks_ms; /* none of those that failed is tried before */
	int64_t retry_disk_ms; /* nothing is saved before: the last attempt failed */
	struct log_tap disk_errors;
	struct state_stats state_stats;

	enum server_phase phase;
	uint64_t now_ns;      /* monotonic, of this turn of the loop, */
	int64_t now_ms;       /* the same in milliseconds */
	int64_t deadline_ms;  /* when stopping: give up then */
	bool drained;         /* all that came to ingest or subscribe is taken in */
	int64_t sweep_ms;     /* when connections are looked at again: daemon/limits.h */
	int64_t retry_ms;     /* when stalled streams and owed acks are tried again */
	uint64_t started_ns;
	bool failed;          /* stop and exit nonzero */
	int signal_fd;
	struct service service;
	struct http *http;    /* NULL: metrics.listen is empty */
	int64_t http_due_ms;  /* when it has something to do */
	struct log_tap refusals, drops, lost_refusals, shortages;
	struct stats stats;
	struct metrics metrics;
};

/* --- loop.c --- */

/* Build everything; addresses are bound and the device is warm when it returns.  Free with server_free, in any case. */
int server_open(struct server *server, struct config *config, const struct config_source *source, struct error *err);
void server_free(struct server *server);

/* Serve until SIGTERM, SIGINT or a lost device; SIGHUP reloads.  0 if all that was accepted was published. */
int server_run(struct server *server, struct error *err);

/* Stop taking input; with stop, also leave once all that was accepted is published. */
void server_drain(struct server *server, bool stop);

/* --- ingest.c --- */

/* Receive and handle messages for a while.  Errors are the socket's own; peers' mistakes are answered. */
int ingest_receive(struct server *server, struct endpoint *endpoint, struct error *err);

/* Handle one message, received now or held before. */
void ingest_message(struct server *server, bool router, const struct endpoint_message *message);

/* Handle the messages that wait for room in memory, as far as there is some. */
void ingest_waiting(struct server *server);

/* Handle held messages, in order. */
void ingest_held(struct server *server, struct held_list *list);

/*
 * Are publishers to be read?  They cannot be refused, so beyond the credit they wait in their sockets; but not when
 * nothing can be computed, or rows of many unfinished windows would block for ever those that complete them.
 */
bool ingest_wants_more(const struct server *server);

/* --- stream.c --- */

/* The latest life of an id; NULL if there is none or it takes no more rows. */
struct stream *stream_find(struct server *server, const void *id, size_t id_size);

/*
 * A new life, detached: nothing knows of it until stream_install.  Errors: REFUSED_TOO_MANY_STREAMS, ERR_MEMORY or the
 * device's.  A detached life may be freed with stream_free.
 */
int stream_new(struct server *server, const void *id, size_t id_size, uint64_t epoch, struct peer *feeder,
	       struct stream **ret_stream, struct error *err);
void stream_free(struct server *server, struct stream *stream);

/* A block behind the stream's last one, for the rows of its next window.  Errors: ERR_MEMORY. */
int stream_add_block(struct server *server, struct stream *stream, struct error *err);

/* Make a new life the latest of its id; the one before it, if any, is retired and flushed. */
void stream_install(struct server *server, struct stream *stream);

/* Change who feeds a stream; its outstanding rows count against the new feeder.  NULL: the feeder is gone. */
void stream_feed(struct server *server, struct stream *stream, struct peer *feeder);

/* The unfinished window has rows that were not emitted: from now on streams.flush_after runs, if it does not yet. */
void stream_flush_later(struct server *server, struct stream *stream);

/* Emit the unfinished window's rows as they are now. */
void stream_flush(struct server *server, struct stream *stream);

/* Take no more rows; flush; say end and the event when all is out. */
void stream_end(struct server *server, struct stream *stream, enum message_event event);

/* The epoch after the stream's.  REFUSED_STALE_EPOCH: there is none. */
int stream_next_epoch(const struct stream *stream, uint64_t *ret_epoch, struct error *err);

/* A detached next life in a new epoch with a zero cache; consumers will get a reset event with text. */
int stream_reset(struct server *server, struct stream *stream, const char *text, struct stream **ret_stream,
		 struct error *err);

/*
 * Start the stream anew in the same epoch with a zero cache: rows come again from position 0.  What is in flight still
 * goes to the publish socket, the rest is dropped.  As with stream_reset, the new life is detached.
 */
int stream_rewind(struct server *server, struct stream *stream, struct stream **ret_stream, struct error *err);

/* The stream moved on: if it is done with all that it was to do, finish it and let the next life begin. */
void stream_settle(struct server *server, struct stream *stream);

/* A row was taken in or a window became computable: put the stream where it belongs. */
void stream_wake(struct server *server, struct stream *stream);

/* Rows of the next unit that the stream could add to a batch to which it gave taken rows already: a window or less. */
size_t stream_more(const struct server *server, const struct stream *stream, uint64_t taken);

/* Flush and close what is due by streams.flush_after and streams.idle_timeout; the next time there may be something. */
int64_t stream_timers(struct server *server);

/* The peer with this identity, found or made, and held until peer_release; NULL without memory. */
struct peer *peer_get(struct server *server, const void *identity, size_t identity_size);
void peer_release(struct server *server, struct peer *peer); /* gone with the last hold; NULL is fine */

/* --- blocks.c --- */

/* What the rows and the hidden states of a window lie in.  Errors: ERR_MEMORY. */
int blocks_open(struct server *server, struct error *err);
void blocks_free(struct server *server);          /* all must be back */
size_t blocks_bytes(const struct server *server); /* held from the system */

/* For the rows of a window; NULL without memory. */
struct block *block_take(struct server *server);
void block_give(struct server *server, struct block *block);

/* For the hidden states of so many rows of a window, the first of them at `first` in the life; NULL without memory. */
struct hidden *hidden_take(struct server *server, uint64_t first, size_t rows);
void hidden_release(struct hidden *hidden); /* any thread */

/* --- batch.c --- */

/*
 * While a device has room and streams of its lane are ready: form a batch and hand it to the worker.  Returns when to
 * call it again if nothing else happens: without memory for hidden states they wait.
 */
int64_t batch_start(struct server *server);

/* Collect finished batches and move their streams on.  Errors: the device is lost. */
int batch_finish(struct server *server, struct error *err);

/* --- lanes.c --- */

/* Open the devices of the configuration, warm, and start their workers.  Errors: a device's, or that they differ. */
int lanes_open(struct server *server, struct error *err);
void lanes_stop(struct server *server); /* the workers, once what they have is done */
void lanes_free(struct server *server); /* the rest, in any case */

/* Where the next life is to have its cache. */
struct lane *lanes_choose(struct server *server);

bool lanes_idle(const struct server *server);            /* nothing is being computed, and nothing could be */
size_t lanes_batch_rows(const struct server *server);    /* most rows of a batch */
uint64_t lanes_busy_ns(const struct server *server);     /* worker_busy_ns, summed */
uint64_t lanes_stuck_ns(const struct server *server);    /* worker_stuck_ns of the worst */

/* --- publish.c --- */

/*
 * Send what is in the stream's outbox; stops early, and puts the stream on server->stalled, if its feeder is full, or on
 * server->silent, if the disk is to know something first.
 */
void publish_hidden(struct server *server, struct stream *stream);
void publish_event(struct server *server, const struct stream *stream, enum message_event event, uint64_t pos,
		   const char *text);

/* Send the acks owed; those whose peer is full stay owed. */
void publish_acks(struct server *server);
bool publish_ack(struct server *server, struct stream *stream); /* one; false if its peer is full */

/* Answer a message with an error (peers that cannot be answered: count and log). */
void publish_refusal(struct server *server, const void *identity, size_t identity_size, const void *id, size_t id_size,
		     const struct message *refusal);
void publish_untold(struct server *server); /* refusals again that found no room */
void publish_free(struct server *server);

/* --- commands.c --- */

int commands_receive(struct server *server, struct error *err);

/*
 * The answer of a command that waits for nothing, with a prefix (NULL: none), as the control socket would give it to
 * this user; free with free.  NULL: out of memory.
 */
void *commands_answer(struct server *server, unsigned user, const char *cmd, const char *prefix, size_t *ret_size);

#endif
